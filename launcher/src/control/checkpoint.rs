//! Collects the parts of a checkpoint until every rank's is there. Pure: what publishes the manifest is elsewhere.

use std::collections::BTreeMap;

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
    gone: Option<CollectError>,
}

impl<P> Collector<P> {
    /// For a job of `world_size` ranks.
    pub fn new(world_size: u32) -> Self {
        Collector { world_size, open: None, gone: None }
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
    ) -> Result<Option<Complete<P>>, CollectError> {
        if let Some(gone) = &self.gone {
            return Err(gone.clone());
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
            return Ok(None);
        }
        let parts = open.parts.into_iter();
        let parts = parts.map(|(rank, part)| part.map_err(|reason| format!("rank {rank}: {reason}")));
        Ok(Some(Complete { step, directory: open.directory, parts: parts.collect() }))
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
        assert_eq!(collector.offer(2, 20, "d", Ok("c")), Ok(None));
        assert_eq!(collector.offer(0, 20, "d", Ok("a")), Ok(None));
        let complete = collector.offer(1, 20, "d", Ok("b")).unwrap().unwrap();
        assert_eq!(complete, Complete { step: 20, directory: "d".into(), parts: Ok(vec!["a", "b", "c"]) });
        assert_eq!(collector.offer(1, 40, "e", Ok("b")), Ok(None));
    }

    #[test]
    fn a_rank_without_a_part_is_the_reason_once_all_have_spoken() {
        let mut collector = Collector::new(3);
        assert_eq!(collector.offer(2, 20, "d", Err("no space left".into())), Ok(None));
        assert_eq!(collector.offer(1, 20, "d", Err("read-only".into())), Ok(None));
        let complete = collector.offer(0, 20, "d", Ok(())).unwrap().unwrap();
        assert_eq!(complete.parts, Err("rank 1: read-only".into()));
        assert_eq!(collector.offer(0, 40, "e", Ok(())), Ok(None), "the next step has nothing to do with it");
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
}
