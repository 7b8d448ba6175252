//! When a membership of the job may begin, decided from who is there.

use std::time::{Duration, Instant};

use zerofold_configs::{Nodes, RendezvousTimes};

/// What follows from who is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gathering {
    /// It begins with those who are there.
    Begin,
    /// Nothing before this moment, unless somebody comes or goes.
    Wait(Instant),
    /// Too few came for too long.
    TooFew,
}

/// What to do at `now`, of a gathering that began at `began`, with `hosts` there of whom the last came at `last`.
pub(super) fn decide(
    now: Instant,
    began: Instant,
    (hosts, last): (u32, Instant),
    nodes: Nodes,
    times: &RendezvousTimes,
) -> Gathering {
    if hosts >= nodes.max {
        return Gathering::Begin;
    }
    if hosts < nodes.min {
        let until = began + times.join;
        return if now >= until { Gathering::TooFew } else { Gathering::Wait(until) };
    }
    let until = last.max(began) + times.last_call;
    if now >= until { Gathering::Begin } else { Gathering::Wait(until) }
}

/// How long the log is quiet while too few hosts are there.
pub(super) const REMINDER: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_begins_with_all_or_with_enough_after_a_last_call() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let (two, elastic) = (Nodes { min: 2, max: 2 }, Nodes { min: 2, max: 4 });
        let times = RendezvousTimes { join: Duration::from_secs(600), last_call: Duration::from_secs(30) };
        let table = [
            (at(1), (1, at(0)), two, Gathering::Wait(at(600))),
            (at(600), (1, at(0)), two, Gathering::TooFew),
            (at(601), (2, at(601)), two, Gathering::Begin),
            (at(5), (2, at(4)), elastic, Gathering::Wait(at(34))),
            (at(34), (2, at(4)), elastic, Gathering::Begin),
            (at(34), (3, at(20)), elastic, Gathering::Wait(at(50))),
            (at(34), (4, at(34)), elastic, Gathering::Begin),
            // They were there before this gathering began, after a failure: another may come back.
            (at(5), (3, began - Duration::from_secs(1)), elastic, Gathering::Wait(at(30))),
            (at(700), (1, at(2)), elastic, Gathering::TooFew),
        ];
        for (now, who, nodes, expected) in table {
            assert_eq!(decide(now, began, who, nodes, &times), expected, "{who:?} {nodes:?}");
        }
    }
}
