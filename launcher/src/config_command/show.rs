//! Every key with its value and where it came from.

use serde_json::json;
use zerofold_configs::{DefaultValue, Group, Inputs, Outline, Written, outline};

use crate::error::LaunchError;
use crate::terminal::Terminal;

/// Longer values do not push the column of sources away.
const VALUE_LETTERS: usize = 32;

pub(super) fn show(inputs: &Inputs, as_json: bool, changed: bool, terminal: &Terminal) -> Result<(), LaunchError> {
    let outline = outline(inputs)?;
    let rows: Vec<Row> = outline.written().iter().map(Row::of).filter(|row| !changed || row.changed).collect();
    if as_json {
        terminal.result(&serde_json::to_string_pretty(&object(&outline, &rows)).unwrap_or_default());
        return Ok(());
    }
    lines(&rows).iter().for_each(|line| terminal.result(line));
    for note in outline.resolved.notes.iter() {
        terminal.tell(&format!("note: {note}"));
    }
    Ok(())
}

/// One key.
#[derive(Debug, PartialEq)]
struct Row {
    group: Group,
    section: &'static str,
    key: &'static str,
    value: serde_json::Value,
    source: String,
    changed: bool,
}

impl Row {
    fn of(written: &Written) -> Row {
        let value = serde_json::to_value(&written.value).unwrap_or_default();
        let default = match written.known().map(|known| known.default) {
            Some(DefaultValue::SameAs(other)) => format!("derived from {other}"),
            Some(DefaultValue::Computed(words)) => format!("derived: {words}"),
            _ => "default".to_owned(),
        };
        let source = if written.is_set() { written.source.clone() } else { default };
        Row {
            group: written.group(),
            section: written.section.name(),
            key: written.key,
            value,
            source,
            changed: written.is_set(),
        }
    }

    fn value(&self) -> String {
        match &self.value {
            serde_json::Value::Null if self.source == "missing" => "missing".to_owned(),
            serde_json::Value::Null => "-".to_owned(),
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        }
    }

    fn source(&self) -> String {
        match self.source.as_str() {
            "missing" => format!("pass --{0}, or set {0} in the file", self.key),
            source => source.to_owned(),
        }
    }
}

fn object(outline: &Outline, rows: &[Row]) -> serde_json::Value {
    let keys = rows.iter().map(|row| {
        json!({
            "group": row.group.title(),
            "section": row.section,
            "key": row.key,
            "value": row.value,
            "source": row.source,
            "changed": row.changed,
        })
    });
    json!({
        "keys": keys.collect::<Vec<_>>(),
        "missing": outline.missing,
        "notes": outline.resolved.notes,
    })
}

/// The rows under the headings of `--help`.
fn lines(rows: &[Row]) -> Vec<String> {
    let width = |of: &dyn Fn(&Row) -> String| rows.iter().map(|row| of(row).chars().count()).max().unwrap_or(0);
    let keys = width(&|row| row.key.to_owned());
    let values = width(&|row| row.value()).min(VALUE_LETTERS);
    let mut lines = Vec::new();
    for group in Group::ALL {
        let mut inside = rows.iter().filter(|row| row.group == group).peekable();
        if inside.peek().is_some() {
            if !lines.is_empty() {
                lines.push(String::new());
            }
            lines.push(group.title().to_owned());
        }
        lines.extend(inside.map(|row| format!("  {:keys$}  {:values$}  {}", row.key, row.value(), row.source())));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(flags: &[(&str, &str)]) -> Vec<Row> {
        let flags = flags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let inputs = Inputs { config: Some("zero3.yaml".to_owned()), flags, ..Inputs::default() };
        outline(&inputs).unwrap().written().iter().map(Row::of).collect()
    }

    #[test]
    fn each_key_says_where_it_came_from() {
        let rows = rows(&[("logging_steps", "3"), ("dataset", "null")]);
        let line = |key: &str| {
            let row = rows.iter().find(|row| row.key == key).unwrap_or_else(|| panic!("{key}"));
            (row.value(), row.source())
        };
        let told = |value: &str, source: &str| (value.to_owned(), source.to_owned());
        assert_eq!(line("logging_steps"), told("3", "flag --logging_steps"));
        assert_eq!(line("weight_decay"), told("0.0", "default"));
        assert_eq!(line("data_seed"), told("-", "derived: the value of seed"));
        assert_eq!(line("dataset"), told("missing", "pass --dataset, or set dataset in the file"));
        assert_eq!(line("nnodes"), told("1", "default"));
        assert!(line("zero_stage").1.starts_with("zero3.yaml:"), "{:?}", line("zero_stage"));
        assert_eq!(line("backend").0, "shm");
        assert!(line("backend").1.starts_with("derived: nccl"), "{:?}", line("backend"));
    }

    #[test]
    fn rows_stand_under_the_headings_of_help() {
        let lines = lines(&rows(&[]));
        let titles: Vec<&str> =
            lines.iter().filter(|line| !line.is_empty() && !line.starts_with(' ')).map(String::as_str).collect();
        assert_eq!(titles, Group::ALL.map(Group::title));
        let column = |text: &str| lines.iter().find_map(|line| line.find(text)).unwrap();
        assert_eq!(column("zero3.yaml:"), column("default"), "{lines:#?}");
    }
}
