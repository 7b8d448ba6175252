//! The store of a run's checkpoints (`checkpoint_store`), beside its folder.
//!
//! ```text
//! train ─ open (the store is proven) ─ resume (newest whole step of folder and store)
//!       └ checkpoint_publisher → uploader (a thread: upload, commit, retention) → Event → view, summary
//! ```

mod end;
mod open;
pub(crate) mod resume;
mod uploader;

pub(crate) use end::wait_for_uploads;
pub(crate) use open::{for_run, to_look_at};
pub use uploader::{Keep, Uploader};
