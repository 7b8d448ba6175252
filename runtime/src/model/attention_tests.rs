//! The ways of attention against each other, against a masked one of libtorch, and on several threads.

use super::*;

/// Numbers between -2 and 2 that look random, others for each `phase`: tests run side by side on one generator.
fn scattered(shape: &[i64], phase: f64) -> Tensor {
    let count = shape.iter().product::<i64>();
    let angles = Tensor::arange(count, (Kind::Double, Device::Cpu)) * 12.9898 + phase;
    ((angles.sin() * 43758.5453).frac() * 2.0).to_kind(Kind::Float).reshape(shape)
}

fn attention_of(key_heads: i64, queries_per_key: i64, kind: Kind, softcap: Option<f64>) -> Attention {
    let masks = RefCell::default();
    Attention { key_heads, queries_per_key, causal: true, scale: 0.25, softcap, kind, device: Device::Cpu, masks }
}

/// A way's result for these shapes, and the gradients of query, key and value.
fn results(way: Way, kind: Kind, sharing: i64, length: i64) -> Vec<Tensor> {
    let (rows, key_heads, head_dim) = (2, 3, 16);
    let attention = attention_of(key_heads, sharing, kind, None);
    let inputs = [(key_heads * sharing, 0.1), (key_heads, 0.2), (key_heads, 0.3)]
        .map(|(heads, phase)| scattered(&[rows, heads, length, head_dim], phase).to_kind(kind).set_requires_grad(true));
    let weight = scattered(&[rows, length, key_heads * sharing * head_dim], 0.4).to_kind(kind);
    let [query, key, value] = &inputs;
    let query = match way {
        Way::Blocks => query.reshape([rows, key_heads, sharing, length, head_dim]).transpose(2, 3).contiguous(),
        _ => query.shallow_clone(),
    };
    let parts = [query, key.shallow_clone(), value.shallow_clone()];
    let attended = attention.among(&Attending { way, window: None, dropout: 0.0 }, &parts).expect("attention");
    let loss = (&attended * &weight).sum(Kind::Float);
    let mut results = Tensor::run_backward(&[loss], &inputs, false, false);
    results.push(attended);
    results
}

#[test]
fn all_ways_agree_and_so_do_their_gradients() {
    // One position, part of a block, blocks and a part, blocks with many query heads.
    for (sharing, length) in [(1, 1), (1, 45), (3, 45), (3, 128), (1, 300), (3, 257), (17, 70)] {
        for (kind, tolerance) in [(Kind::Float, 2e-5), (Kind::BFloat16, 0.01)] {
            let flash = results(Way::Flash, Kind::Float, sharing, length);
            for way in [Way::Products, Way::Blocks, Way::Flash] {
                for (found, flash) in results(way, kind, sharing, length).iter().zip(&flash) {
                    assert_eq!(found.size(), flash.size());
                    // With one position nothing depends on queries and keys: what is left are rounded terms of about 1.
                    let error = (found.to_kind(Kind::Float) - flash).norm().double_value(&[]);
                    let least = (flash.numel() as f64).sqrt();
                    let relative = error / flash.norm().double_value(&[]).max(least);
                    assert!(relative < tolerance, "{way:?}, {kind:?}, {sharing} × {length}: off by {relative}");
                }
            }
        }
    }
}

/// Documents that lie end to end, and what becomes of their scores.
#[derive(Clone, Copy, Debug)]
struct Case {
    lengths: &'static [i64],
    sharing: i64,
    causal: bool,
    window: Option<i64>,
    softcap: Option<f64>,
}

/// What libtorch's operations make of them in float64, with a mask that lets each attend to what it may see: gradients of query,
/// key and value, and the result.
fn masked(case: &Case) -> Vec<Tensor> {
    let total: i64 = case.lengths.iter().sum();
    let mask = Tensor::zeros([total, total], (Kind::Bool, Device::Cpu));
    let mut begin = 0;
    for &length in case.lengths {
        let own = Tensor::ones([length, length], (Kind::Bool, Device::Cpu));
        let own = if case.causal { own.tril(0) } else { own };
        let own = case.window.map_or(own.shallow_clone(), |window| own.triu(1 - window));
        mask.narrow(0, begin, length).narrow(1, begin, length).copy_(&own);
        begin += length;
    }
    let (inputs, weight) = of_documents(total, case.sharing, Kind::Double);
    let [query, key, value] = &inputs;
    let repeated = |shared: &Tensor| shared.repeat_interleave_self_int(case.sharing, 1, None);
    let (key, value) = (repeated(key), repeated(value));
    let scores = query.matmul(&key.transpose(2, 3)) * 0.25;
    let scores = case.softcap.map_or(scores.shallow_clone(), |cap| (&scores / cap).tanh() * cap);
    let weights = scores.masked_fill(&mask.logical_not(), f64::NEG_INFINITY).softmax(-1, None);
    let attended = weights.matmul(&value).transpose(1, 2).flatten(2, 3);
    let loss = (&attended * &weight).sum(Kind::Double);
    let mut results = Tensor::run_backward(&[loss], &inputs, false, false);
    results.push(attended);
    results.iter().map(|result| result.to_kind(Kind::Float)).collect()
}

/// Query, key and value of one row, by head, and the weights of the loss.
fn of_documents(total: i64, sharing: i64, kind: Kind) -> ([Tensor; 3], Tensor) {
    let (key_heads, head_dim) = (3, 16);
    let inputs = [(key_heads * sharing, 0.1), (key_heads, 0.2), (key_heads, 0.3)];
    let inputs = inputs
        .map(|(heads, phase)| scattered(&[1, heads, total, head_dim], phase).to_kind(kind).set_requires_grad(true));
    (inputs, scattered(&[1, total, key_heads * sharing * head_dim], 0.4).to_kind(kind))
}

fn by_document(way: Way, kind: Kind, case: &Case) -> Vec<Tensor> {
    let Case { lengths, sharing, causal, window, softcap } = *case;
    let total: i64 = lengths.iter().sum();
    let attention = Attention { causal, ..attention_of(3, sharing, kind, softcap) };
    let (inputs, weight) = of_documents(total, sharing, kind);
    let [query, key, value] = &inputs;
    let query = match way {
        Way::Blocks => query.reshape([1, 3, sharing, total, 16]).transpose(2, 3).contiguous(),
        _ => query.shallow_clone(),
    };
    let parts = [query, key.shallow_clone(), value.shallow_clone()];
    let by = Attending { way, window, dropout: 0.0 };
    let attended = attention.by_document(&by, &parts, lengths).expect("attention");
    let loss = (&attended * &weight).sum(Kind::Float);
    let mut results = Tensor::run_backward(&[loss], &inputs, false, false);
    results.push(attended);
    results
}

fn check(case: &Case, ways: &[Way]) {
    let expected = masked(case);
    for (kind, tolerance) in [(Kind::Float, 5e-5), (Kind::BFloat16, 0.02)] {
        for &way in ways {
            for (found, expected) in by_document(way, kind, case).iter().zip(&expected) {
                assert_eq!(found.size(), expected.size());
                let error = (found.to_kind(Kind::Float) - expected).norm().double_value(&[]);
                // Where a position sees itself alone nothing depends on queries and keys: what is left are rounded terms of about 1, of a
                // key as many as share it.
                let each = if case.window == Some(1) { (case.sharing as f64).sqrt() } else { 0.01 };
                let least = each * (expected.numel() as f64).sqrt();
                let relative = error / expected.norm().double_value(&[]).max(least);
                assert!(relative < tolerance, "{way:?}, {kind:?}, {case:?}: off by {relative}");
            }
        }
    }
}

const PLAIN: Case = Case { lengths: &[], sharing: 3, causal: true, window: None, softcap: None };

#[test]
fn documents_attend_to_themselves_alone_in_all_ways() {
    // One, several, single positions, and longer than a block.
    for (sharing, lengths) in [(3, &[45][..]), (1, &[7, 1, 30]), (3, &[1, 1, 140, 9, 128]), (17, &[40, 33])] {
        for causal in [true, false] {
            check(&Case { lengths, sharing, causal, ..PLAIN }, &[Way::Products, Way::Blocks, Way::Flash]);
        }
    }
}

#[test]
fn a_window_hides_what_is_further_back_in_all_ways() {
    // Only itself, a part of a block, a block, blocks and a part, and longer than all.
    for window in [1, 5, 32, 128, 200, 1000] {
        for (sharing, lengths) in [(3, &[300][..]), (1, &[7, 1, 290]), (17, &[70, 140])] {
            let case = Case { lengths, sharing, window: Some(window), ..PLAIN };
            check(&case, &[Way::Products, Way::Blocks, Way::Flash]);
        }
    }
}

#[test]
fn scores_are_capped_with_a_window_and_without() {
    // So low a cap that most scores are bent.
    for (window, lengths) in [(None, &[150, 9][..]), (Some(20), &[150, 9])] {
        check(&Case { lengths, window, softcap: Some(0.7), ..PLAIN }, &[Way::Products, Way::Blocks]);
    }
}

/// With 3 threads documents and groups are shared out; with 20 there are too few of them, and products are.
#[test]
fn documents_give_the_same_on_one_thread_and_several() {
    const LENGTHS: [i64; 5] = [200, 3, 90, 1, 17];
    let case = Case { lengths: &LENGTHS, ..PLAIN };
    let first = by_document(Way::Blocks, Kind::Float, &case);
    for threads in [3, 20] {
        tch::set_num_threads(threads);
        let again = by_document(Way::Blocks, Kind::Float, &case);
        tch::set_num_threads(1);
        assert!(first.iter().zip(&again).all(|(one, other)| one.allclose(other, 1e-5, 1e-5, false)), "{threads}");
    }
}

#[test]
fn documents_that_are_not_those_of_the_row_are_an_error() {
    let (inputs, _) = of_documents(10, 1, Kind::Float);
    let [query, key, value] = inputs;
    let parts = [query.unsqueeze(3), key, value];
    let rule = AttentionRule { scale: 0.25, softcap: None, window: None, causal: true };
    for (lengths, told) in [
        (&[4, 7][..], "longer than their row"),
        (&[4, 5], "shorter than their row"),
        (&[10, 0], "longer than their row, or empty"),
        (&[i64::MAX, 11], "longer than their row"),
        (&[-1, 11], "or empty"),
    ] {
        let error = attention(&parts, lengths, &rule).unwrap_err().to_string();
        assert!(error.contains(told), "{lengths:?}: {error}");
    }
}

/// With 3 threads groups are shared out; with 8 there are too few groups, and products are.
#[test]
fn blocks_give_the_same_on_one_thread_and_several() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let first = results(Way::Blocks, kind, 3, 300);
        for threads in [3, 8] {
            tch::set_num_threads(threads);
            let again = results(Way::Blocks, kind, 3, 300);
            tch::set_num_threads(1);
            assert!(first.iter().zip(&again).all(|(one, other)| one.allclose(other, 1e-5, 1e-5, false)), "{threads}");
        }
    }
}

/// oneDNN in libtorch wants AVX-512 for its products; processors without it take others.
#[test]
fn processors_without_avx512_pass_the_same_test() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["attention::tests::all_ways_agree", "loss_and_gradients_equal"])
        .env("ONEDNN_MAX_CPU_ISA", "AVX2")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains(" 2 passed"), "{text}");
}

#[test]
fn on_a_cpu_libtorch_takes_its_fused_kernel() {
    for kind in [Kind::Float, Kind::BFloat16] {
        assert_eq!(attention_of(2, 3, kind, None).kernel(64, 16, None).unwrap(), Kernel::Flash, "{kind:?}");
    }
}

#[test]
fn the_way_follows_from_device_type_and_dropout() {
    let way_with = |kind, device, kernels, dropout, softcap| {
        Attention { device, ..attention_of(3, 3, kind, softcap) }.way(kernels, dropout)
    };
    let way = |kind, device, kernels, dropout| way_with(kind, device, kernels, dropout, None);
    let ours = Kernels::default();
    assert_eq!(way_with(Kind::Float, Device::Cpu, ours, 0.0, Some(50.0)), Way::Blocks);
    assert_eq!(way_with(Kind::BFloat16, Device::Cuda(0), ours, 0.0, Some(50.0)), Way::Products);
    for kind in [Kind::Float, Kind::BFloat16] {
        assert_eq!(way(kind, Device::Cpu, ours, 0.0), Way::Blocks);
        assert_eq!(way(kind, Device::Cpu, Kernels::plain(), 0.0), Way::Flash);
        assert_eq!(way(kind, Device::Cpu, ours, 0.1), Way::Products);
        assert_eq!(way(kind, Device::Cuda(0), ours, 0.1), Way::Flash);
    }
    assert_eq!(way(Kind::Half, Device::Cpu, ours, 0.0), Way::Flash);
}
