//! Reads pending frames by their offsets, which only grow.

use std::pin::Pin;

use connector::{Batch, Error, Result};
use futures_util::{Stream, StreamExt};
use storage::{EventLog, Frame, Kind, Log, Offset};

/// Farther away than so many records, a frame is looked for anew.
const FAR: u64 = 1 << 16;

type Frames = Pin<Box<dyn Stream<Item = storage::Result<Frame>> + Send>>;

/// Goes along the log from one to the next.
pub(crate) struct Pending {
    log: Log,
    /// Where the stream is, and the stream.
    open: Option<(u64, Frames)>,
}

impl Pending {
    pub(crate) fn new(log: Log) -> Self {
        Self { log, open: None }
    }

    /// The pending frame at an offset, of which everything must be durable.
    pub(crate) async fn read(&mut self, from: u64) -> Result<Batch> {
        let mut frames = match self.open.take() {
            Some((at, frames)) if at <= from && from - at < FAR => frames,
            _ => Box::pin(self.log.read(Offset(from))),
        };
        while let Some(frame) = frames.next().await {
            let frame = frame.map_err(|error| {
                Error::halt("could not read the log").because(error).hint("run `highwater log check`")
            })?;
            let (start, end) = (frame.offsets.start.0, frame.offsets.end.0);
            if start > from {
                break;
            }
            if frame.kind == Kind::Pending && start == from && end > from {
                self.open = Some((end, frames));
                return Ok(Batch::new(frame));
            }
        }
        Err(missing(from))
    }
}

/// The log's state tells of a frame that is not there.
fn missing(from: u64) -> Error {
    Error::halt(format!("the log has no pending batch at offset {from}, of which its state tells"))
        .hint("run `highwater log check`")
}
