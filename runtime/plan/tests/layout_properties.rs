//! The flat layout and the cut into units, for random models and meshes.

use proptest::prelude::*;
use std::collections::BTreeMap;
use zerofold_configs::UnitPolicy;
use zerofold_plan::{
    ALIGNMENT, Layout, LeafSpec, Mesh, ModelConfig, ModelUnits, ParameterGroup, ParameterSpec, Run, SegmentKind,
    UnitLayout, UnitSpec,
};

/// The groups, in the order of their runs.
const GROUPS: [ParameterGroup; 3] = [ParameterGroup::Decayed, ParameterGroup::NotDecayed, ParameterGroup::Frozen];

/// A leaf: its group, its columns, and the rows of each parameter that is stacked in it.
type LeafShape = (ParameterGroup, usize, Vec<usize>);

fn leaf_shape() -> impl Strategy<Value = LeafShape> {
    (prop::sample::select(&GROUPS[..]), 1..40usize, prop::collection::vec(1..12usize, 1..4))
}

fn units() -> impl Strategy<Value = Vec<UnitSpec>> {
    prop::collection::vec(prop::collection::vec(leaf_shape(), 1..6), 1..5).prop_map(|units| {
        let unit = |(number, leaves): (usize, Vec<LeafShape>)| {
            let leaf = |(index, (group, columns, rows)): (usize, LeafShape)| {
                let parameter = |(part, rows): (usize, &usize)| {
                    ParameterSpec::new(format!("unit {number} leaf {index} part {part}"), [*rows, columns])
                };
                LeafSpec::stacked(group, rows.iter().enumerate().map(parameter).collect())
            };
            let leaves = leaves.into_iter().enumerate().map(leaf).collect();
            UnitSpec { name: format!("unit {number}"), leaves, stays_gathered: number == 0 }
        };
        units.into_iter().enumerate().map(unit).collect()
    })
}

fn mesh() -> impl Strategy<Value = Mesh> {
    (1..5usize, 1..9usize).prop_map(|(replicas, shards)| Mesh { replicas, shards })
}

fn groups(units: &UnitSpec) -> usize {
    GROUPS.into_iter().filter(|&group| units.leaves.iter().any(|leaf| leaf.group == group)).count()
}

fn contains(run: &Run, group: ParameterGroup, begin: usize, end: usize) -> bool {
    run.group == group && run.begin <= begin && end <= run.end
}

/// A value for each element of a parameter that no other element of the unit has.
fn filled(unit: &UnitLayout) -> Vec<f32> {
    let mut flat = vec![0.0; unit.numel];
    let mut next = 1.0;
    // By the name, so that it does not depend on the layout.
    let places: BTreeMap<&str, (usize, usize)> =
        unit.parameters().map(|parameter| (parameter.name.as_str(), (parameter.begin, parameter.end))).collect();
    for (begin, end) in places.into_values() {
        for value in &mut flat[begin..end] {
            *value = next;
            next += 1.0;
        }
    }
    flat
}

proptest! {
    #[test]
    fn runs_cover_a_unit_and_shards_tile_every_run_once(units in units(), mesh in mesh()) {
        let layout = Layout::new(&units, mesh).unwrap();
        for (unit, spec) in layout.units.iter().zip(&units) {
            prop_assert_eq!(unit.numel % (ALIGNMENT * mesh.world_size()), 0);
            prop_assert_eq!(unit.shard_numel * mesh.shards, unit.numel);
            let mut next = 0;
            for run in &unit.runs {
                prop_assert_eq!(run.begin, next);
                prop_assert_eq!((run.begin % ALIGNMENT, run.end % ALIGNMENT), (0, 0));
                next = run.end;
            }
            prop_assert_eq!(next, unit.numel);
            prop_assert_eq!(unit.runs.len(), groups(spec));
            let mut covered = vec![0u8; unit.numel];
            for place in 0..mesh.shards {
                let shard = unit.shard(place);
                prop_assert_eq!((shard.start % ALIGNMENT, shard.end % ALIGNMENT), (0, 0));
                for run in unit.runs_within(shard) {
                    prop_assert_eq!((run.begin % ALIGNMENT, run.end % ALIGNMENT), (0, 0));
                    let within = unit.runs.iter().any(|whole| contains(whole, run.group, run.begin, run.end));
                    prop_assert!(within, "{:?} of {:?}", run, unit.runs);
                    covered[run.begin..run.end].iter_mut().for_each(|count| *count += 1);
                }
            }
            prop_assert!(covered.iter().all(|&count| count == 1));
        }
    }

    #[test]
    fn parameters_lie_in_order_in_runs_of_their_group(units in units(), mesh in mesh()) {
        let layout = Layout::new(&units, mesh).unwrap();
        for (unit, spec) in layout.units.iter().zip(&units) {
            prop_assert_eq!(unit.leaves.len(), spec.leaves.len());
            let mut taken: Vec<(usize, usize)> = Vec::new();
            for (leaf, spec) in unit.leaves.iter().zip(&spec.leaves) {
                prop_assert_eq!(&leaf.shape, &spec.shape());
                // Stacked parameters touch, in order, and fill the leaf.
                let mut next = leaf.begin;
                for (parameter, spec) in leaf.parameters.iter().zip(&spec.parameters) {
                    prop_assert_eq!((&parameter.name, &parameter.shape), (&spec.name, &spec.shape));
                    prop_assert_eq!((parameter.begin, parameter.end), (next, next + spec.numel()));
                    next = parameter.end;
                }
                prop_assert_eq!(next, leaf.end);
                let within = unit.runs.iter().any(|run| contains(run, leaf.group, leaf.begin, leaf.end));
                prop_assert!(within, "{:?} in {:?}", leaf, unit.runs);
                taken.push((leaf.begin, leaf.end));
            }
            // Leaves of one group keep their order.
            for group in GROUPS {
                let begins: Vec<usize> =
                    unit.leaves.iter().filter(|leaf| leaf.group == group).map(|leaf| leaf.begin).collect();
                prop_assert!(begins.is_sorted());
            }
            taken.sort_unstable();
            prop_assert!(taken.windows(2).all(|pair| pair[0].1 <= pair[1].0), "leaves overlap: {:?}", taken);
            // Padding: each run but the last ends within one alignment of its leaves, the last within one of all ranks.
            let padding = unit.numel - unit.parameter_numel();
            prop_assert!(padding < ALIGNMENT * mesh.world_size() + ALIGNMENT * (unit.runs.len() - 1));
        }
        let real: usize = units.iter().flat_map(|unit| &unit.leaves).map(LeafSpec::numel).sum();
        prop_assert_eq!(layout.parameter_numel(), real);
        prop_assert_eq!(layout.shard_numel() * mesh.shards, layout.numel());
    }

    #[test]
    fn shards_of_one_mesh_can_be_read_into_another(units in units(), from in mesh(), to in mesh()) {
        let (old, new) = (Layout::new(&units, from).unwrap(), Layout::new(&units, to).unwrap());
        for (old, new) in old.units.iter().zip(&new.units) {
            let flat = filled(old);
            let saved: Vec<&[f32]> = (0..from.shards).map(|place| &flat[old.shard(place)]).collect();
            let mut read = vec![0.0; new.numel];
            for place in 0..to.shards {
                let mine = new.shard(place);
                for (source, target) in old.parameters().zip(new.parameters()) {
                    prop_assert_eq!(&source.name, &target.name);
                    let (begin, end) = (target.begin.max(mine.start), target.end.min(mine.end));
                    // What of the parameter lies in my shard, cut where shards of the old mesh end.
                    let mut next = begin;
                    while next < end {
                        let at = source.begin + (next - target.begin);
                        let (shard, within) = (at / old.shard_numel, at % old.shard_numel);
                        let length = (end - next).min(old.shard_numel - within);
                        read[next..next + length].copy_from_slice(&saved[shard][within..within + length]);
                        next += length;
                    }
                }
            }
            prop_assert_eq!(read, filled(new));
        }
    }

    #[test]
    fn the_mesh_is_a_grid(mesh in mesh()) {
        for rank in 0..mesh.world_size() {
            let (shard, replicate) = (mesh.shard_axis(rank), mesh.replicate_axis(rank));
            prop_assert_eq!((shard.len(), replicate.len()), (mesh.shards, mesh.replicas));
            prop_assert_eq!(shard[mesh.place(rank)], rank);
            prop_assert!(replicate.contains(&rank));
            prop_assert!(replicate.iter().all(|&other| mesh.place(other) == mesh.place(rank)));
            prop_assert!(shard.iter().all(|&other| mesh.shard_axis(other) == shard));
            prop_assert!(replicate.iter().all(|&other| mesh.replicate_axis(other) == replicate));
        }
    }
}

fn model() -> impl Strategy<Value = ModelConfig> {
    let kind = prop::sample::select(&["causal", "tied", "dropped", "encoder"][..]);
    (1..9usize, 1..5usize, 1..4usize, 1..30usize, 1..200usize, kind).prop_map(
        |(layers, sharing, key_heads, inner, vocabulary, kind)| ModelConfig {
            num_hidden_layers: layers,
            num_attention_heads: sharing * key_heads,
            num_key_value_heads: key_heads,
            head_dim: 2,
            hidden_size: 2 * sharing * key_heads,
            intermediate_size: inner,
            vocab_size: vocabulary,
            tie_word_embeddings: kind == "tied",
            embedding_dropout: if kind == "dropped" { 0.1 } else { 0.0 },
            ..match kind {
                "encoder" => encoder(),
                _ => ModelConfig::published("llama-7b").unwrap(),
            }
        },
    )
}

/// A RoBERTa: embeddings of positions and types, a norm of their sum, a head with a linear layer.
fn encoder() -> ModelConfig {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/encoders/roberta-types");
    ModelConfig::read(std::path::Path::new(folder)).unwrap()
}

fn policy() -> impl Strategy<Value = UnitPolicy> {
    prop_oneof![
        Just(UnitPolicy::Blocks),
        Just(UnitPolicy::BlockHalves),
        (1..5000u64).prop_map(UnitPolicy::MinParameters),
        Just(UnitPolicy::Whole),
    ]
}

fn names(leaves: &[LeafSpec]) -> Vec<&str> {
    leaves.iter().flat_map(|leaf| &leaf.parameters).map(|parameter| parameter.name.as_str()).collect()
}

/// The leaves of all segments, end to end; those of the two halves of a block follow each other.
fn segment_names(cut: &ModelUnits) -> Vec<&str> {
    let leaves = |segment: &zerofold_plan::Segment| names(&cut.units[segment.unit].leaves[segment.leaves.clone()]);
    cut.segments.iter().flat_map(leaves).collect()
}

proptest! {
    #[test]
    fn every_policy_has_every_parameter_once_and_segments_find_theirs(model in model(), policy in policy()) {
        let (cut, blocks) = (ModelUnits::new(&model, policy), ModelUnits::new(&model, UnitPolicy::Blocks));
        let sorted = |cut: &ModelUnits| {
            let mut all: Vec<String> =
                cut.units.iter().flat_map(|unit| names(&unit.leaves)).map(str::to_owned).collect();
            all.sort_unstable();
            all
        };
        let all = sorted(&cut);
        prop_assert!(all.windows(2).all(|pair| pair[0] != pair[1]));
        prop_assert_eq!(&all, &sorted(&blocks));
        prop_assert_eq!(segment_names(&cut), segment_names(&blocks));
        let kinds: Vec<SegmentKind> = cut.segments.iter().map(|segment| segment.kind).collect();
        prop_assert_eq!(kinds.first(), Some(&SegmentKind::Embedding));
        prop_assert_eq!(kinds.last(), Some(&SegmentKind::Head));
        let per_block = if policy == UnitPolicy::BlockHalves { 2 } else { 1 };
        let output = usize::from(model.changes_embeddings());
        prop_assert_eq!(kinds.len(), 2 + output + per_block * model.num_hidden_layers);
        // What is done to the embeddings is in one unit with the first block.
        let first = cut.segments.iter().position(|segment| segment.kind == SegmentKind::EmbeddingOutput);
        prop_assert_eq!(first, (output > 0).then_some(1));
        if output > 0 {
            prop_assert_eq!(cut.segments[1].unit, cut.segments[2].unit);
        }
        // Units follow each other as the segments do, but for a tied head, which is the first unit's.
        let order: Vec<usize> = cut.segments.iter().map(|segment| segment.unit).collect();
        let passing = if model.tie_word_embeddings { &order[..order.len() - 1] } else { &order[..] };
        prop_assert!(passing.windows(2).all(|pair| pair[1] == pair[0] || pair[1] == pair[0] + 1), "{:?}", order);
        prop_assert_eq!(order.iter().max(), Some(&(cut.units.len() - 1)));
    }

    #[test]
    fn only_tied_weights_or_a_whole_model_stay_gathered(model in model(), policy in policy()) {
        let cut = ModelUnits::new(&model, policy);
        let staying: Vec<usize> = (0..cut.units.len()).filter(|&index| cut.units[index].stays_gathered).collect();
        let expected = if model.tie_word_embeddings || cut.units.len() == 1 { vec![0] } else { Vec::new() };
        prop_assert_eq!(staying, expected);
    }

    #[test]
    fn units_have_the_least_number_of_parameters(model in model(), least in 1..5000u64) {
        let cut = ModelUnits::new(&model, UnitPolicy::MinParameters(least));
        let numel = |unit: &UnitSpec| unit.leaves.iter().map(LeafSpec::numel).sum::<usize>() as u64;
        let coming_and_going: Vec<u64> = cut.units.iter().filter(|unit| !unit.stays_gathered).map(numel).collect();
        // One unit alone holds everything that can be merged.
        if coming_and_going.len() > 1 {
            prop_assert!(coming_and_going.iter().all(|&numel| numel >= least), "{:?} < {}", coming_and_going, least);
        }
    }

    #[test]
    fn every_cut_can_be_laid_out(model in model(), policy in policy(), mesh in mesh()) {
        let cut = ModelUnits::new(&model, policy);
        let layout = Layout::new(&cut.units, mesh).unwrap();
        let real: usize = cut.units.iter().flat_map(|unit| &unit.leaves).map(LeafSpec::numel).sum();
        prop_assert_eq!(layout.parameter_numel(), real);
    }
}
