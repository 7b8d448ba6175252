//! What autograd keeps of a segment, and the most that its backward needs: the plan against the allocator's own count.
//! Alone in its program, since all of a process's tensors are counted together.

use tch::{Device, Kind, Tensor};
use zerofold_configs::{ElementType, ElementTypes, Sharding, Stage, UnitPolicy};
use zerofold_plan::{
    Activation, Biases, LayerAttention, LeafSpec, ModelConfig, ModelUnits, NormKind, NormPlacement, PlanInputs,
    PlannedDevice, SegmentKind, segment_bytes,
};
use zerofold_runtime::model::{Documents, Transformer};
use zerofold_runtime::shard::Kinds;
use zerofold_runtime::torch::{Kernels, autograd_grad, count_memory, memory, multiply, restart_peak};

/// Rows, length, hidden, intermediate, heads, key heads, head width.
type Shape = [usize; 7];

const SHAPES: [Shape; 5] = [
    [4, 256, 576, 1536, 9, 3, 64],
    [1, 1024, 512, 1376, 8, 8, 64],
    [1, 256, 512, 1376, 8, 8, 64],
    [2, 512, 1024, 512, 16, 16, 64],
    [2, 192, 448, 1152, 7, 1, 64],
];

/// For 16 bits: a processor without instructions for them takes minutes for the larger ones.
const SHORT_SHAPES: [Shape; 3] =
    [[1, 128, 512, 1376, 8, 8, 64], [2, 96, 448, 1152, 7, 1, 64], [2, 64, 576, 1536, 9, 3, 64]];

fn config([_, _, hidden, inner, heads, key_heads, head_dim]: Shape, attention_dropout: f64) -> ModelConfig {
    ModelConfig {
        vocab_size: 512,
        hidden_size: hidden,
        intermediate_size: inner,
        num_hidden_layers: 1,
        num_attention_heads: heads,
        num_key_value_heads: key_heads,
        head_dim,
        attention_dropout,
        ..ModelConfig::llama()
    }
}

/// The leaves of one segment, of any values.
fn leaves(config: &ModelConfig, kind: SegmentKind, element: Kind) -> Vec<Tensor> {
    let policy = match kind {
        SegmentKind::Block(_) | SegmentKind::EmbeddingOutput => UnitPolicy::Blocks,
        _ => UnitPolicy::BlockHalves,
    };
    let cut = ModelUnits::new(config, policy);
    let segment = cut.segments.iter().find(|segment| segment.kind == kind).unwrap();
    let leaf = |leaf: &LeafSpec| {
        let shape: Vec<i64> = leaf.shape().iter().map(|&size| size as i64).collect();
        Tensor::full(shape, 0.01, (element, Device::Cpu)).set_requires_grad(true)
    };
    cut.units[segment.unit].leaves[segment.leaves.clone()].iter().map(leaf).collect()
}

fn live() -> u64 {
    memory(Device::Cpu).live as u64
}

/// (alive after forward, the most alive during backward), without input, leaves and the output's gradient.
fn measured(
    model: &Transformer,
    [rows, length]: [usize; 2],
    kind: SegmentKind,
    documents: Option<&Documents>,
) -> (u64, u64) {
    let leaves = leaves(&model.config, kind, model.kind());
    let size = [rows, length, model.config.hidden_size].map(|size| size as i64);
    let input = Tensor::full(size, 0.1, (model.kind(), Device::Cpu)).set_requires_grad(true);
    let seed = Tensor::full(size, 0.1, (model.kind(), Device::Cpu));
    // Tables and the mask stay from the first time on.
    let _first = tch::no_grad(|| model.segment_in_training(kind, &leaves, &input, documents, 1)).unwrap();
    drop(_first);
    let before = live();
    let output = model.segment_in_training(kind, &leaves, &input, documents, 1).unwrap();
    let saved = live() - before;
    restart_peak(Device::Cpu);
    let inputs: Vec<&Tensor> = std::iter::once(&input).chain(&leaves).collect();
    let gradients = autograd_grad(&[&output], &[&seed], &inputs).unwrap();
    let peak = memory(Device::Cpu).peak as u64 - before;
    assert!(gradients.iter().all(Option::is_some));
    (saved, peak)
}

/// The most that one product of the segment's linear layers takes beside its result: oneDNN packs what it multiplies, in as
/// many bytes as suit the processor, which no plan knows; 16 bits that it has no instructions for go through float32 tiles.
fn scratch(leaves: &[Tensor], tokens: usize) -> u64 {
    let rows = tokens as i64;
    let of_product = |left: &Tensor, right: &Tensor| {
        let result = Tensor::empty([left.size()[0], right.size()[1]], (left.kind(), Device::Cpu));
        let before = live();
        restart_peak(Device::Cpu);
        multiply(&result, left, right).unwrap();
        memory(Device::Cpu).peak as u64 - before
    };
    let of_layer = |weight: &Tensor| {
        let [out, inner] = weight.size()[..] else { return 0 };
        let options = (weight.kind(), Device::Cpu);
        let (x, gradient) = (Tensor::zeros([rows, inner], options), Tensor::zeros([rows, out], options));
        let products = [(&x, &weight.tr()), (&gradient.tr(), &x), (&gradient, weight)];
        products.map(|(left, right)| of_product(left, right)).into_iter().max().unwrap_or(0)
    };
    leaves.iter().map(of_layer).max().unwrap_or(0)
}

fn inputs(
    model: &ModelConfig,
    types: ElementTypes,
    [rows, length]: [usize; 2],
    device: PlannedDevice,
) -> PlanInputs<'_> {
    PlanInputs {
        model,
        world_size: 1,
        sharding: Sharding::of(Stage::Zero),
        types,
        per_device_batch: rows,
        length,
        longest_document: None,
        supervised: None,
        accumulation: 1,
        gradient_checkpointing: false,
        gradient_checkpointing_every: 1,
        offload_optimizer: false,
        device,
        receives: false,
        copies: false,
        training: None,
    }
}

/// Compares plan and allocator for some segments, and notes what is wrong.
fn check(name: &str, inputs: &PlanInputs<'_>, model: &Transformer, kinds: &[SegmentKind], wrong: &mut Vec<String>) {
    for &kind in kinds {
        let planned = segment_bytes(inputs, kind);
        let (rows, length) = (inputs.per_device_batch, inputs.length);
        // Of one length, end to end.
        let documents = |longest: usize| model.documents(&vec![longest as i64; length / longest]).unwrap();
        let documents = inputs.longest_document.map(documents);
        let (saved, peak) = measured(model, [rows, length], kind, documents.as_ref());
        let scratch = tch::no_grad(|| scratch(&leaves(inputs.model, kind, model.kind()), rows * length));
        // The fused kernel's scratch, which is not planned, shows where attention runs alone; in a whole block the MLP needs
        // more.
        let tolerance = if matches!(kind, SegmentKind::Attention(_)) { 0.15 } else { 0.03 };
        let error = |planned: u64, measured: u64| planned as f64 / measured as f64 - 1.0;
        let of_saved = error(planned.saved, saved);
        // From all the scratch at the peak to none of it.
        let of_peak = [error(planned.peak + scratch, peak), error(planned.peak, peak)];
        let words = format!(
            "{} {rows} × {length} {:?} dropout {} by {name}, {kind:?}: saved {} of {saved} ({:+.2} %), peak {} of {peak} ({:+.2} %), \
             products' scratch {scratch}",
            inputs.model.architecture,
            model.kind(),
            inputs.model.attention_dropout,
            planned.saved,
            100.0 * of_saved,
            planned.peak,
            100.0 * of_peak[1]
        );
        println!("{words}");
        if of_saved.abs() > 1e-3 || of_peak[0] < -tolerance || of_peak[1] > tolerance {
            wrong.push(words);
        }
    }
}

#[test]
fn segments_need_what_the_plan_says() {
    count_memory();
    tch::set_num_threads(1);
    let mut wrong = Vec::new();
    let (float32, bfloat16, float16) = (ElementType::Float32, ElementType::Bfloat16, ElementType::Float16);
    let cases: [(_, &[f64], &[Shape]); 3] =
        [(float32, &[0.0, 0.2], &SHAPES), (bfloat16, &[0.0, 0.2], &SHORT_SHAPES), (float16, &[0.0], &SHORT_SHAPES)];
    for (element, dropouts, shapes) in cases {
        for &shape in shapes {
            for &dropout in dropouts {
                let config = config(shape, dropout);
                let types = ElementTypes::of(element);
                let model = || Transformer::new(config.clone(), Kinds::from(types).compute, Device::Cpu).unwrap();
                let all = [SegmentKind::Block(0), SegmentKind::Attention(0), SegmentKind::Mlp(0)];
                let cpu = inputs(&config, types, [shape[0], shape[1]], PlannedDevice::Cpu);
                check("loops", &cpu, &model(), &all, &mut wrong);
                if dropout == 0.0 && shape[0] == 1 {
                    let documents = PlanInputs { longest_document: Some(shape[1] / 4), ..cpu };
                    check("loops, documents", &documents, &model(), &all, &mut wrong);
                }
                // What a GPU does by libtorch's operations takes the same memory here, but for its own attention in 16 bits.
                if dropout == 0.0 {
                    let alike = if element == float32 { &all[..] } else { &all[2..] };
                    let gpu = inputs(&config, types, [shape[0], shape[1]], PlannedDevice::Gpu);
                    check("operations", &gpu, &model().with_kernels(Kernels::plain()), alike, &mut wrong);
                    if shape[0] == 1 {
                        let documents = PlanInputs { longest_document: Some(shape[1] / 4), ..gpu };
                        let plain = model().with_kernels(Kernels::plain());
                        check("operations, documents", &documents, &plain, alike, &mut wrong);
                    }
                }
            }
        }
    }
    for (config, [rows, length]) in families() {
        // In float16 caps go by products.
        let capped = config.attention_softcap.is_some().then_some(float16);
        for element in [float32, bfloat16].into_iter().chain(capped) {
            let [rows, length] = if element == float32 { [rows, length] } else { [1, length.min(128)] };
            let types = ElementTypes::of(element);
            let model = || Transformer::new(config.clone(), Kinds::from(types).compute, Device::Cpu).unwrap();
            let halves = [SegmentKind::Block(0), SegmentKind::Attention(0), SegmentKind::Mlp(0)];
            let embedding = config.embedding_norm.then_some(SegmentKind::EmbeddingOutput);
            let all: Vec<SegmentKind> = halves.into_iter().chain(embedding).collect();
            let cpu = inputs(&config, types, [rows, length], PlannedDevice::Cpu);
            check("loops", &cpu, &model(), &all, &mut wrong);
            if !config.causal {
                // All rows of an encoder are documents end to end.
                let documents = PlanInputs { per_device_batch: 1, length: 128, longest_document: Some(32), ..cpu };
                check("loops, documents", &documents, &model(), &all, &mut wrong);
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What families do in their own way, each alone and all that go together.
fn families() -> Vec<(ModelConfig, [usize; 2])> {
    let of = |name: &str, shape: Shape, change: &dyn Fn(&mut ModelConfig)| {
        let mut config = ModelConfig { architecture: name.to_owned(), ..config(shape, 0.0) };
        change(&mut config);
        (config, [shape[0], shape[1]])
    };
    let grouped = [2, 192, 576, 1536, 9, 3, 64];
    let alone = [2, 192, 512, 1376, 8, 8, 64];
    vec![
        of("biases", grouped, &|config| config.biases = Biases { qkv: true, output: true, mlp: true }),
        of("norms of heads", grouped, &|config| config.query_key_norm = true),
        of("norms around", grouped, &|config| {
            config.norm = NormKind::RmsFromOne;
            config.norm_placement = NormPlacement::Around;
            config.activation = Activation::GeluTanh;
        }),
        of("a window", [1, 1024, 512, 512, 8, 8, 64], &|config| {
            config.layers = vec![LayerAttention { window: Some(100), rope: Some(0) }];
        }),
        of("caps", grouped, &|config| config.attention_softcap = Some(50.0)),
        of("LayerNorm", alone, &|config| config.norm = NormKind::Layer),
        of("no gate", alone, &|config| {
            config.gated = false;
            config.activation = Activation::GeluTanh;
        }),
        of("dropout of the residual", alone, &|config| config.hidden_dropout = 0.1),
        (gpt2(alone), [alone[0], alone[1]]),
        (bert(alone, 0.0), [alone[0], alone[1]]),
        (bert(alone, 0.1), [alone[0], alone[1]]),
    ]
}

/// BERT itself, with so much dropout everywhere.
fn bert([_, _, hidden, inner, heads, key_heads, head_dim]: Shape, dropout: f64) -> ModelConfig {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/encoders/bert");
    ModelConfig {
        hidden_size: hidden,
        intermediate_size: inner,
        num_hidden_layers: 1,
        num_attention_heads: heads,
        num_key_value_heads: key_heads,
        head_dim,
        max_position_embeddings: 512,
        attention_dropout: dropout,
        hidden_dropout: dropout,
        embedding_dropout: dropout,
        ..ModelConfig::read(std::path::Path::new(folder)).unwrap()
    }
}

/// GPT-2 itself, with all of its dropout.
fn gpt2([_, _, hidden, inner, heads, key_heads, head_dim]: Shape) -> ModelConfig {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/families/gpt2");
    ModelConfig {
        hidden_size: hidden,
        intermediate_size: inner,
        num_hidden_layers: 1,
        num_attention_heads: heads,
        num_key_value_heads: key_heads,
        head_dim,
        max_position_embeddings: 1024,
        attention_dropout: 0.1,
        hidden_dropout: 0.1,
        ..ModelConfig::read(std::path::Path::new(folder)).unwrap()
    }
}
