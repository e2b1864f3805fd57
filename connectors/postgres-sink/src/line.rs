//! The session, which is either here or at work beside us.

use connector::{Error, Result};
use tokio::task::JoinHandle;

use crate::work::{Waiting, Work};

/// Gives the session to a task that writes, and takes it back.
pub(crate) struct Line {
    /// None while it is away; and for good once something failed in it: its
    /// transaction is over, and must not be taken for one that can be committed.
    here: Option<Box<Work>>,
    away: Option<Away>,
}

/// Ends with its handle: a transaction that nobody waits for must not stay open.
struct Away(JoinHandle<(Box<Work>, Result<()>)>);

impl Drop for Away {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Line {
    pub(crate) fn new(work: Work) -> Self {
        Self { here: Some(Box::new(work)), away: None }
    }

    /// Whether `here` has nothing to wait for.
    pub(crate) fn is_free(&self) -> bool {
        self.away.as_ref().is_none_or(|away| away.0.is_finished())
    }

    /// The session, once what was sent is written; or how that failed. Cancel-safe.
    pub(crate) async fn here(&mut self) -> Result<&mut Work> {
        if let Some(away) = &mut self.away {
            let back = (&mut away.0).await;
            self.away = None;
            let (work, written) = back.map_err(|_| Error::retry("writing a step's rows has broken off"))?;
            written?;
            self.here = Some(work);
        }
        self.here.as_deref_mut().ok_or_else(|| Error::retry("the warehouse's session is over"))
    }

    /// Writes beside us, after what was sent before.
    pub(crate) async fn send(&mut self, waiting: Waiting) -> Result<()> {
        self.here().await?;
        if let Some(mut work) = self.here.take() {
            let writing = async move {
                let written = work.write(waiting).await;
                (work, written)
            };
            self.away = Some(Away(tokio::spawn(writing)));
            // What is spawned runs next on this thread, and on no other: gathering
            // must step aside once, or the writing waits until gathering does.
            // (Nine pieces of a backlog: 33 ms each without the server, of 85.)
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}
