//! The comparison as a page: one file, which needs no network and no scripts.

use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

use super::charts::charts;
use super::figures::{Comparison, Row};
use super::table;
use crate::format;
use crate::page::{self, capitalised, escape, fill};

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
            ("style", page::STYLE.to_owned()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_template_is_filled() {
        let names = TEMPLATE.split("{{").skip(1).filter_map(|piece| Some(piece.split_once("}}")?.0));
        let source = include_str!("page.rs");
        names.for_each(|name| assert!(source.contains(&format!("(\"{name}\", ")), "{name} is filled by nothing"));
    }
}
