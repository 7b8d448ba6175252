//! What of a window's communication hides behind its computing: a clock for each of the two, in the order in which the engine
//! starts things (runtime/src/trainer/pass.rs, runtime/src/shard).
//!
//! | stage | gathered | reduced |
//! | --- | --- | --- |
//! | 0 | gradients, when the window is over | in the last micro-batch, each unit when its backward is done |
//! | 1 | parameters, behind the next window's first forward | as stage 0 |
//! | 2 | as stage 1 | in every micro-batch |
//! | 3 | each unit before it is needed, one ahead | in every micro-batch |

use super::collective::Wire;
use crate::planning::{Gather, GatherBuffers};
use zerofold_configs::{BackwardPrefetch, Stage};

/// Reductions that may be under way when a unit's backward begins (`IN_FLIGHT` in runtime/src/shard/reduce.rs).
const REDUCTIONS: usize = 2;
/// Micro-batches that differ: the first, one between, the last.
const DIFFERENT: usize = 3;

/// Segments of one unit that are computed one after the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Visit {
    pub(super) unit: usize,
    /// Seconds.
    pub(super) forward: f64,
    /// Seconds.
    pub(super) backward: f64,
    /// The embedding, whose backward needs no weights.
    pub(super) is_embedding: bool,
}

/// What the units' collectives take.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct UnitWires {
    /// Of each unit, among the ranks of a copy.
    pub(super) gather: Vec<Wire>,
    /// Of each unit, among the ranks of a small group.
    pub(super) gather_in_group: Vec<Wire>,
    /// Of each unit.
    pub(super) reduce: Vec<Wire>,
    /// Of each unit, of which parameters are gathered before the window; empty where none are.
    pub(super) publish: Vec<Wire>,
}

/// What is done in a window, and how.
pub(super) struct Window<'a> {
    pub(super) stage: Stage,
    pub(super) prefetch: BackwardPrefetch,
    /// The visits of forward, in order.
    pub(super) visits: &'a [Visit],
    pub(super) wires: &'a UnitWires,
    pub(super) micro_batches: usize,
}

/// How long it took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Elapsed {
    /// Seconds from the first forward to the last gradient.
    pub(super) seconds: f64,
    /// Of them, computing.
    pub(super) computing: f64,
    /// Gathers.
    pub(super) gather: Wire,
    /// Reductions.
    pub(super) reduce: Wire,
}

/// One thing after the other of a micro-batch.
struct Task {
    unit: usize,
    seconds: f64,
    backward: bool,
    needs_weights: bool,
    /// The last visit of this unit in backward, after which its gradient is whole.
    closes: bool,
}

struct Clock<'a> {
    window: &'a Window<'a>,
    buffers: GatherBuffers,
    elapsed: Elapsed,
    /// When computing is free.
    now: f64,
    /// When the wire is free.
    wire: f64,
    /// When each unit's weights are there.
    ready: Vec<f64>,
    /// When each reduction is done.
    reduced: Vec<f64>,
}

/// Goes through a window.
pub(super) fn elapse(window: &Window<'_>, buffers: GatherBuffers) -> Elapsed {
    elapse_by(window, buffers, DIFFERENT)
}

/// Goes through so many micro-batches, and takes the others to be as the second.
fn elapse_by(window: &Window<'_>, buffers: GatherBuffers, different: usize) -> Elapsed {
    let units = window.wires.gather.len();
    let mut clock = Clock {
        window,
        buffers,
        elapsed: Elapsed::default(),
        now: 0.0,
        wire: 0.0,
        ready: vec![0.0; units],
        reduced: Vec::new(),
    };
    for (unit, &wire) in window.wires.publish.iter().enumerate() {
        clock.send(unit, wire);
    }
    let tasks = tasks(window.visits);
    let count = window.micro_batches.clamp(1, different);
    let mut repeated = Elapsed::default();
    for index in 0..count {
        let before = (clock.now, clock.elapsed);
        clock.micro_batch(&tasks, index + 1 == count);
        if index == 1 && count == different {
            let (seconds, earlier) = before;
            repeated = Elapsed {
                seconds: clock.now - seconds,
                computing: clock.elapsed.computing - earlier.computing,
                gather: clock.elapsed.gather + earlier.gather * -1.0,
                reduce: clock.elapsed.reduce + earlier.reduce * -1.0,
            };
        }
    }
    if window.stage == Stage::Zero {
        for unit in 0..units {
            clock.gather(unit, Gather::All);
        }
    }
    let more = window.micro_batches.saturating_sub(count) as f64;
    Elapsed {
        seconds: clock.now.max(clock.wire) + more * repeated.seconds,
        computing: clock.elapsed.computing + more * repeated.computing,
        gather: clock.elapsed.gather + repeated.gather * more,
        reduce: clock.elapsed.reduce + repeated.reduce * more,
    }
}

/// Forward, then backward.
fn tasks(visits: &[Visit]) -> Vec<Task> {
    let forward = visits.iter().map(|visit| Task {
        unit: visit.unit,
        seconds: visit.forward,
        backward: false,
        needs_weights: true,
        closes: false,
    });
    let backward = visits.iter().enumerate().rev().map(|(index, visit)| Task {
        unit: visit.unit,
        seconds: visit.backward,
        backward: true,
        needs_weights: !visit.is_embedding,
        closes: visits.iter().take(index).all(|earlier| earlier.unit != visit.unit),
    });
    forward.chain(backward).collect()
}

impl Clock<'_> {
    fn micro_batch(&mut self, tasks: &[Task], last: bool) {
        let stage = self.window.stage;
        if let Some(first) = tasks.first() {
            self.need(first);
        }
        for (index, task) in tasks.iter().enumerate() {
            let next = tasks.get(index + 1);
            // Forward always gathers ahead, its last task for the first of backward.
            let ahead = !task.backward || self.window.prefetch == BackwardPrefetch::Pre;
            let weights = if task.needs_weights { self.ready[task.unit] } else { 0.0 };
            self.now = self.now.max(weights);
            if task.backward && self.reduced.len() >= REDUCTIONS {
                let place = self.reduced[self.reduced.len() - REDUCTIONS];
                self.now = self.now.max(place);
            }
            if let Some(next) = next.filter(|_| ahead) {
                self.need(next);
            }
            self.now += task.seconds;
            self.elapsed.computing += task.seconds;
            if let Some(next) = next.filter(|_| !ahead && self.window.prefetch == BackwardPrefetch::Post) {
                self.need(next);
            }
            if task.closes && (last || stage.shards_gradients()) {
                self.reduce(task.unit);
            }
            if let Some(next) = next.filter(|_| !ahead && self.window.prefetch == BackwardPrefetch::None) {
                self.need(next);
            }
        }
    }

    /// A task's weights are asked for now.
    fn need(&mut self, task: &Task) {
        if self.window.stage.shards_parameters() && task.needs_weights {
            let gather = self.buffers.take(task.unit);
            self.gather(task.unit, gather);
        }
    }

    fn gather(&mut self, unit: usize, gather: Gather) {
        let wire = match gather {
            Gather::None => return,
            Gather::All => self.window.wires.gather[unit],
            Gather::Group => self.window.wires.gather_in_group[unit],
        };
        self.send(unit, wire);
    }

    /// A unit's weights are sent from now on, or from when the wire is free.
    fn send(&mut self, unit: usize, wire: Wire) {
        self.elapsed.gather = self.elapsed.gather + wire;
        self.wire = self.wire.max(self.now) + wire.seconds;
        self.ready[unit] = self.wire;
    }

    fn reduce(&mut self, unit: usize) {
        let wire = self.window.wires.reduce[unit];
        self.elapsed.reduce = self.elapsed.reduce + wire;
        self.wire = self.wire.max(self.now) + wire.seconds;
        self.reduced.push(self.wire);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{Layout, Mesh};
    use crate::model::{ModelConfig, ModelUnits};
    use zerofold_configs::{ReshardAfterForward, UnitPolicy};

    /// A model of so many units.
    fn layout(blocks: usize) -> Layout {
        let model = ModelConfig { num_hidden_layers: blocks, ..ModelConfig::published("llama-7b").unwrap() };
        Layout::new(&ModelUnits::new(&model, UnitPolicy::Blocks).units, Mesh::new(1, 1).unwrap()).unwrap()
    }

    fn seconds(seconds: f64) -> Wire {
        Wire { seconds, ..Wire::default() }
    }

    /// Three units (embedding, a block, head): forward 1 s and backward 2 s each, gathers and reductions of these seconds.
    fn run(stage: Stage, wires: [f64; 2], prefetch: BackwardPrefetch, micro_batches: usize) -> Elapsed {
        let publishes = matches!(stage, Stage::One | Stage::Two);
        run_publishing(publishes, stage, wires, prefetch, micro_batches)
    }

    fn run_publishing(
        publishes: bool,
        stage: Stage,
        [gather, reduce]: [f64; 2],
        prefetch: BackwardPrefetch,
        micro_batches: usize,
    ) -> Elapsed {
        let layout = layout(1);
        let units = layout.units.len();
        assert_eq!(units, 3);
        let visits: Vec<Visit> =
            (0..units).map(|unit| Visit { unit, forward: 1.0, backward: 2.0, is_embedding: unit == 0 }).collect();
        let wires = UnitWires {
            gather: vec![seconds(gather); units],
            gather_in_group: vec![seconds(gather); units],
            reduce: vec![seconds(reduce); units],
            publish: vec![seconds(gather); if publishes { units } else { 0 }],
        };
        let window = Window { stage, prefetch, visits: &visits, wires: &wires, micro_batches };
        elapse(&window, GatherBuffers::new(ReshardAfterForward::Always(true), &layout))
    }

    /// Drawn by hand, second by second.
    #[test]
    fn three_units_by_hand() {
        let pre = BackwardPrefetch::Pre;
        let total = |stage, wires, micro_batches| run(stage, wires, pre, micro_batches).seconds;
        // Nothing to send: 3 forwards and 3 backwards.
        assert_eq!(total(Stage::Three, [0.0, 0.0], 2), 18.0);
        // Stage 0: reductions hide behind 9 s but for the last; then three gathers.
        assert_eq!(total(Stage::Zero, [0.5, 0.5], 1), 9.0 + 0.5 + 1.5);
        assert_eq!(total(Stage::Zero, [0.5, 0.5], 2), 18.0 + 0.5 + 1.5);
        // Where parameters are mixed they are gathered before, too; the first gather is waited for.
        let mixed = run_publishing(true, Stage::Zero, [0.5, 0.5], pre, 2);
        assert_eq!((mixed.seconds, mixed.gather.seconds), (0.5 + 18.0 + 0.5 + 1.5, 3.0));
        // Stages 1 and 2: the first gather is waited for, then one hides behind each forward.
        assert_eq!(total(Stage::One, [0.5, 0.5], 1), 0.5 + 9.0 + 0.5);
        assert_eq!(total(Stage::Two, [2.0, 0.0], 1), 2.0 + 2.0 + 2.0 + 1.0 + 6.0);
        // Stage 2 reduces twice where stage 1 reduces once: the first window's last reduction hides behind the next forward.
        assert_eq!(run(Stage::One, [0.0, 0.5], pre, 2).reduce.seconds, 1.5);
        assert_eq!(run(Stage::Two, [0.0, 0.5], pre, 2).reduce.seconds, 3.0);
        // Stage 3: embedding, block and head are gathered; backward finds head and block in their buffers.
        let three = run(Stage::Three, [0.5, 0.5], pre, 1);
        assert_eq!((three.gather.seconds, three.seconds), (1.5, 0.5 + 9.0 + 0.5));
        assert_eq!(three.computing, 9.0);
    }

    /// Five units, of which backward gathers two blocks a second time.
    #[test]
    fn gathering_late_is_waited_for() {
        let layout = layout(3);
        let visits: Vec<Visit> =
            (0..5).map(|unit| Visit { unit, forward: 1.0, backward: 2.0, is_embedding: unit == 0 }).collect();
        let wires = UnitWires {
            gather: vec![seconds(1.0); 5],
            gather_in_group: vec![seconds(1.0); 5],
            reduce: vec![seconds(0.5); 5],
            publish: Vec::new(),
        };
        let total = |prefetch| {
            let window = Window { stage: Stage::Three, prefetch, visits: &visits, wires: &wires, micro_batches: 1 };
            elapse(&window, GatherBuffers::new(ReshardAfterForward::Always(true), &layout))
        };
        let [pre, post, none] = [BackwardPrefetch::Pre, BackwardPrefetch::Post, BackwardPrefetch::None].map(total);
        assert_eq!(pre.gather.seconds, 7.0);
        assert_eq!(pre.seconds, 1.0 + 15.0 + 0.5, "one gather before, all others hide, one reduction after");
        assert_eq!(post.seconds, pre.seconds + 2.0, "two gathers are waited for");
        assert_eq!(none.seconds, post.seconds + 1.0, "and the reductions before them");
    }

    /// Seven, one by one, against three of which the second counts five times; sent in less time than is computed.
    #[test]
    fn many_micro_batches_are_as_long_as_one_by_one() {
        let layout = layout(1);
        let visits: Vec<Visit> =
            (0..3).map(|unit| Visit { unit, forward: 1.0, backward: 2.0, is_embedding: unit == 0 }).collect();
        for stage in [Stage::Zero, Stage::One, Stage::Two, Stage::Three] {
            let wires = UnitWires {
                gather: vec![seconds(0.7); 3],
                gather_in_group: vec![seconds(0.7); 3],
                reduce: vec![seconds(1.1); 3],
                publish: vec![seconds(0.7); if matches!(stage, Stage::One | Stage::Two) { 3 } else { 0 }],
            };
            let window =
                Window { stage, prefetch: BackwardPrefetch::Pre, visits: &visits, wires: &wires, micro_batches: 7 };
            let by = |different| {
                elapse_by(&window, GatherBuffers::new(ReshardAfterForward::Always(true), &layout), different)
            };
            let (shortly, all) = (by(DIFFERENT), by(7));
            assert!((shortly.seconds - all.seconds).abs() < 1e-9, "{stage}: {shortly:?} {all:?}");
            assert!((shortly.computing - 63.0).abs() < 1e-9 && (all.computing - 63.0).abs() < 1e-9);
            assert!((shortly.gather.seconds - all.gather.seconds).abs() < 1e-9, "{stage}");
            assert!((shortly.reduce.seconds - all.reduce.seconds).abs() < 1e-9, "{stage}");
        }
    }
}
