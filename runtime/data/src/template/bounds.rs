//! What one rendering may take. A template comes with a model from anywhere: it must come to an end, and not fill the
//! memory.

use std::cell::Cell;
use std::io;

use minijinja::{Error, ErrorKind};

/// Bytes of a template.
pub(super) const LONGEST_TEMPLATE: usize = 4 << 20;

/// Instructions.
pub(super) const FUEL: u64 = 10_000_000;

/// Bytes that are printed, those into variables (`{% set x %}…{% endset %}`) included.
pub(super) const MOST_PRINTED: usize = 256 << 20;

/// Longest reason that is told, in characters: a template may raise exceptions as long as a book.
const LONGEST_REASON: usize = 500;

thread_local! {
    /// Bytes printed so far by the rendering on this thread.
    static PRINTED: Cell<usize> = const { Cell::new(0) };
}

/// A rendering begins.
pub(super) fn begin() {
    PRINTED.set(0);
}

/// Bytes are printed.
pub(super) fn count(bytes: usize) -> Result<(), Error> {
    let printed = PRINTED.get().saturating_add(bytes);
    PRINTED.set(printed);
    if printed > MOST_PRINTED {
        return Err(Error::new(ErrorKind::InvalidOperation, too_long()));
    }
    Ok(())
}

/// What is said of a rendering that is too long.
pub(super) fn too_long() -> String {
    format!("it writes more than {} MiB", MOST_PRINTED >> 20)
}

/// A text that must not become too long.
#[derive(Default)]
pub(super) struct BoundedText {
    pub(super) bytes: Vec<u8>,
}

impl io::Write for BoundedText {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MOST_PRINTED {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, too_long()));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What went wrong and in which line of the template.
pub(super) fn describe(error: &Error) -> String {
    let what = match error.kind() {
        ErrorKind::OutOfFuel => "does not come to an end".to_string(),
        ErrorKind::WriteFailure => too_long(),
        kind => error.detail().map_or_else(|| kind.to_string(), |detail| shortened(detail).to_string()),
    };
    error.line().map_or_else(|| what.clone(), |line| format!("{what} (line {line} of the template)"))
}

fn shortened(text: &str) -> &str {
    text.char_indices().nth(LONGEST_REASON).map_or(text, |(end, _)| &text[..end])
}
