//! Which bytes live where: units, their flat layout, and what each rank holds by theory. Pure arithmetic, no tensors.
//!
//! A model is described as an ordered list of [`UnitSpec`]s. [`Layout`] places every unit's parameters end to end in one
//! flat parameter, which is cut into one shard per rank.

mod layout;
mod spec;
mod theory;

pub use layout::{ALIGNMENT, Layout, LayoutError, PlacedLeaf, PlacedParameter, Run, UnitLayout};
pub use spec::{LeafSpec, ParameterGroup, ParameterSpec, UnitSpec};
pub use theory::{Precision, StateBytes, state_bytes};
