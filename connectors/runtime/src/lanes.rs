//! Tables that wait apart from the others. What one table refuses does not
//! hold up the rest: it is parked with a checkpoint of its own, kept by the
//! destination, and when a person has it try again it catches up by steps of
//! its own, between those of the others, until it joins them.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use connector::{Action, Checkpoint, Error, Parked, Result, Sink, Table};
use futures_util::StreamExt;
use storage::{EventLog, Offset};

use crate::delivery::{Delivery, Gathered, Selection, ShapeCache, unreadable};
use crate::orders::{self, Lane, settle};
use crate::status::now_micros;
use crate::supervise::Place;

/// A step of a parked table takes no more of the log than this, so that the
/// others have their turn.
const TURN_BYTES: usize = 64 << 20;

/// A sink's parked tables, by stream.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    parked: BTreeMap<String, Lane>,
    /// Where announced steps end of those that have one.
    promised: BTreeMap<String, Offset>,
}

impl Lanes {
    /// As the destination says; the log remembers who is to try again.
    pub(crate) fn open(at: &Place, sink: &str, parked: &[Parked]) -> Self {
        let known: BTreeMap<String, Lane> = orders::lanes(&at.log.state(), sink).collect();
        let mut lanes = Self::default();
        let mut changes = Vec::new();
        for table in parked {
            let before = known.get(&table.stream);
            let lane = Lane {
                next: table.next.0,
                since: table.since,
                why: table.why.clone(),
                resume: before.is_some_and(|lane| lane.resume),
                lost: before.is_some_and(|lane| lane.lost),
            };
            if before != Some(&lane) {
                changes.push(orders::lane_note(sink, &table.stream, Some(&lane)));
            }
            lanes.parked.insert(table.stream.clone(), lane);
            lanes.promised.extend(table.promised.map(|range| (table.stream.clone(), range.end)));
        }
        for stream in known.keys().filter(|stream| !lanes.parked.contains_key(*stream)) {
            changes.push(orders::lane_note(sink, stream, None));
        }
        if !changes.is_empty() {
            at.notes.put_all(changes);
        }
        lanes
    }

    /// A table that is to catch up.
    pub(crate) fn resuming(&self) -> Option<String> {
        self.parked.iter().find(|(_, lane)| lane.resume).map(|(stream, _)| stream.clone())
    }

    /// A selection without the parked ones.
    pub(crate) fn others(&self, selection: &Selection) -> Selection {
        if self.parked.is_empty() {
            return selection.clone();
        }
        let (selection, parked) = (selection.clone(), self.parked.keys().cloned().collect::<Vec<_>>());
        Arc::new(move |table: &Table| selection(table) && !parked.contains(&table.stream()))
    }
}

impl<K: Sink> Delivery<K> {
    /// A step of a table that catches up; true when it is where the others
    /// are, and has joined them.
    pub(crate) async fn catch_up(
        &mut self,
        at: &Place,
        lanes: &mut Lanes,
        stream: &str,
        others: Checkpoint,
    ) -> Result<bool> {
        let Some(lane) = lanes.parked.get_mut(stream) else { return Ok(false) };
        let from = Checkpoint { next: Offset(lane.next) };
        if from.next < at.log.start() {
            return Err(Error::halt(format!(
                "table {stream} of sink {:?} needs the log from offset {}, and it is kept only from {} on",
                self.name,
                from.next,
                at.log.start()
            ))
            .hint(format!("`highwater replay {} --from snapshot` has its tables read for it alone", self.name))
            .of_stream(stream));
        }
        let (selection, only) = (self.selection.clone(), stream.to_owned());
        let promised = lanes.promised.remove(stream);
        let wanted = move |table: &Table| (promised.is_some() || selection(table)) && table.stream() == only;
        let mut shapes = ShapeCache::new(at.log.clone(), Arc::new(wanted));
        let mut step = Gathered::new(from);
        let mut frames = pin!(at.log.read(from.next));
        while step.end < promised.unwrap_or(others.next) {
            let full = promised.is_none() && (self.sink.is_full() || step.bytes >= TURN_BYTES);
            if step.between && step.end > from.next && full {
                break;
            }
            let frame = frames.next().await.ok_or_else(|| Error::retry("the log's reader has ended"))?;
            self.take(frame.map_err(unreadable)?, &mut shapes, &mut step).await?;
        }
        let checkpoint = self.commit_lane(stream, &step).await?;
        self.read_whole(&at.notes, &at.log, &step.ended);
        lane.next = checkpoint.next.0;
        let joined = checkpoint.next >= others.next;
        if joined {
            tracing::info!(sink = self.name, stream, "the table has caught up and joins the others");
            lanes.parked.remove(stream);
        }
        let lane = lanes.parked.get(stream);
        at.notes.put_all(vec![orders::lane_note(&self.name, stream, lane)]);
        Ok(joined)
    }

    /// Has the table wait apart that an error is about. False: the sink has
    /// one checkpoint for all.
    pub(crate) async fn park(&mut self, at: &Place, stream: &str, error: &Error) -> Result<bool> {
        let begun = self.begin(at).await?;
        let mut why = error.chain();
        if let Some(remedy) = error.remedy() {
            why = format!("{why}. What to do: {remedy}");
        }
        let from = begun.lanes.parked.get(stream).map_or(begun.checkpoint.next, |lane| Offset(lane.next));
        if !self.sink.park(stream, from, &why).await? {
            return Ok(false);
        }
        let before = begun.lanes.parked.get(stream);
        let lane = Lane {
            next: from.0,
            since: before.map_or_else(now_micros, |lane| lane.since),
            why,
            resume: false,
            lost: before.is_some_and(|lane| lane.lost),
        };
        // Before the others go on: the log is kept for it.
        settle(&at.log, &at.notes, vec![orders::lane_note(&self.name, stream, Some(&lane))]).await?;
        tracing::error!(
            sink = self.name,
            stream,
            offset = from.0,
            error = error.chain(),
            remedy = error.remedy(),
            "the table waits apart; the others go on without it"
        );
        Ok(true)
    }
}

/// Counts tries of a table that may pass by themselves, and do not.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    stream: Option<String>,
    tries: u32,
}

impl Patience {
    /// A lock that is not had in so many tries lasts.
    const TRIES: u32 = 3;

    /// The table that is to be parked for this error, if one is.
    pub(crate) fn is_over(&mut self, error: &Error) -> Option<String> {
        let Some(stream) = error.stream() else {
            *self = Self::default();
            return None;
        };
        if self.stream.as_deref() != Some(stream) {
            *self = Self { stream: Some(stream.into()), tries: 0 };
        }
        self.tries += 1;
        match error.action() {
            Action::Yield => None,
            Action::Retry if self.tries < Self::TRIES => None,
            _ => {
                self.tries = 0;
                self.stream.clone()
            }
        }
    }
}
