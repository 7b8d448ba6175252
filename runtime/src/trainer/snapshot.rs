//! What a checkpoint keeps of a rank, written while training goes on.
//!
//! Masters and moments hold still between optimizer steps, so they are written from where they lie. Just before a step changes
//! them, what is not written yet is copied.

use crate::shard::{ShardError, Shards, for_each_float_chunk};
use crate::torch::float_slice_mut;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use tch::{Device, Kind, Tensor};
use zerofold_checkpoint::{Dtype, FISHER, FileEntry, STATES, SafetensorsWriter, TensorEntry, TensorRange, fault};

/// Elements that are written at a time: so long at most does a step wait for a piece that is being written.
const PIECE: usize = 1 << 20;

/// This rank's shards of masters, moments and Fisher information, as they were when it was taken.
pub struct Snapshot {
    entries: Vec<TensorEntry>,
    ranges: Vec<TensorRange>,
    held: Arc<Held>,
}

/// The pieces that are still to be written, which the trainer and the writer share.
#[derive(Default)]
pub(super) struct Held {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    pieces: VecDeque<Piece>,
    /// A piece is being read from where it lies.
    reading: bool,
}

struct Piece {
    /// The tensor in the file, as a place among the entries.
    entry: usize,
    /// Its first element there.
    begin: usize,
    source: Source,
}

enum Source {
    /// Float32 in host memory, which others change after [`Held::release`].
    InPlace(Tensor),
    Copied(Vec<f32>),
    /// Float32 in host memory, which nobody changes.
    Constant(Tensor),
    /// Moments and Fisher information of what is not trained.
    Zeros(usize),
}

/// Float32 values of a tensor in host memory.
fn values(tensor: &mut Tensor) -> Result<&[f32], ShardError> {
    Ok(float_slice_mut(tensor)?)
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Once this returns, nothing of the state is read from where it lies any more: it may change. `copies` tells whether what
    /// is left is copied, or waited for. Returns how many bytes were copied.
    pub(super) fn release(&self, copies: bool) -> Result<usize, ShardError> {
        let in_place = |piece: &Piece| matches!(piece.source, Source::InPlace(_));
        let wait = |state: &mut State| state.reading || !copies && state.pieces.iter().any(in_place);
        let mut state = self.changed.wait_while(self.lock(), wait).unwrap_or_else(PoisonError::into_inner);
        let mut bytes = 0;
        for piece in &mut state.pieces {
            if let Source::InPlace(tensor) = &mut piece.source {
                let copy = values(tensor)?.to_vec();
                bytes += size_of_val(&copy[..]);
                piece.source = Source::Copied(copy);
            }
        }
        Ok(bytes)
    }

    /// Gives up what was not written yet.
    pub(super) fn abandon(&self) {
        self.lock().pieces.clear();
        let reading = |state: &mut State| state.reading;
        drop(self.changed.wait_while(self.lock(), reading).unwrap_or_else(PoisonError::into_inner));
    }

    fn next(&self) -> Option<Piece> {
        let mut state = self.lock();
        let piece = state.pieces.pop_front()?;
        state.reading = matches!(piece.source, Source::InPlace(_));
        Some(piece)
    }

    fn finished_reading(&self) {
        self.lock().reading = false;
        self.changed.notify_all();
    }
}

/// However a writer ends, nobody waits for it.
struct Writing<'a>(&'a Held);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.lock().pieces.clear();
        self.0.finished_reading();
    }
}

impl Snapshot {
    /// This rank's state, held still until it is written or released. What is not float32 in host memory is copied at once.
    pub fn new(shards: &Shards) -> Result<Self, ShardError> {
        let (mut entries, mut ranges, mut pieces) = (Vec::new(), Vec::new(), VecDeque::new());
        for (unit, index) in shards.units.iter().zip(0..) {
            let shard = unit.layout.shard(shards.place());
            let fisher = shards.own_fisher(index).map(|fisher| (FISHER, fisher));
            for (state, tensor) in STATES.into_iter().zip(unit.own_state()?).chain(fisher) {
                let whole = format!("{}/{state}", unit.layout.name);
                let entry = entries.len();
                entries.push(TensorEntry::new(whole.clone(), Dtype::F32, [shard.len()]));
                ranges.push(TensorRange {
                    name: whole.clone(),
                    dtype: Dtype::F32,
                    whole,
                    length: unit.layout.numel as u64,
                    begin: shard.start as u64,
                    end: shard.end as u64,
                });
                if tensor.kind() == Kind::Float && tensor.device() == Device::Cpu {
                    for begin in (0..tensor.numel()).step_by(PIECE) {
                        let length = PIECE.min(tensor.numel() - begin) as i64;
                        let part = tensor.f_narrow(0, begin as i64, length)?;
                        let source = if state == FISHER { Source::Constant(part) } else { Source::InPlace(part) };
                        pieces.push_back(Piece { entry, begin, source });
                    }
                } else {
                    for_each_float_chunk(&tensor, |range, values| {
                        pieces.push_back(Piece { entry, begin: range.start, source: Source::Copied(values.to_vec()) });
                        Ok::<(), ShardError>(())
                    })?;
                }
                for begin in (tensor.numel()..shard.len()).step_by(PIECE) {
                    let source = Source::Zeros(PIECE.min(shard.len() - begin));
                    pieces.push_back(Piece { entry, begin, source });
                }
            }
        }
        let held = Held { state: Mutex::new(State { pieces, reading: false }), changed: Condvar::new() };
        Ok(Snapshot { entries, ranges, held: Arc::new(held) })
    }

    /// What lets the trainer change the state while this is written elsewhere.
    pub(super) fn held(&self) -> Arc<Held> {
        self.held.clone()
    }

    /// Writes everything into a new file of `directory`, synced to disk.
    ///
    /// # Errors
    /// From the disk; a file that is there already; a snapshot that was abandoned.
    pub fn write(self, directory: &Path, name: &str) -> Result<FileEntry, ShardError> {
        let _writing = Writing(&self.held);
        let mut writer = SafetensorsWriter::create(&directory.join(name), &self.entries, &BTreeMap::new())?;
        while let Some(mut piece) = self.held.next() {
            fault::reach(fault::WRITING);
            let zeros;
            let values = match &mut piece.source {
                Source::InPlace(tensor) | Source::Constant(tensor) => values(tensor)?,
                Source::Copied(values) => values,
                Source::Zeros(count) => {
                    zeros = vec![0.0; *count];
                    &zeros
                }
            };
            let written = writer.write_f32(&self.entries[piece.entry].name, piece.begin as u64, values);
            // Before the next step may change them, whatever came of it.
            self.held.finished_reading();
            written?;
        }
        Ok(FileEntry::new(name, writer.finish()?, self.ranges))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerofold_checkpoint::SafetensorsReader;

    const NUMEL: usize = 3 * PIECE + 5;

    /// A snapshot of one tensor, whose elements are all 1.
    fn snapshot() -> (Snapshot, Tensor) {
        let tensor = Tensor::ones([NUMEL as i64], (Kind::Float, Device::Cpu));
        let pieces = (0..NUMEL).step_by(PIECE).map(|begin| {
            let part = tensor.narrow(0, begin as i64, PIECE.min(NUMEL - begin) as i64);
            Piece { entry: 0, begin, source: Source::InPlace(part) }
        });
        let held = Held { state: Mutex::new(State { pieces: pieces.collect(), reading: false }), ..Held::default() };
        let entries = vec![TensorEntry::new("unit/master", Dtype::F32, [NUMEL])];
        (Snapshot { entries, ranges: Vec::new(), held: Arc::new(held) }, tensor)
    }

    fn written(folder: &Path) -> Vec<f32> {
        let mut values = vec![0.0; NUMEL];
        let reader = SafetensorsReader::open(&folder.join("file")).unwrap();
        reader.read_f32("unit/master", 0..NUMEL, &mut values).unwrap();
        values
    }

    #[test]
    fn what_changes_after_the_release_is_written_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (snapshot, mut tensor) = snapshot();
        let held = snapshot.held();
        // One piece is read when the trainer comes.
        let piece = held.next().unwrap();
        let writer = std::thread::scope(|scope| {
            let releasing = scope.spawn(|| held.release(true).unwrap());
            assert!(!releasing.is_finished(), "it waits for the piece that is being read");
            held.finished_reading();
            releasing.join().unwrap()
        });
        assert_eq!(writer, (NUMEL - PIECE) * size_of::<f32>());
        let _changed = tensor.fill_(2.0);
        // As if that piece had not been taken.
        held.lock().pieces.push_front(Piece { source: Source::Copied(vec![1.0; PIECE]), ..piece });
        snapshot.write(folder.path(), "file").unwrap();
        assert!(written(folder.path()).iter().all(|&value| value == 1.0));
    }

    #[test]
    fn without_copies_the_trainer_waits_until_all_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let (snapshot, mut tensor) = snapshot();
        let held = snapshot.held();
        let path = folder.path().to_owned();
        let writer = std::thread::spawn(move || snapshot.write(&path, "file").map(|_| ()).unwrap());
        assert_eq!(held.release(false).unwrap(), 0);
        let _changed = tensor.fill_(2.0);
        writer.join().unwrap();
        assert!(written(folder.path()).iter().all(|&value| value == 1.0));
    }

    #[test]
    fn a_writer_that_fails_or_is_given_up_holds_nobody() {
        let (first, _tensor) = snapshot();
        let held = first.held();
        assert!(first.write(Path::new("/nowhere"), "file").is_err());
        assert_eq!(held.release(false).unwrap(), 0);

        let folder = tempfile::tempdir().unwrap();
        let (second, tensor) = snapshot();
        second.held().abandon();
        drop(tensor);
        let error = second.write(folder.path(), "file").unwrap_err().to_string();
        assert!(error.contains("is not complete"), "{error}");
        assert!(!folder.path().join("file").exists());
    }
}
