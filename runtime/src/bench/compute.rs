//! Matrix products, and copies in memory.

use super::{Bench, median};
use crate::comm::CommError;
use crate::shard::kind;
use crate::torch::multiply;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};
use zerofold_configs::{CopyRate, ElementType, ProductRate};

/// The first product of an MLP of SmolLM2-135M for 2048 tokens: (rows × inner) times (inner × columns).
const SMALL: [i64; 3] = [2048, 576, 1536];
/// The same of Llama 2 7B for 8192 tokens: what keeps a GPU busy.
const LARGE: [i64; 3] = [8192, 4096, 11008];
/// Far more than caches hold.
const COPIED: i64 = 256 << 20;
const COPIED_QUICK: i64 = 64 << 20;
/// How long one figure is measured.
const TIME: Duration = Duration::from_millis(800);
const TIME_QUICK: Duration = Duration::from_millis(250);
/// Work is done in batches of at least this length, so that waiting for a device does not count.
const BATCH: Duration = Duration::from_millis(10);

/// Products in every type that the device has.
pub(super) fn products(bench: &Bench) -> Result<Vec<ProductRate>, CommError> {
    let (types, shapes): (&[ElementType], &[[i64; 3]]) = match bench.device() {
        Device::Cuda(_) => (&[ElementType::Float32, ElementType::Bfloat16, ElementType::Float16], &[SMALL, LARGE]),
        _ => (&[ElementType::Float32, ElementType::Bfloat16], &[SMALL]),
    };
    let pairs = shapes.iter().flat_map(|&shape| types.iter().map(move |&dtype| (dtype, shape)));
    pairs.map(|(dtype, shape)| product(bench, dtype, shape)).collect()
}

fn product(bench: &Bench, dtype: ElementType, shape: [i64; 3]) -> Result<ProductRate, CommError> {
    let [rows, inner, columns] = shape;
    let random = |size: [i64; 2]| Tensor::f_randn(size, (Kind::Float, bench.device()))?.f_to_kind(kind(dtype));
    let input = random([rows, inner])?;
    // As a layer keeps it: one row for each output.
    let weight = random([columns, inner])?.f_t_()?;
    let output = Tensor::f_empty([rows, columns], (kind(dtype), bench.device()))?;
    let seconds = seconds_each(bench, || Ok(multiply(&output, &input, &weight)?))?;
    let operations = 2.0 * rows as f64 * inner as f64 * columns as f64;
    let rates = of_all_ranks(bench, operations / seconds)?;
    let flops_per_rank = rates.iter().copied().fold(f64::INFINITY, f64::min);
    Ok(ProductRate { dtype, shape, flops_per_rank, flops: rates.iter().sum() })
}

/// Copies within the memory of the device.
pub(super) fn copy(bench: &Bench) -> Result<CopyRate, CommError> {
    let bytes = if bench.quick { COPIED_QUICK } else { COPIED };
    let source = Tensor::f_ones([bytes], (Kind::Uint8, bench.device()))?;
    let mut target = Tensor::f_ones([bytes], (Kind::Uint8, bench.device()))?;
    let seconds = seconds_each(bench, || Ok(target.f_copy_(&source).map(|_| ())?))?;
    let rates = of_all_ranks(bench, 2.0 * bytes as f64 / seconds)?;
    Ok(CopyRate { bytes: bytes.unsigned_abs(), bytes_per_second: rates.iter().sum() })
}

/// How long the work takes: the median over batches of it, while all other ranks do the same.
fn seconds_each(bench: &Bench, mut work: impl FnMut() -> Result<(), CommError>) -> Result<f64, CommError> {
    let mut batch = |count: u32| -> Result<Duration, CommError> {
        let began = Instant::now();
        (0..count).try_for_each(|_| work())?;
        bench.settle()?;
        Ok(began.elapsed())
    };
    // The first time, kernels are chosen and memory is touched.
    batch(1)?;
    let once = batch(1)?;
    let count = batch_length(once);
    let time = if bench.quick { TIME_QUICK } else { TIME };
    bench.comm.barrier()?;
    let began = Instant::now();
    let mut batches = Vec::new();
    while began.elapsed() < time {
        batches.push(batch(count)?.as_secs_f64() / f64::from(count));
    }
    Ok(median(batches))
}

fn batch_length(once: Duration) -> u32 {
    (BATCH.as_secs_f64() / once.as_secs_f64().max(1e-7)).ceil().clamp(1.0, 10_000.0) as u32
}

fn of_all_ranks(bench: &Bench, number: f64) -> Result<Vec<f64>, CommError> {
    Ok(bench.comm.exchange(&[number])?.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::Single;
    use crate::gpu::Stream;
    use std::rc::Rc;

    #[test]
    fn one_rank_measures_without_others() {
        let _alone = crate::torch::generator_of_this_test(11);
        let stream = Stream::borrowed(std::ptr::null_mut());
        let bench = Bench { comm: Rc::new(Single::new(Device::Cpu).unwrap()), stream, quick: true };
        let rate = product(&bench, ElementType::Float32, [64, 32, 16]).unwrap();
        assert!(rate.flops > 1e6 && rate.flops == rate.flops_per_rank, "{rate:?}");
        let mut calls = 0u64;
        let count = || {
            calls += 1;
            Ok(())
        };
        let seconds = seconds_each(&bench, count).unwrap();
        assert!(seconds < 1e-3 && calls > 2, "{seconds} s, {calls} calls");
    }

    #[test]
    fn short_work_is_batched_and_long_work_is_not() {
        assert_eq!(batch_length(Duration::from_micros(10)), 1000);
        assert_eq!(batch_length(Duration::from_secs(1)), 1);
        assert_eq!(batch_length(Duration::ZERO), 10_000);
    }
}
