//! Collectives that are late: one rank sleeps at a chosen point of every step.

use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tch::{Kind, Tensor};
use zerofold_runtime::comm::{Activity, Collectives, CommError, Pending, Phase, Traffic};
use zerofold_runtime::metrics::Timeline;

const DELAY: Duration = Duration::from_millis(100);

/// Where a rank is late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Point {
    AfterForward,
    BeforeGather,
    BeforeReduce,
    BeforeOptimizer,
}

pub(crate) const POINTS: [Point; 4] =
    [Point::AfterForward, Point::BeforeGather, Point::BeforeReduce, Point::BeforeOptimizer];

/// What all axes of a late rank share.
struct Late {
    point: Point,
    activity: Arc<Activity>,
    /// Once a step is enough.
    done_in: Cell<Option<u64>>,
    delays: Rc<Cell<u32>>,
}

pub(crate) struct Delayed {
    inner: Rc<dyn Collectives>,
    late: Rc<Late>,
}

impl Delayed {
    /// Counts its delays in `delays`, so that a test can tell that there were some.
    pub(crate) fn new(
        inner: Rc<dyn Collectives>,
        point: Point,
        activity: Arc<Activity>,
        delays: Rc<Cell<u32>>,
    ) -> Self {
        Delayed { inner, late: Rc::new(Late { point, activity, done_in: Cell::new(None), delays }) }
    }

    fn at(&self, gathers: bool) {
        let late = &self.late;
        let phase = late.activity.phase();
        // The head's gather is the first collective after forward where parameters are gathered; elsewhere it is a reduce.
        let here = match late.point {
            Point::AfterForward => phase == Phase::Backward,
            Point::BeforeGather => gathers && phase == Phase::Forward,
            Point::BeforeReduce => !gathers,
            Point::BeforeOptimizer => phase == Phase::Optimizer,
        };
        let step = late.activity.step();
        if here && late.done_in.get() != Some(step) {
            late.done_in.set(Some(step));
            late.delays.set(late.delays.get() + 1);
            std::thread::sleep(DELAY);
        }
    }
}

impl Collectives for Delayed {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn world_size(&self) -> usize {
        self.inner.world_size()
    }

    fn axis(&self, ranks: &[usize]) -> Result<Rc<dyn Collectives>, CommError> {
        Ok(Rc::new(Delayed { inner: self.inner.axis(ranks)?, late: self.late.clone() }))
    }

    fn start_all_gather_into(&self, full: &Tensor, shard: &Tensor) -> Result<Pending, CommError> {
        self.at(true);
        self.inner.start_all_gather_into(full, shard)
    }

    fn start_reduce_scatter_into(&self, shard: &Tensor, full: &Tensor) -> Result<Pending, CommError> {
        self.at(false);
        self.inner.start_reduce_scatter_into(shard, full)
    }

    fn timeline(&self) -> &Timeline {
        self.inner.timeline()
    }

    fn activity(&self) -> &Activity {
        self.inner.activity()
    }

    fn traffic(&self) -> Traffic {
        self.inner.traffic()
    }

    fn allocate(&self, numel: i64, kind: Kind) -> Result<Tensor, CommError> {
        self.inner.allocate(numel, kind)
    }

    fn scratch(&self, numel: i64, kind: Kind) -> Result<Tensor, CommError> {
        self.inner.scratch(numel, kind)
    }
}
