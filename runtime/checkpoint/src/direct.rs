//! Writing past the page cache.
//!
//! A checkpoint is written behind training, whose threads need the processor, and nobody reads it soon. Copying it into the page
//! cache costs several times the processor's time that handing it to the disk does, and drives out of the cache what others
//! read. So a file that is written from its beginning to its end goes to the disk by `O_DIRECT`, in long writes from a buffer
//! of its own. Where a file system does not have that, or a write comes out of order, the ordinary way takes over.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::disk::begin_to_sync;

/// What addresses in memory and positions in the file must be multiples of: no disk in use has larger blocks.
const BLOCK: usize = 4096;

/// Bytes that go to the disk at a time.
const BUFFER: usize = 8 << 20;

/// A file that is being written.
#[derive(Debug)]
pub(crate) struct DirectFile {
    /// For everything that does not go past the page cache; reads too.
    file: File,
    direct: Option<Direct>,
}

/// The way past the page cache: bytes that are not on their way to the disk yet.
#[derive(Debug)]
struct Direct {
    file: File,
    memory: Box<[u8]>,
    /// Where in the memory the first block begins.
    aligned: usize,
    /// The file's position of the first byte that waits, a multiple of [`BLOCK`].
    begin: u64,
    /// Bytes that wait.
    length: usize,
}

impl DirectFile {
    /// `file` was opened for reading and writing, is empty or of its later length, and lies at `path`.
    pub(crate) fn new(file: File, path: &Path) -> Self {
        let direct = File::options().write(true).custom_flags(libc::O_DIRECT).open(path);
        DirectFile { file, direct: direct.ok().map(Direct::new) }
    }

    /// The file, for reading what [`flush`](Self::flush) has let through.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Writes, or keeps for later, bytes at a position.
    pub(crate) fn write_all_at(&mut self, bytes: &[u8], position: u64) -> io::Result<()> {
        match &mut self.direct {
            Some(direct) if direct.end() == position => {
                if !direct.append(bytes, &self.file)? {
                    self.direct = None;
                }
                Ok(())
            }
            Some(_) => {
                self.flush()?;
                self.write_plainly(bytes, position)
            }
            None => self.write_plainly(bytes, position),
        }
    }

    /// Lets through what waits. From here on, everything goes the ordinary way.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match self.direct.take() {
            Some(direct) => self.write_plainly(direct.waiting(), direct.begin),
            None => Ok(()),
        }
    }

    fn write_plainly(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, position)?;
        begin_to_sync(&self.file, position, bytes.len() as u64);
        Ok(())
    }
}

impl Direct {
    fn new(file: File) -> Self {
        let memory = vec![0; BUFFER + BLOCK].into_boxed_slice();
        let aligned = memory.as_ptr().align_offset(BLOCK);
        Direct { file, memory, aligned, begin: 0, length: 0 }
    }

    fn end(&self) -> u64 {
        self.begin + self.length as u64
    }

    fn waiting(&self) -> &[u8] {
        &self.memory[self.aligned..self.aligned + self.length]
    }

    /// Takes bytes that come next; true if this way goes on. If the file system turns out not to have it, all of them were
    /// written through `plain`.
    fn append(&mut self, mut bytes: &[u8], plain: &File) -> io::Result<bool> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BUFFER - self.length));
            let begin = self.aligned + self.length;
            self.memory[begin..begin + now.len()].copy_from_slice(now);
            self.length += now.len();
            bytes = later;
            if self.length == BUFFER {
                match self.file.write_all_at(self.waiting(), self.begin) {
                    Ok(()) => (self.begin, self.length) = (self.end(), 0),
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                        plain.write_all_at(self.waiting(), self.begin)?;
                        plain.write_all_at(bytes, self.end())?;
                        return Ok(false);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes none of which is like its neighbours.
    fn content(length: usize) -> Vec<u8> {
        (0..length as u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    }

    fn create(path: &Path) -> DirectFile {
        DirectFile::new(File::options().read(true).write(true).create_new(true).open(path).unwrap(), path)
    }

    #[test]
    fn a_file_in_pieces_of_any_length_is_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        for (number, pieces) in
            [&[1, 2, 3][..], &[BUFFER, BLOCK, 1], &[BUFFER - 1, 2 * BUFFER + 7], &[3 * BUFFER]].iter().enumerate()
        {
            let path = folder.path().join(number.to_string());
            let content = content(pieces.iter().sum());
            let mut file = create(&path);
            let mut position = 0;
            for length in *pieces {
                file.write_all_at(&content[position..position + length], position as u64).unwrap();
                position += length;
            }
            file.flush().unwrap();
            assert!(std::fs::read(&path).unwrap() == content, "{pieces:?}");
        }
    }

    #[test]
    fn what_comes_out_of_order_lies_where_it_belongs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let content = content(2 * BUFFER + 5000);
        let mut file = create(&path);
        for range in
            [0..BUFFER + 10, BUFFER + 3000..BUFFER + 4000, BUFFER + 10..BUFFER + 3000, BUFFER + 4000..content.len()]
        {
            file.write_all_at(&content[range.clone()], range.start as u64).unwrap();
        }
        file.flush().unwrap();
        assert!(std::fs::read(&path).unwrap() == content);
    }

    #[test]
    fn a_file_system_that_refuses_in_the_middle_gets_the_rest_the_ordinary_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let content = content(2 * BUFFER + 5);
        let mut file = create(&path);
        let Some(direct) = &mut file.direct else { return };
        // Memory that does not begin with a block is refused like a file system that has no such writes.
        direct.aligned += 1;
        file.write_all_at(&content, 0).unwrap();
        file.flush().unwrap();
        assert!(std::fs::read(&path).unwrap() == content);
    }
}
