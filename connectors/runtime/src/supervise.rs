//! A delivery's life: at work, trying again, paused, detached, halted until a
//! person has it try again.

use connector::{Action, Error, Sink};
use storage::{EventLog, Log, Offset};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::delivery::{Delivery, LAST_STEP, Outcome};
use crate::lanes::Patience;
use crate::notes::Notes;
use crate::orders::{self, Detached};
use crate::status::{Health, Problem, now_micros};

/// Where a delivery works.
pub(crate) struct Place {
    pub(crate) log: Log,
    pub(crate) notes: Notes,
    /// The end of what is wanted, once it is known. None for ever: all that comes.
    pub(crate) goal: watch::Sender<Option<Offset>>,
    pub(crate) until_caught_up: bool,
    /// It held nothing when the pipeline began.
    pub(crate) new_log: bool,
    /// Changes when there is something ordered.
    pub(crate) kicked: watch::Receiver<u64>,
    /// Told when it halts, and when it no longer does.
    pub(crate) halts: mpsc::UnboundedSender<(String, bool)>,
    pub(crate) cancel: CancellationToken,
    /// The source has stopped for good.
    pub(crate) halted: CancellationToken,
}

impl<K: Sink> Delivery<K> {
    /// Until cancelled, or until the goal is there.
    pub(crate) async fn run(mut self, mut at: Place) -> Outcome {
        match self.live(&mut at).await {
            Outcome::Done if at.halted.is_cancelled() => self.look_for_heir(&at.log).await,
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

    async fn live(&mut self, at: &mut Place) -> Outcome {
        loop {
            at.kicked.mark_unchanged();
            let state = at.log.state();
            let standing = match (orders::detached(&state, &self.name), orders::sink_paused(&state, &self.name)) {
                (Some(detached), _) if orders::replay(&state, &self.name).is_none() => Some(self.detached(&detached)),
                (_, Some(_)) => {
                    self.status.stands(Health::Paused, None);
                    tracing::warn!(
                        sink = self.name,
                        "paused: the log is kept for it; `highwater resume` lets it go on"
                    );
                    None
                }
                _ => {
                    match self.attempt(at).await {
                        // It was called away.
                        Outcome::Done if at.kicked.has_changed().unwrap_or(false) && !at.cancel.is_cancelled() => {}
                        Outcome::Failed(error) if error.action() != Action::Yield && !at.until_caught_up => {
                            let _ = at.halts.send((self.name.clone(), true));
                            tracing::error!(
                                sink = self.name,
                                error = error.chain(),
                                remedy = error.remedy(),
                                "sink has halted"
                            );
                            if !called(at).await {
                                return Outcome::Failed(error);
                            }
                            let _ = at.halts.send((self.name.clone(), false));
                        }
                        outcome => return outcome,
                    }
                    continue;
                }
            };
            if at.until_caught_up {
                return standing.map_or(Outcome::Done, Outcome::Failed);
            }
            if !called(at).await {
                return Outcome::Done;
            }
        }
    }

    fn detached(&self, detached: &Detached) -> Error {
        let error = Error::halt(format!(
            "sink {:?} was {} bytes behind, more than its `max_backlog` of {}, and was detached: the log is no longer kept for it",
            self.name, detached.bytes, detached.max_backlog
        ))
        .hint(format!("`highwater replay {} --from snapshot` has its tables read for it alone", self.name));
        let remedy = error.remedy().map(str::to_owned);
        let problem = Problem { error: error.chain(), remedy, since: detached.since, tries: 0 };
        self.status.stands(Health::Detached, Some(problem));
        tracing::error!(sink = self.name, error = error.chain(), remedy = error.remedy(), "sink is detached");
        error
    }

    /// At work until it is done, cannot go on, or is called away.
    async fn attempt(&mut self, at: &mut Place) -> Outcome {
        let away = at.cancel.child_token();
        let mut kicked = at.kicked.clone();
        kicked.mark_unchanged();
        // What was ordered since the state was looked at is seen by it.
        if at.kicked.has_changed().unwrap_or(false) {
            return Outcome::Done;
        }
        let working = self.until_done(at, &away);
        tokio::pin!(working);
        tokio::select! {
            outcome = &mut working => return outcome,
            Ok(()) = kicked.changed() => away.cancel(),
        }
        working.await
    }

    async fn until_done(&mut self, at: &Place, cancel: &CancellationToken) -> Outcome {
        let mut backoff = Backoff::new();
        let mut patience = Patience::default();
        loop {
            let before = self.status.get().steps;
            let mut error = match self.deliver(at, cancel).await {
                Ok(()) => {
                    self.status.update(|state| state.health = Health::Stopped);
                    return Outcome::Done;
                }
                Err(error) => error,
            };
            if self.status.get().steps > before {
                backoff.reset();
            }
            if let Some(stream) = patience.is_over(&error) {
                match self.park(at, &stream, &error).await {
                    Ok(true) => continue,
                    Ok(false) => {}
                    Err(other) => error = other,
                }
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
}

/// Waits for an order; false if cancelled.
async fn called(at: &mut Place) -> bool {
    tokio::select! {
        biased;
        () = at.cancel.cancelled() => false,
        kicked = at.kicked.changed() => kicked.is_ok(),
    }
}
