//! Ctrl-C, SIGTERM and SIGUSR1 of `launch` itself become events; the main thread decides what follows.

use std::sync::mpsc::Sender;

use tokio::signal::unix::{SignalKind, signal};

use crate::event::{Event, StopSignal};

/// Listens from a thread of its own until the process ends. From now on these signals no longer end `launch` by themselves.
///
/// # Errors
/// The system refuses the handlers or the thread.
pub fn listen(events: Sender<Event>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate, mut save) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::user_defined1())?)
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async move {
            loop {
                let received = tokio::select! {
                    Some(()) = interrupt.recv() => Event::Signal(StopSignal::Interrupt),
                    Some(()) = terminate.recv() => Event::Signal(StopSignal::Terminate),
                    Some(()) = save.recv() => Event::SaveAsked,
                    else => return,
                };
                if events.send(received).is_err() {
                    return;
                }
            }
        });
    })?;
    Ok(())
}
