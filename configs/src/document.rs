//! A configuration file as it was written: every key and value with its line and column.
//!
//! YAML 1.2, of which JSON is a part. Anchors, aliases and merge keys (`<<`) are followed. What a file stands for once
//! its aliases are followed is bounded, in depth and in number.

use crate::error::ConfigError;
use crate::value::written;
use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use serde_yaml::value::{Tag, TaggedValue};
use serde_yaml::{Mapping, Value};
use std::collections::HashMap;
use std::rc::Rc;

/// How deep values may be nested.
const MAX_DEPTH: usize = 64;
/// How many values a file may hold, those that aliases repeat counted each time.
const MAX_VALUES: usize = 100_000;
/// The key under which a mapping takes over the entries of others.
const MERGE: &str = "<<";

/// A place in a file; lines and columns count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Spot {
    pub line: usize,
    pub column: usize,
}

impl Spot {
    fn of(span: Span) -> Self {
        Spot { line: span.start.line(), column: span.start.col() + 1 }
    }
}

/// A value and where it begins.
#[derive(Debug)]
pub(crate) struct Node {
    pub at: Spot,
    body: Body,
    size: usize,
    depth: usize,
}

#[derive(Debug)]
enum Body {
    Scalar(Value),
    Sequence(Vec<Rc<Node>>),
    Mapping(Vec<Entry>),
}

/// A key of a mapping, and its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub key: Value,
    pub at: Spot,
    pub node: Rc<Node>,
}

impl Node {
    /// Reads the one document of a file; a file without one is null. `file` is its name in messages.
    pub(crate) fn read(file: &str, text: &str) -> Result<Rc<Node>, ConfigError> {
        let mut builder = Builder { file, open: Vec::new(), anchors: HashMap::new(), root: None };
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| {
                let at = Spot { line: error.marker().line(), column: error.marker().col() + 1 };
                builder.syntax(at, error.info())
            })?;
            builder.take(event, Spot::of(span))?;
        }
        Ok(builder.root.unwrap_or_else(|| Rc::new(Node::scalar(Value::Null, Spot { line: 1, column: 1 }))))
    }

    fn scalar(value: Value, at: Spot) -> Self {
        Node { at, body: Body::Scalar(value), size: 1, depth: 1 }
    }

    fn is_null(&self) -> bool {
        matches!(self.body, Body::Scalar(Value::Null))
    }

    /// The entries of a mapping, with those that it takes over from others; `None` for what is no mapping. Null is a
    /// mapping without entries.
    pub(crate) fn entries(&self) -> Option<Vec<Entry>> {
        let Body::Mapping(own) = &self.body else { return self.is_null().then(Vec::new) };
        let merges = |entry: &&Entry| entry.key.as_str() == Some(MERGE);
        let mut entries: Vec<Entry> = own.iter().filter(|entry| !merges(entry)).cloned().collect();
        for merged in own.iter().filter(merges) {
            let sources = match &merged.node.body {
                Body::Sequence(sources) => sources.clone(),
                _ => vec![Rc::clone(&merged.node)],
            };
            for taken in sources.iter().filter_map(|source| source.entries()).flatten() {
                if !entries.iter().any(|entry| entry.key == taken.key) {
                    entries.push(taken);
                }
            }
        }
        Some(entries)
    }

    /// The value under a key of a mapping.
    pub(crate) fn entry(&self, key: &str) -> Option<Entry> {
        self.entries()?.into_iter().find(|entry| entry.key.as_str() == Some(key))
    }

    /// The value without its places.
    pub(crate) fn value(&self) -> Value {
        match &self.body {
            Body::Scalar(value) => value.clone(),
            Body::Sequence(nodes) => Value::Sequence(nodes.iter().map(|node| node.value()).collect()),
            Body::Mapping(_) => {
                let entries = self.entries().unwrap_or_default();
                Value::Mapping(entries.into_iter().map(|entry| (entry.key, entry.node.value())).collect::<Mapping>())
            }
        }
    }
}

/// A collection that has not ended.
struct Open {
    at: Spot,
    anchor: usize,
    tag: Option<String>,
    body: Body,
    /// The key whose value comes next.
    key: Option<(Value, Spot)>,
    /// The keys so far, as they are written in messages.
    keys: HashMap<String, Spot>,
}

struct Builder<'a> {
    file: &'a str,
    open: Vec<Open>,
    anchors: HashMap<usize, Rc<Node>>,
    root: Option<Rc<Node>>,
}

impl Builder<'_> {
    fn syntax(&self, at: Spot, message: impl Into<String>) -> ConfigError {
        let file = format!("{}:{}:{}", self.file, at.line, at.column);
        ConfigError::Syntax { file, message: message.into() }
    }

    fn take(&mut self, event: Event<'_>, at: Spot) -> Result<(), ConfigError> {
        match event {
            Event::DocumentStart(_) if self.root.is_some() => {
                Err(self.syntax(at, "a second document begins here; a configuration is one"))
            }
            Event::Scalar(text, style, anchor, tag) => {
                let tag = tag.map(|tag| (tag.is_yaml_core_schema(), tag.suffix.clone(), tag.to_string()));
                self.add(Node::scalar(scalar(&text, style, tag), at), anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                self.begin(Body::Sequence(Vec::new()), at, anchor, tag.map(|tag| tag.to_string()))
            }
            Event::MappingStart(anchor, tag) => {
                self.begin(Body::Mapping(Vec::new()), at, anchor, tag.map(|tag| tag.to_string()))
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some(node) => self.add_shared(node, at),
                None => Err(self.syntax(at, "an alias stands inside of what it stands for")),
            },
            _ => Ok(()),
        }
    }

    fn begin(&mut self, body: Body, at: Spot, anchor: usize, tag: Option<String>) -> Result<(), ConfigError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(self.syntax(at, TOO_DEEP));
        }
        self.open.push(Open { at, anchor, tag, body, key: None, keys: HashMap::new() });
        Ok(())
    }

    fn end(&mut self) -> Result<(), ConfigError> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let inside: Vec<&Rc<Node>> = match &open.body {
            Body::Scalar(_) => Vec::new(),
            Body::Sequence(nodes) => nodes.iter().collect(),
            Body::Mapping(entries) => entries.iter().map(|entry| &entry.node).collect(),
        };
        let size = inside.iter().fold(1usize, |size, node| size.saturating_add(node.size));
        let depth = 1 + inside.iter().map(|node| node.depth).max().unwrap_or(0);
        let node = Node { at: open.at, body: open.body, size, depth };
        // A tag of an application's own makes another value of it, which no key here takes.
        let node = match open.tag.filter(|tag| !tag.starts_with(CORE)) {
            Some(tag) if depth <= MAX_DEPTH && size <= MAX_VALUES => {
                let value = TaggedValue { tag: Tag::new(tag), value: node.value() };
                Node { body: Body::Scalar(Value::Tagged(Box::new(value))), ..node }
            }
            _ => node,
        };
        self.add(node, open.anchor)
    }

    fn add(&mut self, node: Node, anchor: usize) -> Result<(), ConfigError> {
        let (at, node) = (node.at, Rc::new(node));
        // Ids of anchors begin at 1.
        if anchor > 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        self.add_shared(node, at)
    }

    /// Puts a value where it belongs; `at` is where it stands, be it an alias.
    fn add_shared(&mut self, node: Rc<Node>, at: Spot) -> Result<(), ConfigError> {
        if node.depth + self.open.len() > MAX_DEPTH {
            return Err(self.syntax(at, TOO_DEEP));
        }
        if node.size > MAX_VALUES {
            let message = format!("this is more than {MAX_VALUES} values, counted with those that aliases repeat");
            return Err(self.syntax(at, message));
        }
        let Some(open) = self.open.last_mut() else {
            self.root.get_or_insert(node);
            return Ok(());
        };
        match (&mut open.body, open.key.take()) {
            (Body::Sequence(nodes), _) => nodes.push(node),
            (Body::Mapping(entries), Some((key, key_at))) => entries.push(Entry { key, at: key_at, node }),
            (Body::Mapping(_), None) => {
                let key = node.value();
                if let Some(first) = open.keys.insert(written(&key), at) {
                    return Err(self.duplicate(&key, first, at));
                }
                open.key = Some((key, at));
            }
            (Body::Scalar(_), _) => {}
        }
        Ok(())
    }

    fn duplicate(&self, key: &Value, first: Spot, again: Spot) -> ConfigError {
        let outer = self.open.iter().filter_map(|open| open.key.as_ref()).map(|(key, _)| written(key));
        let key = outer.chain([written(key)]).collect::<Vec<_>>().join(".");
        let place = format!("{}:{}:{}", self.file, again.line, again.column);
        ConfigError::Duplicate { key, place, first: first.line }
    }
}

const TOO_DEEP: &str = "values are nested too deep here";
/// What the tags of YAML's own types begin with.
const CORE: &str = "tag:yaml.org,2002:";

/// The value of a scalar: what stands in quotes is text, and what a tag says goes before what it looks like.
fn scalar(text: &str, style: ScalarStyle, tag: Option<(bool, String, String)>) -> Value {
    let plain = || match serde_yaml::from_str::<Value>(text) {
        Ok(value @ (Value::Null | Value::Bool(_) | Value::Number(_))) => value,
        _ => Value::String(text.to_owned()),
    };
    let untagged = || if style == ScalarStyle::Plain { plain() } else { Value::String(text.to_owned()) };
    match tag {
        None => untagged(),
        Some((true, kind, _)) if kind != "str" => plain(),
        Some((false, _, name)) if name != "!" => {
            Value::Tagged(Box::new(TaggedValue { tag: Tag::new(name), value: untagged() }))
        }
        Some(_) => Value::String(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Rc<Node>, String> {
        Node::read("job.yaml", text).map_err(|error| error.to_string())
    }

    /// Where the key and the value of a dotted path stand.
    fn spots(text: &str, path: &str) -> Option<[(usize, usize); 2]> {
        let mut node = read(text).unwrap();
        let mut found = None;
        for key in path.split('.') {
            let entry = node.entry(key)?;
            found = Some([(entry.at.line, entry.at.column), (entry.node.at.line, entry.node.at.column)]);
            node = entry.node;
        }
        found
    }

    #[test]
    fn keys_and_values_have_lines_and_columns() {
        let text = "# comment: not a key\na: 1\n\nnested:\n  # x: y\n  one: http://host:80\n  'two':   \"2\"\nlast:\n- item: 1\n\
             flow: {é: [1, 2], b: {c: 3}}\nlong:\n  on the next line\n";
        for (path, expected) in [
            ("a", [(2, 1), (2, 4)]),
            ("nested.one", [(6, 3), (6, 8)]),
            ("nested.two", [(7, 3), (7, 12)]),
            ("last", [(8, 1), (9, 3)]),
            ("flow.é", [(10, 8), (10, 11)]),
            ("flow.b.c", [(10, 23), (10, 26)]),
            ("long", [(11, 1), (12, 3)]),
        ] {
            assert_eq!(spots(text, path), Some(expected), "{path}");
        }
        assert_eq!(spots(text, "nested.x"), None);
        let json = "{\n\t\"zero_optimization\": {\"stage\": 3,\n    \"overlap_comm\": true}\n}\n";
        assert_eq!(spots(json, "zero_optimization.stage"), Some([(2, 24), (2, 33)]));
        assert_eq!(spots(json, "zero_optimization.overlap_comm"), Some([(3, 5), (3, 21)]));
    }

    /// serde_yaml reads the same text by another parser.
    #[test]
    fn values_are_those_of_yaml() {
        for text in [
            "a: 1\nb: -2\nc: 1.5\nd: 1e-5\ne: true\nf: null\ng: ~\nh:\ni: ''\nj: 'no'\nk: no\nl: 0x10\nm: 1_000\n",
            "a: [1, two, {b: 3}]\nb:\n- x\n- y: z\n",
            "a: \"tab\\t and é \\u00e9\"\nb: 'it''s'\nc: |\n  two\n  lines\nd: >-\n  one\n  line\n",
            "{\"a\": {\"b\": [1, 2.5, null, false, \"x\"]}}",
            "a: &x {b: 1, c: 2}\nd: *x\n",
            "a: 18446744073709551615\nb: 1e400\nc: .inf\nd: +3\ne: 0o17\nf: 012\n",
            "a: !!str 5\nb: !!int 5\nc: !files /mnt/x\nd: !least 5\n",
            "? a\n: b\n1: c\ntrue: d\n",
            "",
            "# nothing\n",
            "- a\n",
            "5",
        ] {
            let expected: Value = serde_yaml::from_str(text).unwrap();
            assert_eq!(read(text).unwrap().value(), expected, "{text}");
        }
    }

    #[test]
    fn merge_keys_take_over_what_is_not_set() {
        let text = "base: &base {a: 1, b: 2}\nother: &other {b: 3, c: 4}\njob:\n  <<: [*base, *other]\n  a: 5\n";
        let mut expected: Value = serde_yaml::from_str(text).unwrap();
        expected.apply_merge().unwrap();
        let document = read(text).unwrap();
        let job = |value: &Value| value.get("job").cloned().unwrap();
        assert_eq!(job(&document.value()), job(&expected));
        assert_eq!(spots(text, "job.c"), Some([(2, 22), (2, 25)]), "where it is written");
    }

    #[test]
    fn what_is_wrong_has_its_place() {
        for (text, expected) in [
            ("a: 1\na: 2\n", "job.yaml:2:1: a is set a second time; the first is in line 1\n"),
            ("t:\n  x: {a: 1, a: 2}\n", "job.yaml:2:13: t.x.a is set a second time; the first is in line 2\n"),
            ("a: [1\n", "job.yaml:"),
            ("a: 1\n  b: 2\n", "job.yaml:2:"),
            ("a: *nobody\n", "job.yaml:1:4"),
            ("a: &a [*a]\n", "job.yaml:1:"),
            ("a: 1\n---\nb: 2\n", "job.yaml:2:1 cannot be understood: a second document"),
        ] {
            let told = read(text).unwrap_err();
            assert!(told.starts_with(expected), "{text}: {told}");
        }
    }

    #[test]
    fn aliases_and_nesting_are_bounded() {
        let began = std::time::Instant::now();
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let inside = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{inside}]\n"));
        }
        let flat = format!("a: &a [{}]\nb: [{}]\n", "x,".repeat(100_000), "*a,".repeat(100_000));
        let mut chain = String::from("a0: &a0 {x: 1}\n");
        for level in 1..10_000 {
            chain.push_str(&format!("a{level}: &a{level} {{<<: *a{}}}\n", level - 1));
        }
        let texts = [bomb, flat, chain, "[".repeat(500_000), "- ".repeat(500_000), "{a: ".repeat(250_000)];
        for text in texts {
            let told = read(&text).unwrap_err();
            assert!(told.starts_with("job.yaml:"), "{told}");
        }
        let seconds = began.elapsed().as_secs_f64();
        assert!(seconds < 5.0, "{seconds} s");
    }
}
