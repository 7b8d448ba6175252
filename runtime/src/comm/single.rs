//! One process: collectives are copies.

use super::{ALL_GATHER, Activity, Collectives, CommError, Pending, REDUCE_SCATTER, Traffic, check_pair};
use crate::metrics::Timeline;
use std::rc::Rc;
use tch::{Device, Tensor};

/// The backend of a world of one.
pub struct Single {
    device: Device,
    timeline: Rc<Timeline>,
    activity: Rc<Activity>,
}

impl Single {
    /// For tensors on `device`.
    ///
    /// # Errors
    /// When libtorch cannot name its stream.
    pub fn new(device: Device) -> Result<Self, CommError> {
        let timeline = Timeline::on_device(device).map_err(|source| CommError::Backend { call: "connect", source })?;
        Ok(Single { device, timeline: Rc::new(timeline), activity: Rc::default() })
    }
}

fn copy(target: &Tensor, source: &Tensor) -> Result<(), CommError> {
    if target.data_ptr() != source.data_ptr() {
        target.view([-1]).f_copy_(&source.f_view([-1])?)?;
    }
    Ok(())
}

impl Collectives for Single {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn device(&self) -> Device {
        self.device
    }

    fn axis(&self, ranks: &[usize]) -> Result<Rc<dyn Collectives>, CommError> {
        if ranks != [0] {
            return Err(CommError::Axis { rank: 0, world_size: 1, ranks: ranks.to_vec() });
        }
        let (timeline, activity) = (self.timeline.clone(), self.activity.clone());
        Ok(Rc::new(Single { device: self.device, timeline, activity }))
    }

    fn start_all_gather_into(&self, full: &Tensor, shard: &Tensor) -> Result<Pending, CommError> {
        check_pair(ALL_GATHER, full, shard, 1, self.device)?;
        copy(full, shard)?;
        Ok(Pending::done())
    }

    fn start_reduce_scatter_into(&self, shard: &Tensor, full: &Tensor) -> Result<Pending, CommError> {
        check_pair(REDUCE_SCATTER, full, shard, 1, self.device)?;
        copy(shard, full)?;
        Ok(Pending::done())
    }

    fn traffic(&self) -> Traffic {
        Traffic::default()
    }

    fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    fn activity(&self) -> &Activity {
        &self.activity
    }
}
