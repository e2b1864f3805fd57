//! Source → log. The only one that appends.

use std::collections::VecDeque;
use std::time::Duration;

use connector::{Action, Captured, Error, Fresh, Result, Source};
use storage::{EventLog, Log, LogBatch, Offset, StateChange};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::notes::Notes;
use crate::orders::source_paused;
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
    /// Changes when there is something ordered.
    pub(crate) kicked: watch::Receiver<u64>,
    pub(crate) cancel: CancellationToken,
}

impl<S: Source> Ingest<S> {
    /// Until cancelled, caught up (if that was asked for), or halted.
    pub(crate) async fn run(mut self) -> Result<()> {
        let mut backoff = Backoff::new();
        loop {
            if !self.paused().await? {
                return Ok(());
            }
            let before = self.status.get().batches;
            let ended = self.capture().await;
            let error = match ended {
                Ok(()) if self.is_called_away() => continue,
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

    /// Whether it ended because something was ordered.
    fn is_called_away(&self) -> bool {
        !self.cancel.is_cancelled() && self.kicked.has_changed().unwrap_or(false)
    }

    /// Stands still while that is what is ordered; false if cancelled meanwhile.
    async fn paused(&mut self) -> Result<bool> {
        loop {
            self.kicked.mark_unchanged();
            if source_paused(&self.log.state()).is_none() {
                return Ok(true);
            }
            self.source.close().await;
            if self.goal.is_some() {
                return Err(Error::halt(format!("source {:?} is paused", self.name))
                    .hint(format!("`highwater resume {}` lets it go on", self.name)));
            }
            self.status.stands(Health::Paused, None);
            tracing::warn!(
                source = self.name,
                "paused: its slot keeps what is not read; `highwater resume` lets it go on"
            );
            loop {
                tokio::select! {
                    () = self.cancel.cancelled() => return Ok(false),
                    kicked = self.kicked.changed() => {
                        if kicked.is_err() {
                            return Ok(false);
                        }
                        break;
                    }
                    () = self.notes.added() => write_notes(&self.log, &self.notes).await?,
                }
            }
        }
    }

    /// What sinks ask of the source, by notes that are on their way to the log.
    fn tell_source(&mut self, changes: &[StateChange]) {
        for change in changes {
            if let Some(fresh) = change.value.as_ref().and_then(|value| Fresh::from_entry(&change.key, value)) {
                self.source.read_for(&fresh);
            }
        }
    }

    async fn capture(&mut self) -> Result<()> {
        // What a failed attempt left of a transaction comes again from its start.
        self.log.abort().await.map_err(log_failed)?;
        let resume = self.log.position().await.map_err(log_failed)?;
        let opened = {
            let (log, notes) = (self.log.clone(), self.notes.clone());
            // Sinks are at work meanwhile, and people give orders.
            let writing = async move {
                loop {
                    notes.added().await;
                    if let Err(error) = write_notes(&log, &notes).await {
                        return error;
                    }
                }
            };
            let opening = self.source.open(resume.as_ref(), self.log.state());
            tokio::select! {
                () = self.cancel.cancelled() => return Ok(()),
                Ok(()) = self.kicked.changed() => {
                    // Seen again by who asks whether it was called away.
                    self.kicked.mark_changed();
                    return Ok(());
                }
                opened = opening => opened,
                error = writing => return Err(error),
            }
        };
        opened?;
        // Of what was asked for while it was opened.
        for fresh in Fresh::all(&self.log.state()) {
            self.source.read_for(&fresh);
        }
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
                Ok(()) = self.kicked.changed(), if !inside => {
                    self.kicked.mark_changed();
                    if source_paused(&self.log.state()).is_some() {
                        return self.finish(waiting).await;
                    }
                    self.kicked.mark_unchanged();
                }
                done = oldest(&mut waiting), if !waiting.is_empty() => {
                    let appended = done.map_err(log_failed)?;
                    waiting.pop_front();
                    if let Some(position) = appended.position.transpose() {
                        self.source.acknowledge(position).await?;
                    }
                }
                captured = self.source.next(), if waiting.len() < IN_FLIGHT => {
                    let Some(Captured { mut batch }) = captured? else { return self.finish(waiting).await };
                    inside = !batch.ends_transaction;
                    if !inside {
                        let notes = self.notes.take();
                        self.tell_source(&notes);
                        batch.state.extend(notes);
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
                _ = ask.tick(), if self.asks() && waiting.is_empty() => {
                    let durable = self.log.position().await.map_err(log_failed)?;
                    if self.source.caught_up(durable.as_ref()).await? {
                        let end = self.log.high_water();
                        tracing::info!(source = self.name, offset = end.0, "caught up");
                        if let Some(goal) = &self.goal {
                            goal.send_replace(Some(end));
                        }
                    }
                }
            }
        }
    }

    /// Whether it is still to be found where all ends that is wanted.
    fn asks(&self) -> bool {
        self.goal.as_ref().is_some_and(|goal| goal.borrow().is_none())
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
        self.tell_source(&batch.state);
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
        write_notes(&self.log, &self.notes).await?;
        let waited = backoff.wait(&self.cancel);
        tokio::pin!(waited);
        loop {
            tokio::select! {
                going_on = &mut waited => return Ok(going_on),
                Ok(()) = self.kicked.changed() => return Ok(true),
                () = self.notes.added() => write_notes(&self.log, &self.notes).await?,
            }
        }
    }
}

/// Writes what sinks and people have left, while nothing else is appended.
async fn write_notes(log: &Log, notes: &Notes) -> Result<()> {
    if let Some(batch) = notes.batch() {
        let appended = async { log.append(batch).await?.await };
        appended.await.map_err(log_failed)?;
    }
    Ok(())
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
