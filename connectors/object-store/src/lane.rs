//! Tables that wait apart from the others: what a manifest says of them, and
//! what a step makes of it.
//!
//! A table that cannot be delivered has a lane, with a checkpoint of its own.
//! If it was part of a step that is announced, its files go with it, for some
//! of them may be there, or come yet from a writer that was fenced: the lane
//! begins with that very step. While it waits nobody else writes into its
//! folder, so its files have the names that they would have had, and nothing
//! that is there lies behind them.

use connector::{Error, Parked, Promise, Result, Step};
use serde::{Deserialize, Serialize};
use storage::{Offset, OffsetRange};

use crate::manifest::{Announced, Manifest};

/// A table that waits apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lane {
    pub(crate) stream: String,
    /// The first offset of it that is not here yet.
    pub(crate) next_offset: u64,
    /// Commit time up to which all of it is here, in microseconds.
    pub(crate) event_time: Option<i64>,
    /// Since when it waits, in microseconds.
    pub(crate) since: i64,
    /// What refused it.
    pub(crate) why: String,
    /// A step of it alone that may be half done.
    pub(crate) announced: Option<Announced>,
}

impl Lane {
    pub(crate) fn parked(&self) -> Parked {
        Parked {
            stream: self.stream.clone(),
            next: Offset(self.next_offset),
            since: self.since,
            why: self.why.clone(),
            promised: self.announced.as_ref().map(Announced::range),
        }
    }
}

impl Announced {
    pub(crate) fn range(&self) -> OffsetRange {
        OffsetRange { start: Offset(self.start), end: Offset(self.end) }
    }

    pub(crate) fn promise(&self) -> Promise {
        let mut streams: Vec<String> = self.files.iter().map(|file| file.stream.clone()).collect();
        streams.sort();
        streams.dedup();
        Promise { range: self.range(), streams }
    }

    /// The part of one table, which the rest is without from then on.
    fn split_off(&mut self, stream: &str) -> Option<Self> {
        let files: Vec<_> = self.files.extract_if(.., |file| file.stream == stream).collect();
        (!files.is_empty()).then(|| Self { files, ..self.clone() })
    }
}

impl Manifest {
    /// Has a table wait apart, from `at` on if it does not already.
    pub(crate) fn park(&mut self, stream: &str, at: Offset, why: &str, now: i64) {
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.stream == stream) {
            lane.why = why.into();
            return;
        }
        self.lanes.push(Lane {
            stream: stream.into(),
            next_offset: at.0,
            event_time: self.event_time,
            since: now,
            why: why.into(),
            announced: self.announced.as_mut().and_then(|announced| announced.split_off(stream)),
        });
    }

    pub(crate) fn lane(&self, stream: &str) -> Option<&Lane> {
        self.lanes.iter().find(|lane| lane.stream == stream)
    }

    /// The least offset that is not here yet; None: nothing is.
    pub(crate) fn least(&self) -> Option<u64> {
        let lanes = self.lanes.iter().map(|lane| lane.next_offset);
        self.next_offset.map(|next| lanes.fold(next, u64::min))
    }

    /// What is announced of the table that a step is of alone, or of all others.
    /// A step must begin where its checkpoint is.
    pub(crate) fn announced_for(&self, step: &Step) -> Result<Option<&Announced>> {
        let start = step.range().start;
        let (next, announced) = match step.lane() {
            None => (self.next_offset, &self.announced),
            Some(stream) => match self.lane(stream) {
                Some(lane) => (Some(lane.next_offset), &lane.announced),
                None => {
                    let what = format!("{stream} does not wait apart any more: sink {:?} is opened again", self.sink);
                    return Err(Error::retry(what));
                }
            },
        };
        match next {
            Some(next) if next != start.0 => {
                let what = format!("a step from offset {start} does not begin at the sink's checkpoint {next}");
                Err(Error::halt(what).hint("this is a fault of Highwater: please report it"))
            }
            _ => Ok(announced.as_ref()),
        }
    }

    /// Says what a step will be.
    pub(crate) fn announce(&mut self, step: &Step, announced: Announced) {
        match step.lane() {
            None => self.announced = Some(announced),
            Some(stream) => {
                let lane = self.lanes.iter_mut().find(|lane| lane.stream == stream);
                lane.into_iter().for_each(|lane| lane.announced = Some(announced.clone()));
            }
        }
    }

    /// Says that a step is there. A table that meets the others joins them.
    pub(crate) fn arrive(&mut self, step: &Step, position: Option<String>) {
        let (end, time) = (step.range().end.0, Some(step.event_time.0));
        let Some(stream) = step.lane() else {
            self.announced = None;
            (self.next_offset, self.position, self.event_time) = (Some(end), position, time);
            return;
        };
        // A sink that is new has no place yet: the others begin where the table does.
        if self.next_offset.is_none_or(|next| next <= end) {
            self.lanes.retain(|lane| lane.stream != stream);
        }
        for lane in self.lanes.iter_mut().filter(|lane| lane.stream == stream) {
            lane.announced = None;
            (lane.next_offset, lane.event_time) = (end, lane.event_time.max(time));
        }
    }
}
