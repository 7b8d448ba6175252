//! Numbers that lie in memory or in a mapped file.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use bytemuck::{AnyBitPattern, NoUninit};
use memmap2::Mmap;

/// Numbers end to end, read as a slice. Mapped ones are read from the file when they are looked at, and the kernel may drop
/// them again, so a data set may be larger than memory and is there once for all ranks.
#[derive(Clone)]
pub enum Words<T> {
    /// In memory.
    Held(Vec<T>),
    /// A part of a mapped file, little-endian as every machine that this runs on.
    Mapped(Arc<Mmap>, Range<usize>),
}

impl<T: AnyBitPattern + NoUninit> Words<T> {
    /// The numbers in these bytes of a file; none where they do not lie there as numbers of this size.
    pub(crate) fn mapped(map: &Arc<Mmap>, bytes: Range<usize>) -> Option<Words<T>> {
        let fits = bytemuck::try_cast_slice::<u8, T>(map.get(bytes.clone())?).is_ok();
        fits.then(|| Words::Mapped(map.clone(), bytes))
    }

    /// The numbers in memory, to be changed.
    pub(crate) fn held(&mut self) -> &mut Vec<T> {
        if let Words::Mapped(..) = self {
            *self = Words::Held(self.to_vec());
        }
        match self {
            Words::Held(words) => words,
            Words::Mapped(..) => unreachable!("copied above"),
        }
    }
}

impl<T: AnyBitPattern + NoUninit> Deref for Words<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Words::Held(words) => words,
            // Both were found to fit when it was made.
            Words::Mapped(map, bytes) => bytemuck::cast_slice(&map[bytes.clone()]),
        }
    }
}

impl<T> Default for Words<T> {
    fn default() -> Words<T> {
        Words::Held(Vec::new())
    }
}

impl<T: AnyBitPattern + NoUninit + fmt::Debug> fmt::Debug for Words<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(formatter)
    }
}
