//! What runs, since when, and why not: written by the runtime, read by `status`.

use std::sync::{Arc, Mutex, PoisonError};

use connector::{Action, Error, Tally};
use serde::Serialize;

use crate::gate::Hold;

/// Whether something moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Not yet opened.
    #[default]
    Starting,
    /// At work, or idle for want of it.
    Running,
    /// Failed; tries again by itself.
    Retrying,
    /// Failed; a person must act.
    Halted,
    /// Stands still, as a person has ordered.
    Paused,
    /// Was too far behind; a person must act.
    Detached,
    /// Ended as told.
    Stopped,
}

/// The last thing that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What happened, with its causes.
    pub error: String,
    /// What to do.
    pub remedy: Option<String>,
    /// Microseconds since the Unix epoch.
    pub since: i64,
    /// How often it was tried since.
    pub tries: u64,
}

/// What waits in a source's quarantine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Quarantined {
    /// Rows that wait, for themselves or behind another.
    pub rows: u64,
    /// Keys that are fenced; a table that waits as a whole counts as one.
    /// None: nobody has looked at the rows.
    pub keys: Option<u64>,
    /// Their size.
    pub bytes: u64,
    /// What there is room for.
    pub max_bytes: u64,
    /// Streams that wait as a whole for want of room.
    pub parked: Vec<String>,
    /// Rows given up so far.
    pub discarded: u64,
}

/// A source's state.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SourceState {
    /// Whether it moves.
    pub health: Health,
    /// While it does not.
    pub problem: Option<Problem>,
    /// Rows and marks put into the log by this process.
    pub events: u64,
    /// Of these the rows, by what happened to them.
    pub ops: Tally,
    /// How often it was tried again by this process.
    pub retries: u64,
    /// Batches dropped because the log holds them.
    pub batches: u64,
    /// Rows that wait.
    pub quarantine: Quarantined,
    /// Streams that are held back.
    pub held: Vec<Hold>,
}

/// A sink's state.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SinkState {
    /// Whether it moves.
    pub health: Health,
    /// While it does not.
    pub problem: Option<Problem>,
    /// The first offset that is not at the destination; None before it was asked.
    pub checkpoint: Option<u64>,
    /// Commit time up to which all is there, in microseconds.
    pub event_time: Option<i64>,
    /// Events delivered by this process.
    pub events: u64,
    /// Steps committed by this process.
    pub steps: u64,
    /// When it last committed one, in microseconds since the Unix epoch.
    pub committed: Option<i64>,
    /// How often it was tried again by this process.
    pub retries: u64,
}

/// Shared by the runtime and whoever asks.
pub type SourceStatus = Status<SourceState>;
/// Shared by the runtime and whoever asks.
pub type SinkStatus = Status<SinkState>;

/// A state behind a lock that is held for a copy at most.
#[derive(Clone, Debug, Default)]
pub struct Status<T> {
    shared: Arc<Mutex<T>>,
}

impl<T: Clone> Status<T> {
    /// As it is now.
    pub fn get(&self) -> T {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes it.
    pub(crate) fn update(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// States that have health.
pub trait Patient {
    fn parts(&mut self) -> (&mut Health, &mut Option<Problem>);
    fn retries(&mut self) -> &mut u64;
}

impl Patient for SourceState {
    fn parts(&mut self) -> (&mut Health, &mut Option<Problem>) {
        (&mut self.health, &mut self.problem)
    }

    fn retries(&mut self) -> &mut u64 {
        &mut self.retries
    }
}

impl Patient for SinkState {
    fn parts(&mut self) -> (&mut Health, &mut Option<Problem>) {
        (&mut self.health, &mut self.problem)
    }

    fn retries(&mut self) -> &mut u64 {
        &mut self.retries
    }
}

impl<T: Clone + Patient> Status<T> {
    /// It works.
    pub(crate) fn works(&self) {
        self.update(|state| {
            let (health, problem) = state.parts();
            (*health, *problem) = (Health::Running, None);
        });
    }

    /// It failed; `now` in microseconds. The time of the first failure stays.
    pub(crate) fn fails(&self, error: &Error, now: i64) {
        self.update(|state| {
            let (health, problem) = state.parts();
            let again = error.action() == Action::Retry;
            *health = if again { Health::Retrying } else { Health::Halted };
            let (since, tries) = problem.as_ref().map_or((now, 0), |p| (p.since, p.tries));
            let remedy = error.remedy().map(str::to_owned);
            *problem = Some(Problem { error: error.chain(), remedy, since, tries: tries + 1 });
            *state.retries() += u64::from(again);
        });
    }
}

impl<T: Clone + Patient> Status<T> {
    /// It stands still, and not for an error.
    pub(crate) fn stands(&self, as_: Health, problem: Option<Problem>) {
        self.update(|state| {
            let (health, told) = state.parts();
            (*health, *told) = (as_, problem);
        });
    }
}

/// Wall time for people to read; nothing is decided by it.
pub(crate) fn now_micros() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_micros() as i64)
}
