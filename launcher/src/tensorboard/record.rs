//! The framing of TFRecord files: length, its checksum, the data, their checksum; all numbers little-endian.

/// Makes checksums of data that contain checksums differ from chance.
const MASK_DELTA: u32 = 0xa282_ead8;

/// The record of these data.
pub(super) fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend_from_slice(&length);
    record.extend_from_slice(&masked_checksum(&length).to_le_bytes());
    record.extend_from_slice(data);
    record.extend_from_slice(&masked_checksum(data).to_le_bytes());
    record
}

/// CRC-32C, rotated and shifted.
fn masked_checksum(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(MASK_DELTA)
}

/// The data of the records in a file, for tests: what a reader sees.
#[cfg(test)]
pub(super) fn read_all(mut file: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while !file.is_empty() {
        let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let data = file[12..12 + length].to_vec();
        assert_eq!(record(&data), file[..length + 16], "a checksum is wrong");
        all.push(data);
        file = &file[length + 16..];
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes as TensorFlow writes them for the version event of a file of its own.
    #[test]
    fn a_record_is_framed_as_tensorflow_does() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283, "the checksum of the standard");
        let record = record(b"abc");
        assert_eq!(record[..8], 3_u64.to_le_bytes());
        assert_eq!(record.len(), 8 + 4 + 3 + 4);
        assert_eq!(read_all(&[record.clone(), record].concat()), [b"abc", b"abc"]);
    }
}
