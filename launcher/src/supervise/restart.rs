//! Whether a job that failed is begun again, decided from how its memberships ended.
//!
//! 1. At most `max_restarts` times in all.
//! 2. Never when it was asked to stop.
//! 3. Not when the same error ends it at the same step again: it would for ever. What comes from outside the program (a signal,
//!    silence, a hang) may hit the same step by chance, and counts as the same only the third time in a row.
//! 4. At once where steps were finished since the failure before, else after a pause that doubles each time.

use std::time::Duration;

use super::verdict::{Cause, Failure};

/// The pause before the second restart in a row that came no further.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A membership that begins after one that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restart {
    /// Its number.
    pub generation: u64,
    /// It goes on after this step; none where nothing was saved and all is done again, down to what is evaluated before the
    /// first step.
    pub after: Option<u64>,
    /// Steps of the whole run, which another number of processes may have changed.
    pub total: u64,
    /// Why the one before ended.
    pub reason: String,
}

/// How one membership of the job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The last step that was finished before.
    pub step: u64,
    /// The error, without what is different each time.
    pub error: String,
    /// It came from outside the program.
    pub external: bool,
}

impl Ended {
    /// After `step`, because of `failure`.
    pub fn new(step: u64, failure: &Failure) -> Self {
        let (error, external) = match &failure.cause {
            Cause::Reported(message) => (message.lines().next().unwrap_or_default().to_owned(), false),
            Cause::Ended(ending) => (ending.to_string(), matches!(ending, super::Ending::Signal(_))),
            Cause::LeftSilently => ("left silently".to_owned(), false),
            Cause::NeverJoined(_) | Cause::Silent(_) => ("silence".to_owned(), true),
            Cause::Hung(_) => ("hang".to_owned(), true),
            Cause::HostLost(_) => ("a host was lost".to_owned(), true),
            Cause::Unkillable => ("it does not end".to_owned(), true),
        };
        Ended { step, error, external }
    }
}

/// What follows a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Begin again after this pause.
    Restart(Duration),
    /// Do not; why, unless nobody asked for restarts.
    GiveUp(Option<String>),
}

/// What follows the last of these ends.
pub fn next(ends: &[Ended], max_restarts: u32) -> Next {
    let Some((last, before)) = ends.split_last() else { return Next::GiveUp(None) };
    if max_restarts == 0 {
        return Next::GiveUp(None);
    }
    let alike = before.iter().rev().take_while(|end| *end == last).count();
    if alike >= if last.external { 2 } else { 1 } {
        let times = alike + 1;
        let why = format!("it failed {times} times in a row at the same step with the same error, so it would again");
        return Next::GiveUp(Some(why));
    }
    if before.len() >= max_restarts as usize {
        return Next::GiveUp(Some(format!("it was begun again {max_restarts} times (--max-restarts)")));
    }
    let furthest = |ends: &[Ended]| ends.iter().map(|end| end.step).max();
    let stuck = (1..ends.len()).rev().take_while(|&end| Some(ends[end].step) <= furthest(&ends[..end])).count();
    Next::Restart(match stuck {
        0 => Duration::ZERO,
        more => LONGEST_PAUSE.min(FIRST_PAUSE * 2u32.saturating_pow(more.min(16) as u32 - 1)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn killed(step: u64) -> Ended {
        Ended { step, error: "was killed by SIGKILL".into(), external: true }
    }

    fn failed(step: u64) -> Ended {
        Ended { step, error: "step 9: loss NaN".into(), external: false }
    }

    fn why(next: Next) -> String {
        match next {
            Next::GiveUp(why) => why.unwrap_or_default(),
            Next::Restart(pause) => panic!("begins again after {pause:?}"),
        }
    }

    #[test]
    fn restarts_are_counted() {
        assert_eq!(next(&[killed(3)], 0), Next::GiveUp(None));
        assert_eq!(next(&[killed(3)], 1), Next::Restart(Duration::ZERO));
        assert!(why(next(&[killed(3), killed(5)], 1)).contains("begun again 1 times"));
        assert_eq!(next(&[killed(3), killed(5)], 2), Next::Restart(Duration::ZERO));
    }

    #[test]
    fn the_same_again_ends_it() {
        assert!(why(next(&[failed(8), failed(8)], 9)).contains("2 times in a row"));
        assert_eq!(next(&[failed(8), killed(8)], 9), Next::Restart(SECOND), "another error");
        assert_eq!(next(&[failed(8), failed(9)], 9), Next::Restart(Duration::ZERO), "another step");
        assert_eq!(next(&[killed(8), killed(8)], 9), Next::Restart(SECOND), "it may be chance");
        assert!(why(next(&[killed(8), killed(8), killed(8)], 9)).contains("3 times in a row"));
    }

    #[test]
    fn pauses_grow_until_steps_are_finished() {
        let ends = [killed(8), killed(7), killed(8), killed(7), killed(6)];
        let pauses = [0, 1, 2, 4, 8].map(|seconds| Next::Restart(seconds * SECOND));
        for (count, pause) in (1..).zip(pauses) {
            assert_eq!(next(&ends[..count], 99), pause, "{count}");
        }
        assert_eq!(next(&[killed(8), killed(7), killed(9)], 99), Next::Restart(Duration::ZERO));
        let long: Vec<Ended> = (0..40).map(|index| killed(40 - index)).collect();
        assert_eq!(next(&long, 99), Next::Restart(LONGEST_PAUSE));
    }
}
