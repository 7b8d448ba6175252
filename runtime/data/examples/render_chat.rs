//! Renders conversations by a chat template, for scripts/check-chat-templates.
//!
//! Standard input: a line `{"template", "special", "markers"}` (the special tokens by name, and the texts that are
//! special tokens), then rows as a data set has them. Standard output: for each row a line with `whole`, `prompt` (with a
//! prompt for the answer) and `spans` (the assistant's, in characters), each of them a result or an `error`.

use std::io::{BufRead, Write};

use serde_json::{Value, json};
use zerofold_data::{ChatTemplate, Columns, Conversation, Row, RowReader, Sources, SpecialTokens};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut lines = std::io::stdin().lock().lines();
    let first: Value = serde_json::from_str(&lines.next().ok_or("no input")??)?;
    let special = first["special"].as_object().ok_or("special: expected an object")?;
    let special = SpecialTokens::new(special.iter().filter_map(|(name, token)| Some((name.as_str(), token.as_str()?))));
    let markers: Vec<String> = serde_json::from_value(first["markers"].clone())?;
    let source = first["template"].as_str().ok_or("template: expected a text")?;
    let template = ChatTemplate::from_source(source, special);
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("row.jsonl");
    let mut output = std::io::stdout().lock();
    for line in lines {
        std::fs::write(&path, line?)?;
        let answer = match (&template, conversation(&path)) {
            (Ok(template), Ok(conversation)) => answer(template, &conversation, &markers),
            (Err(error), _) => refused(&error.to_string()),
            (_, Err(error)) => refused(&error.to_string()),
        };
        writeln!(output, "{answer}")?;
    }
    Ok(())
}

fn conversation(path: &std::path::Path) -> Result<Conversation, Failure> {
    let (sources, columns) = (Sources::find(&[path.to_string_lossy()])?, Columns::default());
    match RowReader::new(&sources, &columns).next().ok_or("no row")?? {
        (_, Row::Conversation(conversation)) => Ok(conversation),
        _ => Err("the row is no conversation".into()),
    }
}

fn answer(template: &ChatTemplate, conversation: &Conversation, markers: &[String]) -> Value {
    let rendered = |prompt| match template.render(conversation, prompt) {
        Ok(text) => json!({ "text": text }),
        Err(error) => json!({"error": error.to_string()}),
    };
    let spans = template.render_with_spans(conversation, false).and_then(|full| {
        let spans = template.answers(conversation, &full, markers)?;
        let characters = |byte: usize| full.text[..byte].chars().count();
        Ok(spans.into_iter().map(|span| (characters(span.start), characters(span.end))).collect::<Vec<_>>())
    });
    let spans = spans.map_or_else(|error| json!({"error": error.to_string()}), |spans| json!({ "spans": spans }));
    json!({"whole": rendered(false), "prompt": rendered(true), "spans": spans})
}

fn refused(error: &str) -> Value {
    let error = json!({ "error": error });
    json!({"whole": error, "prompt": error, "spans": error})
}
