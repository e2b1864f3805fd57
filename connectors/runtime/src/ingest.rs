//! Source → log. The only one that appends.

use std::collections::VecDeque;
use std::time::Duration;

use connector::{Action, Captured, Error, Result, Source};
use storage::{EventLog, Log, LogBatch, Offset};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::notes::Notes;
use crate::status::{Health, SourceStatus, now_micros};

/// Batches handed to the log whose durability is awaited.
const IN_FLIGHT: usize = 64;
/// How often an until-caught-up run asks whether it is.
const ASK: Duration = Duration::from_millis(100);

type Commit = <Log as EventLog>::Commit;

/// What one source's ingest works on.
pub(crate) struct Ingest<S> {
    pub(crate) name: String,
    pub(crate) source: S,
    pub(crate) log: Log,
    pub(crate) notes: Notes,
    pub(crate) status: SourceStatus,
    /// Where to say the offset at which all that was asked for is durable;
    /// None: go on for ever.
    pub(crate) goal: Option<watch::Sender<Option<Offset>>>,
    pub(crate) cancel: CancellationToken,
}

impl<S: Source> Ingest<S> {
    /// Until cancelled, caught up (if that was asked for), or halted.
    pub(crate) async fn run(mut self) -> Result<()> {
        let mut backoff = Backoff::new();
        loop {
            let before = self.status.get().batches;
            let ended = self.capture().await;
            let error = match ended {
                Ok(()) => {
                    self.source.close().await;
                    self.status.update(|state| state.health = Health::Stopped);
                    return Ok(());
                }
                Err(error) => error,
            };
            if self.status.get().batches > before {
                backoff.reset();
            }
            self.status.fails(&error, now_micros());
            if error.action() != Action::Retry {
                self.source.close().await;
                return Err(error);
            }
            tracing::warn!(
                source = self.name,
                error = error.chain(),
                remedy = error.remedy(),
                "capture failed, will try again"
            );
            if !self.wait(&mut backoff).await? {
                self.source.close().await;
                return Ok(());
            }
        }
    }

    async fn capture(&mut self) -> Result<()> {
        // What a failed attempt left of a transaction comes again from its start.
        self.log.abort().await.map_err(log_failed)?;
        let resume = self.log.position().await.map_err(log_failed)?;
        let opened = {
            let opening = self.source.open(resume.as_ref(), self.log.state());
            tokio::select! {
                () = self.cancel.cancelled() => return Ok(()),
                opened = opening => opened,
            }
        };
        opened?;
        self.status.works();
        tracing::info!(source = self.name, "capturing");
        let mut waiting: VecDeque<Commit> = VecDeque::new();
        let mut inside = false;
        let mut ask = tokio::time::interval(ASK);
        ask.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return self.finish(waiting).await,
                done = oldest(&mut waiting), if !waiting.is_empty() => {
                    let appended = done.map_err(log_failed)?;
                    waiting.pop_front();
                    if let Some(position) = appended.position.transpose() {
                        self.source.acknowledge(position).await?;
                    }
                }
                captured = self.source.next(), if waiting.len() < IN_FLIGHT => {
                    let Some(Captured { mut batch, unfit: _ }) = captured? else { return self.finish(waiting).await };
                    inside = !batch.ends_transaction;
                    if !inside {
                        batch.state.extend(self.notes.take());
                    }
                    let records = u64::from(batch.records);
                    match self.append(batch).await? {
                        Some(commit) => waiting.push_back(commit),
                        None => return self.finish(waiting).await,
                    }
                    self.status.update(|state| {
                        state.events += records;
                        state.batches += 1;
                    });
                }
                () = self.notes.added(), if !inside => match self.append_notes().await? {
                    Some(commit) => waiting.push_back(commit),
                    None if self.cancel.is_cancelled() => return self.finish(waiting).await,
                    None => {}
                },
                _ = ask.tick(), if self.goal.is_some() && waiting.is_empty() => {
                    let durable = self.log.position().await.map_err(log_failed)?;
                    if self.source.caught_up(durable.as_ref()).await? {
                        let end = self.log.high_water();
                        tracing::info!(source = self.name, offset = end.0, "caught up");
                        if let Some(goal) = self.goal.take() {
                            goal.send_replace(Some(end));
                        }
                    }
                }
            }
        }
    }

    /// None if cancelled while the log had no room.
    async fn append(&mut self, batch: LogBatch) -> Result<Option<Commit>> {
        tokio::select! {
            biased;
            commit = self.log.append(batch) => commit.map(Some).map_err(log_failed),
            () = self.cancel.cancelled() => Ok(None),
        }
    }

    async fn append_notes(&mut self) -> Result<Option<Commit>> {
        let Some(batch) = self.notes.batch() else { return Ok(None) };
        self.append(batch).await
    }

    /// What the log took is waited for and acknowledged, if it does not take long.
    async fn finish(&mut self, mut waiting: VecDeque<Commit>) -> Result<()> {
        let rest = async {
            while let Some(commit) = waiting.pop_front() {
                let appended = commit.await.map_err(log_failed)?;
                if let Some(position) = appended.position.transpose() {
                    self.source.acknowledge(position).await?;
                }
            }
            Ok(())
        };
        // A full disk must not hold up a stop; what is lost to the
        // acknowledgement is sent again and known by its position.
        tokio::time::timeout(Duration::from_secs(2), rest).await.unwrap_or(Ok(()))
    }

    /// Between tries: sinks may still be at work, and their checkpoints count.
    async fn wait(&mut self, backoff: &mut Backoff) -> Result<bool> {
        if let Some(commit) = self.append_notes().await? {
            commit.await.map_err(log_failed)?;
        }
        Ok(backoff.wait(&self.cancel).await)
    }
}

/// The oldest commit's outcome; it stays in the queue. Cancel-safe.
async fn oldest(waiting: &mut VecDeque<Commit>) -> storage::Result<storage::Appended> {
    match waiting.front_mut() {
        Some(commit) => commit.await,
        None => std::future::pending().await,
    }
}

pub(crate) fn log_failed(error: storage::Error) -> Error {
    Error::halt("could not write the log")
        .because(error)
        .hint("the process must not go on after a failed write or sync: mend the disk, then start again")
}
