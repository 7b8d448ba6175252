//! Ids to text while they come, in whole characters.

use crate::error::DataError;
use crate::tokenizer::Tokenizer;

/// After so many ids without a whole character the bytes are taken to be no text: a character has at most 4 bytes.
const LONGEST_CHARACTER: usize = 4;

/// Decodes one id at a time. A character that is spread over several tokens comes with the last of them; the texts put
/// end to end are what [`Tokenizer::decode`] gives for all ids. Only ids that are no valid text may show more U+FFFD here,
/// since what was given out cannot be mended.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// The ids of the last piece that was given out, as context (decoders treat a first token differently), and those
    /// not given out yet.
    ids: Vec<u32>,
    /// How many of `ids` were given out.
    known: usize,
    /// Their text.
    context: String,
}

impl<'a> StreamDecoder<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> StreamDecoder<'a> {
        StreamDecoder { tokenizer, skip_special, ids: Vec::new(), known: 0, context: String::new() }
    }

    /// Takes the next id; gives the text that is now certain, often empty.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] when the tokenizer fails on the ids.
    pub fn push(&mut self, id: u32) -> Result<String, DataError> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        if text.ends_with('\u{FFFD}') && self.ids.len() - self.known < LONGEST_CHARACTER {
            return Ok(String::new());
        }
        let piece = self.after_context(&text);
        self.ids.drain(..self.known);
        self.known = self.ids.len();
        self.context = self.tokenizer.decode(&self.ids, self.skip_special)?;
        Ok(piece)
    }

    /// The text of what is left, with U+FFFD where a character was never finished.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] when the tokenizer fails on the ids.
    pub fn finish(self) -> Result<String, DataError> {
        let text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        Ok(self.after_context(&text))
    }

    fn after_context(&self, text: &str) -> String {
        text.strip_prefix(self.context.as_str())
            .or_else(|| text.get(self.context.len()..))
            .unwrap_or_default()
            .to_string()
    }
}

#[cfg(test)]
mod tests {
    use crate::testing;

    #[test]
    fn pieces_put_together_are_the_whole_text() {
        let tokenizer = testing::tokenizer();
        for text in ["the theme", "Brücke お茶 🙂!", "a\u{301} 👩‍👩‍👧‍👦<|im_end|>\nx", ""] {
            for skip_special in [false, true] {
                let ids = tokenizer.encode(text, false).unwrap();
                let mut stream = tokenizer.stream(skip_special);
                let mut whole = String::new();
                for &id in &ids {
                    let piece = stream.push(id).unwrap();
                    assert!(!piece.contains('\u{FFFD}'), "half a character in {piece:?}");
                    whole.push_str(&piece);
                }
                whole.push_str(&stream.finish().unwrap());
                assert_eq!(whole, tokenizer.decode(&ids, skip_special).unwrap());
            }
        }
    }

    #[test]
    fn an_unfinished_character_comes_out_at_the_end() {
        let tokenizer = testing::tokenizer();
        let ids = tokenizer.encode("the🙂", false).unwrap();
        let mut stream = tokenizer.stream(true);
        let mut whole = String::new();
        for &id in &ids[..ids.len() - 1] {
            whole.push_str(&stream.push(id).unwrap());
        }
        assert_eq!(whole, "the");
        assert!(stream.finish().unwrap().starts_with('\u{FFFD}'));
    }
}
