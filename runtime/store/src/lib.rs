//! Checkpoints in an object store, under the names that they have on a disk: `PREFIX/step-00000020/…`. `launch` uses it; the
//! worker does not.
//!
//! - [`store`]: the store as `launch` sees it, with calls that block.
//! - [`connect`]: from a bucket and the environment to a client; how long is tried again.
//! - [`probe`]: that a store can be written, read and deleted from, and refuses to write over what is there.
//! - [`listing`]: which steps are in it.
//! - [`upload`]: the files of a step in parts, then its manifest, created only if none is there: that is the commit.
//! - [`download`]: a step out of it, hashed while it comes.
//! - [`retention`]: deleting what need not stay, and what killed uploads left.
//! - [`interrupt`]: giving up an upload from another thread.
//!
//! Errors are [`StoreError`]: what, where, why, and on a last line what to do.

pub mod connect;
pub mod download;
pub mod error;
pub mod interrupt;
pub mod listing;
pub mod probe;
pub mod retention;
pub mod store;
pub mod upload;

pub use error::{Result, StoreError};
pub use interrupt::Interrupt;
pub use listing::StoredStep;
pub use store::CheckpointStore;
