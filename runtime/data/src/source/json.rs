//! JSON: an array of objects, or an object with one array of objects. Its elements are cut out one by one, unparsed.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, Cursor, Read};

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::lines::unreadable;
use super::open::Input;
use super::{ROW_LIMIT, RawContent, ReadRows, Unit};
use crate::error::Fault;

const SHAPE: &str = "a JSON file is one array of objects, or an object with one such array; one object a line is JSONL";

/// Whether a file named .json is JSONL all the same, as files of data sets often are: its first line is an object by itself,
/// and either more follows or the object has no array of objects under a name that is no column of rows.
pub(super) fn lines_or_array(mut input: Input) -> (Input, bool) {
    // A whole data set may stand on one line: of an array no more is looked at, and of an object nothing is kept but the text.
    if input.fill_buf().is_ok_and(|begin| text(begin).starts_with(b"[")) {
        return (input, false);
    }
    let mut first = Vec::new();
    // What cannot be read comes up again, with its place, when the rows are read.
    let read = input.by_ref().take(ROW_LIMIT as u64 + 1).read_until(b'\n', &mut first);
    let lines = match serde_json::from_slice::<BTreeMap<String, Kind>>(text(&first)) {
        Ok(fields) if read.is_ok() => {
            let more = input.fill_buf().is_ok_and(|rest| !rest.trim_ascii().is_empty());
            let columns = ["messages", "conversations", "prompt", "completion", "tools"];
            let array_of_objects =
                |(name, kind): (&String, &Kind)| matches!(kind, Kind::Objects) && !columns.contains(&name.as_str());
            more || !fields.iter().any(array_of_objects)
        }
        _ => false,
    };
    (Box::new(Cursor::new(first).chain(input)), lines)
}

/// Without a byte order mark and white space.
fn text(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii()
}

/// What a value is, told without keeping anything of it.
enum Kind {
    Object,
    /// An array of nothing but objects.
    Objects,
    Other,
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Kind, D::Error> {
        deserializer.deserialize_any(KindOf)
    }
}

struct KindOf;

impl<'de> Visitor<'de> for KindOf {
    type Value = Kind;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Kind, E> {
        Ok(Kind::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Kind, E> {
        Ok(Kind::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Kind, E> {
        Ok(Kind::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Kind, E> {
        Ok(Kind::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Kind, E> {
        Ok(Kind::Other)
    }

    fn visit_unit<E>(self) -> Result<Kind, E> {
        Ok(Kind::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Kind, A::Error> {
        let mut objects = true;
        while let Some(kind) = entries.next_element::<Kind>()? {
            objects &= matches!(kind, Kind::Object);
        }
        Ok(if objects { Kind::Objects } else { Kind::Other })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Kind, A::Error> {
        while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Kind::Object)
    }
}

enum State {
    /// Nothing is read yet.
    Start,
    /// Inside of the array; `true` once an element was read.
    Inside(bool),
    /// The array is behind.
    Done,
}

pub(super) struct JsonRows {
    input: Input,
    state: State,
    /// The array is a field of an object.
    in_object: bool,
    next: u64,
}

impl JsonRows {
    pub(super) fn new(input: Input) -> JsonRows {
        JsonRows { input, state: State::Start, in_object: false, next: 0 }
    }

    /// The next byte that is no white space, left in place.
    fn peek(&mut self) -> Result<Option<u8>, Fault> {
        loop {
            let buffer = self.input.fill_buf().map_err(|error| unreadable(&error))?;
            if buffer.is_empty() {
                return Ok(None);
            }
            match buffer.iter().position(|byte| !byte.is_ascii_whitespace()) {
                Some(at) => {
                    let byte = buffer[at];
                    self.input.consume(at);
                    return Ok(Some(byte));
                }
                None => {
                    let length = buffer.len();
                    self.input.consume(length);
                }
            }
        }
    }

    /// Takes `expected`, or says what stands there.
    fn take(&mut self, expected: u8) -> Result<(), Fault> {
        match self.peek()? {
            Some(byte) if byte == expected => {
                self.input.consume(1);
                Ok(())
            }
            found => Err(unexpected(&format!("`{}`", char::from(expected)), found)),
        }
    }

    /// One whole value, unparsed. Brackets are counted, not checked: the parser does that.
    fn value(&mut self) -> Result<Vec<u8>, Fault> {
        self.peek()?;
        let mut value = Vec::new();
        let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
        loop {
            let buffer = self.input.fill_buf().map_err(|error| unreadable(&error))?;
            if buffer.is_empty() {
                return Err(Fault::new(
                    "the file ends inside of this element",
                    "the file is cut off: copy or make it again",
                ));
            }
            let mut used = 0;
            let mut ended = false;
            for &byte in buffer {
                if in_string {
                    used += 1;
                    in_string = escaped || byte != b'"';
                    escaped = !escaped && byte == b'\\';
                    ended = !in_string && depth == 0;
                } else {
                    match byte {
                        b'"' => in_string = true,
                        b'[' | b'{' => depth += 1,
                        b',' | b']' | b'}' | b':' if depth == 0 => {
                            ended = true;
                            break;
                        }
                        b']' | b'}' => depth -= 1,
                        _ => {}
                    }
                    used += 1;
                    ended = depth == 0 && matches!(byte, b']' | b'}');
                }
                if ended {
                    break;
                }
            }
            value.extend_from_slice(&buffer[..used]);
            self.input.consume(used);
            if value.len() > ROW_LIMIT {
                let message = format!("the element is longer than {} MiB", ROW_LIMIT >> 20);
                return Err(Fault::new(message, SHAPE));
            }
            if ended {
                return match value.trim_ascii().is_empty() {
                    true => Err(unexpected("a value", self.peek()?)),
                    false => Ok(value),
                };
            }
        }
    }

    /// Up to the first element.
    fn start(&mut self) -> Result<(), Fault> {
        let buffer = self.input.fill_buf().map_err(|error| unreadable(&error))?;
        if buffer.starts_with(b"\xef\xbb\xbf") {
            self.input.consume(3);
        }
        match self.peek()? {
            Some(b'[') => self.input.consume(1),
            Some(b'{') => {
                self.input.consume(1);
                self.in_object = true;
                if self.peek()? == Some(b'}') || !self.field()? {
                    return Err(Fault::new("there is no array in this object", SHAPE));
                }
            }
            found => return Err(unexpected("an array or an object", found)),
        }
        self.state = State::Inside(false);
        Ok(())
    }

    /// Passes over fields of the object until one is an array, which it steps into; false where the object ends first.
    fn field(&mut self) -> Result<bool, Fault> {
        loop {
            match self.peek()? {
                Some(b'"') => self.value()?,
                found => return Err(unexpected("the name of a field", found)),
            };
            self.take(b':')?;
            if self.peek()? == Some(b'[') {
                self.input.consume(1);
                return Ok(true);
            }
            self.value()?;
            match self.peek()? {
                Some(b',') => self.input.consume(1),
                Some(b'}') => {
                    self.input.consume(1);
                    return Ok(false);
                }
                found => return Err(unexpected("`,` or `}`", found)),
            }
        }
    }

    /// What may stand behind the array.
    fn finish(&mut self) -> Result<(), Fault> {
        self.state = State::Done;
        if self.in_object {
            match self.peek()? {
                Some(b'}') => self.input.consume(1),
                Some(b',') => {
                    self.input.consume(1);
                    if self.field()? {
                        return Err(Fault::new("the object has a second array: which one has the rows?", SHAPE));
                    }
                }
                found => return Err(unexpected("`,` or `}`", found)),
            }
        }
        match self.peek()? {
            None => Ok(()),
            found => Err(unexpected("the end of the file", found)),
        }
    }

    fn next_element(&mut self) -> Result<Option<Vec<u8>>, Fault> {
        if matches!(self.state, State::Start) {
            self.start()?;
        }
        let State::Inside(begun) = self.state else {
            return Ok(None);
        };
        match (self.peek()?, begun) {
            (Some(b']'), _) => {
                self.input.consume(1);
                return self.finish().map(|()| None);
            }
            (Some(b','), true) => self.input.consume(1),
            (Some(_), false) => {}
            (found, true) => return Err(unexpected("`,` or `]`", found)),
            (None, false) => return Err(unexpected("an element or `]`", None)),
        }
        self.state = State::Inside(true);
        self.value().map(Some)
    }
}

impl ReadRows for JsonRows {
    fn next_row(&mut self) -> Result<Option<(u64, RawContent)>, (u64, Fault)> {
        let number = self.next;
        let element = self.next_element().map_err(|fault| (number, fault))?;
        self.next += 1;
        Ok(element.map(|text| (number, RawContent::Json(text))))
    }

    fn unit(&self) -> Unit {
        Unit::Element
    }
}

fn unexpected(expected: &str, found: Option<u8>) -> Fault {
    let found = match found {
        None => "the end of the file".to_owned(),
        Some(byte) if byte.is_ascii_graphic() => format!("`{}`", char::from(byte)),
        Some(byte) => format!("the byte 0x{byte:02x}"),
    };
    Fault::new(format!("broken JSON: expected {expected}, found {found}"), SHAPE)
}
