//! TensorBoard's event files, with the tags that transformers' Trainer writes.
//!
//! A file is a row of records ([`record`]) that are protobuf messages ([`event`]). Each start of a job writes a file of its
//! own beside the earlier ones; its first event tells TensorBoard from which step on those no longer count.

mod event;
mod folder;
mod record;
mod writer;

pub use folder::EventsFolder;
pub use writer::EventFile;
