//! What holds for the walk whatever the numbers; `runtime/tests/activations.rs` compares these with the allocator's.

use super::*;
use crate::model::ModelConfig;
use crate::planning::{PlanInputs, PlannedDevice};
use zerofold_configs::{ElementType, ElementTypes, Sharding, Stage};

/// Rows, length, hidden, intermediate, heads, key heads, head width.
type Shape = [usize; 7];

const GROUPED: Shape = [4, 256, 576, 1536, 9, 3, 64];
const ONE_ROW: Shape = [1, 1024, 512, 1376, 8, 8, 64];

const ATTENTION: SegmentKind = SegmentKind::Attention(0);
const MLP: SegmentKind = SegmentKind::Mlp(0);
const BLOCK: SegmentKind = SegmentKind::Block(0);

fn model([_, _, hidden, inner, heads, key_heads, head_dim]: Shape, vocab_size: usize) -> ModelConfig {
    ModelConfig {
        vocab_size,
        hidden_size: hidden,
        intermediate_size: inner,
        num_hidden_layers: 1,
        num_attention_heads: heads,
        num_key_value_heads: key_heads,
        head_dim,
        ..ModelConfig::llama()
    }
}

/// A BERT of these sizes, which drops.
fn encoder(shape: Shape) -> ModelConfig {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/encoders/bert");
    let bert = ModelConfig::read(std::path::Path::new(folder)).unwrap();
    let ModelConfig { hidden_size, intermediate_size, num_attention_heads, head_dim, .. } = model(shape, 512);
    let (heads, dropped) = (num_attention_heads, 0.1);
    ModelConfig {
        hidden_size,
        intermediate_size,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
        hidden_dropout: dropped,
        embedding_dropout: dropped,
        ..bert
    }
}

fn sizes(shape: Shape, vocabulary: usize, supervised: Option<usize>, compute: ElementType) -> Sizes {
    Sizes::of(&inputs(&model(shape, vocabulary), shape, supervised, compute))
}

fn inputs(model: &ModelConfig, shape: Shape, supervised: Option<usize>, compute: ElementType) -> PlanInputs<'_> {
    PlanInputs {
        model,
        world_size: 1,
        sharding: Sharding::of(Stage::Zero),
        types: ElementTypes::of(compute),
        per_device_batch: shape[0],
        length: shape[1],
        longest_document: None,
        supervised,
        accumulation: 1,
        gradient_checkpointing: false,
        gradient_checkpointing_every: 1,
        offload_optimizer: false,
        device: PlannedDevice::Gpu,
        receives: false,
        copies: false,
        training: None,
    }
}

#[test]
fn everything_taken_is_given_back() {
    let ways = [(true, false), (false, false), (false, true)];
    for (shape, (products, joins)) in [GROUPED, ONE_ROW].into_iter().flat_map(|shape| ways.map(|way| (shape, way))) {
        for compute in [ElementType::Float32, ElementType::Bfloat16] {
            let products = products && compute == ElementType::Bfloat16;
            let sizes = Sizes { products, joins, ..sizes(shape, 512, None, compute) };
            let of_encoder = Sizes::of(&inputs(&encoder(shape), shape, None, compute));
            for (sizes, kinds) in [
                (&sizes, &[ATTENTION, MLP][..]),
                (&sizes, &[BLOCK]),
                (&of_encoder, &[SegmentKind::EmbeddingOutput, ATTENTION, MLP]),
                (&of_encoder, &[SegmentKind::EmbeddingOutput, BLOCK]),
            ] {
                let mut walk = Walk::default();
                for &kind in kinds {
                    forward(&mut walk, sizes, kind);
                }
                for &kind in kinds.iter().rev() {
                    backward(&mut walk, sizes, kind);
                    add_leaf_gradients(&mut walk, sizes, kind);
                    // The output, and the gradient that the next one begins with.
                    walk.give(2 * sizes.hidden);
                }
                assert_eq!(walk.live, 0, "{shape:?} {compute} {kinds:?}");
            }
        }
    }
}

#[test]
fn dropout_keeps_two_copies_of_the_scores_and_a_byte_for_each_on_a_cpu_alone() {
    let scores = (GROUPED[0] * GROUPED[4] * GROUPED[1] * GROUPED[1]) as u64;
    for compute in [ElementType::Float32, ElementType::Bfloat16] {
        let with = |device, attention_dropout| {
            let model = ModelConfig { attention_dropout, ..model(GROUPED, 512) };
            let mut walk = Walk::default();
            let sizes = Sizes::of(&PlanInputs { model: &model, device, ..inputs(&model, GROUPED, None, compute) });
            forward(&mut walk, &Sizes { products: sizes.products || device == PlannedDevice::Cpu, ..sizes }, BLOCK);
            walk.live
        };
        let (cpu, gpu) = (PlannedDevice::Cpu, PlannedDevice::Gpu);
        let bytes = compute.bytes() as u64;
        assert_eq!(with(cpu, 0.2) - with(cpu, 0.0), scores * (bytes + 1), "{compute}");
        assert_eq!(with(gpu, 0.2), with(gpu, 0.0), "{compute}");
    }
}

#[test]
fn recomputing_keeps_inputs_alone_and_every_second_keeps_half() {
    let sizes = sizes(GROUPED, 512, None, ElementType::Float32);
    let segments: Vec<SegmentKind> = std::iter::once(SegmentKind::Embedding)
        .chain((0..8).map(SegmentKind::Block))
        .chain([SegmentKind::Head])
        .collect();
    let every = |every: usize| micro_batch(&sizes, &segments, |index| index.is_multiple_of(every));
    let [all, half] = [every(1), every(2)];
    let none = micro_batch(&sizes, &segments, |_| false);
    assert_eq!(all.activations, sizes.ids + sizes.tables + 9 * sizes.hidden);
    assert_eq!(2 * half.activations, all.activations + none.activations);
    // One block is whole again while its backward runs. With every second one, the last block is not recomputed, and
    // what it kept is gone when the one before is.
    assert!(all.temporary > none.temporary && half.temporary <= all.temporary);
    assert!(all.activations + all.temporary < half.activations + half.temporary);
    assert!(half.activations + half.temporary < none.activations + none.temporary);
}
