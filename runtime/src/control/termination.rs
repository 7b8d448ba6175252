//! SIGTERM at a worker. From `launch` it means: end now. From anybody else (a scheduler signals every process of a job, a
//! person may take this one for the job) it means that the job is to stop as a whole, with a checkpoint, which only `launch`
//! can bring about.

use super::Reports;
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::emulate_default_handler;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Listens from a thread of its own until the process ends.
pub(super) fn listen(reports: Arc<Reports>) -> std::io::Result<()> {
    let mut signals = SignalsInfo::<WithOrigin>::new([SIGTERM])?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for origin in &mut signals {
            let sender = origin.process.map(|process| process.pid);
            // SAFETY: getppid has no preconditions.
            let launch = unsafe { libc::getppid() };
            if sender.is_none_or(|sender| sender == launch) {
                // The training thread may be blocked where nothing wakes it.
                let _ended = emulate_default_handler(SIGTERM);
            }
            tracing::warn!("SIGTERM from process {}: the job is to stop", sender.unwrap_or_default());
            reports.asked_to_end.store(true, Ordering::Relaxed);
            reports.changed.notify_one();
        }
    })?;
    Ok(())
}
