//! The header of a safetensors file: 8 bytes of length, then JSON, then the tensors' bytes end to end.

use crate::dtype::{Dtype, bits_of};
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::fmt;

/// No header may be longer; it is the bound of the format's own library.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The key of the header under which strings about the file stand.
const METADATA: &str = "__metadata__";

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape; empty for a single number.
    pub shape: Vec<usize>,
}

impl TensorEntry {
    /// A tensor of this name, type and shape.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: impl Into<Vec<usize>>) -> Self {
        TensorEntry { name: name.into(), dtype, shape: shape.into() }
    }

    /// How many bytes it has; none if that is no 64-bit number.
    pub fn bytes(&self) -> Option<u64> {
        let elements = self.shape.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim as u64))?;
        elements.checked_mul(self.dtype.size() as u64)
    }
}

/// A tensor as a header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeaderTensor {
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    /// Counted from the start of the tensors' bytes.
    pub(crate) begin: u64,
    pub(crate) end: u64,
}

/// A header that was read and found consistent with the file's size.
#[derive(Debug, Default)]
pub(crate) struct Header {
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) tensors: BTreeMap<String, HeaderTensor>,
}

impl Header {
    /// Reads the JSON of a header before `data_bytes` bytes of tensors. Every byte belongs to exactly one tensor, and every
    /// tensor has the bytes that its shape and type ask for; the error says which has not.
    pub(crate) fn parse(json: &[u8], data_bytes: u64) -> Result<Header, String> {
        Header::of(RawHeader::parse(json)?, data_bytes)
    }

    /// As [`parse`](Header::parse), for a file whose bytes of tensors are not all there: their number is the header's own.
    pub(crate) fn parse_alone(json: &[u8]) -> Result<Header, String> {
        let raw = RawHeader::parse(json)?;
        let data_bytes = raw.tensors.values().map(|tensor| tensor.data_offsets.1).max().unwrap_or(0);
        Header::of(raw, data_bytes)
    }

    fn of(raw: RawHeader, data_bytes: u64) -> Result<Header, String> {
        let mut header = Header { metadata: raw.metadata, tensors: BTreeMap::new() };
        for (name, tensor) in raw.tensors {
            let (begin, end) = tensor.data_offsets;
            let bits =
                bits_of(&tensor.dtype).ok_or_else(|| format!("tensor {name} has unknown type {}", tensor.dtype))?;
            let bits = tensor.shape.iter().try_fold(bits, |product, dim| product.checked_mul(*dim as u64));
            let bits = bits.ok_or_else(|| format!("tensor {name} of shape {:?} is too large", tensor.shape))?;
            if begin > end || end > data_bytes {
                return Err(format!("tensor {name} lies at bytes {begin} to {end} of {data_bytes}"));
            }
            if !bits.is_multiple_of(8) || bits / 8 != end - begin {
                let (shape, dtype) = (&tensor.shape, &tensor.dtype);
                return Err(format!("tensor {name} of shape {shape:?} and type {dtype} has {} bytes", end - begin));
            }
            header.tensors.insert(name, HeaderTensor { dtype: tensor.dtype, shape: tensor.shape, begin, end });
        }
        header.check_no_gaps(data_bytes)?;
        Ok(header)
    }

    fn check_no_gaps(&self, data_bytes: u64) -> Result<(), String> {
        let mut order: Vec<_> = self.tensors.iter().collect();
        order.sort_by_key(|(_, tensor)| (tensor.begin, tensor.end));
        let mut expected = 0;
        for (name, tensor) in order {
            if tensor.begin != expected {
                return Err(format!(
                    "tensor {name} begins at byte {}, the one before it ends at {expected}",
                    tensor.begin
                ));
            }
            expected = tensor.end;
        }
        if expected != data_bytes {
            return Err(format!("its tensors have {expected} bytes, the file has {data_bytes} for them"));
        }
        Ok(())
    }
}

/// The header's bytes (length, JSON, spaces up to a multiple of 8) and the first byte of each tensor in the file, in the
/// given order; last, the size of the whole file.
pub(crate) fn encode(
    entries: &[TensorEntry],
    metadata: &BTreeMap<String, String>,
) -> Result<(Vec<u8>, Vec<u64>, u64), String> {
    let mut names = HashSet::new();
    let mut map = serde_json::Map::new();
    if !metadata.is_empty() {
        map.insert(METADATA.to_string(), serde_json::json!(metadata));
    }
    let mut begins = Vec::with_capacity(entries.len());
    let mut offset = 0u64;
    for entry in entries {
        if entry.name == METADATA || !names.insert(&entry.name) {
            return Err(format!("the tensor name {} is reserved or given twice", entry.name));
        }
        let end = entry.bytes().and_then(|bytes| offset.checked_add(bytes)).filter(|end| *end <= i64::MAX as u64);
        let end = end.ok_or_else(|| format!("tensor {} of shape {:?} is too large", entry.name, entry.shape))?;
        let description =
            serde_json::json!({"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [offset, end]});
        map.insert(entry.name.clone(), description);
        begins.push(offset);
        offset = end;
    }
    let mut json = serde_json::to_vec(&map).map_err(|error| error.to_string())?;
    json.resize(json.len().next_multiple_of(8), b' ');
    if json.len() as u64 > MAX_HEADER_BYTES {
        return Err(format!("its header would have {} bytes, the bound is {MAX_HEADER_BYTES}", json.len()));
    }
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut json);
    let data_begin = bytes.len() as u64;
    for begin in &mut begins {
        *begin += data_begin;
    }
    Ok((bytes, begins, data_begin + offset))
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

#[derive(Default)]
struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, RawTensor>,
}

impl RawHeader {
    fn parse(json: &[u8]) -> Result<RawHeader, String> {
        if json.first() != Some(&b'{') {
            return Err("its header does not begin with {".to_string());
        }
        serde_json::from_slice(json).map_err(|error| format!("its header is wrong: {error}"))
    }
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawHeaderVisitor)
    }
}

/// Reads the header's map by hand, since a name that stands twice must not pass.
struct RawHeaderVisitor;

impl<'de> Visitor<'de> for RawHeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a map from tensor names to types, shapes and offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut header = RawHeader::default();
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                header.metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
                continue;
            }
            match header.tensors.entry(name) {
                Entry::Vacant(place) => place.insert(map.next_value()?),
                Entry::Occupied(place) => {
                    return Err(A::Error::custom(format!("tensor {} stands there twice", place.key())));
                }
            };
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str, data_bytes: u64) -> Result<Header, String> {
        Header::parse(json.as_bytes(), data_bytes)
    }

    #[test]
    fn what_was_encoded_is_parsed() {
        let entries = [TensorEntry::new("b", Dtype::F32, [2, 3]), TensorEntry::new("a", Dtype::F16, [])];
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        let (bytes, begins, total) = encode(&entries, &metadata).unwrap();
        assert_eq!(bytes.len() % 8, 0);
        assert_eq!(begins, [bytes.len() as u64, bytes.len() as u64 + 24]);
        assert_eq!(total, bytes.len() as u64 + 26);
        let header = Header::parse(&bytes[8..], 26).unwrap();
        assert_eq!(header.metadata, metadata);
        assert_eq!(header.tensors["b"], HeaderTensor { dtype: "F32".into(), shape: vec![2, 3], begin: 0, end: 24 });
        assert_eq!(header.tensors["a"].shape, Vec::<usize>::new());
    }

    #[test]
    fn wrong_headers_name_the_tensor() {
        let cases = [
            (r#" {}"#, "does not begin with {"),
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#, "header is wrong"),
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, "tensor a lies at bytes 8 to 0 of 8"),
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#, "tensor a lies at bytes 8 to 16 of 8"),
            (
                r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#,
                "tensor a of shape [3] and type F32 has 8 bytes",
            ),
            (r#"{"a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}}"#, "tensor a has unknown type F33"),
            (r#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#, "header is wrong"),
            (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, "tensor a begins at byte 4"),
            (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, "tensors have 4 bytes, the file has 8"),
            (
                r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#,
                "tensor a of shape [4294967296, 4294967296] is too large",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                "tensor a stands there twice",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
                "begins at byte 0",
            ),
        ];
        for (json, expected) in cases {
            let error = parse(json, 8).unwrap_err();
            assert!(error.contains(expected), "{json}: {error}");
        }
    }

    #[test]
    fn lists_that_cannot_be_files_are_refused() {
        let twice = [TensorEntry::new("a", Dtype::F32, [1]), TensorEntry::new("a", Dtype::F32, [1])];
        assert!(encode(&twice, &BTreeMap::new()).unwrap_err().contains("given twice"));
        let reserved = [TensorEntry::new(METADATA, Dtype::F32, [1])];
        assert!(encode(&reserved, &BTreeMap::new()).is_err());
        let huge = [TensorEntry::new("a", Dtype::F32, [usize::MAX, 2])];
        assert!(encode(&huge, &BTreeMap::new()).unwrap_err().contains("too large"));
    }
}
