//! Log → sink: steps that begin where the destination's own checkpoint ends.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use connector::{
    Batch, Checkpoint, Error, Fresh, Malformed, Mark, Promise, Result, SchemaNumber, Shape, Shapes, Sink, Step,
    StepEnd, Table,
};
use futures_util::{Stream, StreamExt};
use storage::{EventLog, Frame, Kind, Log, Micros, Offset, OffsetRange, Position};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::holds::Holds;
use crate::notes::Notes;
use crate::orders;
use crate::schemas::shapes_of;
use crate::start::{Begun, Start};
use crate::status::{SinkStatus, now_micros};
use crate::supervise::Place;

/// Time that a clean stop gives to a step that is under way.
pub(crate) const LAST_STEP: Duration = Duration::from_secs(3);

/// So much of the log that was for others ends a step too: else a sink of
/// quiet tables would hold back retention for ever.
const PASSED_BY: usize = 1 << 30;

/// A step takes what the log held when it began, whatever its age is by then, up
/// to this: else a slow destination, or a slow machine, would have only what is
/// read in `age` with each commit, and fall behind for good; and what is changed
/// again and again would be written again with each.
const LONGEST: Duration = Duration::from_secs(5);

/// How long the others wait for events while a parked table catches up.
const TURN: Duration = Duration::from_millis(5);

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
    /// Where it begins if it is new.
    pub start: Start,
    /// Further behind it is detached, in bytes; 0: never.
    pub max_backlog: u64,
    /// While nothing comes for it, a sink that tells time does so at most so often.
    pub heartbeat: Duration,
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
    /// Nothing has come, and a parked table waits for its turn.
    Turn,
}

impl<K: Sink> Delivery<K> {
    /// Delivers until cancelled, or until the goal is there once it is known.
    pub(crate) async fn deliver(&mut self, at: &Place, cancel: &CancellationToken) -> Result<()> {
        let Place { log, notes, .. } = at;
        let mut goal = at.goal.subscribe();
        let begun = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            begun = self.begin(at) => begun?,
        };
        let Begun { opened, mut checkpoint, mut lanes } = begun;
        let mut shapes = ShapeCache::new(log.clone(), lanes.others(&self.selection));
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
        let mut told = (Micros(0), Instant::now());
        loop {
            if let Some(stream) = lanes.resuming() {
                let joined = tokio::select! {
                    joined = self.catch_up(at, &mut lanes, &stream, checkpoint) => joined?,
                    () = stopped_for(cancel, LAST_STEP) => return Ok(()),
                };
                if joined {
                    shapes = ShapeCache::new(log.clone(), lanes.others(&self.selection));
                    // What was passed over since, as nothing of the others', may be its.
                    frames.set(log.read(checkpoint.next));
                    step = Gathered::new(checkpoint);
                }
            }
            step.patience = lanes.resuming().map(|_| Instant::now() + TURN);
            step.told = self.sink.tells_time().then_some(told);
            step.there = log.high_water();
            let cut = self.gather(&mut frames, &mut shapes, &mut step, &mut goal, cancel).await?;
            if cut == Cut::Turn {
                continue;
            }
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
                told = (told.0.max(time), Instant::now());
                self.status.update(|state| {
                    state.events += events;
                    state.steps += 1;
                    state.committed = Some(now_micros());
                });
                self.arrived(notes, checkpoint, Some(time));
                self.read_whole(notes, log, &step.ended);
                tracing::debug!(sink = self.name, events, checkpoint = checkpoint.next.0, "step committed");
                stand(&self.holds, &step, cancel).await;
            }
            if cut == Cut::Stop {
                return Ok(());
            }
            step = Gathered::new(checkpoint);
        }
    }

    pub(crate) fn arrived(&self, notes: &Notes, checkpoint: Checkpoint, event_time: Option<Micros>) {
        let mut moved = true;
        self.status.update(|state| {
            moved = event_time.is_none() || state.checkpoint != Some(checkpoint.next.0);
            state.checkpoint = Some(checkpoint.next.0);
            state.event_time = event_time.map(|t| t.0).or(state.event_time);
        });
        // The log knows already where a sink stands that has only told the time.
        if moved {
            notes.put_all(vec![orders::checkpoint_note(&self.name, checkpoint.next)]);
        }
    }

    /// Of tables that were read for this sink alone, these are whole now.
    pub(crate) fn read_whole(&self, notes: &Notes, log: &Log, ended: &[String]) {
        if ended.is_empty() {
            return;
        }
        let Some(mut fresh) = Fresh::all(&log.state()).into_iter().find(|fresh| fresh.sink == self.name) else {
            return;
        };
        fresh.streams.retain(|stream| !ended.contains(stream));
        let note = if fresh.streams.is_empty() { orders::fresh_done(&self.name) } else { fresh.change() };
        notes.put_all(vec![note]);
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
            let age = if step.end < step.there { self.age.max(LONGEST) } else { self.age };
            if between {
                let all_there = goal.borrow().is_some_and(|goal| step.end >= goal) && step.patience.is_none();
                if cancel.is_cancelled() || all_there {
                    return Ok(Cut::Stop);
                }
                if step.events == 0 && step.patience.is_some_and(|until| Instant::now() >= until) {
                    return Ok(Cut::Turn);
                }
                let old = step.first_staged.is_some_and(|first| first.elapsed() >= age);
                let quiet = step.quiet(self.heartbeat).is_some_and(|due| Instant::now() >= due);
                let full = (step.events > 0 && self.sink.is_full()) || step.bytes >= PASSED_BY;
                if old || full || quiet || step.seen_by.is_some() {
                    return Ok(Cut::Due);
                }
            }
            let due = step.first_staged.map(|first| first + age).or(step.patience);
            let due = due.into_iter().chain(step.quiet(self.heartbeat)).min();
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

    pub(crate) async fn take(&mut self, frame: Frame, shapes: &mut ShapeCache, step: &mut Gathered) -> Result<()> {
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
                    if let Some(shape) = shapes.wanted(run.schema)?
                        && run.is_for(&self.name)
                    {
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
                        if mark.op == Mark::END {
                            step.ended.push(mark.stream);
                        }
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
        let staged = self.sink.staged().await?;
        self.sink.commit(staged, step.step()).await
    }

    /// As `commit`, of a parked table alone.
    pub(crate) async fn commit_lane(&mut self, stream: &str, step: &Gathered) -> Result<Checkpoint> {
        let staged = self.sink.staged().await?;
        self.sink.commit(staged, step.step().of_lane(stream)).await
    }
}

/// What a step has taken so far.
pub(crate) struct Gathered {
    pub(crate) begin: Offset,
    pub(crate) end: Offset,
    /// Of the log, whether for this sink or not.
    pub(crate) bytes: usize,
    pub(crate) between: bool,
    pub(crate) events: u64,
    /// Readings that end in it, by stream.
    pub(crate) ended: Vec<String>,
    /// Until when nothing is waited for longer.
    patience: Option<Instant>,
    first_staged: Option<Instant>,
    /// What the log held when it began ends here.
    there: Offset,
    /// The time that the last step told readers, and when; None: this sink tells none.
    told: Option<(Micros, Instant)>,
    position: Option<Position>,
    event_time: Micros,
    /// It ends here, to be looked at by whoever knows this id.
    seen_by: Option<String>,
}

impl Gathered {
    pub(crate) fn new(checkpoint: Checkpoint) -> Self {
        Self {
            begin: checkpoint.next,
            end: checkpoint.next,
            bytes: 0,
            between: true,
            events: 0,
            ended: Vec::new(),
            patience: None,
            first_staged: None,
            there: checkpoint.next,
            told: None,
            position: None,
            event_time: Micros(i64::MIN),
            seen_by: None,
        }
    }

    /// When it is to be committed although nothing came: only for its time.
    fn quiet(&self, heartbeat: Duration) -> Option<Instant> {
        let (time, at) = self.told?;
        (self.events == 0 && self.event_time > time).then_some(at + heartbeat)
    }

    fn step(&self) -> Step {
        let range = OffsetRange { start: self.begin, end: self.end };
        Step::new(Checkpoint { next: self.begin }, range, self.position.clone(), self.event_time)
            .expect("the step was gathered from the checkpoint on")
    }
}

/// Shapes by number, with whether they are wanted; the log's state is asked
/// once a number.
pub(crate) struct ShapeCache {
    log: Log,
    selection: Selection,
    shapes: Shapes,
    wanted: HashMap<SchemaNumber, Option<Arc<Shape>>>,
}

impl ShapeCache {
    pub(crate) fn new(log: Log, selection: Selection) -> Self {
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

pub(crate) fn unreadable(error: storage::Error) -> Error {
    Error::halt("could not read the log").because(error).hint("run `highwater log check`")
}

fn broken(range: OffsetRange, error: Malformed) -> Error {
    Error::halt(format!("the batch at offsets {} to {} cannot be read", range.start, range.end))
        .because(error)
        .hint("run `highwater log check`")
}
