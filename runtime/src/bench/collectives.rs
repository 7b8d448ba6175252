//! Gathers and reductions, by size.

use super::{Bench, median};
use crate::comm::{Collectives, CommError};
use std::time::Instant;
use tch::{Kind, Tensor};
use zerofold_configs::CollectiveRate;

/// Bytes of the full buffer, and how often each is done. The last is left out in quick.
const SIZES: [(i64, u32); 4] = [(64 << 10, 60), (1 << 20, 40), (16 << 20, 11), (128 << 20, 5)];
/// Done before, and not counted: connections are made, memory is touched.
const WARM_UP: u32 = 2;

/// Both collectives in every size; nothing for one rank.
pub(super) fn collectives(bench: &Bench) -> Result<Vec<CollectiveRate>, CommError> {
    let mut rates = Vec::new();
    if bench.comm.world_size() == 1 {
        return Ok(rates);
    }
    let sizes = &SIZES[..SIZES.len() - usize::from(bench.quick)];
    for gathers in [true, false] {
        for &(bytes, repetitions) in sizes {
            rates.push(collective(bench, gathers, bytes, repetitions)?);
        }
    }
    Ok(rates)
}

fn collective(bench: &Bench, gathers: bool, bytes: i64, repetitions: u32) -> Result<CollectiveRate, CommError> {
    let comm = bench.comm.as_ref();
    let ranks = comm.world_size() as i64;
    let part = (bytes / 4 / ranks).max(1);
    let full = Tensor::f_ones([part * ranks], (Kind::Float, comm.device()))?;
    let shard = Tensor::f_ones([part], (Kind::Float, comm.device()))?;
    let mut times = Vec::new();
    for repetition in 0..WARM_UP + repetitions {
        comm.barrier()?;
        let began = Instant::now();
        once(comm, gathers, &full, &shard)?;
        bench.settle()?;
        if repetition >= WARM_UP {
            times.push(began.elapsed().as_secs_f64());
        }
    }
    let seconds = median(slowest(&comm.exchange(&times)?));
    let bytes = (part * ranks * 4).unsigned_abs();
    Ok(CollectiveRate {
        collective: if gathers { "all_gather" } else { "reduce_scatter" }.to_owned(),
        bytes,
        seconds,
        bytes_per_second: bytes as f64 / seconds.max(1e-9),
        repetitions,
    })
}

fn once(comm: &dyn Collectives, gathers: bool, full: &Tensor, shard: &Tensor) -> Result<(), CommError> {
    if gathers { comm.all_gather_into(full, shard) } else { comm.reduce_scatter_into(shard, full) }
}

/// Of each repetition the time of its slowest rank.
fn slowest(by_rank: &[Vec<f64>]) -> Vec<f64> {
    let repetitions = by_rank.iter().map(Vec::len).min().unwrap_or(0);
    let longest = |repetition: usize| by_rank.iter().map(|times| times[repetition]).fold(0.0, f64::max);
    (0..repetitions).map(longest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collective_is_as_slow_as_its_slowest_rank() {
        assert_eq!(slowest(&[vec![1.0, 5.0, 2.0], vec![3.0, 4.0, 1.0]]), [3.0, 5.0, 2.0]);
        assert_eq!(median(vec![3.0, 5.0, 2.0]), 3.0);
        assert_eq!((slowest(&[]).len(), median(Vec::new())), (0, 0.0));
    }
}
