//! A data set answered: how many answers are exactly right.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use zerofold_configs::GenerateRequest;
use zerofold_data::{ChatTemplate, Columns, Conversation, Message, Row, RowReader, Sources};

use super::{Generator, print_piece};

/// One line of the output.
#[derive(Serialize)]
struct Answered<'a> {
    /// The conversation up to the answer, as the template renders it.
    prompt: &'a str,
    /// What the model said.
    answer: &'a str,
    /// What the data set says.
    expected: &'a str,
    /// Whether the two are equal, white space at both ends apart.
    #[serde(rename = "match")]
    matches: bool,
}

/// Answers each row's conversation up to its last assistant turn, compares with that turn, and prints the share that is
/// equal. With an output file, each answer is a line of it; the file appears when all are done.
///
/// # Errors
/// Rows without an assistant turn (file and line are named), an output that cannot be written, and what generating says.
pub(super) fn run(
    generator: &mut Generator,
    template: &ChatTemplate,
    path: &Path,
    request: &GenerateRequest,
) -> Result<()> {
    let mut output = request.output.as_deref().map(Output::create).transpose()?;
    let show_progress = std::io::stderr().is_terminal();
    let (mut rows, mut matches) = (0usize, 0usize);
    let (sources, columns) = (Sources::find(&[path.to_string_lossy()])?, Columns::default());
    for row in RowReader::new(&sources, &columns).take(request.limit.unwrap_or(usize::MAX)) {
        let (place, row) = row?;
        let place = || place.clone();
        let (conversation, expected) = split(row).with_context(place)?;
        let prompt = template.render(&conversation, true).with_context(place)?;
        let ids = generator.encode(&prompt, false)?;
        let answer = generator.generate(&ids, &mut |_| Ok(())).with_context(place)?;
        let matched = answer.trim() == expected.trim();
        rows += 1;
        matches += usize::from(matched);
        if let Some(output) = &mut output {
            output.write(&Answered { prompt: &prompt, answer: &answer, expected: &expected, matches: matched })?;
        }
        if show_progress {
            eprint!("\r{rows} answered, {matches} exactly right");
        }
    }
    if show_progress {
        eprintln!();
    }
    if let Some(output) = output {
        output.finish()?;
    }
    print_piece(&summary(matches, rows))
}

fn summary(matches: usize, rows: usize) -> String {
    let share = if rows == 0 { 0.0 } else { 100.0 * matches as f64 / rows as f64 };
    format!("exact match {matches}/{rows} ({share:.1} %)\n")
}

/// The messages before the last assistant turn, and what that turn says.
fn split(row: Row) -> Result<(Conversation, String)> {
    let Some(mut conversation) = row.into_conversation() else {
        bail!("the row is no conversation\nhint: answers are compared as text; give rows with `messages`");
    };
    let messages = &mut conversation.messages;
    let Some(last) = messages.iter().rposition(Message::is_assistant) else {
        bail!("the conversation has no assistant turn to compare with\nhint: end each row with the right answer");
    };
    let expected = messages[last].content().to_owned();
    messages.truncate(last);
    Ok((conversation, expected))
}

/// The output file, under another name until it is whole.
struct Output {
    path: PathBuf,
    partial: PathBuf,
    writer: BufWriter<File>,
}

impl Output {
    fn create(path: &Path) -> Result<Self> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let mut name = path.file_name().map(ToOwned::to_owned).unwrap_or_default();
        name.push(".partial");
        let partial = path.with_file_name(name);
        let file = File::create(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
        Ok(Output { path: path.to_owned(), partial, writer: BufWriter::new(file) })
    }

    fn write(&mut self, answered: &Answered<'_>) -> Result<()> {
        let mut line = serde_json::to_string(answered)?;
        line.push('\n');
        // Flushed line by line, so that the partial file can be watched.
        let written = self.writer.write_all(line.as_bytes()).and_then(|()| self.writer.flush());
        written.with_context(|| format!("cannot write {}", self.partial.display()))
    }

    fn finish(self) -> Result<()> {
        let whole = self.writer.into_inner().map_err(|error| error.into_error()).and_then(|file| file.sync_all());
        whole
            .and_then(|()| std::fs::rename(&self.partial, &self.path))
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerofold_data::Role;

    #[test]
    fn the_last_assistant_turn_is_the_answer() {
        let message = |role, text: &str| Message::new(role, text);
        let row = Row::Conversation(Conversation::from(vec![
            message(Role::User, "one"),
            message(Role::Assistant, "first"),
            message(Role::User, "two"),
            message(Role::Assistant, "second"),
            message(Role::User, "thanks"),
        ]));
        let (conversation, expected) = split(row).expect("a turn");
        let texts: Vec<&str> = conversation.messages.iter().map(|message| message.content()).collect();
        assert_eq!((texts, expected.as_str()), (vec!["one", "first", "two"], "second"));
        assert!(split(Row::Conversation(vec![message(Role::User, "one")].into())).is_err());
        assert!(split(Row::Tokens { input_ids: vec![1], labels: vec![1] }).is_err());
    }

    #[test]
    fn the_summary_is_one_line() {
        assert_eq!(summary(73, 100), "exact match 73/100 (73.0 %)\n");
        assert_eq!(summary(0, 0), "exact match 0/0 (0.0 %)\n");
    }
}
