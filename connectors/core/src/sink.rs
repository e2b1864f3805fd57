//! Where changes go.

use std::future::Future;
use std::sync::Arc;

use storage::{Epoch, LogId, Micros, Offset, OffsetRange, Position};

use crate::batch::Run;
use crate::error::{Error, Result};
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
    /// Of a parked table alone: its stream.
    lane: Option<String>,
}

impl Step {
    /// None if the range does not begin at the checkpoint.
    pub fn new(
        checkpoint: Checkpoint,
        range: OffsetRange,
        position: Option<Position>,
        event_time: Micros,
    ) -> Option<Self> {
        (range.start == checkpoint.next).then_some(Self { range, position, event_time, lane: None })
    }

    /// Of one parked table alone, from the checkpoint of its own.
    #[must_use]
    pub fn of_lane(self, stream: &str) -> Self {
        Self { lane: Some(stream.into()), ..self }
    }

    /// The stream, if it is a parked table's alone.
    pub fn lane(&self) -> Option<&str> {
        self.lane.as_deref()
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

/// A table that waits apart from the others, behind a checkpoint of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// Its stream.
    pub stream: String,
    /// The first offset of it that is not there.
    pub next: Offset,
    /// In microseconds since the Unix epoch.
    pub since: i64,
    /// What refused it.
    pub why: String,
    /// A step of it alone that was announced and perhaps half done: the first
    /// that it takes when it tries again, whatever the configuration says by now.
    pub promised: Option<OffsetRange>,
}

/// Whether a destination could be moved to another place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// It ends there now.
    Done,
    /// Something it holds straddles the place: it could end here, or below.
    Below(Offset),
}

/// What a destination holds.
#[derive(Clone, Debug)]
pub struct Opened {
    /// None: this sink is new here.
    pub checkpoint: Option<Checkpoint>,
    /// To be done first; begins at the checkpoint (or at its own start, for a new sink).
    pub promised: Option<Promise>,
    /// Tables that wait apart.
    pub parked: Vec<Parked>,
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

    /// Makes the destination end at `to`, a place between transactions: what
    /// it holds from there on goes, in a way that a reader sees each event at
    /// most once. Parked tables join the others. After `open`; may be repeated;
    /// `open` must come again after it.
    fn move_to(&mut self, to: Offset) -> impl Future<Output = Result<Moved>> + Send {
        let refused = Error::halt(format!("this sink cannot be moved to offset {to}"));
        std::future::ready(Err(refused.hint("point it at an empty destination: it is then filled anew")))
    }

    /// Has a table wait apart, from `at` on if it does not already; durable at
    /// the destination when it returns. False: this sink has one checkpoint for
    /// all its tables. After `open`.
    fn park(&mut self, stream: &str, at: Offset, why: &str) -> impl Future<Output = Result<bool>> + Send {
        let _ = (stream, at, why);
        std::future::ready(Ok(false))
    }

    /// Whether readers are told up to when all is there: then a step without
    /// events is worth its while from time to time.
    fn tells_time(&self) -> bool {
        false
    }

    /// Whether a step should end now for what it has taken, besides its age.
    fn is_full(&self) -> bool {
        false
    }
}
