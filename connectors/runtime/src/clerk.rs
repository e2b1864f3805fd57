//! Goes back to the registry for what it could not say before.
//!
//! Beside ingest, so that no change waits for the registry's answer; what it
//! says comes to the log over the desk, between two transactions.

use std::sync::Arc;
use std::time::Duration;

use connector::{Action, Result};
use storage::{EventLog, Log};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::desk::Desk;
use crate::schemas::{Parked, SchemaBook};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Between two at the rules of a registry elsewhere, which are a request a table.
const LOOK_ELSEWHERE: Duration = Duration::from_secs(15);

pub(crate) struct Clerk {
    pub(crate) log: Log,
    pub(crate) book: Arc<SchemaBook>,
    pub(crate) desk: Desk,
    pub(crate) cancel: CancellationToken,
}

/// How far the registry's rules are read, and told to ingest.
struct Rules {
    seen: Option<u64>,
    next: Instant,
    untold: bool,
}

impl Clerk {
    /// Until cancelled, or until what the registry says ends the source.
    pub(crate) async fn run(self) -> Result<()> {
        let mut rules = Rules { seen: None, next: Instant::now(), untold: true };
        loop {
            tokio::select! {
                () = self.cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK) => {}
            }
            let looked = tokio::select! {
                () = self.cancel.cancelled() => return Ok(()),
                looked = self.look(&mut rules) => looked,
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

    async fn look(&self, rules: &mut Rules) -> Result<()> {
        self.settle().await?;
        if Instant::now() >= rules.next {
            match self.book.learn_all(&mut rules.seen).await {
                Ok(news) => rules.untold |= news,
                // What was read last holds; that it is away is told elsewhere.
                Err(error) => tracing::debug!(error = schema_registry::chain(&error), "rules not read"),
            }
            let pause = if self.book.is_elsewhere() { LOOK_ELSEWHERE } else { LOOK };
            rules.next = Instant::now() + pause;
        }
        if rules.untold {
            self.desk.heed().await?;
            rules.untold = false;
        }
        Ok(())
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
