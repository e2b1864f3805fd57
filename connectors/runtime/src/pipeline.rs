//! One source, its log, its sinks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use connector::{Action, Error, FOLLOWED, Result, Sink, Source};
use storage::{EventLog, Log, Offset};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clerk::Clerk;
use crate::delivery::{Delivery, Outcome};
use crate::desk::Requests;
use crate::ingest::Ingest;
use crate::notes::Notes;
use crate::orders::{self, Detached, Orders};
use crate::quarantine::Rules;
use crate::schemas::SchemaBook;
use crate::start::forgotten;
use crate::status::{Health, SinkStatus, SourceStatus, now_micros};
use crate::supervise::Place;

/// How often retention looks.
const RETENTION: Duration = Duration::from_secs(5);
/// A full disk must not hold up a stop.
const LAST_NOTES: Duration = Duration::from_millis(500);

/// One source with everything behind it.
pub struct Pipeline<S, K> {
    /// The source's configured name.
    pub name: String,
    /// The source.
    pub source: S,
    /// Its log, open for writing.
    pub log: Log,
    /// The log's shapes, which the source resolves.
    pub book: Arc<SchemaBook>,
    /// What commands ask for.
    pub requests: Requests,
    /// What rows must be, and how those are kept that are not.
    pub rules: Rules,
    /// Its sinks.
    pub deliveries: Vec<Delivery<K>>,
    /// Told to whoever asks.
    pub status: SourceStatus,
    /// Of this log.
    pub orders: Orders,
    /// End when everything committed before the start is at every sink.
    pub until_caught_up: bool,
}

/// How a pipeline ended.
#[derive(Debug, Default)]
pub struct Ended {
    /// What a person must look at: (source or sink, why), worst first.
    pub failures: Vec<(String, Error)>,
}

impl Ended {
    /// Whether another daemon has taken over.
    pub fn superseded(&self) -> bool {
        self.failures.iter().any(|(_, error)| error.action() == Action::Yield)
    }
}

enum Part {
    Ingest(Result<()>),
    Delivery(String, Outcome),
    Retention,
    Log(Error),
}

impl<S: Source + 'static, K: Sink + 'static> Pipeline<S, K> {
    /// Until cancelled, done, or nothing is left that could go on. A sink that
    /// halts leaves the source and the other sinks at work, so the slot is
    /// drained, and tries again when it is told to; when all sinks have halted,
    /// a person is called. A source that halts, or a log that fails, ends it all.
    pub async fn run(self, cancel: &CancellationToken) -> Ended {
        let Self { name, source, log, book, requests, rules, deliveries, status, orders, until_caught_up } = self;
        let stop = cancel.child_token();
        let halted = CancellationToken::new();
        let notes = orders.notes.clone();
        let known = |name: &str| deliveries.iter().any(|delivery| delivery.name == name);
        let removed = forgotten(&log.state(), known);
        if !removed.is_empty() {
            tracing::warn!(
                "of sinks that are no longer configured nothing is remembered, and the log is not kept for them"
            );
            notes.put_all(removed);
        }
        let goal = watch::Sender::new(None);
        // Not by its offsets: retention may have taken all that a log once held.
        let new_log = log.state().prefix(FOLLOWED.as_bytes()).next().is_none();
        let (halts, mut halted_sinks) = mpsc::unbounded_channel();
        let Requests { taken, desk } = requests;
        let clerk = Clerk { log: log.clone(), book: book.clone(), desk, cancel: stop.clone() };
        let ingest = Ingest {
            name: name.clone(),
            source,
            log: log.clone(),
            notes: notes.clone(),
            book,
            requests: taken,
            rules,
            status,
            goal: until_caught_up.then(|| goal.clone()),
            kicked: orders.listen(orders::SOURCE),
            cancel: stop.clone(),
        };
        let mut kept = Vec::new();
        let mut parts = JoinSet::new();
        parts.spawn(async move { Part::Ingest(ingest.run().await) });
        let mut left = deliveries.len();
        for delivery in deliveries {
            let (name, status, max_backlog) = (delivery.name.clone(), delivery.status.clone(), delivery.max_backlog);
            let place = Place {
                log: log.clone(),
                notes: notes.clone(),
                goal: goal.clone(),
                until_caught_up,
                new_log,
                kicked: orders.listen(&name),
                halts: halts.clone(),
                cancel: stop.clone(),
                halted: halted.clone(),
            };
            kept.push(Kept { name: name.clone(), status, max_backlog });
            parts.spawn(async move { Part::Delivery(name, delivery.run(place).await) });
        }
        parts.spawn(retention(log.clone(), kept, orders.clone(), stop.clone()));
        parts.spawn(failure(log.clone(), stop.clone()));
        parts.spawn(async move { Part::Ingest(clerk.run().await) });

        let mut ended = Ended::default();
        let mut goal_watch = goal.subscribe();
        if left == 0 && until_caught_up {
            let stop = stop.clone();
            parts.spawn(async move {
                let _ = goal_watch.wait_for(Option::is_some).await;
                stop.cancel();
                Part::Retention
            });
        }
        let mut halted_now: BTreeSet<String> = BTreeSet::new();
        loop {
            let part = tokio::select! {
                part = parts.join_next() => match part {
                    Some(part) => part,
                    None => break,
                },
                Some((sink, halted)) = halted_sinks.recv() => {
                    match halted {
                        true => halted_now.insert(sink),
                        false => halted_now.remove(&sink),
                    };
                    if halted_now.len() == left {
                        stop.cancel();
                    }
                    continue;
                }
            };
            match part {
                Ok(Part::Ingest(Ok(()))) | Ok(Part::Retention) => {}
                Ok(Part::Ingest(Err(error))) => {
                    ended.failures.insert(0, (format!("source {name:?}"), error));
                    halted.cancel();
                    stop.cancel();
                }
                Ok(Part::Log(error)) => {
                    ended.failures.insert(0, (format!("log of source {name:?}"), error));
                    stop.cancel();
                }
                Ok(Part::Delivery(sink, outcome)) => {
                    left -= 1;
                    halted_now.remove(&sink);
                    if let Outcome::Failed(error) = outcome {
                        let superseded = error.action() == Action::Yield;
                        ended.failures.push((format!("sink {sink:?}"), error));
                        if superseded {
                            stop.cancel();
                        }
                    }
                    if halted_now.len() == left {
                        stop.cancel();
                    }
                }
                Err(error) => {
                    let failed = Error::halt("a task of the pipeline has panicked").because(error);
                    ended.failures.insert(0, (format!("source {name:?}"), failed));
                    stop.cancel();
                }
            }
        }
        // A failed log takes nothing more, and its sinks say again where they are.
        let _ = tokio::time::timeout(LAST_NOTES, leave_notes(&log, &notes)).await;
        ended
    }
}

/// Checkpoints that came after the source had stopped: for `status`, and for
/// retention after the next start.
async fn leave_notes(log: &Log, notes: &Notes) -> storage::Result<()> {
    if let Some(batch) = notes.batch() {
        log.abort().await?;
        log.append(batch).await?.await?;
    }
    Ok(())
}

/// A sink that the log is kept for.
struct Kept {
    name: String,
    status: SinkStatus,
    max_backlog: u64,
}

/// Keeps the log's floor at the least that a sink may need: of every configured
/// sink, what it last said, now or in an earlier run; one never heard of may
/// want it all. One that is further behind than it may be is detached.
async fn retention(log: Log, sinks: Vec<Kept>, orders: Orders, stop: CancellationToken) -> Part {
    loop {
        let state = log.state();
        let mut floor = log.high_water().0;
        for sink in &sinks {
            if orders::detached(&state, &sink.name).is_some() && orders::replay(&state, &sink.name).is_none() {
                if sink.status.get().health != Health::Detached {
                    orders.kick(&sink.name);
                }
                continue;
            }
            let remembered = orders::needs(&state, &sink.name);
            let said = sink.status.get().checkpoint.or(orders::checkpoint(&state, &sink.name));
            let needed = said.unwrap_or(log.start().0).min(remembered.unwrap_or(u64::MAX));
            if sink.max_backlog > 0 {
                detach(&log, &orders, &state, sink, said);
            }
            floor = floor.min(needed);
        }
        log.retain_from(Offset(floor));
        tokio::select! {
            () = stop.cancelled() => return Part::Retention,
            () = tokio::time::sleep(RETENTION) => {}
        }
    }
}

/// What is too far behind is no longer waited for; the next look lets go of it,
/// when the log's state says so.
fn detach(log: &Log, orders: &Orders, state: &storage::State, sink: &Kept, checkpoint: Option<u64>) {
    let behind = |next: u64| log.bytes_from(Offset(next)).ok().filter(|bytes| *bytes > sink.max_backlog);
    // A replay is behind because somebody wants it to be.
    if orders::replay(state, &sink.name).is_none()
        && let Some(bytes) = checkpoint.and_then(behind)
    {
        let detached = Detached { since: now_micros(), bytes, max_backlog: sink.max_backlog };
        orders.notes.put_all(vec![orders::detached_note(&sink.name, Some(&detached))]);
        return;
    }
    for (stream, lane) in orders::lanes(state, &sink.name).filter(|(_, lane)| !lane.lost) {
        if let Some(bytes) = behind(lane.next) {
            tracing::error!(
                sink = sink.name,
                stream,
                bytes,
                "the table has waited for longer than `max_backlog`: the log is no longer kept for it, and it must be read again"
            );
            let lost = orders::Lane { lost: true, ..lane };
            orders.notes.put_all(vec![orders::lane_note(&sink.name, &stream, Some(&lost))]);
        }
    }
}

/// A failed write or sync of the log ends the process.
async fn failure(log: Log, stop: CancellationToken) -> Part {
    tokio::select! {
        () = stop.cancelled() => Part::Retention,
        error = log.failed() => Part::Log(crate::ingest::log_failed(error)),
    }
}
