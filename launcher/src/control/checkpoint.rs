//! Collects the parts of a checkpoint until every rank's is there. Pure: what publishes the manifest is elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

/// Why a checkpoint cannot be put together.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CollectError {
    /// A rank sent its part twice.
    #[error("rank {rank} sent its part of the checkpoint of step {step} twice")]
    Duplicate {
        /// The rank.
        rank: u32,
        /// The step.
        step: u64,
    },
    /// Ranks are at different steps.
    #[error("rank {rank} writes the checkpoint of step {theirs} while the others write that of step {ours}")]
    Step {
        /// The rank that differs.
        rank: u32,
        /// Its step.
        theirs: u64,
        /// The step that is open.
        ours: u64,
    },
    /// Ranks write to different folders.
    #[error("rank {rank} wrote its part of step {step} to {theirs}, the others to {ours}")]
    Directory {
        /// The rank that differs.
        rank: u32,
        /// The step.
        step: u64,
        /// Its folder.
        theirs: String,
        /// The others' folder.
        ours: String,
    },
    /// A rank ended, so its part will never come.
    #[error("the checkpoint cannot be completed: rank {rank} {reason}")]
    RankGone {
        /// The rank.
        rank: u32,
        /// How it ended.
        reason: String,
    },
}

/// One checkpoint on which every rank has spoken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complete<P> {
    /// Optimizer steps finished.
    pub step: u64,
    /// The step's folder.
    pub directory: String,
    /// One part a rank; or why there is no whole checkpoint, by the first rank that could not write its part.
    pub parts: Result<Vec<P>, String>,
}

struct Open<P> {
    step: u64,
    directory: String,
    parts: BTreeMap<u32, Result<P, String>>,
}

/// Collects one checkpoint at a time.
pub struct Collector<P> {
    world_size: u32,
    open: Option<Open<P>>,
    /// Steps that were not waited for any longer, with the ranks whose parts of them are still to come.
    given_up: BTreeMap<u64, BTreeSet<u32>>,
    gone: Option<CollectError>,
}

/// What became of one rank's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offered<P> {
    /// Others are still to come.
    Taken,
    /// It was the last one.
    Complete(Complete<P>),
    /// It came after its step was given up; the checkpoint failed.
    TooLate,
}

impl<P> Collector<P> {
    /// For a job of `world_size` ranks.
    pub fn new(world_size: u32) -> Self {
        Collector { world_size, open: None, given_up: BTreeMap::new(), gone: None }
    }

    /// Takes one rank's part, or why it has none. With the last one everything is handed out and the collector is ready for the
    /// next step: until then ranks may still be writing.
    ///
    /// # Errors
    /// A part that does not fit ends the open checkpoint: nobody's part of it will be published.
    pub fn offer(
        &mut self,
        rank: u32,
        step: u64,
        directory: &str,
        part: Result<P, String>,
    ) -> Result<Offered<P>, CollectError> {
        if let Some(gone) = &self.gone {
            return Err(gone.clone());
        }
        if let Some(awaited) = self.given_up.get_mut(&step)
            && awaited.remove(&rank)
        {
            if awaited.is_empty() {
                self.given_up.remove(&step);
            }
            return Ok(Offered::TooLate);
        }
        let mut open =
            self.open.take().unwrap_or_else(|| Open { step, directory: directory.to_owned(), parts: BTreeMap::new() });
        if open.step != step {
            return Err(CollectError::Step { rank, theirs: step, ours: open.step });
        }
        if open.directory != directory {
            return Err(CollectError::Directory { rank, step, theirs: directory.to_owned(), ours: open.directory });
        }
        if open.parts.insert(rank, part).is_some() {
            return Err(CollectError::Duplicate { rank, step });
        }
        if open.parts.len() < self.world_size as usize {
            self.open = Some(open);
            return Ok(Offered::Taken);
        }
        let parts = open.parts.into_iter();
        let parts = parts.map(|(rank, part)| part.map_err(|reason| format!("rank {rank}: {reason}")));
        Ok(Offered::Complete(Complete { step, directory: open.directory, parts: parts.collect() }))
    }

    /// Waits no longer for the parts of `step` that are missing, and names the ranks they are missing from. Their parts may come
    /// late and are not used then. None when nothing of this step is missing.
    pub fn give_up(&mut self, step: u64) -> Option<Vec<u32>> {
        let open = self.open.take_if(|open| open.step == step)?;
        let missing: BTreeSet<u32> = (0..self.world_size).filter(|rank| !open.parts.contains_key(rank)).collect();
        let ranks = missing.iter().copied().collect();
        self.given_up.insert(step, missing);
        Some(ranks)
    }

    /// A rank ended: no checkpoint can be completed from now on.
    pub fn rank_gone(&mut self, rank: u32, reason: &str) -> CollectError {
        self.open = None;
        self.gone.get_or_insert_with(|| CollectError::RankGone { rank, reason: reason.to_owned() }).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_out_by_rank_once_all_are_there() {
        let mut collector = Collector::new(3);
        assert_eq!(collector.offer(2, 20, "d", Ok("c")), Ok(Offered::Taken));
        assert_eq!(collector.offer(0, 20, "d", Ok("a")), Ok(Offered::Taken));
        let complete = collector.offer(1, 20, "d", Ok("b"));
        assert_eq!(
            complete,
            Ok(Offered::Complete(Complete { step: 20, directory: "d".into(), parts: Ok(vec!["a", "b", "c"]) }))
        );
        assert_eq!(collector.offer(1, 40, "e", Ok("b")), Ok(Offered::Taken));
    }

    #[test]
    fn a_rank_without_a_part_is_the_reason_once_all_have_spoken() {
        let mut collector = Collector::new(3);
        assert_eq!(collector.offer(2, 20, "d", Err("no space left".into())), Ok(Offered::Taken));
        assert_eq!(collector.offer(1, 20, "d", Err("read-only".into())), Ok(Offered::Taken));
        let Ok(Offered::Complete(complete)) = collector.offer(0, 20, "d", Ok(())) else { panic!("all have spoken") };
        assert_eq!(complete.parts, Err("rank 1: read-only".into()));
        assert_eq!(collector.offer(0, 40, "e", Ok(())), Ok(Offered::Taken), "the next step has nothing to do with it");
    }

    #[test]
    fn a_part_that_does_not_fit_ends_the_checkpoint() {
        let mut collector = Collector::new(2);
        collector.offer(0, 20, "d", Ok(())).unwrap();
        assert_eq!(collector.offer(1, 30, "d", Ok(())), Err(CollectError::Step { rank: 1, theirs: 30, ours: 20 }));
        collector.offer(0, 20, "d", Ok(())).unwrap();
        assert!(matches!(collector.offer(1, 20, "e", Ok(())), Err(CollectError::Directory { rank: 1, .. })));
        collector.offer(0, 20, "d", Ok(())).unwrap();
        assert_eq!(collector.offer(0, 20, "d", Ok(())), Err(CollectError::Duplicate { rank: 0, step: 20 }));
    }

    #[test]
    fn nothing_completes_after_a_rank_is_gone() {
        let mut collector = Collector::new(2);
        collector.offer(0, 20, "d", Ok(())).unwrap();
        let error = collector.rank_gone(1, "was killed by SIGKILL");
        assert!(error.to_string().contains("rank 1 was killed by SIGKILL"));
        assert_eq!(collector.offer(1, 20, "d", Ok(())), Err(error.clone()));
        // The first death stays the reason.
        assert_eq!(collector.rank_gone(0, "exited"), error);
    }

    #[test]
    fn a_part_that_comes_too_late_spoils_nothing() {
        let mut collector = Collector::new(3);
        collector.offer(1, 20, "d", Ok(())).unwrap();
        assert_eq!(collector.give_up(10), None, "nobody waits for that");
        assert_eq!(collector.give_up(20), Some(vec![0, 2]));
        assert_eq!(collector.give_up(20), None, "told once");
        // Who did not wait is at the next step by now.
        assert_eq!(collector.offer(1, 40, "e", Ok(())), Ok(Offered::Taken));
        assert_eq!(collector.offer(2, 20, "d", Ok(())), Ok(Offered::TooLate));
        assert_eq!(collector.offer(2, 40, "e", Ok(())), Ok(Offered::Taken));
        assert_eq!(collector.offer(0, 20, "d", Ok(())), Ok(Offered::TooLate));
        assert!(matches!(collector.offer(0, 40, "e", Ok(())), Ok(Offered::Complete(_))));
    }

    #[test]
    fn several_saves_may_wait_for_the_same_slow_rank() {
        let mut collector = Collector::new(2);
        for step in [20, 40, 60] {
            collector.offer(0, step, "d", Ok(())).unwrap();
            assert_eq!(collector.give_up(step), Some(vec![1]));
        }
        for step in [20, 40, 60] {
            assert_eq!(collector.offer(1, step, "d", Ok(())), Ok(Offered::TooLate), "{step}");
        }
        assert!(collector.given_up.is_empty(), "nothing is kept for ever");
        assert_eq!(collector.offer(1, 80, "d", Ok(())), Ok(Offered::Taken));
    }
}
