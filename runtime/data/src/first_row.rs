//! What the first row of a data set tells before all are read.

use crate::encode::Encoder;
use crate::error::DataError;
use crate::prepare::{Prepare, read};
use crate::rows::no_row;
use crate::source::RawRows;

/// What the rows are, to follow "rows of". The first is encoded as [`crate::prepare`] would, unless there is no model yet: then
/// only its columns are looked at.
///
/// # Errors
/// As [`crate::prepare`], of the first row.
pub fn first_row(options: &Prepare<'_>, with_model: bool) -> Result<&'static str, DataError> {
    let mut rows = RawRows::new(options.sources);
    let Some(row) = rows.next().transpose()? else {
        return Err(no_row(options.sources));
    };
    let (shape, parsed) = read(options.columns, &row).map_err(|fault| rows.fault(row.file, row.number, fault))?;
    if !with_model {
        return Ok(shape.words());
    }
    let encoder = Encoder::new(options, &parsed)?;
    encoder.encode(parsed).map_err(|fault| rows.fault(row.file, row.number, fault))?;
    Ok(encoder.kind().words())
}
