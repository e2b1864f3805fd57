//! Points of the stream that somebody asks for: to compare a destination with
//! the source as it was there, and to mend what differs.
//!
//! A point is a round's: the consistent point S of a temporary slot, whose
//! snapshot has seen what was committed up to S and nothing else. The stream is
//! logged up to S; then, and only there, can the log say "the source as that
//! snapshot sees it". (A logical message cannot: between it and any snapshot lie
//! the commits of others.)

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use connector::Error;
use serde::Serialize;

use crate::lsn::Lsn;
use crate::snapshot::Prepared;

/// Who has not asked for so long has gone.
const LEASE: Duration = Duration::from_secs(10);

/// What is wanted of a point.
#[derive(Clone, Debug)]
pub(crate) enum Want {
    /// The end of a step of this sink.
    StepEnd(String),
    /// Rows of streams, by key as the database's text: those that are there are
    /// read, the others deleted.
    Mend(BTreeMap<String, Vec<Vec<String>>>),
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum PointState {
    /// The slot is being made, which waits for transactions in progress.
    Waiting,
    /// The snapshot can be taken over; the stream has yet to come there.
    Ready {
        /// For `SET TRANSACTION SNAPSHOT`.
        snapshot: String,
        /// The consistent point.
        position: String,
    },
    /// The end of the step is on its way into the log.
    Marked {
        /// As before.
        snapshot: String,
        /// As before.
        position: String,
        /// Streams whose reading is under way there.
        reading: Vec<String>,
    },
    /// Rows were read and deleted.
    Mended {
        /// Read anew.
        read: u64,
        /// Not at the source.
        deleted: u64,
    },
    /// It cannot be had.
    Failed {
        /// Why.
        error: String,
        /// What to do.
        remedy: Option<String>,
    },
}

struct Point {
    want: Want,
    state: PointState,
    asked: Instant,
    /// Lives until it was taken over.
    snapshot: Option<Prepared>,
}

/// All that are asked for, by the id of whoever asks.
#[derive(Clone, Default)]
pub(crate) struct Points {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    points: Mutex<BTreeMap<String, Point>>,
    /// One of them waits: all that the stream looks at as rows go by.
    waiting: AtomicBool,
}

impl std::fmt::Debug for Points {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.lock().keys()).finish()
    }
}

impl Points {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Point>> {
        self.shared.points.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for one.
    pub(crate) fn want(&self, id: &str, want: Want) {
        let point = Point { want, state: PointState::Waiting, asked: Instant::now(), snapshot: None };
        self.lock().insert(id.into(), point);
        self.shared.waiting.store(true, Ordering::Release);
    }

    /// How far it is; None: it is not known here.
    pub(crate) fn look(&self, id: &str) -> Option<PointState> {
        let mut points = self.lock();
        let point = points.get_mut(id)?;
        point.asked = Instant::now();
        Some(point.state.clone())
    }

    /// Its snapshot was taken over: the slot may go.
    pub(crate) fn taken(&self, id: &str) {
        let slot = self.lock().get_mut(id).and_then(|point| point.snapshot.take());
        // Outside of the lock: it says good-bye to the server.
        drop(slot);
    }

    /// Nobody asks any more.
    pub(crate) fn forget(&self, id: &str) {
        let point = self.lock().remove(id);
        drop(point);
    }

    /// Whether one waits to be made.
    #[inline]
    pub(crate) fn are_waiting(&self) -> bool {
        self.shared.waiting.load(Ordering::Relaxed)
    }

    /// Forgets what nobody asks for any more.
    pub(crate) fn tidy(&self) {
        let mut gone = Vec::new();
        let mut points = self.lock();
        points.retain(|_, point| {
            if point.asked.elapsed() >= LEASE {
                gone.push(point.snapshot.take());
                return false;
            }
            true
        });
        let waiting = points.values().any(|point| point.state == PointState::Waiting);
        self.shared.waiting.store(waiting, Ordering::Release);
        drop(points);
        drop(gone);
    }

    /// A slot was made: all that waits is had there. While tables are read,
    /// nothing is mended: a point's events are counted once, by the round.
    pub(crate) fn bind(&self, prepared: &Prepared, reading: bool) {
        let mut points = self.lock();
        let mut left = false;
        for point in points.values_mut().filter(|point| point.state == PointState::Waiting) {
            if reading && matches!(point.want, Want::Mend(_)) {
                left = true;
                continue;
            }
            let (snapshot, position) = (prepared.snapshot.clone(), prepared.point.to_string());
            point.state = PointState::Ready { snapshot, position };
            if matches!(point.want, Want::StepEnd(_)) {
                point.snapshot = Some(prepared.clone());
            }
        }
        self.shared.waiting.store(left, Ordering::Release);
    }

    /// What is wanted of the point that the stream has come to.
    pub(crate) fn due(&self, at: Lsn) -> Vec<(String, Want)> {
        let at = at.to_string();
        let here = |point: &Point| matches!(&point.state, PointState::Ready { position, .. } if *position == at);
        let points = self.lock();
        points.iter().filter(|(_, point)| here(point)).map(|(id, point)| (id.clone(), point.want.clone())).collect()
    }

    /// Not at this point: at the next.
    pub(crate) fn again(&self, id: &str) {
        if let Some(point) = self.lock().get_mut(id) {
            point.state = PointState::Waiting;
            self.shared.waiting.store(true, Ordering::Release);
        }
    }

    /// The end of the step was handed on.
    pub(crate) fn marked(&self, id: &str, streams: Vec<String>) {
        if let Some(point) = self.lock().get_mut(id)
            && let PointState::Ready { snapshot, position } = &point.state
        {
            let (snapshot, position) = (snapshot.clone(), position.clone());
            point.state = PointState::Marked { snapshot, position, reading: streams };
        }
    }

    /// Rows were mended.
    pub(crate) fn mended(&self, id: &str, read: u64, deleted: u64) {
        if let Some(point) = self.lock().get_mut(id) {
            point.state = PointState::Mended { read, deleted };
        }
    }

    /// One failed.
    pub(crate) fn failed(&self, id: &str, error: &Error) {
        if let Some(point) = self.lock().get_mut(id) {
            point.state = PointState::failed(error);
        }
    }

    /// All that are not yet done fail: none is made, or what was handed on may be lost.
    pub(crate) fn fail(&self, error: &Error) {
        let mut slots = Vec::new();
        for point in self.lock().values_mut() {
            if !matches!(point.state, PointState::Mended { .. } | PointState::Failed { .. }) {
                point.state = PointState::failed(error);
                slots.push(point.snapshot.take());
            }
        }
        self.shared.waiting.store(false, Ordering::Release);
        drop(slots);
    }
}

impl PointState {
    fn failed(error: &Error) -> Self {
        Self::Failed { error: error.chain(), remedy: error.remedy().map(str::to_owned) }
    }
}
