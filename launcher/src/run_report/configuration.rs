//! What the runs were configured with, and what is different between them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::run::{Run, words};
use crate::page::escape;

/// What is told elsewhere, or is different in every run.
const PASSED_OVER: [&str; 4] = ["provenance", "notes", "training.output_dir", "training.logging_dir"];

/// The resolved configuration of each run, and a table of the differences where there are several.
pub(super) fn configuration(runs: &[Run]) -> String {
    let mut text = differences(runs);
    for run in runs {
        let Some(configuration) = &run.configuration else { continue };
        let title = match runs.len() {
            1 => "Configuration".to_owned(),
            _ => format!("Configuration of {}", run.name),
        };
        text.push_str(&format!(
            "<details class=\"card\"><summary>{}</summary><pre>{}</pre></details>",
            escape(&title),
            escape(configuration)
        ));
    }
    text
}

fn differences(runs: &[Run]) -> String {
    if runs.len() < 2 {
        return String::new();
    }
    let values: Vec<BTreeMap<String, String>> = runs.iter().map(|run| flat(&run.values)).collect();
    let keys: BTreeSet<&String> = values.iter().flat_map(BTreeMap::keys).collect();
    let differ = keys.into_iter().filter(|key| values.iter().any(|run| run.get(*key) != values[0].get(*key)));
    let cell = |tag: &str, text: &str| format!("<{tag}>{}</{tag}>", escape(text));
    let rows: Vec<String> = differ
        .map(|key| {
            let cells = values.iter().map(|run| cell("td", run.get(key).map_or("–", String::as_str)));
            format!("<tr>{}{}</tr>", cell("th", key), cells.collect::<String>())
        })
        .collect();
    if rows.is_empty() {
        return "<section class=\"card\"><h2>What is different</h2><p>The runs have the same configuration.</p></section>"
            .to_owned();
    }
    let head = runs.iter().map(|run| cell("th", &run.name)).collect::<String>();
    format!(
        "<section class=\"card figures\"><h2>What is different</h2><div class=\"scroll\" tabindex=\"0\" role=\"region\" \
         aria-label=\"What is different\"><table class=\"keys\"><thead><tr><th></th>{head}</tr></thead><tbody>{}</tbody>\
         </table></div></section>",
        rows.concat()
    )
}

/// Every value by its path.
fn flat(value: &Value) -> BTreeMap<String, String> {
    fn into(path: &str, value: &Value, all: &mut BTreeMap<String, String>) {
        if PASSED_OVER.contains(&path) {
            return;
        }
        match value {
            Value::Object(entries) => {
                for (key, value) in entries {
                    into(&if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, value, all);
                }
            }
            Value::Null if path.is_empty() => {}
            value => {
                all.insert(path.to_owned(), words(value));
            }
        }
    }
    let mut all = BTreeMap::new();
    into("", value, &mut all);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_report::history::History;
    use serde_json::json;

    #[test]
    fn only_what_is_different_stands_in_the_table_and_nothing_is_markup() {
        let run = |name: &str, rate: f64, folder: &str| Run {
            name: name.to_owned(),
            path: String::new(),
            history: History::default(),
            plan: None,
            configuration: Some("a: <b>\n".to_owned()),
            values: json!({"training": {"learning_rate": rate, "seed": 1, "output_dir": folder}, "notes": [folder]}),
        };
        let text = configuration(&[run("<x>", 0.1, "a"), run("y", 0.2, "b")]);
        assert!(text.contains("<tr><th>training.learning_rate</th><td>0.1</td><td>0.2</td></tr></tbody>"), "{text}");
        assert!(text.contains("<th>&lt;x&gt;</th>") && text.contains("a: &lt;b&gt;"), "{text}");
        assert!(!text.contains("seed") && !text.contains("output_dir") && !text.contains("notes"), "{text}");
        assert!(configuration(&[run("x", 0.1, "a"), run("y", 0.1, "b")]).contains("have the same configuration"));
        assert!(!configuration(&[run("x", 0.1, "a")]).contains("What is different"));
    }
}
