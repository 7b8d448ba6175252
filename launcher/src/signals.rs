//! Ctrl-C and SIGTERM of `launch` itself become events; the main thread decides what follows.

use std::sync::mpsc::Sender;

use tokio::signal::unix::{SignalKind, signal};

use crate::event::{Event, StopSignal};

/// Listens from a thread of its own until the process ends. From now on these signals no longer end `launch` by themselves.
///
/// # Errors
/// The system refuses the handlers or the thread.
pub fn listen(events: Sender<Event>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async move {
            loop {
                let received = tokio::select! {
                    Some(()) = interrupt.recv() => StopSignal::Interrupt,
                    Some(()) = terminate.recv() => StopSignal::Terminate,
                    else => return,
                };
                if events.send(Event::Signal(received)).is_err() {
                    return;
                }
            }
        });
    })?;
    Ok(())
}
