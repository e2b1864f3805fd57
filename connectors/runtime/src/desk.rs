//! How a command reaches the one that appends: over a desk, with an answer.

use std::sync::Arc;

use connector::{Error, Result, Shape};
use storage::StateChange;
use tokio::sync::{mpsc, oneshot};

use crate::gate::{Approval, Approved, Attempt, Hold, Let};
use crate::quarantine::{Deed, Done, Filter};
use crate::schemas::{SchemaBook, Settled};

/// Asked by commands, done by ingest between two transactions.
pub(crate) enum Request {
    /// What is held of a stream.
    Look { stream: String, reply: oneshot::Sender<Option<Hold>> },
    /// Lets it go.
    LetGo { stream: String, shapes: Vec<Shape>, reply: oneshot::Sender<Result<Let>> },
    /// Gives up what waits, and has the table read anew.
    Reset { stream: String, shapes: Vec<Shape>, again: Vec<StateChange>, reply: oneshot::Sender<Result<Let>> },
    /// What the registry says of shapes that have waited for it.
    Settle { settled: Settled, reply: oneshot::Sender<Result<()>> },
    /// The registry has other rules than before.
    Heed { reply: oneshot::Sender<Result<()>> },
    /// Lets rows of the quarantine go, or gives them up.
    Act { deed: Deed, filter: Filter, reply: oneshot::Sender<Result<Done>> },
}

/// Where commands come to.
#[derive(Clone)]
pub struct Desk {
    book: Arc<SchemaBook>,
    requests: mpsc::Sender<Request>,
}

/// The desk's other side: for a pipeline, which has requests of its own too.
pub struct Requests {
    pub(crate) taken: mpsc::Receiver<Request>,
    pub(crate) desk: Desk,
}

impl Desk {
    /// A desk, and its other side.
    pub fn new(book: Arc<SchemaBook>) -> (Self, Requests) {
        let (requests, taken) = mpsc::channel(1);
        let desk = Self { book, requests };
        (desk.clone(), Requests { taken, desk })
    }

    /// Lets a held stream go on. `again` has the source read the table anew,
    /// if that is asked for: the changes of the source's own state.
    pub async fn approve(&self, stream: &str, how: Approval, again: impl Fn() -> Vec<StateChange>) -> Result<Approved> {
        let hold = self.ask(|reply| Request::Look { stream: stream.into(), reply }).await?;
        let mut attempt = Attempt::new(&self.book, stream, how, hold)?;
        loop {
            let (shapes, stream) = (attempt.shapes().await?, stream.to_owned());
            let answer = match how {
                Approval::ResetTable => {
                    let again = again();
                    self.ask(|reply| Request::Reset { stream, shapes, again, reply }).await?
                }
                _ => self.ask(|reply| Request::LetGo { stream, shapes, reply }).await?,
            };
            if let Some(approved) = attempt.answered(answer?)? {
                return Ok(approved);
            }
        }
    }

    /// Lets rows of the quarantine go, or gives them up.
    pub async fn quarantine(&self, deed: Deed, filter: Filter) -> Result<Done> {
        self.ask(|reply| Request::Act { deed, filter, reply }).await?
    }

    /// Takes over what the registry says.
    pub(crate) async fn settle(&self, settled: Settled) -> Result<()> {
        self.ask(|reply| Request::Settle { settled, reply }).await?
    }

    /// Has other rules of the registry followed.
    pub(crate) async fn heed(&self) -> Result<()> {
        self.ask(|reply| Request::Heed { reply }).await?
    }

    /// Whether nobody takes requests any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T> {
        let gone = || {
            Error::halt("the source has stopped")
                .hint("look at `highwater status`; try again when it runs, or once the daemon is stopped")
        };
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}
