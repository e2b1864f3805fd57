//! What deliveries have to remember in the log's state, on its way to ingest.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use storage::{LogBatch, StateChange};
use tokio::sync::Notify;

/// The latest value a key; a later one replaces an earlier that was not yet written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notes {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    pending: Mutex<BTreeMap<Bytes, Option<Bytes>>>,
    added: Notify,
}

impl Notes {
    /// Leaves several, which are written together.
    pub(crate) fn put_all(&self, changes: Vec<StateChange>) {
        let mut pending = self.shared.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.extend(changes.into_iter().map(|change| (change.key, change.value)));
        drop(pending);
        self.shared.added.notify_one();
    }

    /// Takes all.
    pub(crate) fn take(&self) -> Vec<StateChange> {
        let mut pending = self.shared.pending.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *pending).into_iter().map(|(key, value)| StateChange { key, value }).collect()
    }

    /// All of them as a batch of their own; None if there are none.
    pub(crate) fn batch(&self) -> Option<LogBatch> {
        let state = self.take();
        (!state.is_empty()).then(|| crate::orders::batch(state))
    }

    /// Returns when there may be some. Cancel-safe.
    pub(crate) async fn added(&self) {
        self.shared.added.notified().await;
    }
}
