//! `{% generation %} … {% endgeneration %}`: what the assistant writes.
//!
//! The template engine has no such tag. Each pair becomes a block with a scope of its own (as the tag has) that prints
//! a mark first and last; the marks are two code points that Unicode promises never to make characters, so they survive
//! every filter that does not look for them. They are taken out of the rendered text, and where they stood are the
//! spans. Marks already in a message are refused before rendering.

use std::ops::Range;

use super::Rendered;

const BEGIN: char = '\u{FDD0}';
const END: char = '\u{FDD1}';

pub(super) fn contains_mark(text: &str) -> bool {
    text.contains([BEGIN, END])
}

/// The source with every tag replaced, on the line it stood; nothing when there is no tag.
pub(super) fn mark(source: &str) -> Result<Option<String>, String> {
    let mut output = String::with_capacity(source.len() + 256);
    let mut rest = source;
    let mut opened = false;
    let mut found = false;
    while let Some(at) = opening(rest) {
        output.push_str(&rest[..at]);
        rest = &rest[at..];
        if rest.starts_with("{#") {
            let end = rest.find("#}").map_or(rest.len(), |end| end + 2);
            output.push_str(&rest[..end]);
            rest = &rest[end..];
            continue;
        }
        let Some(tag) = Tag::parse(rest) else {
            output.push_str("{%");
            rest = &rest[2..];
            continue;
        };
        if tag.begins == opened {
            let line = source[..source.len() - rest.len()].matches('\n').count() + 1;
            let what = if opened { "`generation` inside `generation`" } else { "`endgeneration` without `generation`" };
            return Err(format!("{what} (line {line} of the template)"));
        }
        opened = tag.begins;
        found = true;
        output.push_str(&tag.replacement());
        rest = &rest[tag.length..];
    }
    output.push_str(rest);
    if opened {
        return Err("`generation` without `endgeneration`".into());
    }
    Ok(found.then_some(output))
}

/// Where the next tag or comment begins.
fn opening(source: &str) -> Option<usize> {
    source
        .match_indices('{')
        .map(|(at, _)| at)
        .find(|&at| source[at..].starts_with("{%") || source[at..].starts_with("{#"))
}

/// One of the two tags, with its signs for white space on either side.
struct Tag<'a> {
    begins: bool,
    before: &'a str,
    after: &'a str,
    newlines: usize,
    length: usize,
}

impl<'a> Tag<'a> {
    /// The tag that `source`, which begins with `{%`, begins with.
    fn parse(source: &'a str) -> Option<Tag<'a>> {
        let (inside, _) = source.get(2..)?.split_once("%}")?;
        let name = inside.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let begins = match name {
            "generation" => true,
            "endgeneration" => false,
            _ => return None,
        };
        let signs = ["-", "+"];
        Some(Tag {
            begins,
            before: signs.into_iter().find(|sign| inside.starts_with(sign)).unwrap_or_default(),
            after: signs.into_iter().find(|sign| inside.ends_with(sign)).unwrap_or_default(),
            newlines: inside.matches('\n').count(),
            length: inside.len() + 4,
        })
    }

    /// Begins and ends with a block tag, so that white space on both sides is trimmed as it would be at the tag.
    fn replacement(&self) -> String {
        let Tag { before, after, .. } = self;
        let lines = "\n".repeat(self.newlines);
        if self.begins {
            format!("{{%{before} with{lines} %}}{{{{ '{BEGIN}' }}}}{{% if true %}}{{% endif {after}%}}")
        } else {
            format!("{{%{before} if true{lines} %}}{{% endif %}}{{{{ '{END}' }}}}{{% endwith {after}%}}")
        }
    }
}

/// Takes the marks out of a rendered text.
pub(super) fn take_marks(rendered: &str) -> Result<Rendered, String> {
    let mut text = String::with_capacity(rendered.len());
    let mut spans: Vec<Range<usize>> = Vec::new();
    let mut begin = None;
    for character in rendered.chars() {
        match (character, begin) {
            (BEGIN, None) => begin = Some(text.len()),
            (END, Some(start)) => {
                spans.push(start..text.len());
                begin = None;
            }
            (BEGIN | END, _) => return Err("the blocks marked `generation` do not stand one after the other".into()),
            _ => text.push(character),
        }
    }
    if begin.is_some() {
        return Err("a block marked `generation` was cut off".into());
    }
    spans.retain(|span| !span.is_empty());
    Ok(Rendered { text, spans })
}
