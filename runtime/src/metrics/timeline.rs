//! What a rank did when: spans on tracks, recorded while a profile asks for them.
//!
//! Every backend has a [`Timeline`], since it alone knows the streams. While it is off, a span costs one look at a flag.
//! Where the device runs behind the host, a span begins and ends at events of the device's own streams; they are tied to
//! the host's clock once, when recording starts, and read when they have happened. Everything else is the host's clock.

use crate::gpu::{Event, Events, GpuError, Stream};
use crate::torch::{self, ShimError};
use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant, SystemTime};
use tch::Device;

/// Shorter waits of a stream are the clock's own resolution.
const SHORTEST_WAIT: Duration = Duration::from_micros(1);

/// Where a span stands in a rank's timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Track {
    /// The training thread: steps, their phases, and what it waits for. A span may lie in another.
    Host,
    /// What libtorch computes.
    Compute,
    /// All-gathers.
    Gathers,
    /// Reduce-scatters and all-reduces.
    Reductions,
}

impl Track {
    /// Every track, from the top down.
    pub const ALL: [Track; 4] = [Track::Host, Track::Compute, Track::Gathers, Track::Reductions];

    /// What viewers show.
    pub fn name(self) -> &'static str {
        match self {
            Track::Host => "host",
            Track::Compute => "compute",
            Track::Gathers => "gathers",
            Track::Reductions => "reductions",
        }
    }
}

/// What goes over the wire in one collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The collective's sequence number.
    pub sequence: u64,
    /// Bytes of the full buffer.
    pub bytes: u64,
}

/// What a span says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Label {
    /// The unit or segment it is about, or what is done.
    pub name: String,
    /// What is done with it, such as `forward`; empty where the name says it.
    pub kind: &'static str,
    /// Collectives only.
    pub transfer: Option<Transfer>,
}

impl Label {
    /// Something of that name.
    pub fn new(name: impl Into<String>) -> Self {
        Label { name: name.into(), ..Label::default() }
    }

    /// Something that is done with what the name says.
    pub fn of_kind(name: impl Into<String>, kind: &'static str) -> Self {
        Label { kind, ..Label::new(name) }
    }
}

/// A span that is over. Times are since the origin of the whole job's timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where it stands.
    pub track: Track,
    /// What it is.
    pub label: Label,
    /// When it began.
    pub from: Duration,
    /// When it was over.
    pub to: Duration,
}

#[derive(Debug)]
enum Moment {
    Host(Instant),
    Device(Event),
}

#[derive(Debug)]
struct Open {
    track: Track,
    label: Label,
    from: Moment,
}

/// A span that has begun; nothing when the timeline was off. Dropped, it leaves no trace.
#[must_use = "a span is recorded by Timeline::end"]
#[derive(Debug)]
pub struct Begun(Option<Box<Open>>);

/// The streams' clock.
struct DeviceClock {
    /// libtorch's own stream.
    compute: Stream,
    events: Events,
}

/// A moment of both clocks.
struct Anchor {
    instant: Instant,
    /// `instant`, since the origin.
    at: Duration,
    /// An event that has happened, and when, since the origin.
    event: Option<(Event, Duration)>,
}

impl Anchor {
    fn time_of(&self, moment: &Moment) -> Result<Duration, GpuError> {
        match (moment, &self.event) {
            (Moment::Host(instant), _) => Ok(self.at + instant.saturating_duration_since(self.instant)),
            (Moment::Device(event), Some((anchor, at))) => {
                let seconds = at.as_secs_f64() + event.milliseconds_since(anchor)? / 1e3;
                Ok(Duration::from_secs_f64(seconds.max(0.0)))
            }
            (Moment::Device(_), None) => Ok(self.at),
        }
    }
}

/// The recorder of one rank.
#[derive(Default)]
pub struct Timeline {
    on: Cell<bool>,
    device: Option<DeviceClock>,
    anchor: RefCell<Option<Anchor>>,
    /// Spans that were ended, and the moments when they were; on a device these may still be to come.
    ended: RefCell<Vec<(Open, Moment)>>,
    /// What the next collectives are about.
    about: RefCell<String>,
    /// The host's phase.
    phase: RefCell<Option<Begun>>,
    /// Why an event could not be recorded.
    failure: RefCell<Option<GpuError>>,
}

impl Timeline {
    /// Of a rank that computes on `device`, on which nothing but libtorch has streams.
    ///
    /// # Errors
    /// When libtorch cannot name its stream.
    pub fn on_device(device: Device) -> Result<Self, ShimError> {
        match device {
            Device::Cuda(_) => {
                Ok(Timeline::on_stream(Stream::borrowed(torch::current_stream(device)?), Events::default()))
            }
            _ => Ok(Timeline::default()),
        }
    }

    /// Of a rank that computes on the stream `compute`.
    pub(crate) fn on_stream(compute: Stream, events: Events) -> Self {
        Timeline { device: Some(DeviceClock { compute, events }), ..Timeline::default() }
    }

    /// Whether spans are recorded.
    pub fn is_on(&self) -> bool {
        self.on.get()
    }

    /// Records from now on. All times are told since `origin`, which all ranks have in common. The host waits for the
    /// device, once.
    ///
    /// # Errors
    /// What the driver says.
    pub(crate) fn start(&self, origin: SystemTime) -> Result<(), GpuError> {
        let event = match &self.device {
            Some(clock) => Some(clock.compute.record(&clock.events)?),
            None => None,
        };
        event.iter().try_for_each(Event::synchronise)?;
        let instant = Instant::now();
        let at = SystemTime::now().duration_since(origin).unwrap_or_default();
        *self.anchor.borrow_mut() = Some(Anchor { instant, at, event: event.map(|event| (event, at)) });
        self.on.set(true);
        Ok(())
    }

    /// Lets no span begin any more. Those that have begun may still be ended.
    pub(crate) fn stop(&self) {
        self.leave();
        self.on.set(false);
    }

    /// What the collectives that follow are about.
    pub fn about(&self, name: &str) {
        if self.is_on() {
            name.clone_into(&mut self.about.borrow_mut());
        }
    }

    /// Begins a span on the host's clock, or on the device's for what libtorch computes.
    pub fn begin(&self, track: Track, label: impl FnOnce() -> Label) -> Begun {
        if !self.is_on() {
            return Begun(None);
        }
        let from = self.now(track);
        Begun(from.map(|from| Box::new(Open { track, label: label(), from })))
    }

    /// Begins a collective's span on the host's clock.
    pub fn begin_transfer(&self, track: Track, transfer: Transfer) -> Begun {
        self.begin(track, || self.label_of(transfer))
    }

    /// Begins a collective's span where `stream` is done with what it was given before.
    pub(crate) fn begin_transfer_on(&self, stream: &Stream, track: Track, transfer: Transfer) -> Begun {
        if !self.is_on() {
            return Begun(None);
        }
        let from = self.moment_of(stream);
        Begun(from.map(|from| Box::new(Open { track, label: self.label_of(transfer), from })))
    }

    /// Ends a span of [`Timeline::begin`] or [`Timeline::begin_transfer`].
    pub fn end(&self, begun: Begun) {
        if let Some(open) = begun.0
            && let Some(to) = self.now(open.track)
        {
            self.ended.borrow_mut().push((*open, to));
        }
    }

    /// Ends a collective's span where `stream` is done with what it was given so far.
    pub(crate) fn end_on(&self, stream: &Stream, begun: Begun) {
        if let Some(open) = begun.0
            && let Some(to) = self.moment_of(stream)
        {
            self.ended.borrow_mut().push((*open, to));
        }
    }

    /// Notes that libtorch's stream waited between two moments.
    pub(crate) fn waited(&self, (from, to): (Event, Event), time: Duration) {
        if self.is_on() && time >= SHORTEST_WAIT {
            let open = Open { track: Track::Compute, label: Label::new("wait"), from: Moment::Device(from) };
            self.ended.borrow_mut().push((open, Moment::Device(to)));
        }
    }

    /// The host enters a phase, which ends the one before.
    pub fn enter(&self, phase: &str) {
        self.leave();
        if self.is_on() {
            *self.phase.borrow_mut() = Some(self.begin(Track::Host, || Label::new(phase)));
        }
    }

    /// The host leaves its phase.
    pub fn leave(&self) {
        if let Some(begun) = self.phase.take() {
            self.end(begun);
        }
    }

    /// Hands out what is over; a device's spans that are still to come stay, unless they are to be waited for.
    ///
    /// # Errors
    /// What the driver says, now or when an event was to be recorded.
    pub(crate) fn take(&self, wait: bool) -> Result<Vec<Span>, GpuError> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let mut anchor = self.anchor.borrow_mut();
        let Some(anchor) = anchor.as_mut() else { return Ok(Vec::new()) };
        let (mut spans, mut to_come, mut latest) = (Vec::new(), Vec::new(), None::<(Event, Duration)>);
        for (open, end) in self.ended.take() {
            if let Moment::Device(event) = &end {
                if wait {
                    event.synchronise()?;
                } else if !event.happened()? {
                    to_come.push((open, end));
                    continue;
                }
            }
            let (from, to) = (anchor.time_of(&open.from)?, anchor.time_of(&end)?);
            spans.push(Span { track: open.track, label: open.label, from, to: to.max(from) });
            if let Moment::Device(event) = end
                && latest.as_ref().is_none_or(|(_, time)| *time < to)
            {
                latest = Some((event, to));
            }
        }
        // The driver tells distances in float32, so they have to stay short.
        if latest.is_some() {
            anchor.event = latest;
        }
        *self.ended.borrow_mut() = to_come;
        Ok(spans)
    }

    fn label_of(&self, transfer: Transfer) -> Label {
        Label { transfer: Some(transfer), ..Label::new(self.about.borrow().as_str()) }
    }

    fn now(&self, track: Track) -> Option<Moment> {
        match &self.device {
            Some(clock) if track == Track::Compute => self.moment_of(&clock.compute),
            _ => Some(Moment::Host(Instant::now())),
        }
    }

    fn moment_of(&self, stream: &Stream) -> Option<Moment> {
        let clock = self.device.as_ref()?;
        match stream.record(&clock.events) {
            Ok(event) => Some(Moment::Device(event)),
            Err(error) => {
                self.failure.borrow_mut().get_or_insert(error);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started() -> Timeline {
        let timeline = Timeline::default();
        timeline.start(SystemTime::now() - Duration::from_secs(5)).unwrap();
        timeline
    }

    #[test]
    fn nothing_is_recorded_and_no_label_made_while_it_is_off() {
        let timeline = Timeline::default();
        timeline.about("layer 0");
        timeline.enter("forward");
        timeline.end(timeline.begin(Track::Compute, || unreachable!()));
        timeline.end(timeline.begin_transfer(Track::Gathers, Transfer { sequence: 1, bytes: 8 }));
        timeline.stop();
        assert!(timeline.take(true).unwrap().is_empty() && timeline.about.borrow().is_empty());
    }

    #[test]
    fn spans_have_their_labels_and_times_since_the_origin() {
        let timeline = started();
        timeline.about("layer 3");
        let gather = timeline.begin_transfer(Track::Gathers, Transfer { sequence: 7, bytes: 64 });
        let compute = timeline.begin(Track::Compute, || Label::of_kind("layer 2", "forward"));
        std::thread::sleep(Duration::from_millis(2));
        timeline.end(compute);
        timeline.end(gather);
        let spans = timeline.take(false).unwrap();
        let [compute, gather] = spans.as_slice() else { panic!("{spans:?}") };
        assert_eq!(
            (compute.label.name.as_str(), compute.label.kind, compute.track),
            ("layer 2", "forward", Track::Compute)
        );
        assert_eq!(
            gather.label,
            Label { transfer: Some(Transfer { sequence: 7, bytes: 64 }), ..Label::new("layer 3") }
        );
        assert!(gather.from >= Duration::from_secs(5) && gather.from <= compute.from && compute.to <= gather.to);
        assert!(compute.to - compute.from >= Duration::from_millis(2));
        assert!(timeline.take(true).unwrap().is_empty(), "handed out once");
    }

    #[test]
    fn what_has_begun_may_end_after_the_last_step() {
        let timeline = started();
        timeline.enter("optimizer");
        let gather = timeline.begin_transfer(Track::Gathers, Transfer { sequence: 1, bytes: 8 });
        timeline.stop();
        timeline.enter("data");
        timeline.end(timeline.begin(Track::Compute, || Label::new("late")));
        timeline.end(gather);
        timeline.leave();
        let tracks: Vec<Track> = timeline.take(true).unwrap().iter().map(|span| span.track).collect();
        assert_eq!(tracks, [Track::Host, Track::Gathers]);
    }

    #[test]
    fn a_phase_ends_where_the_next_begins() {
        let timeline = started();
        timeline.enter("forward");
        let wait = timeline.begin(Track::Host, || Label::new("wait"));
        timeline.end(wait);
        timeline.enter("backward");
        timeline.leave();
        timeline.leave();
        let spans = timeline.take(true).unwrap();
        let names: Vec<&str> = spans.iter().map(|span| span.label.name.as_str()).collect();
        assert_eq!(names, ["wait", "forward", "backward"]);
        assert!(spans[1].to <= spans[2].from && spans[1].from <= spans[0].from && spans[0].to <= spans[1].to);
    }
}
