//! The suite that every sink must pass: a destination holds each event once
//! and in order, whatever fails, whoever else writes there.
//!
//! It drives sinks as the runtime does, on destinations that let each operation
//! of a process fail, end it, or hold it, before or after it took effect; and
//! reads, as any reader would, what is there.

mod daemon;
mod log;
#[cfg(test)]
mod model;
mod process;

use std::collections::BTreeMap;
use std::future::Future;

use storage::{Epoch, LogId, Offset, OffsetRange};

use crate::error::{Action, Error};
use crate::sink::{Checkpoint, Sink, Step};
use daemon::{Course, Daemon, step};
use log::TestLog;

pub use log::STREAMS;
pub use process::{Fate, Process, When};

/// How the sink is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Configured {
    /// As at first.
    Before,
    /// By another daemon with another configuration, everything changed that
    /// may be: how much a step takes, names of our own columns, formats.
    Changed,
}

/// A destination, empty at first.
pub trait Destination: Sync {
    /// What writes there.
    type Sink: Sink;

    /// A sink of one name, in a process of its own: every operation on the
    /// destination goes through [`Process::operation`].
    fn sink(&self, process: &std::sync::Arc<Process>, configured: Configured) -> Self::Sink;

    /// The offsets of each stream in the order in which a reader finds them,
    /// who knows nothing of the sink. Nothing that is there twice is left out.
    fn held(&self) -> impl Future<Output = BTreeMap<String, Vec<u64>>> + Send;
}

/// What a sink does that it must not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Of which test.
    pub test: &'static str,
    /// What was seen.
    pub what: String,
}

type Checked = std::result::Result<(), String>;

macro_rules! check {
    ($condition:expr, $($words:tt)*) => {
        if !$condition {
            return Err(format!($($words)*));
        }
    };
}
use check;

const LOG: LogId = LogId([7; 16]);
const OTHER: LogId = LogId([8; 16]);

/// Runs all of it; `make` makes empty destinations. Where a test goes through
/// every operation of a step, it takes every `stride`-th: 1 for all.
pub async fn suite<D: Destination>(make: impl AsyncFn() -> D, stride: usize) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut note = |test, checked: Checked| found.extend(checked.err().map(|what| Violation { test, what }));
    note("a_step_that_begins_elsewhere_is_refused", steps_begin_at_the_checkpoint(&make().await).await);
    note("everything_arrives_once", everything_arrives_once(&make().await).await);
    note("a_repeated_stage_counts_once", a_repeated_stage_counts_once(&make().await).await);
    note("another_log_is_refused", another_log_is_refused(&make().await).await);
    note("a_lower_epoch_is_fenced", a_lower_epoch_is_fenced(&make().await).await);
    wherever(&make, stride, [false, false], &mut found).await;
    found
}

/// Runs what can befall a sink while a table waits apart in it; of one that has
/// one checkpoint for all its tables, nothing. `stride` as for [`suite`].
pub async fn apart<D: Destination>(make: impl AsyncFn() -> D, stride: usize) -> Vec<Violation> {
    let mut found = Vec::new();
    match parks(&make().await).await {
        Ok(true) => {
            for daemons in [[false, true], [true, false]] {
                wherever(&make, stride, daemons, &mut found).await;
            }
        }
        Ok(false) => {}
        Err(what) => found.push(Violation { test: "a_table_waits_apart", what }),
    }
    found
}

/// `apart`: whether the first daemon has a table wait apart, and the next.
async fn wherever<D: Destination>(
    make: &impl AsyncFn() -> D,
    stride: usize,
    apart: [bool; 2],
    found: &mut Vec<Violation>,
) {
    let mut note = |test, checked: Checked| found.extend(checked.err().map(|what| Violation { test, what }));
    note("whatever_operation_fails", whatever_operation_fails(make, stride, apart).await);
    note("wherever_the_process_ends", wherever_the_process_ends(make, stride, apart).await);
    note("wherever_a_zombie_wakes", wherever_a_zombie_wakes(make, stride, apart).await);
}

/// Whether a table can wait apart there.
async fn parks(destination: &impl Destination) -> std::result::Result<bool, String> {
    let log = TestLog::new();
    let mut sink = destination.sink(&healthy(), Configured::Before);
    sink.open(LOG, Epoch(1)).await.map_err(told)?;
    if !sink.park(STREAMS[0], log.start(), "refused").await.map_err(told)? {
        return Ok(false);
    }
    let opened = sink.open(LOG, Epoch(1)).await.map_err(told)?;
    let parked: Vec<_> = opened.parked.iter().map(|table| (table.stream.as_str(), table.next)).collect();
    check!(parked == [(STREAMS[0], log.start())], "it was to wait apart, and what does is {parked:?}");
    Ok(true)
}

fn healthy() -> std::sync::Arc<Process> {
    std::sync::Arc::new(Process::new(None))
}

fn doomed(fate: Fate) -> std::sync::Arc<Process> {
    std::sync::Arc::new(Process::new(Some(fate)))
}

fn told(error: Error) -> String {
    error.chain()
}

async fn everything_arrives_once(destination: &impl Destination) -> Checked {
    let log = TestLog::new();
    for (epoch, cut) in [(1, 3), (2, 5)] {
        let daemon = Daemon { log: &log, epoch, cut, streams: &STREAMS, apart: false };
        let mut course = Course::default();
        let mut sink = destination.sink(&healthy(), Configured::Before);
        daemon.persist(&mut sink, &mut course).await?;
        course.is_whole(destination, &daemon.whole()).await?;
        check!(course.checkpoint == Some(log.end()), "its checkpoint is {:?}", course.checkpoint);
        check!(course.promised.is_empty(), "nothing is left to promise, and {:?} is", course.promised);
        // Idle: a step of nothing, and one of offsets that were for others.
        for end in [log.end().0, log.end().0] {
            let range = OffsetRange { start: log.end(), end: Offset(end) };
            let at = daemon.step(&mut sink, range, &STREAMS, &mut course).await.map_err(told)?;
            check!(at.0 == end, "an empty step to {end} gives {at}");
        }
        course.is_whole(destination, &daemon.whole()).await?;
    }
    Ok(())
}

async fn a_repeated_stage_counts_once(destination: &impl Destination) -> Checked {
    let log = TestLog::new();
    let daemon = Daemon { log: &log, epoch: 1, cut: 4, streams: &STREAMS, apart: false };
    let mut sink = destination.sink(&healthy(), Configured::Before);
    let range = OffsetRange { start: log.start(), end: log.items[4].range().end };
    for _ in 0..2 {
        sink.open(LOG, Epoch(1)).await.map_err(told)?;
        daemon.stage(&mut sink, range, &STREAMS).await.map_err(told)?;
        sink.staged().await.map_err(told)?;
        check!(destination.held().await.is_empty(), "what is only staged can be read");
    }
    let mut course = Course::default();
    daemon.persist(&mut sink, &mut course).await?;
    course.is_whole(destination, &daemon.whole()).await
}

async fn steps_begin_at_the_checkpoint(destination: &impl Destination) -> Checked {
    let log = TestLog::new();
    let daemon = Daemon { log: &log, epoch: 1, cut: 4, streams: &STREAMS, apart: false };
    let (first, second, third) = (log.items[0].range(), log.items[1].range(), log.items[2].range());
    let at = Checkpoint { next: second.start };
    check!(Step::new(at, third, None, storage::Micros(1)).is_none(), "a step with a hole before it can be made");
    check!(Step::new(at, first, None, storage::Micros(1)).is_none(), "a step backwards can be made");
    // Nor does a checkpoint help that is not the sink's own.
    let mut course = Course::default();
    let mut sink = destination.sink(&healthy(), Configured::Before);
    sink.open(LOG, Epoch(1)).await.map_err(told)?;
    daemon.step(&mut sink, first, &STREAMS, &mut course).await.map_err(told)?;
    let before = destination.held().await;
    for (epoch, wrong) in [(2, third), (3, first)] {
        let mut sink = destination.sink(&healthy(), Configured::Before);
        let opened = sink.open(LOG, Epoch(epoch)).await.map_err(told)?;
        check!(opened.checkpoint == Some(at), "the checkpoint is {:?}", opened.checkpoint);
        let taken = daemon.step(&mut sink, wrong, &STREAMS, &mut Course::default()).await;
        check!(taken.is_err(), "a step of {wrong:?} is taken at checkpoint {}", second.start);
        check!(destination.held().await == before, "a step of {wrong:?} can be read");
    }
    let next = Daemon { epoch: 4, ..daemon };
    next.persist(&mut destination.sink(&healthy(), Configured::Before), &mut course).await?;
    course.is_whole(destination, &next.whole()).await
}

async fn another_log_is_refused(destination: &impl Destination) -> Checked {
    let log = TestLog::new();
    let daemon = Daemon { log: &log, epoch: 1, cut: 4, streams: &STREAMS, apart: false };
    let mut course = Course::default();
    daemon.persist(&mut destination.sink(&healthy(), Configured::Before), &mut course).await?;
    let Err(error) = destination.sink(&healthy(), Configured::Before).open(OTHER, Epoch(9)).await else {
        return Err("a log takes over the checkpoint of another".into());
    };
    check!(error.action() == Action::Halt, "another log's checkpoint is answered by {:?}", error.action());
    check!(error.remedy().is_some(), "it does not say what to do: {error}");
    // It has not done harm: the log that it belongs to goes on, in its own epochs.
    let mut sink = destination.sink(&healthy(), Configured::Before);
    let daemon = Daemon { epoch: 2, ..daemon };
    daemon.persist(&mut sink, &mut course).await?;
    course.is_whole(destination, &daemon.whole()).await
}

async fn a_lower_epoch_is_fenced(destination: &impl Destination) -> Checked {
    let log = TestLog::new();
    let old = Daemon { log: &log, epoch: 3, cut: 4, streams: &STREAMS, apart: false };
    let new = Daemon { log: &log, epoch: 4, cut: 7, streams: &STREAMS, apart: false };
    let mut zombie = destination.sink(&healthy(), Configured::Before);
    let mut course = Course::default();
    let first = OffsetRange { start: log.start(), end: log.items[2].range().end };
    zombie.open(LOG, Epoch(3)).await.map_err(told)?;
    old.step(&mut zombie, first, &STREAMS, &mut course).await.map_err(told)?;
    let range = OffsetRange { start: first.end, end: log.items[5].range().end };
    old.stage(&mut zombie, range, &STREAMS).await.map_err(told)?;
    let staged = zombie.staged().await.map_err(told)?;

    let mut heir = destination.sink(&healthy(), Configured::Before);
    let opened = heir.open(LOG, Epoch(4)).await.map_err(told)?;
    check!(opened.checkpoint.is_some_and(|c| c.next == first.end), "the heir begins at {:?}", opened.checkpoint);
    let before = destination.held().await;
    match zombie.commit(staged, step(range)).await {
        Err(error) => check!(error.action() == Action::Yield, "the zombie is answered by {:?}", error.action()),
        Ok(_) => return Err("a fenced zombie has committed".into()),
    }
    check!(destination.held().await == before, "rows of a fenced zombie can be read");
    match zombie.open(LOG, Epoch(3)).await {
        Err(error) => check!(error.action() == Action::Yield, "a lower epoch is answered by {:?}", error.action()),
        Ok(_) => return Err("a lower epoch has opened".into()),
    }
    // The same epoch in another process is a copied data folder.
    match destination.sink(&healthy(), Configured::Before).open(LOG, Epoch(4)).await {
        Err(error) => check!(error.action() == Action::Yield, "a second writer is answered by {:?}", error.action()),
        Ok(_) => return Err("an epoch has two writers".into()),
    }
    new.persist(&mut heir, &mut course).await?;
    course.is_whole(destination, &new.whole()).await
}

/// Every operation of the first steps, before and after it takes effect.
fn fates(stride: usize, fate: impl Fn(usize, When) -> Fate) -> impl Iterator<Item = Fate> {
    (1..).step_by(stride).flat_map(move |nth| [fate(nth, When::Before), fate(nth, When::After)])
}

async fn whatever_operation_fails<D: Destination>(
    make: &impl AsyncFn() -> D,
    stride: usize,
    [first, next]: [bool; 2],
) -> Checked {
    let log = TestLog::new();
    let daemon = Daemon { log: &log, epoch: 1, cut: 9, streams: &STREAMS, apart: first };
    let then = Daemon { log: &log, epoch: 1, cut: 9, streams: &STREAMS, apart: next };
    for fate in fates(stride, Fate::Fails) {
        let destination = make().await;
        let process = doomed(fate);
        let mut sink = destination.sink(&process, Configured::Before);
        let mut course = Course::default();
        let tried = |what: String| format!("{fate:?}: {what}");
        if let Err(error) = daemon.deliver(&mut sink, &mut course).await {
            check!(error.action() == Action::Retry, "{fate:?}: what may pass is answered by {}", error.chain());
        }
        course.look(&destination, &daemon.whole()).await.map_err(tried)?;
        then.persist(&mut sink, &mut course).await.map_err(tried)?;
        course.is_whole(&destination, &daemon.whole()).await.map_err(tried)?;
        if !process.met() {
            break;
        }
    }
    Ok(())
}

async fn wherever_the_process_ends<D: Destination>(
    make: &impl AsyncFn() -> D,
    stride: usize,
    [first, next]: [bool; 2],
) -> Checked {
    let log = TestLog::new();
    let mut promises = 0;
    for fate in fates(stride, Fate::Dies) {
        let destination = make().await;
        let process = doomed(fate);
        let tried = |what: String| format!("{fate:?}: {what}");
        let mut course = Course::default();
        let first = Daemon { log: &log, epoch: 1, cut: 9, streams: &STREAMS, apart: first };
        let mut sink = destination.sink(&process, Configured::Before);
        let _ = first.deliver(&mut sink, &mut course).await;
        course.look(&destination, &first.whole()).await.map_err(tried)?;
        // The next takes fewer tables from here on, in other steps.
        let next = Daemon { log: &log, epoch: 2, cut: 4, streams: &STREAMS[..1], apart: next };
        let mut sink = destination.sink(&healthy(), Configured::Changed);
        course.promised.clear();
        let opened = sink.open(LOG, Epoch(2)).await.map_err(told)?;
        course.told(opened.checkpoint);
        let begin = opened.promised.as_ref().map_or(log.start(), |promise| promise.range.start);
        let from = opened.checkpoint.map_or(begin, |checkpoint| checkpoint.next);
        let announced = opened.promised.map_or(from, |promise| promise.range.end);
        promises += usize::from(announced > from);
        next.persist(&mut sink, &mut course).await.map_err(tried)?;
        let mut whole = log.offsets(OffsetRange { start: log.start(), end: announced }, &STREAMS);
        for (stream, more) in log.offsets(OffsetRange { start: announced, end: log.end() }, next.streams) {
            whole.entry(stream).or_default().extend(more);
        }
        course.is_whole(&destination, &whole).await.map_err(tried)?;
        if !process.met() {
            break;
        }
    }
    check!(promises > 0 || stride > 1, "a step is never announced: a successor cannot know what is half done");
    Ok(())
}

async fn wherever_a_zombie_wakes<D: Destination>(
    make: &impl AsyncFn() -> D,
    stride: usize,
    [first, next]: [bool; 2],
) -> Checked {
    let log = TestLog::new();
    for fate in fates(stride, Fate::Stops) {
        let destination = make().await;
        let process = doomed(fate);
        let tried = |what: String| format!("{fate:?}: {what}");
        let old = Daemon { log: &log, epoch: 1, cut: 9, streams: &STREAMS, apart: first };
        // Many small steps: what the zombie knew of is long past when it wakes.
        let new = Daemon { log: &log, epoch: 2, cut: 1, streams: &STREAMS, apart: next };
        let mut zombie = destination.sink(&process, Configured::Before);
        let mut heir = destination.sink(&healthy(), Configured::Changed);
        let (mut late, mut course) = (Course::default(), Course::default());
        let (ended, succeeded) = tokio::join!(
            async {
                let ended = old.deliver(&mut zombie, &mut late).await;
                process.release();
                ended
            },
            async {
                if !process.stopped().await {
                    return Ok(false);
                }
                let delivered = new.persist(&mut heir, &mut course).await;
                process.release();
                delivered.map(|()| true)
            }
        );
        let succeeded = succeeded.map_err(tried)?;
        if let Err(error) = &ended {
            check!(error.action() == Action::Yield, "{fate:?}: the zombie is answered by {}", error.chain());
        }
        course.checkpoint = None;
        course.is_whole(&destination, &old.whole()).await.map_err(tried)?;
        // What it has left behind misleads nobody.
        let last = Daemon { log: &log, epoch: 3, cut: 2, streams: &STREAMS, apart: false };
        let mut sink = destination.sink(&healthy(), Configured::Before);
        last.persist(&mut sink, &mut course).await.map_err(tried)?;
        course.is_whole(&destination, &old.whole()).await.map_err(tried)?;
        if !succeeded {
            break;
        }
    }
    Ok(())
}
