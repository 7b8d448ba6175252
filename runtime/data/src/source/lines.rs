//! JSONL: one row a line; empty lines are passed over.

use std::io::{self, BufRead, Read};

use super::open::Input;
use super::{ROW_LIMIT, RawContent, ReadRows, Unit};
use crate::error::Fault;

/// What begins a file that is none of ours by its name, what it is, and what to do.
const OTHERS: [(&[u8], &str, &str); 5] = [
    (b"PAR1", "a Parquet file", "give it a name that ends with .parquet"),
    (b"\x1f\x8b", "packed with gzip", "give it a name that ends with .jsonl.gz"),
    (b"\x28\xb5\x2f\xfd", "packed with Zstandard", "give it a name that ends with .jsonl.zst"),
    (b"\xff\xfe", "text in UTF-16", "make it UTF-8: iconv -f UTF-16 -t UTF-8 FILE"),
    (b"\xfe\xff", "text in UTF-16", "make it UTF-8: iconv -f UTF-16 -t UTF-8 FILE"),
];

pub(super) struct Lines {
    input: Input,
    line: u64,
}

impl Lines {
    pub(super) fn new(input: Input) -> Lines {
        Lines { input, line: 0 }
    }
}

impl ReadRows for Lines {
    fn next_row(&mut self) -> Result<Option<(u64, RawContent)>, (u64, Fault)> {
        let mut bytes = Vec::new();
        // Bytes without a row: a small packed file may unpack to endless empty lines.
        let mut empty = 0;
        loop {
            bytes.clear();
            let number = self.line + 1;
            let read = self.input.by_ref().take(ROW_LIMIT as u64 + 1).read_until(b'\n', &mut bytes);
            if read.map_err(|error| (number, unreadable(&error)))? == 0 {
                return Ok(None);
            }
            self.line = number;
            if bytes.len() > ROW_LIMIT {
                let message = format!("the line is longer than {} MiB", ROW_LIMIT >> 20);
                return Err((number, Fault::new(message, "a JSONL file has one row a line")));
            }
            if number == 1 {
                if bytes.starts_with(b"\xef\xbb\xbf") {
                    bytes.drain(..3);
                }
                if let Some((_, what, hint)) = OTHERS.iter().find(|(begin, ..)| bytes.starts_with(begin)) {
                    return Err((
                        number,
                        Fault::new(format!("by its first bytes this is {what}, and not JSON"), *hint),
                    ));
                }
            }
            if !bytes.trim_ascii().is_empty() {
                return Ok(Some((number, RawContent::Json(bytes))));
            }
            empty += bytes.len();
            if empty > ROW_LIMIT {
                let message = format!("{} MiB of empty lines", ROW_LIMIT >> 20);
                return Err((number, Fault::new(message, "is this the right file? Remove them if it is")));
            }
        }
    }

    fn unit(&self) -> Unit {
        Unit::Line
    }
}

/// What a failed read of the file, or of what it is packed in, says.
pub(super) fn unreadable(error: &io::Error) -> Fault {
    Fault::new(format!("cannot be read from here on: {error}"), "the file is damaged or cut off: copy or make it again")
}
