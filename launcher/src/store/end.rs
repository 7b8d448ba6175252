//! The end of a job: what is still being uploaded is waited for.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::Uploader;
use crate::control::ControlPlane;
use crate::event::{Event, StopSignal};
use crate::supervise::{Facts, Observer};

/// The longest sleep without a look.
const TICK: Duration = Duration::from_millis(100);

/// Waits until nothing is left to upload, and passes on what comes of it. A job that was asked to stop, or is asked now, waits for
/// at most `grace`; asked once more, it gives up at once. Gives the
/// signal by which it was made to give up, if it was one that came meanwhile.
pub(crate) fn wait_for_uploads(
    uploader: &Uploader,
    facts: &Facts,
    grace: Duration,
    events: &Receiver<Event>,
    (observer, control): (&mut dyn Observer, &ControlPlane),
) -> Option<StopSignal> {
    let mut signals = facts.signals;
    let mut deadline = (signals > 0 || facts.stop.is_some()).then(|| Instant::now() + grace);
    let (mut given_up, mut came, mut told) = (false, None, false);
    loop {
        let pending = uploader.pending();
        if let Some(step) = pending
            && !std::mem::replace(&mut told, true)
        {
            observer.notice(&waiting(step, uploader.store().url(), deadline.map(|_| grace)));
        }
        let too_late = deadline.is_some_and(|deadline| Instant::now() >= deadline) || signals > 1;
        if pending.is_some() && too_late && !std::mem::replace(&mut given_up, true) {
            uploader.give_up();
        }
        match events.recv_timeout(if pending.is_some() { TICK } else { Duration::ZERO }) {
            Ok(event) => {
                if let Event::Signal(signal) = event {
                    signals += 1;
                    came.get_or_insert(signal);
                    if let (Some(step), 1) = (pending, signals) {
                        deadline = Some(Instant::now() + grace);
                        observer.notice(&waiting(step, uploader.store().url(), Some(grace)));
                    }
                }
                observer.event(&event, control);
            }
            // What is told last is told before nothing is pending any more.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) if pending.is_none() => {
                return came.filter(|_| given_up);
            }
            Err(_) => {}
        }
    }
}

fn waiting(step: u64, url: &str, at_most: Option<Duration>) -> String {
    let limit = match at_most {
        Some(grace) => format!(" (at most {} s; again to give it up at once)", grace.as_secs()),
        None => String::new(),
    };
    format!("waiting until the checkpoint of step {step} is in {url}{limit}")
}
