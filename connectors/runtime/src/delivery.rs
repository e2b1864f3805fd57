//! Log → sink: steps that begin where the destination's own checkpoint ends.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use connector::{
    Action, Batch, Checkpoint, Error, Malformed, Mark, Promise, Result, SchemaNumber, Shape, Shapes, Sink, Step,
    StepEnd, Table,
};
use futures_util::{Stream, StreamExt};
use storage::{EventLog, Frame, Kind, Log, Micros, Offset, OffsetRange, Position};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::holds::Holds;
use crate::notes::Notes;
use crate::schemas::shapes_of;
use crate::status::{Health, SinkStatus, now_micros};

/// Time that a clean stop gives to a step that is under way.
const LAST_STEP: Duration = Duration::from_secs(3);

/// So much of the log that was for others ends a step too: else a sink of
/// quiet tables would hold back retention for ever.
const PASSED_BY: usize = 1 << 30;

/// The state key of a sink's checkpoint, for retention while the sink is away.
pub(crate) fn checkpoint_key(sink: &str) -> String {
    format!("sink/{sink}")
}

/// Which tables a sink takes.
pub type Selection = Arc<dyn Fn(&Table) -> bool + Send + Sync>;

/// One sink of one source.
pub struct Delivery<K> {
    /// The sink's configured name.
    pub name: String,
    /// The destination.
    pub sink: K,
    /// Which tables it takes.
    pub selection: Selection,
    /// A step ends when its first event has waited so long.
    pub age: Duration,
    /// Told to whoever asks.
    pub status: SinkStatus,
    /// Where it stands still to be looked at.
    pub holds: Holds,
}

/// How a delivery was ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Cancelled, or everything wanted is there.
    Done,
    /// It cannot go on.
    Failed(Error),
}

/// Why a step is to end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    Due,
    Stop,
}

impl<K: Sink> Delivery<K> {
    /// Delivers until cancelled, or until `goal` is there once it is known.
    /// With `halted` the source has stopped for good.
    pub(crate) async fn run(
        mut self,
        log: Log,
        notes: Notes,
        goal: watch::Receiver<Option<Offset>>,
        cancel: CancellationToken,
        halted: CancellationToken,
    ) -> Outcome {
        match self.until_done(&log, &notes, goal, &cancel).await {
            Outcome::Done if halted.is_cancelled() => self.look_for_heir(&log).await,
            outcome => outcome,
        }
    }

    /// A source may have halted because another daemon, with a copy of the data
    /// folder, has moved its slot on. The destination knows.
    async fn look_for_heir(&mut self, log: &Log) -> Outcome {
        match tokio::time::timeout(LAST_STEP, self.sink.open(log.id(), log.epoch())).await {
            Ok(Err(error)) if error.action() == Action::Yield => Outcome::Failed(error),
            _ => Outcome::Done,
        }
    }

    async fn until_done(
        &mut self,
        log: &Log,
        notes: &Notes,
        goal: watch::Receiver<Option<Offset>>,
        cancel: &CancellationToken,
    ) -> Outcome {
        let mut backoff = Backoff::new();
        loop {
            let before = self.status.get().steps;
            let error = match self.deliver(log, notes, goal.clone(), cancel).await {
                Ok(()) => {
                    self.status.update(|state| state.health = Health::Stopped);
                    return Outcome::Done;
                }
                Err(error) => error,
            };
            if self.status.get().steps > before {
                backoff.reset();
            }
            self.status.fails(&error, now_micros());
            if error.action() != Action::Retry {
                return Outcome::Failed(error);
            }
            tracing::warn!(
                sink = self.name,
                error = error.chain(),
                remedy = error.remedy(),
                "delivery failed, will try again"
            );
            if !backoff.wait(cancel).await {
                return Outcome::Done;
            }
        }
    }

    async fn deliver(
        &mut self,
        log: &Log,
        notes: &Notes,
        mut goal: watch::Receiver<Option<Offset>>,
        cancel: &CancellationToken,
    ) -> Result<()> {
        let opened = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            opened = self.sink.open(log.id(), log.epoch()) => opened?,
        };
        let mut shapes = ShapeCache::new(log.clone(), self.selection.clone());
        let begin = opened.promised.as_ref().map_or(log.start(), |promise| promise.range.start);
        let mut checkpoint = opened.checkpoint.unwrap_or(Checkpoint { next: begin });
        self.reachable(log, checkpoint)?;
        self.arrived(notes, checkpoint, None);
        self.status.works();
        tracing::info!(sink = self.name, checkpoint = checkpoint.next.0, "delivering");
        if let Some(promise) = opened.promised {
            let step = self.keep(log, &mut shapes, checkpoint, promise).await?;
            checkpoint = Checkpoint { next: step.end };
            self.arrived(notes, checkpoint, None);
            stand(&self.holds, &step, cancel).await;
        }
        let mut frames = pin!(log.read(checkpoint.next));
        let mut step = Gathered::new(checkpoint);
        loop {
            let cut = self.gather(&mut frames, &mut shapes, &mut step, &mut goal, cancel).await?;
            if step.events > 0 || cut == Cut::Due {
                let committing = self.commit(&step);
                checkpoint = if cut == Cut::Stop && cancel.is_cancelled() {
                    // What is not there in time is there after the next start.
                    match tokio::time::timeout(LAST_STEP, committing).await {
                        Ok(done) => done?,
                        Err(_) => return Ok(()),
                    }
                } else {
                    tokio::select! {
                        done = committing => done?,
                        () = stopped_for(cancel, LAST_STEP) => return Ok(()),
                    }
                };
                let (events, time) = (step.events, step.event_time);
                self.status.update(|state| {
                    state.events += events;
                    state.steps += 1;
                });
                self.arrived(notes, checkpoint, Some(time));
                tracing::debug!(sink = self.name, events, checkpoint = checkpoint.next.0, "step committed");
                stand(&self.holds, &step, cancel).await;
            }
            if cut == Cut::Stop {
                return Ok(());
            }
            step = Gathered::new(checkpoint);
        }
    }

    /// A checkpoint outside of what the log holds is not this log's.
    fn reachable(&self, log: &Log, checkpoint: Checkpoint) -> Result<()> {
        let (start, end) = (log.start(), log.high_water());
        if checkpoint.next > end {
            return Err(Error::halt(format!(
                "sink {:?} holds everything up to offset {}, but the log ends at {end}: the log has lost its end",
                self.name, checkpoint.next
            ))
            .hint(
                "an older copy of the data folder was put back, or its disk lost what it had confirmed. Put the \
                 newer data folder back; or point the sink at an empty destination to begin anew",
            ));
        }
        if checkpoint.next < start {
            return Err(Error::halt(format!(
                "sink {:?} needs the log from offset {}, but retention has kept it only from {start} on",
                self.name, checkpoint.next
            ))
            .hint("point the sink at an empty destination: it is then filled from what the log holds"));
        }
        Ok(())
    }

    fn arrived(&self, notes: &Notes, checkpoint: Checkpoint, event_time: Option<Micros>) {
        self.status.update(|state| {
            state.checkpoint = Some(checkpoint.next.0);
            state.event_time = event_time.map(|t| t.0).or(state.event_time);
        });
        notes.put(checkpoint_key(&self.name), Some(checkpoint.next.0.to_string().into()));
    }

    /// Does a promised step exactly as it was announced.
    async fn keep(
        &mut self,
        log: &Log,
        shapes: &mut ShapeCache,
        checkpoint: Checkpoint,
        promise: Promise,
    ) -> Result<Gathered> {
        let Promise { range, streams } = promise;
        let name = self.name.clone();
        let broken = || {
            Error::halt(format!(
                "sink {name:?} announced the step from offset {} to {}, which the log does not hold",
                range.start, range.end
            ))
            .hint("put the data folder back that the sink was last used with")
        };
        if range.end > log.high_water() {
            return Err(broken());
        }
        tracing::info!(sink = self.name, from = range.start.0, to = range.end.0, "finishing the announced step");
        let announced = shapes.with(Arc::new(move |table: &Table| streams.contains(&table.stream())));
        let mut shapes = announced;
        let mut step = Gathered::new(checkpoint);
        let mut frames = pin!(log.read(range.start));
        while step.end < range.end {
            let frame = frames.next().await.ok_or_else(broken)?.map_err(unreadable)?;
            self.take(frame, &mut shapes, &mut step).await?;
        }
        if step.end != range.end {
            return Err(broken());
        }
        self.commit(&step).await?;
        Ok(step)
    }

    /// Stages what the log has until the step is to end, which is only ever
    /// between transactions.
    async fn gather(
        &mut self,
        frames: &mut (impl Stream<Item = storage::Result<Frame>> + Unpin),
        shapes: &mut ShapeCache,
        step: &mut Gathered,
        goal: &mut watch::Receiver<Option<Offset>>,
        cancel: &CancellationToken,
    ) -> Result<Cut> {
        loop {
            let between = step.between;
            if between {
                if cancel.is_cancelled() || goal.borrow().is_some_and(|goal| step.end >= goal) {
                    return Ok(Cut::Stop);
                }
                let old = step.first_staged.is_some_and(|first| first.elapsed() >= self.age);
                let full = (step.events > 0 && self.sink.is_full()) || step.bytes >= PASSED_BY;
                if old || full || step.seen_by.is_some() {
                    return Ok(Cut::Due);
                }
            }
            let due = step.first_staged.map(|first| first + self.age);
            // A goal is set once, and whoever set it has gone then.
            let unset = goal.borrow().is_none();
            tokio::select! {
                biased;
                () = cancel.cancelled(), if between => {}
                frame = frames.next() => match frame {
                    Some(frame) => self.take(frame.map_err(unreadable)?, shapes, step).await?,
                    None => return Err(Error::retry("the log's reader has ended")),
                },
                () = until(due), if between && due.is_some() => {}
                changed = goal.changed(), if between && unset => {
                    if changed.is_err() && goal.borrow().is_none() {
                        // Nobody will set a goal any more: the pipeline ends.
                        return Ok(Cut::Stop);
                    }
                }
            }
        }
    }

    async fn take(&mut self, frame: Frame, shapes: &mut ShapeCache, step: &mut Gathered) -> Result<()> {
        let (range, ends) = (frame.offsets, frame.ends_transaction);
        step.event_time = step.event_time.max(frame.event_time);
        let position = frame.position.clone();
        let before = step.events;
        step.bytes += frame.payload.len();
        match frame.kind {
            Kind::Data => {
                let batch = Batch::new(frame);
                for run in batch.runs() {
                    let run = run.map_err(|error| broken(range, error))?;
                    if let Some(shape) = shapes.wanted(run.schema)? {
                        self.sink.stage(&shape, run).await?;
                        step.events += run.len() as u64;
                    }
                }
            }
            Kind::Control => {
                if let Some(mark) = Mark::from_payload(&frame.payload) {
                    let mine = mark.sinks.is_empty() || mark.sinks.contains(&self.name);
                    if let Some(shape) = shapes.wanted(mark.shape)?
                        && mine
                    {
                        self.sink.stage_mark(&shape, &mark, range.start).await?;
                        step.events += 1;
                    }
                } else if let Some(end) = StepEnd::from_payload(&frame.payload)
                    && end.sinks.contains(&self.name)
                {
                    step.seen_by = Some(end.step_end);
                }
            }
            Kind::Pending => {}
        }
        if step.events > before && step.first_staged.is_none() {
            step.first_staged = Some(Instant::now());
        }
        step.end = range.end;
        step.between = ends;
        if ends {
            step.position = position.or(step.position.take());
        }
        Ok(())
    }

    async fn commit(&mut self, step: &Gathered) -> Result<Checkpoint> {
        let range = OffsetRange { start: step.begin, end: step.end };
        let staged = self.sink.staged().await?;
        let step = Step::new(Checkpoint { next: step.begin }, range, step.position.clone(), step.event_time)
            .expect("the step was gathered from the checkpoint on");
        self.sink.commit(staged, step).await
    }
}

/// What a step has taken so far.
struct Gathered {
    begin: Offset,
    end: Offset,
    /// Of the log, whether for this sink or not.
    bytes: usize,
    between: bool,
    events: u64,
    first_staged: Option<Instant>,
    position: Option<Position>,
    event_time: Micros,
    /// It ends here, to be looked at by whoever knows this id.
    seen_by: Option<String>,
}

impl Gathered {
    fn new(checkpoint: Checkpoint) -> Self {
        Self {
            begin: checkpoint.next,
            end: checkpoint.next,
            bytes: 0,
            between: true,
            events: 0,
            first_staged: None,
            position: None,
            event_time: Micros(i64::MIN),
            seen_by: None,
        }
    }
}

/// Shapes by number, with whether they are wanted; the log's state is asked
/// once a number.
struct ShapeCache {
    log: Log,
    selection: Selection,
    shapes: Shapes,
    wanted: HashMap<SchemaNumber, Option<Arc<Shape>>>,
}

impl ShapeCache {
    fn new(log: Log, selection: Selection) -> Self {
        Self { log, selection, shapes: Shapes::default(), wanted: HashMap::new() }
    }

    fn with(&self, selection: Selection) -> Self {
        Self::new(self.log.clone(), selection)
    }

    fn wanted(&mut self, number: SchemaNumber) -> Result<Option<Arc<Shape>>> {
        if let Some(known) = self.wanted.get(&number) {
            return Ok(known.clone());
        }
        if self.shapes.get(number).is_none() {
            self.shapes = shapes_of(&self.log)?;
        }
        let shape = self.shapes.get(number).cloned().ok_or_else(|| {
            Error::halt(format!("the log's state does not know schema {number}, which a frame uses"))
                .hint("run `highwater log check`")
        })?;
        let wanted = (self.selection)(&shape.table).then_some(shape);
        self.wanted.insert(number, wanted.clone());
        Ok(wanted)
    }
}

/// Stands still behind a step that was ended to be looked at.
async fn stand(holds: &Holds, step: &Gathered, cancel: &CancellationToken) {
    if let Some(id) = &step.seen_by {
        tokio::select! {
            () = holds.stand(id, step.end.0) => {}
            () = cancel.cancelled() => {}
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

async fn stopped_for(cancel: &CancellationToken, grace: Duration) {
    cancel.cancelled().await;
    tokio::time::sleep(grace).await;
}

fn unreadable(error: storage::Error) -> Error {
    Error::halt("could not read the log").because(error).hint("run `highwater log check`")
}

fn broken(range: OffsetRange, error: Malformed) -> Error {
    Error::halt(format!("the batch at offsets {} to {} cannot be read", range.start, range.end))
        .because(error)
        .hint("run `highwater log check`")
}
