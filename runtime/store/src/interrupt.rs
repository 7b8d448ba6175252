//! Giving up from another thread.

use std::future::Future;

use tokio::sync::watch;

use crate::error::{Result, StoreError};

/// Whoever has a copy can ask that what goes on under it be given up; that cannot be taken back.
#[derive(Clone, Debug)]
pub struct Interrupt(watch::Sender<bool>);

impl Default for Interrupt {
    fn default() -> Self {
        Interrupt(watch::Sender::new(false))
    }
}

impl Interrupt {
    /// Asks to give up.
    pub fn ask(&self) {
        self.0.send_replace(true);
    }

    /// Whether somebody has asked.
    pub fn is_asked(&self) -> bool {
        *self.0.borrow()
    }

    /// The outcome of `work`, or an error as soon as somebody asks to give up.
    pub(crate) async fn unless<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut asked = self.0.subscribe();
        tokio::select! {
            biased;
            _ = asked.wait_for(|asked| *asked) => Err(StoreError::Interrupted),
            outcome = work => outcome,
        }
    }
}
