//! The order of calls of the driver and NCCL: what has to hold for any step, whatever its collectives are.

/// A call, as far as order is concerned. Streams and events go by their numbers; stream 0 is libtorch's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Record { event: u64, stream: u64 },
    Wait { stream: u64, event: u64 },
    Collective { reduces: bool, stream: u64 },
    Group,
    Other(String),
}

impl Call {
    fn read(line: &str) -> Self {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |prefix: &str| {
            let found = words.iter().find_map(|word| word.strip_prefix(prefix)?.parse().ok());
            found.unwrap_or_else(|| panic!("no {prefix} in: {line}"))
        };
        match words[0] {
            "event_record" => Call::Record { event: number("e"), stream: number("stream=s") },
            "stream_wait" => Call::Wait { stream: number("stream=s"), event: number("event=e") },
            "all_gather" => Call::Collective { reduces: false, stream: number("stream=s") },
            "reduce_scatter" | "all_reduce" => Call::Collective { reduces: true, stream: number("stream=s") },
            "group_start" | "group_end" => Call::Group,
            _ => Call::Other(line.to_owned()),
        }
    }

    /// Whether it is given to this stream, or waits for something there.
    fn concerns(&self, concerned: u64) -> bool {
        match self {
            Call::Record { stream, .. } | Call::Wait { stream, .. } | Call::Collective { stream, .. } => {
                *stream == concerned
            }
            Call::Group | Call::Other(_) => false,
        }
    }
}

pub(crate) fn read(log: &str) -> Vec<Call> {
    log.lines().map(Call::read).collect()
}

/// The streams of gathers and of reductions, which are created first and have the highest priority.
pub(crate) fn streams(log: &str) -> Result<(u64, u64), String> {
    let created: Vec<&str> = log.lines().filter(|line| line.starts_with("stream_create")).collect();
    if created.len() != 2 || !created.iter().all(|line| line.ends_with(" priority=-5")) {
        return Err(format!("not two streams of the highest priority: {created:?}"));
    }
    let of = |wanted: bool| {
        let mut streams: Vec<u64> = read(log)
            .iter()
            .filter_map(|call| match call {
                Call::Collective { reduces, stream } if *reduces == wanted => Some(*stream),
                _ => None,
            })
            .collect();
        streams.sort_unstable();
        streams.dedup();
        streams
    };
    match (of(false).as_slice(), of(true).as_slice()) {
        ([gathers], [reductions]) if gathers != reductions && *gathers > 0 && *reductions > 0 => {
            Ok((*gathers, *reductions))
        }
        (gathers, reductions) => Err(format!("gathers on streams {gathers:?}, reductions on {reductions:?}")),
    }
}

/// Checks the collectives among the first `length` of `calls`; the others are those of the next step. What was recorded
/// behind a gather may be waited for in that one where `arrives_later`.
pub(crate) fn check(calls: &[Call], length: usize, arrives_later: bool) -> Result<usize, String> {
    let mut collectives = 0;
    for at in 0..length {
        let Call::Collective { reduces, stream } = calls[at] else { continue };
        collectives += 1;
        follows_compute(calls, at, stream).map_err(|problem| format!("call {at}, {:?}: {problem}", calls[at]))?;
        let limit = if arrives_later && !reduces { calls.len() } else { length };
        compute_follows(&calls[..limit], at, stream)
            .map_err(|problem| format!("call {at}, {:?}: {problem}", calls[at]))?;
    }
    Ok(collectives)
}

/// Before the collective its stream was made to wait for all that libtorch's stream had been given.
fn follows_compute(calls: &[Call], at: usize, stream: u64) -> Result<(), String> {
    let Some(last) = calls[..at].iter().rposition(|call| call.concerns(0)) else {
        return Err("nothing was recorded on s0 before it".to_owned());
    };
    let Call::Record { event, .. } = calls[last] else {
        return Err(format!("s0 was given {:?} after the last record on it", calls[last]));
    };
    match calls[last..at].contains(&Call::Wait { stream, event }) {
        true => Ok(()),
        false => Err(format!("its stream does not wait for e{event}, the last record on s0")),
    }
}

/// The next thing on the collective's stream, but for others of its group, is an event, and libtorch's stream waits for it
/// before it stands for anything else.
fn compute_follows(calls: &[Call], at: usize, stream: u64) -> Result<(), String> {
    let open = calls[..at].iter().filter(|call| **call == Call::Group).count() % 2 == 1;
    let same_group = |call: &Call| open && matches!(call, Call::Collective { .. });
    let Some(next) = (at + 1..calls.len()).find(|&next| calls[next].concerns(stream) && !same_group(&calls[next]))
    else {
        return Err("no event is recorded behind it".to_owned());
    };
    let Call::Record { event: done, .. } = calls[next] else {
        return Err(format!("no event is recorded behind it, but {:?} follows", calls[next]));
    };
    for call in &calls[next + 1..] {
        match call {
            Call::Wait { stream: 0, event } if *event == done => return Ok(()),
            Call::Record { event, .. } if *event == done => {
                return Err(format!("e{done} behind it is recorded again before s0 waited for it"));
            }
            _ => {}
        }
    }
    Err(format!("s0 never waits for e{done} behind it"))
}

/// How many collectives of a stream are under way at most: called, and not yet waited for by libtorch's stream.
pub(crate) fn most_under_way(calls: &[Call], stream: u64) -> usize {
    let (mut recorded, mut most) = (Vec::new(), 0);
    for call in calls {
        match call {
            Call::Record { event, stream: on } if *on == stream => recorded.push(*event),
            Call::Wait { stream: 0, event } => recorded.retain(|other| other != event),
            _ => {}
        }
        most = most.max(recorded.len());
    }
    most
}

/// The calls with events numbered in the order in which they come up.
pub(crate) fn with_stable_numbers(log: &str) -> String {
    let mut known: Vec<&str> = Vec::new();
    let mut text = String::new();
    for line in log.lines() {
        let words = line.split(' ').map(|word| {
            let (before, event) = match word.strip_prefix("event=") {
                Some(event) => ("event=", event),
                None => ("", word),
            };
            let is_event = event.strip_prefix('e').is_some_and(|number| number.parse::<u64>().is_ok());
            if !is_event {
                return word.to_owned();
            }
            let place = known.iter().position(|other| *other == event).unwrap_or_else(|| {
                known.push(event);
                known.len() - 1
            });
            format!("{before}e{}", place + 1)
        });
        text += &words.collect::<Vec<_>>().join(" ");
        text.push('\n');
    }
    text
}

const RIGHT: &str = "event_record e1 stream=s0\nstream_wait stream=s1 event=e1\n\
    all_gather c1 stream=s1 count=4 type=float32 in_place\nevent_record e2 stream=s1\n\
    event_record e3 stream=s0\nstream_wait stream=s0 event=e2\nevent_record e4 stream=s0";

#[test]
fn right_calls_are_accepted() {
    let calls = read(RIGHT);
    assert_eq!(check(&calls, calls.len(), false), Ok(1));
    assert_eq!(most_under_way(&calls, 1), 1);
    let group = RIGHT.replace("all_gather", "group_start\nall_reduce c1 stream=s1 count=1\nall_reduce");
    let calls = read(&group.replace("\nevent_record e2", "\ngroup_end\nevent_record e2"));
    assert_eq!(check(&calls, calls.len(), false), Ok(2));
}

#[test]
fn wrong_calls_are_refused() {
    let wrong = [
        ("event_record e1 stream=s0\n", "", "nothing was recorded on s0"),
        ("stream_wait stream=s1 event=e1\n", "", "does not wait for e1"),
        ("stream_wait stream=s1 event=e1\n", "stream_wait stream=s2 event=e1\n", "does not wait for e1"),
        ("all_gather", "event_record e9 stream=s0\nall_gather", "does not wait for e9"),
        ("all_gather", "stream_wait stream=s0 event=e9\nall_gather", "s0 was given"),
        ("event_record e2 stream=s1\n", "", "no event is recorded behind it"),
        ("stream_wait stream=s0 event=e2\n", "", "never waits for e2"),
        ("stream_wait stream=s0 event=e2\n", "event_record e2 stream=s1\n", "recorded again"),
    ];
    for (before, after, problem) in wrong {
        let calls = read(&RIGHT.replace(before, after));
        let found = check(&calls, calls.len(), false).unwrap_err();
        assert!(found.contains(problem), "{after}: {found}");
    }
    assert!(streams("stream_create s1 priority=-5\nstream_create s2 priority=0").is_err());
}

#[test]
fn events_are_numbered_as_they_come_up() {
    let text =
        with_stable_numbers("event_record e7 stream=s0\nstream_wait stream=s1 event=e7\nevent_record e3 stream=s1");
    assert_eq!(text, "event_record e1 stream=s0\nstream_wait stream=s1 event=e1\nevent_record e2 stream=s1\n");
}
