//! How long to wait before the next try.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio_util::sync::CancellationToken;

/// From half a second to 15, with jitter, without end: a server may be away
/// for a night, and must not be hammered when it returns.
pub(crate) struct Backoff {
    delays: ExponentialBackoff,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        let builder = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(500))
            .with_max_delay(Duration::from_secs(15))
            .with_factor(2.0)
            .with_jitter()
            .without_max_times();
        Self { delays: builder.build() }
    }

    /// What was tried has worked: begin again with short waits.
    pub(crate) fn reset(&mut self) {
        *self = Self::new();
    }

    /// Waits; false if cancelled meanwhile.
    pub(crate) async fn wait(&mut self, cancel: &CancellationToken) -> bool {
        let delay = self.delays.next().unwrap_or(Duration::from_secs(15));
        tokio::select! {
            () = cancel.cancelled() => false,
            () = tokio::time::sleep(delay) => true,
        }
    }
}
