//! What each model answers to the same prompts, by the code of `generate`.

use std::ops::ControlFlow;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};
use zerofold_configs::GenerateRequest;

use super::EvaluateOptions;
use super::candidate::Candidate;
use crate::announce::harmless;
use crate::error::LaunchError;
use crate::generate;
use crate::short_job::ShortJobs;

/// So many characters of a prompt and of an answer are shown; JSON has all of them.
const SHOWN: usize = 600;

/// Prompts, each a user's message.
pub(super) struct Prompts(Vec<String>);

/// A prompt with what each model answers, in the models' order.
#[derive(Debug, PartialEq, Serialize)]
struct Answered {
    prompt: String,
    answers: Vec<String>,
}

/// All prompts with their answers.
#[derive(Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub(super) struct Answers(Vec<Answered>);

impl Prompts {
    /// A prompt a line; blank lines are none.
    pub(super) fn read(path: &Path) -> Result<Prompts, LaunchError> {
        let refuse =
            |problem: String, hint: &str| LaunchError::usage(format!("--prompts {}: {problem}", path.display()), hint);
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|error| refuse(error.to_string(), "give a text file with a prompt a line"))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let prompts: Vec<String> = lines.map(str::to_owned).collect();
        if prompts.is_empty() {
            return Err(refuse("there is no prompt in it".to_owned(), "write a prompt a line"));
        }
        match prompts.iter().position(|line| line.starts_with('{')) {
            Some(index) => Err(refuse(
                format!("prompt {} is JSON", index + 1),
                "write a prompt a line, as plain text; `launch generate --dataset FILE` answers rows of JSON",
            )),
            None => Ok(Prompts(prompts)),
        }
    }

    /// What a model answers to them, greedily; breaks as [`ShortJobs::run`] does.
    pub(super) fn of_model(
        &self,
        options: &EvaluateOptions,
        jobs: &ShortJobs,
        model: &Candidate,
    ) -> Result<ControlFlow<u8, Vec<String>>, LaunchError> {
        let rows = model.run.root().join("prompts.jsonl");
        let written = std::fs::write(&rows, self.0.iter().map(|prompt| row(prompt)).collect::<String>());
        written.map_err(LaunchError::system(format!("write {}", rows.display())))?;
        let request =
            GenerateRequest { max_new_tokens: options.max_new_tokens, dataset: Some(rows), ..GenerateRequest::new("") };
        if let ControlFlow::Break(code) = generate::by_ranks(&request, &model.config, (jobs, &model.run))? {
            return Ok(ControlFlow::Break(code));
        }
        let answer = |line: &String| {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            line["answer"].as_str().unwrap_or_default().to_owned()
        };
        Ok(ControlFlow::Continue(generate::answers(&model.run, &model.config)?.iter().map(answer).collect()))
    }

    /// With what each model answered.
    pub(super) fn answered(self, by_model: &[Vec<String>]) -> Answers {
        let answered = |(index, prompt): (usize, String)| {
            let answers = by_model.iter().map(|answers| answers.get(index).cloned().unwrap_or_default()).collect();
            Answered { prompt, answers }
        };
        Answers(self.0.into_iter().enumerate().map(answered).collect())
    }
}

/// A prompt as a conversation; what the answer should be is not known, and nobody asks.
fn row(prompt: &str) -> String {
    let messages = json!([{"role": "user", "content": prompt}, {"role": "assistant", "content": ""}]);
    format!("{}\n", json!({ "messages": messages }))
}

impl Answers {
    /// Each prompt, and below it what each of `models` answers.
    pub(super) fn lines<'a>(&self, models: impl Iterator<Item = &'a String> + Clone) -> Vec<String> {
        let width = models.clone().map(|name| name.chars().count()).max().unwrap_or(0);
        let mut lines = Vec::new();
        for Answered { prompt, answers } in &self.0 {
            lines.extend([String::new(), format!("> {}", harmless(prompt, SHOWN))]);
            for (name, answer) in models.clone().zip(answers) {
                let indent = format!("\n{:width$}  ", "");
                lines.push(format!("{name:<width$}  {}", harmless(answer.trim(), SHOWN).replace('\n', &indent)));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_lines_of_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts.txt");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Prompts::read(&path).map(|Prompts(prompts)| prompts).map_err(|error| error.to_string())
        };
        assert_eq!(read(" one \n\n\ntwo\n").unwrap(), ["one", "two"]);
        assert!(read("\n").unwrap_err().contains("there is no prompt in it\nhint: write a prompt a line"));
        assert!(read("one\n{\"prompt\": 1}\n").unwrap_err().contains("prompt 2 is JSON"));
        assert!(Prompts::read(&folder.path().join("none")).err().unwrap().to_string().contains("none"));
        assert_eq!(
            row("a \"b\""),
            "{\"messages\":[{\"role\":\"user\",\"content\":\"a \\\"b\\\"\"},{\"role\":\"assistant\",\"content\":\"\"}]}\n"
        );
    }

    #[test]
    fn answers_stand_below_their_prompt() {
        let answered =
            Answered { prompt: "Why?".to_owned(), answers: vec!["Because\nso".to_owned(), " \x1b[1mx".to_owned()] };
        let names = ["a".to_owned(), "longer".to_owned()];
        let lines = Answers(vec![answered]).lines(names.iter());
        assert_eq!(lines, ["", "> Why?", "a       Because\n        so", "longer  \u{fffd}[1mx"]);
    }
}
