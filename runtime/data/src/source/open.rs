//! Opening a file: unpacked, and read as what it is.

use std::fs::File;
use std::io::{BufRead, BufReader};

use flate2::bufread::MultiGzDecoder;

use super::ReadRows;
use super::files::{Compression, DataFile, Format};
use super::json::{self, JsonRows};
use super::lines::Lines;
use super::table::Table;
use crate::error::DataError;

/// So much is read at once.
const BUFFER: usize = 1 << 18;

/// Unpacked bytes.
pub(super) type Input = Box<dyn BufRead>;

/// Opens a file for reading row by row.
///
/// # Errors
/// [`DataError::Io`] when it cannot be opened; [`DataError::Dataset`] when it is not of its format.
pub(super) fn open(file: &DataFile) -> Result<Box<dyn ReadRows>, DataError> {
    let path = file.path();
    let opened = File::open(path).map_err(DataError::io("open the data set", path))?;
    if file.format() == Format::Parquet {
        return Ok(Box::new(Table::open(path, opened)?));
    }
    let buffered = BufReader::with_capacity(BUFFER, opened);
    let input: Input = match file.compression() {
        Compression::Plain => Box::new(buffered),
        Compression::Gzip => Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(buffered))),
        Compression::Zstandard => {
            let decoder = zstd::stream::read::Decoder::with_buffer(buffered);
            let decoder = decoder.map_err(DataError::io("unpack the data set", path))?;
            Box::new(BufReader::with_capacity(BUFFER, decoder))
        }
    };
    Ok(match file.format() {
        Format::Lines => Box::new(Lines::new(input)),
        Format::Json => match json::lines_or_array(input) {
            (input, true) => Box::new(Lines::new(input)),
            (input, false) => Box::new(JsonRows::new(input)),
        },
        Format::Parquet => unreachable!("opened above"),
    })
}
