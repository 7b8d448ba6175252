//! Whether a checkpoint is one of a model, by the names and shapes of its parameters.

use std::collections::BTreeMap;

use zerofold_checkpoint::Manifest;
use zerofold_configs::UnitPolicy;
use zerofold_plan::{ModelConfig, ModelUnits};

/// Names and shapes of a model's parameters, as its configuration has them. A head that is tied to the embedding is none.
#[derive(Debug)]
pub(crate) struct Parameters(BTreeMap<String, Vec<u64>>);

impl Parameters {
    /// Those of a model.
    pub(crate) fn of(model: &ModelConfig) -> Self {
        let units = ModelUnits::new(model, UnitPolicy::Blocks).units;
        let leaves = units.into_iter().flat_map(|unit| unit.leaves).flat_map(|leaf| leaf.parameters);
        let shape = |shape: Vec<usize>| shape.into_iter().map(|size| size as u64).collect();
        Parameters(leaves.map(|leaf| (leaf.name, shape(leaf.shape))).collect())
    }

    /// The first parameter, by name, that only one of the two has, or that has another shape in each; in words.
    pub(crate) fn difference(&self, manifest: &Manifest) -> Option<String> {
        let saved = manifest.units.iter().flat_map(|unit| &unit.parameters);
        let saved: BTreeMap<&str, &Vec<u64>> =
            saved.map(|parameter| (parameter.name.as_str(), &parameter.shape)).collect();
        let expected: BTreeMap<&str, &Vec<u64>> = self.0.iter().map(|(name, shape)| (name.as_str(), shape)).collect();
        let name = saved.keys().chain(expected.keys()).find(|name| saved.get(*name) != expected.get(*name))?;
        let words =
            |shape: Option<&&Vec<u64>>| shape.map_or("no such parameter".to_owned(), |shape| format!("{shape:?}"));
        let (here, there) = (words(expected.get(name)), words(saved.get(name)));
        Some(format!("{name} is {here} in the model, and {there} in the checkpoint"))
    }
}
