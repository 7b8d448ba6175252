//! Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 of `launch` itself become events; the main thread decides what follows.

use std::sync::mpsc::Sender;

use tokio::signal::unix::{SignalKind, signal};

use crate::event::{Event, StopSignal};

/// Listens from a thread of its own until the process ends. From now on these signals no longer end `launch` by themselves.
///
/// # Errors
/// The system refuses the handlers or the thread.
pub fn listen(events: Sender<Event>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate, mut save, mut hangup) = {
        let _inside = runtime.enter();
        // `nohup` has it ignored, and so it stays.
        let hangup = if is_ignored(libc::SIGHUP) { None } else { Some(signal(SignalKind::hangup())?) };
        let stop = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        (stop.0, stop.1, signal(SignalKind::user_defined1())?, hangup)
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async move {
            loop {
                let received = tokio::select! {
                    Some(()) = interrupt.recv() => Event::Signal(StopSignal::Interrupt),
                    Some(()) = terminate.recv() => Event::Signal(StopSignal::Terminate),
                    Some(()) = async { hangup.as_mut()?.recv().await } => Event::Signal(StopSignal::Hangup),
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

/// Until [`listen`], a wish for a checkpoint is passed over in place of ending the process: nothing is trained yet.
pub fn wait_with_saving() {
    // SAFETY: SIG_IGN is a valid disposition, and no handler of ours is replaced.
    unsafe { libc::signal(libc::SIGUSR1, libc::SIG_IGN) };
}

fn is_ignored(number: libc::c_int) -> bool {
    // SAFETY: an all-zero sigaction is a valid value of this plain C struct.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is set, and `now` is valid for writing.
    let asked = unsafe { libc::sigaction(number, std::ptr::null(), &mut now) };
    asked == 0 && now.sa_sigaction == libc::SIG_IGN
}
