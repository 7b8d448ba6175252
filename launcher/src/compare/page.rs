//! The comparison as a page: one file, which needs no network and no scripts.

use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

use super::charts::charts;
use super::figures::{Comparison, Row};
use super::table;
use crate::format;

const TEMPLATE: &str = include_str!("page.html");

/// The whole page.
pub(super) fn page(comparison: &Comparison) -> String {
    let wrapped = |tag: &str, text: &str| format!("<{tag}>{}</{tag}>", escape(text));
    let name = Path::new(&comparison.model.name).file_name().map(|name| name.to_string_lossy());
    let name = name.unwrap_or(Cow::Borrowed(&comparison.model.name));
    let facts = table::words(comparison);
    let facts = facts.iter().filter_map(|line| line.split_once(' ')).map(|(what, value)| {
        let mut letters = what.chars();
        let what: String = letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect();
        wrapped("dt", &what) + &wrapped("dd", value.trim_start())
    });
    let chosen = |row: &Row| comparison.choices.iter().any(|choice| choice.configuration == row.configuration);
    let rows = comparison.rows.iter().map(|row| {
        let cells: String = table::cells(row).iter().map(|cell| wrapped("td", cell)).collect();
        format!("<tr{}>{cells}</tr>", if chosen(row) { " class=\"chosen\"" } else { "" })
    });
    let method = &comparison.method;
    let footer = format!(
        "Measured {} by launch compare {} in {}. The same numbers are in compare.json.",
        method.began,
        env!("CARGO_PKG_VERSION"),
        format::duration(Duration::from_secs_f64(method.seconds.clamp(0.0, 1e9)))
    );
    let warnings = comparison.warnings.iter().map(|warning| capitalised(warning));
    let sentences = table::choices(comparison);
    fill(
        TEMPLATE,
        &[
            ("model", escape(&name)),
            ("facts", facts.collect()),
            ("choices", sentences.iter().map(|sentence| wrapped("p", &capitalised(sentence))).collect()),
            ("warnings", warnings.map(|warning| format!("<p class=\"warning\">{}</p>", escape(&warning))).collect()),
            ("label_width", label_width(comparison).to_owned()),
            ("charts", charts(comparison)),
            ("head", table::HEAD.iter().map(|cell| wrapped("th", cell)).collect()),
            ("rows", rows.collect()),
            ("notes", table::footer(comparison).iter().map(|note| wrapped("li", &capitalised(note))).collect()),
            ("footer", escape(&footer)),
        ],
    )
}

/// Labels are longer where backends differ.
fn label_width(comparison: &Comparison) -> &'static str {
    let mut backends = comparison.rows.iter().map(|row| row.configuration.backend);
    let first = backends.next();
    if backends.all(|backend| Some(backend) == first) { "3.9em" } else { "7.6em" }
}

fn capitalised(sentence: &str) -> String {
    let mut letters = sentence.chars();
    let first = letters.next().into_iter().flat_map(char::to_uppercase);
    let mut text: String = first.chain(letters).collect();
    if !text.ends_with('.') {
        text.push('.');
    }
    text
}

/// Text that a browser shows as it is.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// The template with a value in place of each `{{name}}`. What stands in a value is not looked at again.
fn fill(template: &str, values: &[(&str, String)]) -> String {
    let mut pieces = template.split("{{");
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (name, rest) = piece.split_once("}}").unwrap_or((piece, ""));
        let value = values.iter().find(|(known, _)| *known == name);
        text.push_str(value.map_or("", |(_, value)| value));
        text.push_str(rest);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_template_is_filled_once() {
        let values = [("a", "{{b}}".to_owned()), ("b", "2".to_owned())];
        assert_eq!(fill("<{{a}}|{{b}}>", &values), "<{{b}}|2>");
        assert_eq!(fill("nothing", &values), "nothing");
        let names = TEMPLATE.split("{{").skip(1).filter_map(|piece| Some(piece.split_once("}}")?.0));
        let source = include_str!("page.rs");
        names.for_each(|name| assert!(source.contains(&format!("(\"{name}\", ")), "{name} is filled by nothing"));
    }

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escape("<b a='\"'>&amp;"), "&lt;b a=&#39;&quot;&#39;&gt;&amp;amp;");
    }
}
