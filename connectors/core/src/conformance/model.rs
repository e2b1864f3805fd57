//! A sink in memory that keeps the promise, and what happens to one that does
//! not: the suite must tell.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use storage::{Epoch, LogId, Offset, OffsetRange};

use super::{Configured, Destination, Process, apart, suite};
use crate::batch::Run;
use crate::error::{Error, Result};
use crate::mark::Mark;
use crate::shape::Shape;
use crate::sink::{Checkpoint, Opened, Parked, Promise, Sink, Step};

/// What a broken one does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    None,
    /// Whoever comes may write.
    NoFence,
    /// The epoch is looked at when it is opened, and never again.
    FenceOnlyAtOpening,
    /// A file done twice is two files.
    RandomNames,
    /// Rows go up before anybody knows of the step.
    NoAnnouncement,
    /// A successor does the announced step in its own steps.
    PromiseForgotten,
    /// The checkpoint moves before the rows are there.
    CheckpointFirst,
    /// The checkpoint stands in a place of its own, written after the rows.
    CheckpointElsewhere,
    /// A lost answer is not settled by reading: what it wrote is taken for another's.
    LostAnswerIsAnother,
    /// Any log may go on from any checkpoint.
    AnyLog,
    /// Steps are taken wherever they begin.
    AnyStep,
    /// What is staged can be read.
    VisibleStage,
    /// Old manifests are removed, and their numbers are free again.
    NumbersComeAgain,
    /// Streams after the first are left out of what is announced.
    HalfPromise,
    /// What was announced of a table is forgotten when it is to wait apart.
    LaneWithoutPromise,
    /// A table that waited joins the others with its first step.
    LaneCutShort,
}

#[derive(Clone, Debug, PartialEq)]
struct Manifest {
    log: LogId,
    epoch: Epoch,
    writer: u64,
    next: Option<u64>,
    announced: Option<(OffsetRange, Vec<String>)>,
    /// Tables that wait apart: where they are, and what is announced of them.
    lanes: BTreeMap<String, (u64, Option<OffsetRange>)>,
}

type Files = BTreeMap<(String, u64, String), Vec<u64>>;

#[derive(Debug, Default)]
struct Store {
    manifests: BTreeMap<u64, Manifest>,
    files: Files,
    elsewhere: Option<u64>,
}

struct Model {
    bug: Bug,
    store: Arc<Mutex<Store>>,
}

struct ModelSink {
    bug: Bug,
    store: Arc<Mutex<Store>>,
    process: Arc<Process>,
    writer: u64,
    number: u64,
    current: Option<Manifest>,
    staged: BTreeMap<String, Vec<u64>>,
}

static WRITERS: AtomicU64 = AtomicU64::new(1);

impl ModelSink {
    async fn at<T>(&self, operation: impl FnOnce(&mut Store) -> T) -> Result<T> {
        let store = self.store.clone();
        let done = async move { Ok(operation(&mut store.lock().unwrap())) };
        self.process.operation(done, || Error::retry("lost")).await
    }

    async fn put(&mut self, manifest: Manifest) -> Result<()> {
        let (number, new) = (self.number + 1, manifest.clone());
        let keep = if self.bug == Bug::NumbersComeAgain { 8 } else { 1_000 };
        let put = self
            .at(|store| {
                let found = store.manifests.entry(number).or_insert(new.clone()).clone();
                store.manifests.retain(|n, _| *n + keep > number);
                found
            })
            .await;
        let found = match put {
            Ok(found) => found,
            Err(_) if self.bug == Bug::LostAnswerIsAnother => return Err(Error::superseded("somebody is there")),
            // What it came to is read.
            Err(lost) => match self.at(|store| store.manifests.get(&number).cloned()).await? {
                Some(found) => found,
                None => return Err(lost),
            },
        };
        let fenced = !matches!(self.bug, Bug::NoFence | Bug::FenceOnlyAtOpening);
        if found != manifest && fenced {
            return Err(Error::superseded("another has taken over"));
        }
        if !fenced {
            self.at(|store| drop(store.manifests.insert(number, manifest.clone()))).await?;
        }
        (self.number, self.current) = (number, Some(manifest));
        Ok(())
    }

    fn take(&mut self, stream: String, offset: u64) -> Result<()> {
        if self.current.is_none() {
            return Err(Error::retry("it is not open"));
        }
        if self.bug == Bug::VisibleStage {
            self.store.lock().unwrap().files.entry((stream.clone(), 0, String::new())).or_default().push(offset);
        }
        self.staged.entry(stream).or_default().push(offset);
        Ok(())
    }
}

impl Sink for ModelSink {
    type Staged = (String, Vec<u64>);

    async fn open(&mut self, log: LogId, epoch: Epoch) -> Result<Opened> {
        (self.current, self.staged) = (None, BTreeMap::new());
        let (highest, elsewhere) =
            self.at(|store| (store.manifests.last_key_value().map(|(n, m)| (*n, m.clone())), store.elsewhere)).await?;
        let mut next =
            Manifest { log, epoch, writer: self.writer, next: None, announced: None, lanes: BTreeMap::new() };
        self.number = 0;
        if let Some((number, found)) = highest {
            if found.log != log && self.bug != Bug::AnyLog {
                return Err(Error::halt("it is of another log").hint("put that one back"));
            }
            let other = found.epoch == epoch && found.writer != self.writer;
            if (found.epoch > epoch || other) && self.bug != Bug::NoFence {
                return Err(Error::superseded("another has taken over"));
            }
            self.number = number;
            (next.next, next.announced, next.lanes) = (found.next, found.announced, found.lanes);
        }
        if self.bug == Bug::PromiseForgotten {
            next.announced = None;
        }
        if self.bug == Bug::CheckpointElsewhere {
            next.next = elsewhere;
        }
        self.put(next.clone()).await?;
        let promised = next.announced.map(|(range, streams)| Promise { range, streams });
        let parked = next.lanes.into_iter().map(|(stream, (next, promised))| Parked {
            stream,
            next: Offset(next),
            since: 0,
            why: String::new(),
            promised,
        });
        let checkpoint = next.next.map(|next| Checkpoint { next: Offset(next) });
        Ok(Opened { checkpoint, promised, parked: parked.collect() })
    }

    async fn stage(&mut self, shape: &Arc<Shape>, run: Run<'_>) -> Result<()> {
        (0..run.len() as u64).try_for_each(|i| self.take(shape.table.stream(), run.first_offset.0 + i))
    }

    async fn stage_mark(&mut self, shape: &Arc<Shape>, _: &Mark, offset: Offset) -> Result<()> {
        self.take(shape.table.stream(), offset.0)
    }

    async fn staged(&mut self) -> Result<Vec<Self::Staged>> {
        Ok(std::mem::take(&mut self.staged).into_iter().collect())
    }

    async fn commit(&mut self, staged: Vec<Self::Staged>, step: Step) -> Result<Checkpoint> {
        let current = self.current.clone().ok_or_else(|| Error::retry("it is not open"))?;
        let range = step.range();
        let mut streams: Vec<String> = staged.iter().map(|(stream, _)| stream.clone()).collect();
        if self.bug == Bug::HalfPromise {
            streams.truncate(1);
        }
        let (mut done, mut announced) = (current.clone(), current.clone());
        let (next, redone) = match step.lane() {
            None => {
                (done.next, done.announced) = (Some(range.end.0), None);
                announced.announced = Some((range, streams));
                (current.next, current.announced.is_some())
            }
            Some(stream) => {
                let (next, own) = current.lanes.get(stream).ok_or_else(|| Error::retry("it does not wait"))?;
                announced.lanes.insert(stream.into(), (range.start.0, Some(range)));
                done.lanes.insert(stream.into(), (range.end.0, None));
                if current.next.is_none_or(|next| next <= range.end.0) || self.bug == Bug::LaneCutShort {
                    done.lanes.remove(stream);
                }
                (Some(*next), own.is_some())
            }
        };
        if next.is_some_and(|next| next != range.start.0) && self.bug != Bug::AnyStep {
            return Err(Error::halt("it does not begin at the checkpoint"));
        }
        if !redone && self.bug != Bug::NoAnnouncement {
            self.put(announced).await?;
        }
        if self.bug == Bug::CheckpointFirst {
            self.put(done.clone()).await?;
        }
        for (stream, offsets) in staged {
            let random = if self.bug == Bug::RandomNames { WRITERS.fetch_add(1, Ordering::Relaxed) } else { 0 };
            let name = format!("{}-{random}", range.end.0);
            self.at(|store| _ = store.files.entry((stream, offsets[0], name)).or_insert(offsets)).await?;
        }
        if self.bug == Bug::CheckpointElsewhere {
            self.at(|store| store.elsewhere = Some(range.end.0)).await?;
        }
        if self.bug != Bug::CheckpointFirst {
            self.put(done).await?;
        }
        Ok(Checkpoint { next: range.end })
    }

    async fn park(&mut self, stream: &str, at: Offset, _: &str) -> Result<bool> {
        let mut next = self.current.clone().ok_or_else(|| Error::retry("it is not open"))?;
        let mut own = None;
        if let Some((range, streams)) = &mut next.announced {
            let before = streams.len();
            streams.retain(|announced| announced != stream);
            own = (streams.len() < before && self.bug != Bug::LaneWithoutPromise).then_some(*range);
        }
        next.lanes.entry(stream.into()).or_insert((at.0, own));
        self.put(next).await.map(|()| true)
    }
}

impl Destination for Model {
    type Sink = ModelSink;

    fn sink(&self, process: &Arc<Process>, _: Configured) -> ModelSink {
        ModelSink {
            bug: self.bug,
            store: self.store.clone(),
            process: process.clone(),
            writer: WRITERS.fetch_add(1, Ordering::Relaxed),
            number: 0,
            current: None,
            staged: BTreeMap::new(),
        }
    }

    async fn held(&self) -> BTreeMap<String, Vec<u64>> {
        let mut held: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for ((stream, ..), offsets) in &self.store.lock().unwrap().files {
            held.entry(stream.clone()).or_default().extend(offsets);
        }
        held
    }
}

async fn violations(bug: Bug) -> Vec<super::Violation> {
    let make = async || Model { bug, store: Arc::default() };
    [suite(make, 1).await, apart(make, 1).await].concat()
}

#[tokio::test]
async fn a_sink_that_keeps_the_promise_passes() {
    assert_eq!(violations(Bug::None).await, []);
}

#[tokio::test]
async fn a_sink_that_breaks_it_is_told_by_the_test_for_that() {
    for (bug, test) in [
        (Bug::NoFence, "a_lower_epoch_is_fenced"),
        (Bug::FenceOnlyAtOpening, "a_lower_epoch_is_fenced"),
        (Bug::RandomNames, "wherever_the_process_ends"),
        (Bug::NoAnnouncement, "wherever_the_process_ends"),
        (Bug::PromiseForgotten, "wherever_the_process_ends"),
        (Bug::CheckpointFirst, "whatever_operation_fails"),
        (Bug::CheckpointElsewhere, "wherever_a_zombie_wakes"),
        (Bug::LostAnswerIsAnother, "whatever_operation_fails"),
        (Bug::AnyLog, "another_log_is_refused"),
        (Bug::AnyStep, "a_step_that_begins_elsewhere_is_refused"),
        (Bug::VisibleStage, "a_repeated_stage_counts_once"),
        (Bug::NumbersComeAgain, "wherever_a_zombie_wakes"),
        (Bug::HalfPromise, "wherever_the_process_ends"),
        (Bug::LaneWithoutPromise, "wherever_a_zombie_wakes"),
        (Bug::LaneCutShort, "whatever_operation_fails"),
    ] {
        let found = violations(bug).await;
        assert!(found.iter().any(|violation| violation.test == test), "{bug:?} is told by {found:#?}");
    }
}
