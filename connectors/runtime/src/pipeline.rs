//! One source, its log, its sinks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use connector::{Action, Error, Result, Sink, Source};
use storage::{EventLog, Log, Offset};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::delivery::{Delivery, Outcome, checkpoint_key};
use crate::desk::Requests;
use crate::ingest::Ingest;
use crate::notes::Notes;
use crate::schemas::SchemaBook;
use crate::status::SourceStatus;

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
    /// Its sinks.
    pub deliveries: Vec<Delivery<K>>,
    /// Told to whoever asks.
    pub status: SourceStatus,
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
    /// drained; when the last sink has halted, a person is called. A source
    /// that halts, or a log that fails, ends it all.
    pub async fn run(self, cancel: &CancellationToken) -> Ended {
        let Self { name, source, log, book, requests, deliveries, status, until_caught_up } = self;
        let stop = cancel.child_token();
        let halted = CancellationToken::new();
        let notes = Notes::default();
        forget_removed_sinks(&log, &deliveries, &notes);
        let (goal, wanted) = watch::channel(None);
        let mut keep_open = None;
        let ingest_goal = if until_caught_up {
            Some(goal)
        } else {
            keep_open = Some(goal);
            None
        };
        let ingest = Ingest {
            name: name.clone(),
            source,
            log: log.clone(),
            notes: notes.clone(),
            book,
            requests,
            status,
            goal: ingest_goal,
            cancel: stop.clone(),
        };
        let mut sinks: BTreeMap<String, crate::status::SinkStatus> = BTreeMap::new();
        let mut parts = JoinSet::new();
        parts.spawn(async move { Part::Ingest(ingest.run().await) });
        let mut left = deliveries.len();
        for delivery in deliveries {
            sinks.insert(delivery.name.clone(), delivery.status.clone());
            let running =
                delivery_part(delivery, log.clone(), notes.clone(), wanted.clone(), stop.clone(), halted.clone());
            parts.spawn(running);
        }
        parts.spawn(retention(log.clone(), sinks, stop.clone()));
        parts.spawn(failure(log.clone(), stop.clone()));

        let mut ended = Ended::default();
        let mut goal_watch = wanted.clone();
        if left == 0 && until_caught_up {
            let stop = stop.clone();
            parts.spawn(async move {
                let _ = goal_watch.wait_for(Option::is_some).await;
                stop.cancel();
                Part::Retention
            });
        }
        while let Some(part) = parts.join_next().await {
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
                    if let Outcome::Failed(error) = outcome {
                        tracing::error!(sink, error = error.chain(), remedy = error.remedy(), "sink has halted");
                        let superseded = error.action() == Action::Yield;
                        ended.failures.push((format!("sink {sink:?}"), error));
                        if superseded {
                            stop.cancel();
                        }
                    }
                    if left == 0 {
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
        drop(keep_open);
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

async fn delivery_part<K: Sink>(
    delivery: Delivery<K>,
    log: Log,
    notes: Notes,
    goal: watch::Receiver<Option<Offset>>,
    stop: CancellationToken,
    halted: CancellationToken,
) -> Part {
    let name = delivery.name.clone();
    Part::Delivery(name, delivery.run(log, notes, goal, stop, halted).await)
}

/// A sink that is no longer configured must not hold back retention for ever.
fn forget_removed_sinks<K>(log: &Log, deliveries: &[Delivery<K>], notes: &Notes) {
    let state = log.state();
    for (key, _) in state.prefix(checkpoint_key("").as_bytes()) {
        let known = deliveries.iter().any(|d| checkpoint_key(&d.name).as_bytes() == key);
        if !known {
            tracing::warn!(sink = %String::from_utf8_lossy(key), "no longer configured, the log is not kept for it");
            notes.put(key.to_vec(), None);
        }
    }
}

/// Keeps the log's floor at the least checkpoint: of every configured sink,
/// what it last said, now or in an earlier run; one never heard of may want it all.
async fn retention(log: Log, sinks: BTreeMap<String, crate::status::SinkStatus>, stop: CancellationToken) -> Part {
    let state = log.state();
    let remembered = |name: &str| -> Option<u64> {
        let value = state.get(checkpoint_key(name).as_bytes())?;
        std::str::from_utf8(value).ok()?.parse().ok()
    };
    loop {
        let floor = sinks
            .iter()
            .map(|(name, status)| status.get().checkpoint.or_else(|| remembered(name)).unwrap_or(log.start().0))
            .min()
            .unwrap_or_else(|| log.high_water().0);
        log.retain_from(Offset(floor));
        tokio::select! {
            () = stop.cancelled() => return Part::Retention,
            () = tokio::time::sleep(RETENTION) => {}
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
