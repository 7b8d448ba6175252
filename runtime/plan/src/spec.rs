//! What a model tells about its parameters.

use serde::{Deserialize, Serialize};

/// Parameters that the optimizer treats alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParameterGroup {
    /// Matrices: weight decay applies.
    Decayed,
    /// Biases and norm weights: no weight decay.
    NotDecayed,
    /// Parameters of which the job says more.
    Own(OwnGroup),
    /// Not trained: sharded and gathered like the others, never changed.
    Frozen,
}

/// What a job says of parameters. Groups that open later come later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OwnGroup {
    /// After how many openings of gradual unfreezing they are trained; 0 is the start.
    pub opens: u32,
    /// What the schedule's learning rate is multiplied by.
    pub rate: Number,
    /// Their weight decay.
    pub weight_decay: Number,
}

/// A number that is not negative, by its bits, so that groups can be told apart and ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Number(u64);

impl Number {
    /// The number. A negative one is taken for 0.
    pub fn new(number: f64) -> Self {
        Number(number.max(0.0).to_bits())
    }

    /// Its value.
    pub fn get(self) -> f64 {
        f64::from_bits(self.0)
    }
}

impl ParameterGroup {
    /// Whether its parameters are trained after so many openings of gradual unfreezing.
    pub fn is_trained(self, openings: u32) -> bool {
        match self {
            ParameterGroup::Decayed | ParameterGroup::NotDecayed => true,
            ParameterGroup::Own(group) => group.opens <= openings,
            ParameterGroup::Frozen => false,
        }
    }
}

/// One parameter as the model's files name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterSpec {
    /// The name in the Hugging Face files, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// The shape in the files.
    pub shape: Vec<usize>,
}

impl ParameterSpec {
    /// A parameter of this name and shape.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        ParameterSpec { name: name.into(), shape: shape.into() }
    }

    /// How many elements it has.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }
}

/// One tensor that autograd sees: a parameter, or several stacked along dim 0 that are used in one product (q, k and v).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafSpec {
    /// The stacked parameters, in order; all dims but the first agree.
    pub parameters: Vec<ParameterSpec>,
    /// How the optimizer treats them.
    pub group: ParameterGroup,
}

impl LeafSpec {
    /// Several parameters stacked along dim 0.
    pub fn stacked(group: ParameterGroup, parameters: Vec<ParameterSpec>) -> Self {
        LeafSpec { parameters, group }
    }

    /// One parameter alone.
    pub fn single(group: ParameterGroup, parameter: ParameterSpec) -> Self {
        LeafSpec { parameters: vec![parameter], group }
    }

    /// The shape of the stacked tensor.
    pub fn shape(&self) -> Vec<usize> {
        let mut shape = self.parameters.first().map(|first| first.shape.clone()).unwrap_or_default();
        if let Some(rows) = shape.first_mut() {
            *rows = self.parameters.iter().map(|parameter| parameter.shape[0]).sum();
        }
        shape
    }

    /// How many elements it has.
    pub fn numel(&self) -> usize {
        self.parameters.iter().map(ParameterSpec::numel).sum()
    }
}

/// The parameters that communicate together: the embedding, one decoder block, the head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitSpec {
    /// A short name for logs and errors, such as `layer 3`.
    pub name: String,
    /// Its leaves, in the order in which the model's forward expects them.
    pub leaves: Vec<LeafSpec>,
    /// Gathered once per step and kept to its end: the unit that holds tied weights, used first and last.
    pub stays_gathered: bool,
}
