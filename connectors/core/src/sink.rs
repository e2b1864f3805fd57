//! Where changes go.

use std::future::Future;
use std::sync::Arc;

use storage::{Epoch, LogId, Micros, Offset, OffsetRange, Position};

use crate::batch::Run;
use crate::error::Result;
use crate::mark::Mark;
use crate::shape::Shape;

/// How far a sink has come, as its destination says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The first offset that is not there yet.
    pub next: Offset,
}

/// A stretch of the log that a sink takes in one commit. Exists only if it
/// begins where the sink's own checkpoint ends.
#[derive(Clone, Debug)]
pub struct Step {
    range: OffsetRange,
    /// Where the source stood at the end of the range.
    pub position: Option<Position>,
    /// Commit time up to which all is in the range.
    pub event_time: Micros,
}

impl Step {
    /// None if the range does not begin at the checkpoint.
    pub fn new(
        checkpoint: Checkpoint,
        range: OffsetRange,
        position: Option<Position>,
        event_time: Micros,
    ) -> Option<Self> {
        (range.start == checkpoint.next).then_some(Self { range, position, event_time })
    }

    /// The offsets.
    pub fn range(&self) -> OffsetRange {
        self.range
    }
}

/// A step that was announced and perhaps half done: it is done first, exactly
/// as it was announced, whatever the configuration says by now.
#[derive(Clone, Debug)]
pub struct Promise {
    /// Its offsets.
    pub range: OffsetRange,
    /// The streams it takes; all others are passed over.
    pub streams: Vec<String>,
}

/// What a destination holds.
#[derive(Clone, Debug)]
pub struct Opened {
    /// None: this sink is new here.
    pub checkpoint: Option<Checkpoint>,
    /// To be done first; begins at the checkpoint (or at its own start, for a new sink).
    pub promised: Option<Promise>,
}

/// Delivers to a destination, each event once. After an error everything
/// staged is forgotten, and `open` must come first again.
pub trait Sink: Send {
    /// Proof of something staged.
    type Staged: Send;

    /// Fences lower epochs, refuses another log's checkpoint, tells what the
    /// destination holds. May be repeated.
    fn open(&mut self, log: LogId, epoch: Epoch) -> impl Future<Output = Result<Opened>> + Send;

    /// Takes rows of one table; invisible at the destination, repeatable after
    /// another `open`. Called in the order of the log.
    fn stage(&mut self, shape: &Arc<Shape>, run: Run<'_>) -> impl Future<Output = Result<()>> + Send;

    /// Takes a mark.
    fn stage_mark(
        &mut self,
        shape: &Arc<Shape>,
        mark: &Mark,
        offset: Offset,
    ) -> impl Future<Output = Result<()>> + Send;

    /// All of the step was staged.
    fn staged(&mut self) -> impl Future<Output = Result<Vec<Self::Staged>>> + Send;

    /// Rows and checkpoint, both or neither; durable when it returns.
    fn commit(&mut self, staged: Vec<Self::Staged>, step: Step) -> impl Future<Output = Result<Checkpoint>> + Send;

    /// Whether a step should end now for what it has taken, besides its age.
    fn is_full(&self) -> bool {
        false
    }
}
