//! The best checkpoint of a run that is gone on with. It becomes the model at the end, so it has to be there now.

use zerofold_checkpoint::{Found, Manifest, set_aside, step_directory, verify};
use zerofold_configs::Resolved;
use zerofold_store::CheckpointStore;

use crate::error::LaunchError;
use crate::run_folder::RunFolder;
use crate::terminal::Terminal;

/// The step whose held-out loss was the lowest when a checkpoint was saved, if the job looked for it.
pub(crate) fn best_step(manifest: &Manifest) -> Option<u64> {
    manifest.state["optimizer"]["best"]["step"].as_u64()
}

/// Sees to it that the best checkpoint so far is in the run's folder and whole, fetched from the store if need be. One that cannot
/// be had is told, and set aside if it is there: the workers then look for the best anew.
pub(crate) fn see_to(
    run: &RunFolder,
    found: &Found,
    config: &Resolved,
    store: Option<&CheckpointStore>,
    terminal: &Terminal,
) -> Result<(), LaunchError> {
    let best = best_step(&found.manifest).filter(|best| *best != found.manifest.step);
    let Some(best) = best.filter(|_| config.training.load_best_model_at_end) else { return Ok(()) };
    let directory = step_directory(&run.checkpoints(), best);
    let mut reason = match directory.exists() {
        true => match verify(&directory) {
            Ok(_) => return Ok(()),
            Err(error) => error.reason(),
        },
        false => "it is not there any more".to_owned(),
    };
    if let Some(store) = store
        && let Some(stored) = store.steps()?.into_iter().find(|stored| stored.step == best && stored.is_published())
    {
        terminal.say(&format!("fetching {}, the best checkpoint so far", store.step_url(best)));
        match store.fetch(&stored, &run.checkpoints()) {
            Ok(_) => return Ok(()),
            Err(error) if error.is_damage() => reason = error.reason(),
            Err(error) => return Err(error.into()),
        }
    }
    if directory.exists() {
        set_aside(&directory)?;
    }
    terminal.complain(&format!(
        "warning: the best checkpoint so far, of step {best}, cannot become the model: {reason}; the best is looked for \
         anew from here on"
    ));
    Ok(())
}
