//! Which chat template a job trains with, and whether it is the one that the model was trained with before.

use std::path::Path;

use zerofold_checkpoint::Manifest;
use zerofold_configs::{Resolved, nearest};
use zerofold_data::{TemplateSource, today, trained_template_digest};

use crate::error::LaunchError;
use crate::hub::{Extent, ModelName};
use crate::terminal::Terminal;

/// Makes the configuration tell the text of the template that `chat_template_path` names, and warns where the job would
/// go on with another one than the model has seen.
///
/// # Errors
/// There is no such template, or a built-in one does not fit the model's tokenizer.
pub(crate) fn settle(config: &mut Resolved, terminal: &Terminal) -> Result<(), LaunchError> {
    let model = config.training.model_name_or_path.clone();
    let before = digest(config);
    if let Some(name) = config.training.chat_template_path.clone() {
        check_name(&name)?;
        let builtin = name.to_str().is_some_and(TemplateSource::is_builtin);
        let place = match builtin {
            true => name.clone(),
            false => ModelName { name: &name, revision: None }.find(Extent::WithoutWeights, terminal)?.0,
        };
        let eos_token = config.training.eos_token.as_deref();
        config.chat_template = Some(TemplateSource::named(&place, &model, eos_token)?.text);
        if let (Some(before), Some(now)) = (&before, digest(config))
            && *before != now
        {
            terminal.complain(&format!(
                "warning: the model has a chat template of its own ({}), and this job trains with another, {} ({}): \
                     what it learned by its own is partly lost",
                short(before),
                name.display(),
                short(&now)
            ));
        }
    }
    if let Some(warning) = other_than_trained(&model, digest(config).as_deref())? {
        terminal.complain(&warning);
    }
    let source = source(config.chat_template.as_deref(), &model);
    config.template_date = source.filter(TemplateSource::tells_the_day).map(|_| today());
    Ok(())
}

/// Refuses a name that is nearly that of a built-in template and names nothing here, before the hub is asked for it.
pub(crate) fn check_name(name: &Path) -> Result<(), LaunchError> {
    let names = TemplateSource::builtin_names();
    let word = name.to_str().filter(|word| !word.contains('/') && !names.contains(word) && !name.exists());
    match word.and_then(|word| Some((word, nearest(word, names.iter().copied())?))) {
        None => Ok(()),
        Some((word, near)) => Err(LaunchError::usage(
            format!("chat_template_path is {word}: there is no such file, and no built-in template of this name"),
            format!("did you mean {near}? built in are {}", names.join(", ")),
        )),
    }
}

/// Makes a job that goes on from a checkpoint tell its template the day that the job before told: else its rows would be others.
pub(crate) fn keep_date(config: &mut Resolved, manifest: &Manifest) {
    let before = manifest.job.as_ref().and_then(|job| job.configuration["template_date"].as_str());
    if let (Some(date), Some(before)) = (&mut config.template_date, before) {
        *date = before.to_owned();
    }
}

/// The hash of the template that the job trains with, if there is one.
pub(crate) fn digest(config: &Resolved) -> Option<String> {
    digest_of(config.chat_template.as_deref(), &config.training.model_name_or_path)
}

/// The hash of a template's text, else of that in the model's folder.
pub(crate) fn digest_of(text: Option<&str>, folder: &Path) -> Option<String> {
    source(text, folder).map(|source| source.digest())
}

fn source(text: Option<&str>, folder: &Path) -> Option<TemplateSource> {
    match text {
        Some(text) => Some(TemplateSource { text: text.to_owned(), place: folder.to_owned() }),
        None => TemplateSource::of_model(folder).ok(),
    }
}

/// A warning where a model folder tells that it was trained with another template than the one with this hash.
///
/// # Errors
/// A config.json that cannot be read.
pub(crate) fn other_than_trained(folder: &Path, digest: Option<&str>) -> Result<Option<String>, LaunchError> {
    let Some(trained) = trained_template_digest(folder)? else { return Ok(None) };
    if digest == Some(trained.as_str()) {
        return Ok(None);
    }
    Ok(Some(format!(
        "warning: {} was trained with another chat template: the one with hash {}, and here it is {}; put that one back, \
         or name it by chat_template_path",
        folder.display(),
        short(&trained),
        digest.map_or_else(|| "none".to_owned(), short),
    )))
}

/// A hash as people are told it.
pub(crate) fn short(digest: &str) -> String {
    format!("{}…", digest.get(..16).unwrap_or(digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_other_than_the_trained_one_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("config.json", "{}");
        write("chat_template.jinja", "{{ messages }}");
        let warning = || other_than_trained(folder.path(), digest_of(None, folder.path()).as_deref()).unwrap();
        assert_eq!(warning(), None, "a folder that does not say");
        let digest = digest_of(None, folder.path()).unwrap();
        assert_eq!(digest, blake3_of("{{ messages }}"));
        write("config.json", &format!("{{\"trained_chat_template\": \"{digest}\"}}"));
        assert_eq!(warning(), None);
        write("chat_template.jinja", "{{ messages[0] }}");
        let told = warning().unwrap();
        assert!(told.contains("was trained with another chat template") && told.contains(&digest[..16]), "{told}");
        std::fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
        assert!(warning().unwrap().contains("here it is none"));
    }

    fn blake3_of(text: &str) -> String {
        TemplateSource { text: text.to_owned(), place: Path::new("").to_owned() }.digest()
    }
}
