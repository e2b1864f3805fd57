//! Source → log. The only one that appends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use connector::{Action, Batch, Captured, Error, Fresh, Result, Source, Tally, fault};
use storage::{EventLog, Kind, Log, LogBatch, Offset, StateChange};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::desk::Request;
use crate::gate::Gate;
use crate::notes::Notes;
use crate::orders::source_paused;
use crate::quarantine::{Quarantine, Rules};
use crate::schemas::SchemaBook;
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
    pub(crate) book: Arc<SchemaBook>,
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) rules: Rules,
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
                Ok(Next::Reopen) => continue,
                Ok(Next::End) if self.is_called_away() => continue,
                Ok(Next::End) => {
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

    async fn capture(&mut self) -> Result<Next> {
        // What a failed attempt left of a transaction comes again from its start.
        self.log.abort().await.map_err(log_failed)?;
        let resume = self.log.position().await.map_err(log_failed)?;
        let opened = {
            let opening = self.source.open(resume.as_ref(), self.log.state());
            tokio::pin!(opening);
            loop {
                tokio::select! {
                    () = self.cancel.cancelled() => return Ok(Next::End),
                    Ok(()) = self.kicked.changed() => {
                        // Seen again by who asks whether it was called away.
                        self.kicked.mark_changed();
                        return Ok(Next::End);
                    }
                    opened = &mut opening => break opened,
                    // Sinks are at work meanwhile, and people give orders. Notes that
                    // were taken are written, whatever comes first: none is dropped.
                    () = self.notes.added() => write_notes(&self.log, &self.notes).await?,
                }
            }
        };
        opened?;
        let mut gate = Gate::open(self.book.clone(), &self.log).await?;
        let mut quarantine = Quarantine::open(self.log.clone(), self.rules.clone()).await?;
        let mut heeded = 0;
        self.tell(&mut gate);
        self.tell_waiting(&quarantine);
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
                () = self.cancel.cancelled() => return self.finish(waiting, &mut gate, inside).await,
                Ok(()) = self.kicked.changed(), if !inside => {
                    self.kicked.mark_changed();
                    if source_paused(&self.log.state()).is_some() {
                        return self.finish(waiting, &mut gate, inside).await;
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
                // Before what is captured: under load there is always more of that.
                Some(request) = self.requests.recv(), if !inside => {
                    self.drain(&mut waiting).await?;
                    if let Next::Reopen = self.serve(request, &mut gate, &mut quarantine).await? {
                        return Ok(Next::Reopen);
                    }
                    self.tell(&mut gate);
                    self.tell_waiting(&quarantine);
                }
                captured = self.source.next(), if waiting.len() < IN_FLIGHT => {
                    let Some(Captured { mut batch, unfit }) = captured? else { return self.finish(waiting, &mut gate, inside).await };
                    inside = !batch.ends_transaction;
                    if !inside {
                        let notes = self.notes.take();
                        self.tell_source(&notes);
                        batch.state.extend(notes);
                    }
                    let records = u64::from(batch.records);
                    let mut ops = Tally::default();
                    if batch.kind == Kind::Data && batch.records > 0 {
                        // What cannot be read is told by who has to read it.
                        let _ = ops.add(&Batch::captured(&batch));
                    }
                    let mut held = None;
                    let generation = self.book.registered().generation();
                    if std::mem::replace(&mut heeded, generation) != generation {
                        batch.state.extend(self.book.registered().unwritten(&self.log.state()));
                        gate.heed();
                    }
                    if gate.concerns(&batch) {
                        if gate.ends_hold(&batch) {
                            self.drain(&mut waiting).await?;
                        }
                        (batch, held) = gate.take(batch, &self.log)?;
                        self.tell(&mut gate);
                    } else {
                        gate.passed(batch.records);
                    }
                    let holds = held.is_some() || batch.kind == Kind::Pending;
                    let (batch, waits) = match batch.kind {
                        // The gate's are looked at when they are let go.
                        Kind::Pending => {
                            quarantine.passed(batch.records);
                            (batch, None)
                        }
                        _ => quarantine.sift(batch, unfit)?,
                    };
                    quarantine.passed(held.as_ref().map_or(0, |held| held.records));
                    let quarantined = waits.is_some() || (batch.kind == Kind::Pending && !holds);
                    for batch in [Some(batch), waits, held].into_iter().flatten() {
                        match self.append(batch).await? {
                            Some(commit) => waiting.push_back(commit),
                            None => return self.finish(waiting, &mut gate, true).await,
                        }
                    }
                    if holds {
                        fault::point("gate-held");
                    }
                    if quarantined {
                        fault::point("quarantine-held");
                    }
                    if quarantine.has_news() {
                        self.tell_waiting(&quarantine);
                    }
                    self.status.update(|state| {
                        state.events += records;
                        state.ops.merge(ops);
                        state.batches += 1;
                    });
                }
                () = self.notes.added(), if !inside => match self.append_notes().await? {
                    Some(commit) => waiting.push_back(commit),
                    None if self.cancel.is_cancelled() => return self.finish(waiting, &mut gate, inside).await,
                    None => {}
                },
                _ = ask.tick(), if self.asks() && waiting.is_empty() => {
                    let durable = self.log.position().await.map_err(log_failed)?;
                    if !gate.waits_for_registry(&self.log) && self.source.caught_up(durable.as_ref()).await? {
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

    /// Does what a command asks for.
    async fn serve(&mut self, request: Request, gate: &mut Gate, quarantine: &mut Quarantine) -> Result<Next> {
        let mut next = Next::End;
        gate.heed();
        // Whoever asked may have gone: it is done all the same.
        match request {
            Request::Look { stream, reply } => drop(reply.send(gate.hold(&stream).cloned())),
            Request::LetGo { stream, shapes, reply } => {
                let done = tokio::select! {
                    () = self.cancel.cancelled() => Err(Error::halt("stopped before it was done: nothing was let go")),
                    done = gate.let_go(&self.log, &stream, &shapes, quarantine) => done,
                };
                if done.is_err() {
                    self.log.abort().await.map_err(log_failed)?;
                    next = Next::Reopen;
                }
                let _ = reply.send(done);
            }
            Request::Settle { settled, reply } => {
                let done = tokio::select! {
                    () = self.cancel.cancelled() => Err(Error::retry("stopped before it was done")),
                    done = gate.settle(&self.log, &settled, quarantine) => done,
                };
                if done.is_err() {
                    self.log.abort().await.map_err(log_failed)?;
                    next = Next::Reopen;
                }
                let _ = reply.send(done);
            }
            Request::Heed { reply } => {
                let heeding = async {
                    let changes = self.book.registered().unwritten(&self.log.state());
                    if !changes.is_empty() {
                        self.log
                            .append(crate::orders::batch(changes))
                            .await
                            .map_err(log_failed)?
                            .await
                            .map_err(log_failed)?;
                    }
                    gate.mended(&self.log, quarantine).await
                };
                let done = tokio::select! {
                    () = self.cancel.cancelled() => Err(Error::retry("stopped before it was done")),
                    done = heeding => done,
                };
                if done.is_err() {
                    self.log.abort().await.map_err(log_failed)?;
                    next = Next::Reopen;
                }
                let _ = reply.send(done);
            }
            Request::Act { deed, filter, reply } => {
                let done = tokio::select! {
                    () = self.cancel.cancelled() => Err(Error::halt("stopped before it was done: nothing was changed")),
                    done = quarantine.act(deed, &filter) => done,
                };
                match &done {
                    Ok(done) => gate.passed(u32::try_from(done.released).unwrap_or(u32::MAX)),
                    Err(_) => {
                        self.log.abort().await.map_err(log_failed)?;
                        next = Next::Reopen;
                    }
                }
                let _ = reply.send(done);
            }
            Request::Reset { stream, shapes, again, reply } => {
                let done = gate.reset(&self.log, &stream, &shapes, again).await;
                // The source learns from the log's state that it reads the table anew.
                next = Next::Reopen;
                let _ = reply.send(done);
            }
        }
        Ok(next)
    }

    /// What is held, for people.
    fn tell(&self, gate: &mut Gate) {
        let news = gate.has_news();
        let holds = gate.holds();
        if news || !holds.is_empty() {
            self.status.update(|state| state.held = holds);
        }
    }

    /// What waits in quarantine, for people.
    fn tell_waiting(&self, quarantine: &Quarantine) {
        let counted = quarantine.counted();
        self.status.update(|state| state.quarantine = counted);
    }

    /// Waits until all that was appended is durable.
    async fn drain(&mut self, waiting: &mut VecDeque<Commit>) -> Result<()> {
        while let Some(commit) = waiting.front_mut() {
            let appended = commit.await.map_err(log_failed)?;
            waiting.pop_front();
            if let Some(position) = appended.position.transpose() {
                self.source.acknowledge(position).await?;
            }
        }
        Ok(())
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
    async fn finish(&mut self, mut waiting: VecDeque<Commit>, gate: &mut Gate, inside: bool) -> Result<Next> {
        if !inside {
            self.notes.put_all(gate.counted().into_iter().collect());
        }
        // A full disk must not hold up a stop; what is lost to the
        // acknowledgement is sent again and known by its position.
        let rest = self.drain(&mut waiting);
        tokio::time::timeout(Duration::from_secs(2), rest).await.unwrap_or(Ok(()))?;
        Ok(Next::End)
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

/// How a capture ended.
enum Next {
    /// For good.
    End,
    /// What the log's state says is to be begun with.
    Reopen,
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
