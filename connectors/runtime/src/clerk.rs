//! Goes back to the registry for what it could not say before.
//!
//! Beside ingest, so that no change waits for the registry's answer; what it
//! says comes to the log over the desk, between two transactions.

use std::sync::Arc;
use std::time::Duration;

use connector::{Action, Result};
use storage::{EventLog, Log};
use tokio_util::sync::CancellationToken;

use crate::desk::Desk;
use crate::schemas::{Parked, SchemaBook};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) struct Clerk {
    pub(crate) log: Log,
    pub(crate) book: Arc<SchemaBook>,
    pub(crate) desk: Desk,
    pub(crate) cancel: CancellationToken,
}

impl Clerk {
    /// Until cancelled, or until what the registry says ends the source.
    pub(crate) async fn run(self) -> Result<()> {
        loop {
            tokio::select! {
                () = self.cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK) => {}
            }
            let looked = tokio::select! {
                () = self.cancel.cancelled() => return Ok(()),
                looked = self.settle() => looked,
            };
            match looked {
                // Ingest has ended, and says why.
                Err(_) if self.desk.is_closed() => return Ok(()),
                Err(error) if error.action() == Action::Retry => {
                    tracing::warn!(error = error.chain(), "what the registry said was not taken over, will try again");
                }
                looked => looked?,
            }
        }
    }

    /// Shapes that wait for the registry, as the log knows them.
    async fn settle(&self) -> Result<()> {
        for undecided in Parked::undecided(&self.log.state())?.into_values() {
            let Some(settled) = self.book.settle(&undecided).await? else { return Ok(()) };
            self.desk.settle(settled).await?;
        }
        Ok(())
    }
}
