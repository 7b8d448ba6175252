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
use zerofold_checkpoint::{Dtype, FileEntry, STATES, SafetensorsWriter, TensorEntry, TensorRange};

/// Elements that are written at a time: so long at most does a step wait for a piece that is being written.
const PIECE: usize = 1 << 20;

/// This rank's shards of masters and moments, as they were when it was taken.
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
        for unit in &shards.units {
            let shard = unit.layout.shard(shards.place());
            for (state, tensor) in STATES.iter().zip(unit.own_state()?) {
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
                    for begin in (0..shard.len()).step_by(PIECE) {
                        let length = PIECE.min(shard.len() - begin) as i64;
                        let source = Source::InPlace(tensor.f_narrow(0, begin as i64, length)?);
                        pieces.push_back(Piece { entry, begin, source });
                    }
                } else {
                    for_each_float_chunk(&tensor, |range, values| {
                        pieces.push_back(Piece { entry, begin: range.start, source: Source::Copied(values.to_vec()) });
                        Ok::<(), ShardError>(())
                    })?;
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
            let values = match &mut piece.source {
                Source::InPlace(tensor) => values(tensor)?,
                Source::Copied(values) => values,
            };
            let written = writer.write_f32(&self.entries[piece.entry].name, piece.begin as u64, values);
            // Before the next step may change them, whatever came of it.
            self.held.finished_reading();
            written?;
        }
        Ok(FileEntry::new(name, writer.finish()?, self.ranges))
    }
}
