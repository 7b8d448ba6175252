//! Gathers and reductions, by size.

use super::{Bench, median};
use crate::comm::{Collectives, CommError};
use std::rc::Rc;
use std::time::Instant;
use tch::{Kind, Tensor};
use zerofold_configs::{Backend, CollectiveRate};

/// Bytes of the full buffer, and how often each is done. The last is left out in quick.
const SIZES: [(i64, u32); 4] = [(64 << 10, 60), (1 << 20, 40), (16 << 20, 10), (128 << 20, 5)];
/// Each backend does its repetitions in so many turns: what a turn of Gloo leaves behind (threads that fall asleep, the
/// network) slows the next few collectives of any other.
const TURNS: u32 = 5;
/// Done at the beginning of a turn, and not counted: connections are made, memory is touched.
const WARM_UP: u32 = 2;

/// What carries collectives.
type Wire = (Backend, Rc<dyn Collectives>);

/// Both collectives in every size over each of `wires`; nothing for one rank.
pub(super) fn collectives(bench: &Bench, wires: &[Wire]) -> Result<Vec<CollectiveRate>, CommError> {
    let mut rates = Vec::new();
    if bench.comm.world_size() == 1 {
        return Ok(rates);
    }
    let sizes = &SIZES[..SIZES.len() - usize::from(bench.quick)];
    for gathers in [true, false] {
        for &(bytes, repetitions) in sizes {
            rates.extend(collective(bench, wires, gathers, bytes, repetitions)?);
        }
    }
    Ok(rates)
}

/// Wires take turns, so that a machine's moods meet all of them.
fn collective(
    bench: &Bench,
    wires: &[Wire],
    gathers: bool,
    bytes: i64,
    repetitions: u32,
) -> Result<Vec<CollectiveRate>, CommError> {
    let ranks = bench.comm.world_size() as i64;
    let part = (bytes / 4 / ranks).max(1);
    let buffers = |(_, comm): &Wire| -> Result<(Tensor, Tensor), CommError> {
        let (mut full, mut shard) = (comm.allocate(part * ranks, Kind::Float)?, comm.allocate(part, Kind::Float)?);
        let _filled = (full.f_fill_(1.0)?, shard.f_fill_(1.0)?);
        Ok((full, shard))
    };
    let buffers = wires.iter().map(buffers).collect::<Result<Vec<_>, _>>()?;
    let mut times = vec![Vec::new(); wires.len()];
    for _ in 0..TURNS {
        for (((_, comm), (full, shard)), times) in wires.iter().zip(&buffers).zip(&mut times) {
            for repetition in 0..WARM_UP + repetitions / TURNS {
                comm.barrier()?;
                let began = Instant::now();
                once(comm.as_ref(), gathers, full, shard)?;
                bench.settle()?;
                if repetition >= WARM_UP {
                    times.push(began.elapsed().as_secs_f64());
                }
            }
        }
    }
    let bytes = (part * ranks * 4).unsigned_abs();
    let rate = |((backend, _), times): (&Wire, Vec<f64>)| {
        let seconds = median(slowest(&bench.comm.exchange(&times)?));
        Ok(CollectiveRate {
            backend: *backend,
            collective: if gathers { "all_gather" } else { "reduce_scatter" }.to_owned(),
            bytes,
            seconds,
            bytes_per_second: bytes as f64 / seconds.max(1e-9),
            repetitions,
        })
    };
    wires.iter().zip(times).map(rate).collect()
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
