//! The model's tokenizer: text to ids with offsets, ids to text, and the ids that pad and that end.

use std::path::Path;

use tokenizers::{PostProcessor, PostProcessorWrapper, TruncationParams, truncate_encodings};

use crate::error::DataError;
use crate::model_files::{self, SpecialTokens};
use crate::stream::StreamDecoder;

/// A tokenizer.json with what the other files of the model folder say of its ids.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    /// Without truncation, padding and post-processor: the latter would shorten offsets by the white space in front.
    inner: tokenizers::Tokenizer,
    post_processor: Option<PostProcessorWrapper>,
    special: SpecialTokens,
    /// Texts of the tokens that are marked as special or named as such.
    markers: Vec<String>,
    pad_id: u32,
    eos_ids: Vec<u32>,
}

/// Token ids and the bytes of the text that each stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// For each token, the first byte of its text and the byte after its last. Empty for a token that stands for none.
    pub offsets: Vec<(usize, usize)>,
}

impl Tokenizer {
    /// Reads tokenizer.json, tokenizer_config.json, special_tokens_map.json, generation_config.json and config.json of
    /// a model folder; only the first must exist.
    ///
    /// # Errors
    /// When one of them is damaged or tokenizer.json is missing.
    pub fn load(model_directory: &Path) -> Result<Tokenizer, DataError> {
        let path = model_directory.join("tokenizer.json");
        let Some(text) = model_files::read_text(&path)? else {
            let hint = "the model folder needs a tokenizer.json; transformers writes one: \
                        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)";
            return Err(DataError::model(&path, "there is no tokenizer here", hint));
        };
        let inner = tokenizers::Tokenizer::from_bytes(text.as_bytes())
            .map_err(|error| DataError::model(&path, format!("not a tokenizer: {error}"), "copy the file again"))?;
        let special = SpecialTokens::load(model_directory)?;
        Ok(Tokenizer::new(inner, special, model_files::eos_ids(model_directory)?))
    }

    pub(crate) fn new(mut inner: tokenizers::Tokenizer, special: SpecialTokens, mut eos_ids: Vec<u32>) -> Tokenizer {
        let post_processor = inner.get_post_processor().cloned();
        inner.with_post_processor(None::<PostProcessorWrapper>).with_padding(None);
        // Taking a truncation away cannot fail; only setting one can.
        let _ = inner.with_truncation(None);
        let added = inner.get_added_tokens_decoder();
        let marked = added.values().filter(|token| token.special).map(|token| token.content.clone());
        let markers = marked.chain(special.iter().map(|(_, token)| token.to_string())).collect();
        let id_of = |name: &str| special.get(name).and_then(|token| inner.token_to_id(token));
        if eos_ids.is_empty() {
            eos_ids.extend(id_of("eos_token"));
        }
        let pad_id = id_of("pad_token").or_else(|| id_of("eos_token")).or(eos_ids.first().copied()).unwrap_or(0);
        Tokenizer { inner, post_processor, special, markers, pad_id, eos_ids }
    }

    /// Lets turns end with another token than the tokenizer's own (`eos_token`): the templates write it, and a generation
    /// ends there too.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] when the tokenizer has no such token.
    pub fn end_with(&mut self, token: &str) -> Result<(), DataError> {
        let id = self.id_of(token)?;
        self.special.insert("eos_token", token);
        self.markers.push(token.to_string());
        self.eos_ids.retain(|&other| other != id);
        self.eos_ids.insert(0, id);
        Ok(())
    }

    /// Text to ids. `add_special` lets the tokenizer add what it adds of itself (often a first token); a text that a
    /// chat template made has these already.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] when the tokenizer fails on the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, DataError> {
        let encoding = self.inner.encode(text, false).map_err(fault)?;
        match &self.post_processor {
            Some(processor) if add_special => {
                Ok(processor.process(encoding, None, true).map_err(fault)?.get_ids().to_vec())
            }
            _ => Ok(encoding.get_ids().to_vec()),
        }
    }

    /// A text, or two, to ids, as a classifier is given it: cut to `longest` tokens with all that the tokenizer adds, the longer
    /// text first, as transformers' `truncation=True` does. Tells also where the tokens of the second text begin, which is the end
    /// where there is none, and whether something was cut off.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] when the tokenizer fails on a text, or adds more than `longest` tokens.
    pub(crate) fn encode_classified(
        &self,
        text: &str,
        pair: Option<&str>,
        longest: usize,
    ) -> Result<(Vec<u32>, usize, bool), DataError> {
        let encode = |text: &str| self.inner.encode(text, false).map_err(fault);
        let (first, second) = (encode(text)?, pair.map(encode).transpose()?);
        let added = self.post_processor.as_ref().map_or(0, |processor| processor.added_tokens(second.is_some()));
        let Some(room) = longest.checked_sub(added).filter(|&room| room > 0) else {
            let message = format!(
                "max_length is {longest}, and the tokenizer itself adds {added} tokens\nhint: raise max_length"
            );
            return Err(DataError::Tokenizer { message });
        };
        let cut = first.len() + second.as_ref().map_or(0, |second| second.len()) > room;
        let how = TruncationParams { max_length: room, ..TruncationParams::default() };
        let (first, second) = truncate_encodings(first, second, &how).map_err(fault)?;
        let of_first = first.len();
        let (ids, begin) = match &self.post_processor {
            Some(processor) => {
                let whole = processor.process(first, second, true).map_err(fault)?;
                let begin = whole.get_type_ids().iter().position(|&kind| kind != 0);
                (whole.get_ids().to_vec(), begin)
            }
            None => {
                let second = second.map(|second| second.get_ids().to_vec()).unwrap_or_default();
                ([first.get_ids(), &second].concat(), (!second.is_empty()).then_some(of_first))
            }
        };
        let begin = begin.unwrap_or(ids.len());
        Ok((ids, begin, cut))
    }

    /// Text to ids, nothing added, with the bytes of the text that each token stands for.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] when the tokenizer fails on the text.
    pub fn encode_with_offsets(&self, text: &str) -> Result<Encoded, DataError> {
        let encoding = self.inner.encode(text, false).map_err(fault)?;
        Ok(Encoded { ids: encoding.get_ids().to_vec(), offsets: encoding.get_offsets().to_vec() })
    }

    /// Ids to text. Bytes that are no whole character come out as U+FFFD; [`Tokenizer::stream`] waits for the rest.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] when the tokenizer fails on the ids.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, DataError> {
        self.inner.decode(ids, skip_special).map_err(fault)
    }

    /// Ids to text, one id at a time, in whole characters.
    pub fn stream(&self, skip_special: bool) -> StreamDecoder<'_> {
        StreamDecoder::new(self, skip_special)
    }

    /// The id of a token by its text.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The id of a token that `eos_token` names.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] when the tokenizer has no such token.
    pub fn id_of(&self, token: &str) -> Result<u32, DataError> {
        self.token_to_id(token).ok_or_else(|| {
            let message = format!(
                "eos_token is {token:?}, which is no token of this tokenizer\nhint: name one that its vocabulary has; \
                 tokens are never added"
            );
            DataError::Tokenizer { message }
        })
    }

    /// The id to pad with: of `pad_token`, else of the end of a sequence, else 0.
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// The ids that end a generation: of generation_config.json, else config.json, else of `eos_token`. May be empty.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// The named special tokens.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// The texts of special tokens.
    pub(crate) fn markers(&self) -> &[String] {
        &self.markers
    }
}

fn fault(error: tokenizers::Error) -> DataError {
    DataError::Tokenizer { message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use std::fs;

    #[test]
    fn offsets_are_bytes_of_the_text_and_keep_the_white_space_in_front() {
        let tokenizer = testing::tokenizer();
        let text = "<|im_start|>user\nhéllo the 🙂<|im_end|>";
        let encoded = tokenizer.encode_with_offsets(text).unwrap();
        assert_eq!(tokenizer.decode(&encoded.ids, false).unwrap(), text);
        let mut end = 0;
        for &(first, after) in &encoded.offsets {
            assert!(first <= end && after >= end, "no gap before byte {first}: {:?}", encoded.offsets);
            end = after;
        }
        assert_eq!(end, text.len());
        assert!(encoded.offsets.iter().any(|&(first, after)| &text[first..after] == " the"));
    }

    #[test]
    fn special_tokens_are_added_only_when_asked_for() {
        let tokenizer = testing::tokenizer();
        let plain = tokenizer.encode("the", false).unwrap();
        let whole = tokenizer.encode("the", true).unwrap();
        assert_eq!(whole[0], tokenizer.token_to_id("<s>").unwrap());
        assert_eq!(whole[1..], plain);
    }

    /// A tokenizer with a token before, between and behind, as BERT's.
    fn of_encoder() -> Tokenizer {
        let mut json: serde_json::Value = serde_json::from_str(&testing::tokenizer_json()).unwrap();
        let special = |id: &str, kind: u32| serde_json::json!({"SpecialToken": {"id": id, "type_id": kind}});
        let text = |id: &str, kind: u32| serde_json::json!({"Sequence": {"id": id, "type_id": kind}});
        let processor = &mut json["post_processor"];
        processor["single"] = serde_json::json!([special("<s>", 0), text("A", 0), special("</s>", 0)]);
        processor["pair"] =
            serde_json::json!([special("<s>", 0), text("A", 0), special("</s>", 0), text("B", 1), special("</s>", 1)]);
        processor["special_tokens"]["</s>"] = serde_json::json!({"id": "</s>", "ids": [4], "tokens": ["</s>"]});
        let inner = tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap();
        Tokenizer::new(inner, testing::special(), vec![])
    }

    #[test]
    fn texts_of_a_classifier_are_cut_and_keep_what_the_tokenizer_adds() {
        let tokenizer = of_encoder();
        let text = |text: &str| tokenizer.encode(text, false).unwrap();
        let (a, b) = (text("abcdef"), text("uvw"));
        let with = |parts: &[&[u32]]| parts.concat();
        let encode = |pair: Option<&str>, longest: usize| tokenizer.encode_classified("abcdef", pair, longest).unwrap();
        assert_eq!(encode(None, 8), (with(&[&[0], &a, &[4]]), 8, false));
        assert_eq!(encode(None, 5), (with(&[&[0], &a[..3], &[4]]), 5, true));
        assert_eq!(encode(Some("uvw"), 12), (with(&[&[0], &a, &[4], &b, &[4]]), 8, false));
        // The longer text is cut first.
        assert_eq!(encode(Some("uvw"), 10), (with(&[&[0], &a[..4], &[4], &b, &[4]]), 6, true));
        assert_eq!(encode(Some("uvw"), 8), (with(&[&[0], &a[..3], &[4], &b[..2], &[4]]), 5, true));
        let error = tokenizer.encode_classified("a", Some("b"), 3).unwrap_err().to_string();
        assert!(error.contains("max_length is 3, and the tokenizer itself adds 3 tokens"), "{error}");
    }

    #[test]
    fn pad_and_eos_ids_fall_back_as_documented() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let ids = || {
            let tokenizer = Tokenizer::load(folder.path()).unwrap();
            (tokenizer.pad_id(), tokenizer.eos_ids().to_vec())
        };
        write("tokenizer.json", &testing::tokenizer_json());
        assert_eq!(ids(), (0, vec![]));
        write("tokenizer_config.json", r#"{"eos_token": "<|im_end|>"}"#);
        assert_eq!(ids(), (2, vec![2]));
        write("tokenizer_config.json", r#"{"eos_token": "<|im_end|>", "pad_token": {"content": "</s>"}}"#);
        write("generation_config.json", r#"{"eos_token_id": [2, 4]}"#);
        assert_eq!(ids(), (4, vec![2, 4]));
    }

    #[test]
    fn a_missing_or_broken_tokenizer_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = || Tokenizer::load(folder.path()).unwrap_err().to_string();
        assert!(error().contains("tokenizer.json: there is no tokenizer here\nhint: "), "{}", error());
        fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
        assert!(error().contains("tokenizer.json: not a tokenizer"), "{}", error());
    }
}
