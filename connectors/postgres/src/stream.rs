//! The thread that owns the replication connection: stream in, batches out,
//! feedback back, and rounds of the snapshot between transactions.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use connector::{Captured, Error, Fresh, Result, Schemas, StepEnd, fault};
use tokio::sync::mpsc::{Sender, error::TrySendError};

use crate::capture::{Capture, Flow};
use crate::error::WireError;
use crate::heartbeat::Covered;
use crate::lsn::Lsn;
use crate::points::{Points, Want};
use crate::replication::{Event, Replication};
use crate::slot::{self, Identity, SlotState};
use crate::snapshot::{Mend, Prepared, Round, prepare, step_end_batch};
use crate::target::Target;

/// The server hears from us at least so often.
const STATUS: Duration = Duration::from_secs(1);
/// A server that says nothing for so long is asked to: an idle one has no need
/// to speak, and one that is gone may leave the connection open.
const SILENCE: Duration = Duration::from_secs(2);
/// An idle position is logged at most so often, unless the server asks.
const IDLE: Duration = Duration::from_secs(1);
/// While the stream lags, whole transactions wait so long for others to go with:
/// each batch handed on wakes two threads and may cost a sync.
const GATHER: Duration = Duration::from_millis(2);
/// And so long where they come as fast as the server can send them: 200 k small
/// transactions were 1.2 times as fast as with pg_recvlogical before, and 1.3 with it.
const GATHER_MANY: Duration = Duration::from_millis(6);
/// The stream stands still for a round's point at most so long, and longer with
/// each try: making a slot waits for transactions in progress.
const STILL: Duration = Duration::from_secs(2);
const LONGEST_STILL: Duration = Duration::from_secs(60);

/// What the stream's thread shares with its source.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// What the log has made durable.
    pub(crate) durable: AtomicU64,
    /// How far the server's WAL reaches, as it last said.
    pub(crate) received: AtomicU64,
    /// The server failed to decode something.
    pub(crate) undecodable: AtomicBool,
    /// Bytes of transactions in progress that wait on disk.
    pub(crate) spooled: AtomicU64,
    /// The thread is to end.
    pub(crate) stop: AtomicBool,
    /// Every table is read.
    pub(crate) snapshot_done: AtomicBool,
    /// A round is under way.
    pub(crate) reading: AtomicBool,
    /// For so many seconds the server has said nothing, though it was asked to.
    pub(crate) silent: AtomicU64,
    /// The slot, as the server last showed it.
    pub(crate) slot: Mutex<Option<SlotState>>,
    /// From where on the slot keeps WAL, for some time already.
    pub(crate) kept_from: AtomicU64,
    /// Streams that somebody asked to have read again.
    wanted: Mutex<Vec<String>>,
    /// What sinks ask for themselves alone.
    fresh: Mutex<Vec<Fresh>>,
    /// A time that the stream is to come to.
    covered: Mutex<Option<Covered>>,
}

impl Shared {
    /// Asks for streams to be read again.
    pub(crate) fn want(&self, streams: impl IntoIterator<Item = String>) {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).extend(streams);
    }

    fn take_wanted(&self) -> Vec<String> {
        std::mem::take(&mut self.wanted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks for a reading for one sink alone.
    pub(crate) fn want_for(&self, fresh: Fresh) {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner).push(fresh);
    }

    fn fresh(&self) -> Vec<Fresh> {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first of them were heard; if something is to be read for them, not
    /// all is read any more.
    fn heard(&self, count: usize, reads: bool) {
        let mut waiting = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        if reads {
            self.snapshot_done.store(false, Ordering::Release);
        }
        waiting.drain(..count);
    }

    /// Whether every table is read, for whoever has asked.
    pub(crate) fn all_read(&self) -> bool {
        let waiting = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.is_empty() && self.snapshot_done.load(Ordering::Acquire)
    }

    /// Tells of a time that is covered; one that the stream has not come to yet
    /// comes first.
    pub(crate) fn cover(&self, covered: Covered) {
        self.covered.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(covered);
    }

    /// The time that a stream has come to which has everything up to `upto`.
    fn come_to(&self, upto: Lsn) -> Option<Covered> {
        self.covered.lock().unwrap_or_else(PoisonError::into_inner).take_if(|covered| covered.upto <= upto)
    }

    pub(crate) fn durable(&self) -> Lsn {
        Lsn(self.durable.load(Ordering::Acquire))
    }
}

/// Everything of the thread.
pub(crate) struct Stream<S> {
    pub(crate) replication: Feedback,
    pub(crate) capture: Capture<S>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) out: Sender<Result<Captured>>,
    pub(crate) target: Target,
    pub(crate) slot: String,
    /// How often an idle position is made durable.
    pub(crate) heartbeat: Duration,
    /// Points that are asked for, besides those of rounds.
    pub(crate) points: Points,
    /// As the log has it.
    pub(crate) identity: Identity,
    /// The snapshot of the slot's own making, where the stream begins.
    pub(crate) first_round: Option<Prepared>,
}

/// The connection with what it was last told.
pub(crate) struct Feedback {
    pub(crate) replication: Replication,
    pub(crate) shared: Arc<Shared>,
    pub(crate) received: Lsn,
    told: Lsn,
    last: Instant,
    /// When something last came.
    heard: Instant,
}

impl Feedback {
    pub(crate) fn new(replication: Replication, shared: Arc<Shared>) -> Self {
        Self { replication, shared, received: Lsn(0), told: Lsn(0), last: Instant::now(), heard: Instant::now() }
    }

    /// Keeps in mind for how long nothing has come.
    fn listen(&mut self, heard: bool) {
        if heard {
            self.heard = Instant::now();
        }
        self.shared.silent.store(self.heard.elapsed().as_secs(), Ordering::Relaxed);
    }

    /// Tells the server what is durable, if it is time or there is news.
    fn tell(&mut self, now: bool) -> Result<()> {
        self.tell_and(now, false)
    }

    /// With `ask`, has the server say soon how far it is: an idle one would
    /// take seconds.
    fn tell_and(&mut self, now: bool, ask: bool) -> Result<()> {
        let durable = self.shared.durable();
        let waited = self.last.elapsed();
        let news = (ask || durable > self.told) && waited >= STATUS / 20;
        if now || news || waited >= STATUS {
            if durable > self.told {
                fault::point("before-feedback");
            }
            let ask = ask || self.heard.elapsed() >= SILENCE;
            let sent = self.replication.send_status(self.received.max(durable), durable, ask);
            sent.map_err(|error| error.during("could not acknowledge to the server"))?;
            self.told = durable;
            self.last = Instant::now();
        }
        Ok(())
    }
}

impl<S: Schemas> Stream<S> {
    /// Runs until told to stop, or until something fails, which is the last thing handed on.
    pub(crate) fn run(mut self) {
        let ended = self.stream();
        // What was handed on may be lost with the channel.
        self.points.fail(&Error::retry("capture has begun anew meanwhile").hint("begin again"));
        if self.shared.stop.load(Ordering::Relaxed) {
            // What is durable by now is told: a restart then begins behind it.
            let _ = self.replication.tell(true).and_then(|()| {
                self.replication.replication.stop().map_err(|error| error.during("could not end the stream"))
            });
        } else if let Err(error) = ended {
            let _ = self.out.blocking_send(Err(error));
        }
    }

    fn stream(&mut self) -> Result<()> {
        if let Some(prepared) = self.first_round.take() {
            self.round(prepared)?;
        }
        self.capture.look_at_shapes()?;
        if self.capture.takes_again() {
            self.shared.snapshot_done.store(false, Ordering::Release);
        }
        let mut preparing: Option<mpsc::Receiver<Result<Prepared>>> = None;
        let mut prepared: Option<Prepared> = None;
        // The furthest commit of which anything was taken, and until when the
        // stream stands still for a round's point.
        let mut begun = Lsn(0);
        let mut still_until: Option<Instant> = None;
        let mut still = STILL;
        let mut idle_since = Instant::now();
        let mut gathering: Option<Instant> = None;
        let mut asked = false;
        let mut tidied = Instant::now();
        let mut heard = true;
        loop {
            if self.shared.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let reading = !self.shared.snapshot_done.load(Ordering::Relaxed);
            if prepared.is_none() && (reading || preparing.is_some() || self.points.are_waiting()) {
                match &preparing {
                    None => preparing = Some(prepare(&self.target, &self.slot)),
                    Some(waiting) => match waiting.try_recv() {
                        Ok(made) => {
                            preparing = None;
                            let made = match made {
                                Ok(made) => made,
                                // Who asked for a point may ask again; capture goes on.
                                Err(error) if !reading => {
                                    self.points.fail(&error);
                                    continue;
                                }
                                Err(error) => return Err(error),
                            };
                            if begun >= made.point {
                                // Rows read there would come behind newer changes that
                                // are logged already. Another point, and this time
                                // the stream does not run ahead of it.
                                tracing::debug!(point = %made.point, "the stream was faster than the round's point");
                                still_until = Some(Instant::now() + still);
                                still = (still * 2).min(LONGEST_STILL);
                                continue;
                            }
                            (still_until, still) = (None, STILL);
                            self.points.bind(&made, reading);
                            prepared = Some(made);
                        }
                        Err(mpsc::TryRecvError::Empty) => {}
                        Err(mpsc::TryRecvError::Disconnected) => {
                            return Err(Error::retry("could not make a temporary slot for the snapshot"));
                        }
                    },
                }
            }
            // Making a slot waits for transactions in progress: no longer than this.
            if preparing.is_some() && still_until.is_some_and(|until| Instant::now() < until) {
                self.replication.tell(false)?;
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            let point = prepared.as_ref().map(|p| p.point);
            let mut reached = false;
            let event = self.replication.replication.poll();
            let event = event.map_err(|error| {
                let undecodable = matches!(&error, WireError::Server(server) if server.code == "XX000");
                self.shared.undecodable.store(undecodable, Ordering::Relaxed);
                let unpublished = is_unpublished(&error);
                let error = error.during("could not read the stream");
                if unpublished { error.hint(slot::repair(&self.capture.compiler.source)) } else { error }
            });
            let event = event?;
            heard |= !matches!(event, Event::Idle);
            match event {
                Event::Data { end, message } => {
                    self.replication.received = self.replication.received.max(end);
                    match self.capture.message(message)? {
                        Flow::On => {}
                        // The transaction ends behind the round's point: the round comes first.
                        Flow::Begun(commit) => {
                            begun = begun.max(commit);
                            reached = point.is_some_and(|point| commit >= point);
                            if self.capture.stands_alone(self.replication.replication.is_fast()) {
                                self.hand()?;
                            }
                        }
                        Flow::Hand => self.hand()?,
                    }
                }
                Event::Keepalive { end, reply } => {
                    self.replication.received = self.replication.received.max(end);
                    self.capture.idle(end);
                    asked |= reply;
                    reached = self.capture.is_between() && point.is_some_and(|point| end >= point);
                }
                Event::Idle => {}
            }
            let received = self.replication.received;
            self.shared.received.store(received.0, Ordering::Relaxed);
            self.shared.spooled.store(self.capture.spooled(), Ordering::Relaxed);
            if reached && let Some(prepared) = prepared.take() {
                self.hand()?;
                self.points_at(&prepared)?;
                if !self.shared.snapshot_done.load(Ordering::Relaxed) {
                    self.round(prepared)?;
                }
                self.unspool()?;
                heard = true;
                idle_since = Instant::now();
                continue;
            }
            self.unspool()?;
            if self.capture.takes_again() {
                self.shared.snapshot_done.store(false, Ordering::Release);
            }
            let drained = !self.replication.replication.is_ready();
            if drained && self.capture.is_between() {
                if let Some(covered) = self.shared.come_to(self.capture.upto()) {
                    self.capture.pass(covered.time);
                }
                let kept_from = self.shared.kept_from.load(Ordering::Relaxed);
                if kept_from > self.identity.kept_from {
                    self.identity.kept_from = kept_from;
                    self.capture.remember([self.identity.change()]);
                }
                for stream in self.shared.take_wanted() {
                    tracing::info!(stream, "is read again, as asked");
                    self.capture.read_again(&stream);
                }
                let fresh = self.shared.fresh();
                if !fresh.is_empty() {
                    let mut reads = false;
                    for fresh in &fresh {
                        reads |= self.capture.read_for(fresh);
                    }
                    self.shared.heard(fresh.len(), reads);
                }
                if tidied.elapsed() >= STATUS {
                    tidied = Instant::now();
                    self.points.tidy();
                }
                let due = asked || idle_since.elapsed() >= IDLE.min(self.heartbeat);
                let ready = if self.capture.is_waiting() {
                    // A lagging stream's next poll does not wait.
                    let fast = self.replication.replication.is_fast();
                    let more = self.replication.replication.is_lagging() && !self.capture.stands_alone(fast);
                    let gather = if fast { GATHER_MANY } else { GATHER };
                    !more || gathering.get_or_insert_with(Instant::now).elapsed() >= gather
                } else {
                    self.capture.has_idle_news() && due
                };
                if ready {
                    gathering = None;
                    self.hand()?;
                    idle_since = Instant::now();
                }
            }
            // Asking the clock for each row would cost more than the row.
            if drained {
                self.replication.listen(std::mem::take(&mut heard));
                self.replication.tell_and(asked, point.is_some())?;
                asked = false;
            }
        }
    }

    fn hand(&mut self) -> Result<()> {
        let Some(captured) = self.capture.hand() else { return Ok(()) };
        send(&self.out, captured, &mut self.replication)
    }

    /// A streamed transaction that was committed goes to the log. The server
    /// hears from us meanwhile.
    #[inline]
    fn unspool(&mut self) -> Result<()> {
        while self.capture.is_replaying() && !self.shared.stop.load(Ordering::Relaxed) {
            if self.capture.replay()? == Flow::Hand {
                self.hand()?;
                fault::point("spool-commit");
            }
            self.replication.tell(false)?;
        }
        Ok(())
    }

    /// What was asked of the point that the stream has come to.
    fn points_at(&mut self, prepared: &Prepared) -> Result<()> {
        let time = prepared.time;
        self.capture.pass(time);
        let mut ordinal = 0;
        for (id, want) in self.points.due(prepared.point) {
            let (out, feedback) = (&self.out, &mut self.replication);
            match want {
                Want::StepEnd(sink) => {
                    let position = prepared.point.to_bytes().to_vec();
                    let end = StepEnd { step_end: id.clone(), sinks: vec![sink], position };
                    send(out, step_end_batch(&end, time), feedback)?;
                    let reading =
                        |t: &crate::snapshot::TableProgress| t.generation.as_ref().is_some_and(|g| !g.finished);
                    let streams = self.capture.progress.all().into_iter().filter(|(_, table)| reading(table));
                    self.points.marked(&id, streams.map(|(stream, _)| stream).collect());
                }
                // A round follows, which counts the point's events for itself.
                Want::Mend(_) if !self.shared.snapshot_done.load(Ordering::Relaxed) => self.points.again(&id),
                Want::Mend(keys) => {
                    let mend = Mend { compiler: &self.capture.compiler, target: &self.target, prepared };
                    let mut lost = false;
                    let mended = mend.run(&keys, &mut ordinal, |captured| {
                        send(out, captured, feedback).inspect_err(|_| lost = true)
                    });
                    match mended {
                        Ok((read, deleted)) => self.points.mended(&id, read, deleted),
                        Err(error) if lost => return Err(error),
                        Err(error) => self.points.failed(&id, &error),
                    }
                }
            }
        }
        Ok(())
    }

    fn round(&mut self, prepared: Prepared) -> Result<()> {
        self.shared.reading.store(true, Ordering::Relaxed);
        self.capture.pass(prepared.time);
        let tables: Vec<_> = self
            .capture
            .compiler
            .tables
            .iter()
            .filter(|t| self.capture.compiler.wants(t.oid, &t.schema, &t.name))
            .cloned()
            .collect();
        let round = Round {
            compiler: &self.capture.compiler,
            progress: &self.capture.progress,
            target: &self.target,
            stop: &self.shared.stop,
            prepared,
        };
        let out = &self.out;
        let feedback = std::cell::RefCell::new(&mut self.replication);
        let again = round.run(
            &tables,
            |captured| send(out, captured, &mut feedback.borrow_mut()),
            || feedback.borrow_mut().tell(false),
        );
        self.shared.reading.store(false, Ordering::Relaxed);
        if !again? {
            self.shared.snapshot_done.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Before 18 the server looks a publication up as of the WAL that it decodes:
/// where there was none it fails, and whatever is made now does not help.
pub(crate) fn is_unpublished(error: &WireError) -> bool {
    matches!(error, WireError::Server(server) if server.code == "42704" && server.message.contains("publication"))
}

/// Hands on; while there is no room the server goes on hearing from us.
fn send(out: &Sender<Result<Captured>>, captured: Captured, feedback: &mut Feedback) -> Result<()> {
    let mut waiting = Ok(captured);
    loop {
        match out.try_send(waiting) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Closed(_)) => return Err(Error::retry("nobody takes what was captured")),
            Err(TrySendError::Full(back)) => {
                if feedback.shared.stop.load(Ordering::Relaxed) {
                    return Err(Error::retry("stopped"));
                }
                waiting = back;
                feedback.tell(false)?;
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
