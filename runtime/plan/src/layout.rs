//! The flat layout of a unit.
//!
//! A unit's leaves lie end to end in one flat parameter, decayed ones first and frozen ones last, so that each group is one
//! contiguous run, and what is trained at any time is the beginning of the flat parameter. Runs end on a multiple of [`ALIGNMENT`] elements and the whole is padded to a multiple of
//! `ALIGNMENT × N`, so that every shard begins and ends on an `ALIGNMENT` border too: a fused optimizer call
//! sees the same vector bodies and tails whatever the stage, which is one half of why stages agree to the bit.

use crate::grouping::GroupingError;
use crate::spec::{LeafSpec, ParameterGroup, UnitSpec};
use thiserror::Error;

/// Runs and shards begin and end on multiples of this many elements.
pub const ALIGNMENT: usize = 64;

/// Why a model cannot be laid out.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LayoutError {
    /// A mesh without ranks, or copies that do not divide the ranks.
    #[error(
        "{world_size} ranks cannot form {replicas} copies of equal size\nhint: the number of copies must divide the number of processes"
    )]
    Mesh {
        /// Ranks.
        world_size: usize,
        /// Copies.
        replicas: usize,
    },
    /// A parameter occurs twice.
    #[error("parameter {0} is named by two units; tied weights belong to one unit")]
    Repeated(String),
    /// Stacked parameters do not fit onto each other.
    #[error("parameter {name} has shape {shape:?} and cannot be stacked under {first:?}")]
    Stacked {
        /// The parameter that does not fit.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The shape of the leaf's first parameter.
        first: Vec<usize>,
    },
    /// A parameter, leaf or unit with nothing in it.
    #[error("{0} is empty")]
    Empty(String),
    /// What the job says of parameters does not fit the model.
    #[error(transparent)]
    Grouping(#[from] GroupingError),
}

/// The ranks of a job as a grid: `replicas` copies of everything, each sharded over `shards` neighbouring ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// The length of the replicate axis; 1 without hybrid sharding.
    pub replicas: usize,
    /// The length of the shard axis.
    pub shards: usize,
}

impl Mesh {
    /// `world_size` ranks in `replicas` copies.
    ///
    /// # Errors
    /// [`LayoutError::Mesh`] when the copies do not divide the ranks, or either is 0.
    pub fn new(world_size: usize, replicas: usize) -> Result<Self, LayoutError> {
        if world_size == 0 || replicas == 0 || !world_size.is_multiple_of(replicas) {
            return Err(LayoutError::Mesh { world_size, replicas });
        }
        Ok(Mesh { replicas, shards: world_size / replicas })
    }

    /// The number of ranks.
    pub fn world_size(&self) -> usize {
        self.replicas * self.shards
    }

    /// The rank's place on the shard axis.
    pub fn place(&self, rank: usize) -> usize {
        rank % self.shards
    }

    /// The ranks that share one copy with `rank`, by their places.
    pub fn shard_axis(&self, rank: usize) -> Vec<usize> {
        let first = rank / self.shards * self.shards;
        (first..first + self.shards).collect()
    }

    /// The ranks that own the same shard as `rank`, one of each copy.
    pub fn replicate_axis(&self, rank: usize) -> Vec<usize> {
        (0..self.replicas).map(|replica| replica * self.shards + self.place(rank)).collect()
    }
}

/// A parameter's place in its unit's flat parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedParameter {
    /// The name in the model's files.
    pub name: String,
    /// The shape in the files.
    pub shape: Vec<usize>,
    /// First element in the flat parameter.
    pub begin: usize,
    /// One past the last element.
    pub end: usize,
}

/// A leaf's place in its unit's flat parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedLeaf {
    /// The stacked shape.
    pub shape: Vec<usize>,
    /// How the optimizer treats it.
    pub group: ParameterGroup,
    /// First element in the flat parameter.
    pub begin: usize,
    /// One past the last element.
    pub end: usize,
    /// The parameters that are stacked in it.
    pub parameters: Vec<PlacedParameter>,
}

/// A contiguous range of a flat parameter that belongs to one parameter group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The group.
    pub group: ParameterGroup,
    /// First element.
    pub begin: usize,
    /// One past the last element, padding included.
    pub end: usize,
}

/// One unit's flat parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitLayout {
    /// The unit's name.
    pub name: String,
    /// Leaves in the order of the specification (not the order of their places).
    pub leaves: Vec<PlacedLeaf>,
    /// The runs, in order of place; they cover the flat parameter.
    pub runs: Vec<Run>,
    /// Elements of the flat parameter, padding included.
    pub numel: usize,
    /// Elements of one rank's shard.
    pub shard_numel: usize,
    /// See [`UnitSpec::stays_gathered`].
    pub stays_gathered: bool,
}

impl UnitLayout {
    fn new(spec: &UnitSpec, mesh: Mesh) -> Result<Self, LayoutError> {
        if spec.leaves.is_empty() {
            return Err(LayoutError::Empty(format!("unit {}", spec.name)));
        }
        let mut order: Vec<usize> = (0..spec.leaves.len()).collect();
        order.sort_by_key(|&index| spec.leaves[index].group);
        let mut placed: Vec<Option<PlacedLeaf>> = vec![None; spec.leaves.len()];
        let mut runs: Vec<Run> = Vec::new();
        let mut next = 0;
        for index in order {
            let leaf = &spec.leaves[index];
            if runs.last().is_none_or(|run| run.group != leaf.group) {
                next = next_multiple(next, ALIGNMENT);
                if let Some(run) = runs.last_mut() {
                    run.end = next;
                }
                runs.push(Run { group: leaf.group, begin: next, end: next });
            }
            let place = place_leaf(leaf, next)?;
            next = place.end;
            placed[index] = Some(place);
        }
        let numel = next_multiple(next, ALIGNMENT * mesh.world_size());
        if let Some(run) = runs.last_mut() {
            run.end = numel;
        }
        Ok(UnitLayout {
            name: spec.name.clone(),
            leaves: placed.into_iter().flatten().collect(),
            runs,
            numel,
            shard_numel: numel / mesh.shards,
            stays_gathered: spec.stays_gathered,
        })
    }

    /// Elements of real parameters, padding left out.
    pub fn parameter_numel(&self) -> usize {
        self.leaves.iter().map(|leaf| leaf.end - leaf.begin).sum()
    }

    /// Elements that are trained after so many openings of gradual unfreezing: those from the first on.
    pub fn trained_numel(&self, openings: u32) -> usize {
        let trained = self.runs.iter().take_while(|run| run.group.is_trained(openings));
        trained.last().map_or(0, |run| run.end)
    }

    /// The range of the flat parameter that the rank at `place` of the shard axis owns.
    pub fn shard(&self, place: usize) -> std::ops::Range<usize> {
        place * self.shard_numel..(place + 1) * self.shard_numel
    }

    /// The runs cut to `range`: what one fused optimizer call each is made of.
    pub fn runs_within(&self, range: std::ops::Range<usize>) -> Vec<Run> {
        self.runs
            .iter()
            .map(|run| Run { group: run.group, begin: run.begin.max(range.start), end: run.end.min(range.end) })
            .filter(|run| run.begin < run.end)
            .collect()
    }

    /// Every parameter of the unit.
    pub fn parameters(&self) -> impl Iterator<Item = &PlacedParameter> {
        self.leaves.iter().flat_map(|leaf| &leaf.parameters)
    }

    /// The places of a leaf's parameters among [`UnitLayout::parameters`].
    pub fn parameters_of(&self, leaf: usize) -> std::ops::Range<usize> {
        let begin = self.leaves[..leaf].iter().map(|leaf| leaf.parameters.len()).sum();
        begin..begin + self.leaves[leaf].parameters.len()
    }
}

fn place_leaf(leaf: &LeafSpec, begin: usize) -> Result<PlacedLeaf, LayoutError> {
    let Some(first) = leaf.parameters.first() else {
        return Err(LayoutError::Empty("a leaf".to_string()));
    };
    let mut next = begin;
    let mut parameters = Vec::with_capacity(leaf.parameters.len());
    for parameter in &leaf.parameters {
        if parameter.shape.is_empty() || parameter.numel() == 0 {
            return Err(LayoutError::Empty(format!("parameter {}", parameter.name)));
        }
        if parameter.shape[1..] != first.shape[1..] {
            return Err(LayoutError::Stacked {
                name: parameter.name.clone(),
                shape: parameter.shape.clone(),
                first: first.shape.clone(),
            });
        }
        let end = next + parameter.numel();
        parameters.push(PlacedParameter {
            name: parameter.name.clone(),
            shape: parameter.shape.clone(),
            begin: next,
            end,
        });
        next = end;
    }
    Ok(PlacedLeaf { shape: leaf.shape(), group: leaf.group, begin, end: next, parameters })
}

/// All units of a model, laid out for one mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The units, in the order of the forward pass.
    pub units: Vec<UnitLayout>,
    /// The ranks that shards are cut for.
    pub mesh: Mesh,
}

impl Layout {
    /// Places `units` for the ranks of `mesh`. Flat parameters are padded for all ranks, so that they are the same
    /// whatever the copies.
    pub fn new(units: &[UnitSpec], mesh: Mesh) -> Result<Self, LayoutError> {
        let mut names = std::collections::HashSet::new();
        for parameter in units.iter().flat_map(|unit| &unit.leaves).flat_map(|leaf| &leaf.parameters) {
            if !names.insert(parameter.name.as_str()) {
                return Err(LayoutError::Repeated(parameter.name.clone()));
            }
        }
        let units = units.iter().map(|unit| UnitLayout::new(unit, mesh)).collect::<Result<_, _>>()?;
        Ok(Layout { units, mesh })
    }

    /// Elements of all flat parameters, padding included.
    pub fn numel(&self) -> usize {
        self.units.iter().map(|unit| unit.numel).sum()
    }

    /// Elements of real parameters, padding left out.
    pub fn parameter_numel(&self) -> usize {
        self.units.iter().map(UnitLayout::parameter_numel).sum()
    }

    /// Elements of one rank's shards.
    pub fn shard_numel(&self) -> usize {
        self.units.iter().map(|unit| unit.shard_numel).sum()
    }

    /// A text that is equal for two layouts exactly when every parameter lies at the same place; checkpoints keep its
    /// digest.
    pub fn description(&self) -> String {
        let mut text = format!("world_size {}\n", self.mesh.world_size());
        for unit in &self.units {
            text.push_str(&format!("unit {} numel {}\n", unit.name, unit.numel));
            for parameter in unit.parameters() {
                text.push_str(&format!(
                    "{} {:?} {}..{}\n",
                    parameter.name, parameter.shape, parameter.begin, parameter.end
                ));
            }
        }
        text
    }
}

fn next_multiple(value: usize, of: usize) -> usize {
    value.div_ceil(of) * of
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Number, OwnGroup, ParameterSpec};

    fn spec() -> UnitSpec {
        UnitSpec {
            name: "layer 0".to_string(),
            leaves: vec![
                LeafSpec::single(ParameterGroup::NotDecayed, ParameterSpec::new("norm", [7])),
                LeafSpec::stacked(
                    ParameterGroup::Decayed,
                    vec![
                        ParameterSpec::new("q", [4, 7]),
                        ParameterSpec::new("k", [2, 7]),
                        ParameterSpec::new("v", [2, 7]),
                    ],
                ),
                LeafSpec::single(ParameterGroup::Decayed, ParameterSpec::new("o", [7, 4])),
            ],
            stays_gathered: false,
        }
    }

    #[test]
    fn runs_cover_the_flat_parameter_and_stacked_parameters_touch() {
        for world_size in 1..9 {
            let layout = Layout::new(&[spec()], Mesh::new(world_size, 1).unwrap()).unwrap();
            let unit = &layout.units[0];
            assert_eq!(unit.numel % (ALIGNMENT * world_size), 0);
            assert_eq!(unit.runs[0].begin, 0);
            assert_eq!(unit.runs[0].end, unit.runs[1].begin);
            assert_eq!(unit.runs[1].end, unit.numel);
            assert_eq!(unit.runs[1].begin % ALIGNMENT, 0);
            assert_eq!(unit.parameter_numel(), 7 + 56 + 28);
            assert_eq!(unit.leaves[1].shape, [8, 7]);
            assert_eq!(unit.leaves[1].parameters[0].end, unit.leaves[1].parameters[1].begin);
            assert_eq!(unit.leaves[2].begin, unit.leaves[1].end);
            assert_eq!(unit.leaves[0].begin, unit.runs[1].begin);
        }
    }

    #[test]
    fn shards_tile_every_run_exactly_once() {
        for world_size in [1, 2, 3, 4, 8] {
            let layout = Layout::new(&[spec()], Mesh::new(world_size, 1).unwrap()).unwrap();
            let unit = &layout.units[0];
            let mut covered = vec![0u8; unit.numel];
            for rank in 0..world_size {
                for run in unit.runs_within(unit.shard(rank)) {
                    assert_eq!((run.begin % ALIGNMENT, run.end % ALIGNMENT), (0, 0));
                    covered[run.begin..run.end].iter_mut().for_each(|count| *count += 1);
                }
            }
            assert!(covered.iter().all(|&count| count == 1));
        }
    }

    #[test]
    fn what_is_trained_is_the_beginning_at_any_time() {
        let own = |opens| {
            let number = Number::new(0.5);
            ParameterGroup::Own(OwnGroup { opens, rate: number, weight_decay: number })
        };
        let groups = [ParameterGroup::Frozen, own(2), own(1), ParameterGroup::NotDecayed];
        let leaf = |(index, group): (usize, &ParameterGroup)| {
            LeafSpec::single(*group, ParameterSpec::new(format!("p{index}"), [10]))
        };
        let leaves = groups.iter().enumerate().map(leaf).collect();
        let unit = UnitSpec { name: "all".to_owned(), leaves, stays_gathered: false };
        let layout = Layout::new(&[unit], Mesh::new(1, 1).unwrap()).unwrap();
        let unit = &layout.units[0];
        assert_eq!([0, 1, 2, u32::MAX].map(|openings| unit.trained_numel(openings)), [64, 128, 192, 192]);
        for openings in 0..4 {
            let trained = unit.trained_numel(openings);
            assert!(unit.leaves.iter().all(|leaf| (leaf.end <= trained) == leaf.group.is_trained(openings)));
        }
    }

    #[test]
    fn what_cannot_be_laid_out_is_told() {
        for (world_size, replicas) in [(0, 1), (4, 0), (4, 3)] {
            assert_eq!(Mesh::new(world_size, replicas), Err(LayoutError::Mesh { world_size, replicas }));
        }
        let mesh = Mesh::new(2, 1).unwrap();
        assert_eq!(Layout::new(&[spec(), spec()], mesh), Err(LayoutError::Repeated("norm".to_string())));
        let mut bad = spec();
        bad.leaves[1].parameters[1].shape = vec![2, 8];
        assert!(matches!(Layout::new(&[bad], mesh), Err(LayoutError::Stacked { name, .. }) if name == "k"));
    }
}
