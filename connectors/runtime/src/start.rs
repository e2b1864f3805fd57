//! Where a delivery begins: at the destination's own checkpoint, where a person
//! has ordered it to, or, of a sink that is new, where its configuration says.

use connector::{Checkpoint, Error, FOLLOWED, Fresh, Moved, Opened, Result, Sink};
use storage::{EventLog, Log, Micros, Offset, StateChange};

use crate::delivery::{Delivery, unreadable};
use crate::lanes::Lanes;
use crate::orders::{self, Replay, settle};
use crate::schemas::shapes_of;
use crate::status::now_micros;
use crate::supervise::Place;

/// Where a new sink begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the log's beginning, which must still be there.
    Log,
    /// At the log's end, with a reading of its own.
    Snapshot,
    /// At an offset, whatever came before.
    Offset(Offset),
    /// At a time, whatever came before.
    Time(Micros),
}

/// A delivery that has begun.
pub(crate) struct Begun {
    pub(crate) opened: Opened,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) lanes: Lanes,
}

impl<K: Sink> Delivery<K> {
    /// Opens the destination, obeys what was ordered, and finds where to begin.
    pub(crate) async fn begin(&mut self, at: &Place) -> Result<Begun> {
        let mut opened = self.sink.open(at.log.id(), at.log.epoch()).await?;
        if let Some(replay) = orders::replay(&at.log.state(), &self.name)
            && self.obey(at, &opened, &replay).await?
        {
            opened = self.sink.open(at.log.id(), at.log.epoch()).await?;
        }
        let checkpoint = match (opened.checkpoint, &opened.promised) {
            (Some(checkpoint), _) => {
                if orders::start(&at.log.state(), &self.name).is_some() {
                    at.notes.put_all(vec![orders::start_note(&self.name, None)]);
                }
                checkpoint
            }
            (None, Some(promised)) => Checkpoint { next: promised.range.start },
            (None, None) => self.first(at).await?,
        };
        self.reachable(&at.log, checkpoint)?;
        let lanes = Lanes::open(at, &self.name, &opened.parked);
        Ok(Begun { opened, checkpoint, lanes })
    }

    /// Whether the sink must be opened again after it.
    async fn obey(&mut self, at: &Place, opened: &Opened, replay: &Replay) -> Result<bool> {
        let Place { log, notes, .. } = at;
        let name = self.name.clone();
        let mut changes = vec![orders::replay_done(&name), orders::detached_note(&name, None)];
        for (stream, _) in orders::lanes(&log.state(), &name) {
            changes.push(orders::lane_note(&name, &stream, None));
        }
        let moves = match replay {
            Replay::To(to) => {
                let least = self.least(log, opened)?.unwrap_or(Offset(*to));
                let to = self.move_back(at, least.min(Offset(*to))).await?;
                changes.push(orders::checkpoint_note(&name, to));
                true
            }
            Replay::Snapshot => {
                let end = log.high_water();
                let moves = match opened.checkpoint {
                    // It is new: it begins at the end, as if its configuration had said so.
                    None => {
                        changes.push(orders::start_note(&name, Some(end)));
                        changes.push(orders::checkpoint_note(&name, end));
                        false
                    }
                    Some(checkpoint) if checkpoint.next >= log.start() && opened.parked.is_empty() => false,
                    // What the log no longer has, the reading makes up for.
                    Some(checkpoint) => {
                        let to = if checkpoint.next >= log.start() { checkpoint.next } else { end };
                        let moved = self.sink.move_to(to).await?;
                        self.moved(to, moved)?;
                        changes.push(orders::checkpoint_note(&name, to));
                        true
                    }
                };
                changes.push(self.fresh(log)?.change());
                moves
            }
        };
        settle(log, notes, changes).await?;
        self.ask_anew(at);
        tracing::info!(sink = name, order = ?replay, "replay begins");
        Ok(moves)
    }

    /// Where the table is that is furthest behind of those that wait apart: they
    /// join the others, and behind that place there would be a gap in it.
    fn least(&self, log: &Log, opened: &Opened) -> Result<Option<Offset>> {
        let Some(table) = opened.parked.iter().min_by_key(|table| table.next) else { return Ok(None) };
        if table.next < log.start() {
            return Err(Error::halt(format!(
                "table {} of sink {:?} waits apart at offset {}, and the log is kept only from {} on: moved back, it \
                 would lack what lies between",
                table.stream,
                self.name,
                table.next,
                log.start()
            ))
            .hint(format!("`highwater replay {} --from snapshot` has its tables read for it alone", self.name)));
        }
        Ok(Some(table.next))
    }

    fn moved(&self, to: Offset, moved: Moved) -> Result<()> {
        match moved {
            Moved::Done => {
                // Retention must see it before anything else does.
                self.status.update(|state| state.checkpoint = Some(to.0));
                Ok(())
            }
            Moved::Below(_) => Err(Error::halt(format!(
                "sink {:?} holds something that reaches beyond offset {to}, where the log goes on",
                self.name
            ))
            .hint("point the sink at an empty destination: it is then filled anew")),
        }
    }

    /// To an offset, or as far below it as transactions and the destination's
    /// own pieces need.
    async fn move_back(&mut self, at: &Place, to: Offset) -> Result<Offset> {
        let Place { log, notes, .. } = at;
        let name = self.name.clone();
        let (start, end) = (log.start(), log.high_water());
        let gone = |to: Offset| {
            Error::halt(format!("sink {name:?} is to go back to offset {to}, but the log is kept only from {start} on"))
                .hint(format!(
                    "`highwater replay {name} --from beginning`, or `--from snapshot`, which reads its tables again"
                ))
        };
        let mut to = to.min(end);
        loop {
            if to < start {
                return Err(gone(to));
            }
            to = searched(log, move |log| log.transaction_at(to)).await?;
            self.status.update(|state| state.checkpoint = Some(state.checkpoint.map_or(to.0, |c| c.min(to.0))));
            match self.sink.move_to(to).await? {
                Moved::Done => break,
                Moved::Below(below) => {
                    to = below.min(Offset(to.0.saturating_sub(1)));
                    // So that the log is kept for it.
                    let order = orders::Order::Replay(name.clone(), Replay::To(to.0));
                    settle(log, notes, order.changes(&log.state(), now_micros())).await?;
                }
            }
        }
        self.status.update(|state| state.checkpoint = Some(to.0));
        Ok(to)
    }

    /// Of a sink that is new here.
    async fn first(&mut self, at: &Place) -> Result<Checkpoint> {
        let Place { log, notes, .. } = at;
        let (name, state) = (self.name.clone(), log.state());
        let (start, end) = (log.start(), log.high_water());
        if let Some(begun) = orders::start(&state, &name).filter(|begun| *begun >= start) {
            return Ok(Checkpoint { next: begun });
        }
        let next = match self.start {
            Start::Log if start == Offset(0) => return Ok(Checkpoint { next: start }),
            Start::Log => {
                return Err(Error::halt(format!(
                    "sink {name:?} is new, and the log, from which it is to be filled, is kept only from offset {start} on: \
                     what came before would be missing"
                ))
                .hint(format!(
                    "set `start = \"snapshot\"` of the sink: its tables are read for it alone. Or set `start = {start}`, \
                     if it is to hold only what came since"
                )));
            }
            // All that there is is about to be read for everyone.
            Start::Snapshot if at.new_log => start,
            Start::Snapshot => end,
            Start::Offset(offset) if offset < start || offset > end => {
                return Err(Error::halt(format!(
                    "sink {name:?} is to begin at offset {offset}, and the log holds {start} to {end}"
                ))
                .hint(format!("set `start` of the sink to an offset from {start} to {end}")));
            }
            Start::Offset(offset) => searched(log, move |log| log.transaction_at(offset)).await?,
            Start::Time(time) => searched(log, move |log| log.offset_at(time)).await?,
        };
        let mut changes = vec![orders::start_note(&name, Some(next)), orders::checkpoint_note(&name, next)];
        let reads = self.start == Start::Snapshot && !at.new_log;
        if reads {
            changes.push(self.fresh(log)?.change());
        }
        settle(log, notes, changes).await?;
        if reads {
            self.ask_anew(at);
        }
        tracing::info!(sink = name, offset = next.0, start = ?self.start, "a new sink begins");
        Ok(Checkpoint { next })
    }

    /// A reading of all that the sink takes, for it alone.
    fn fresh(&self, log: &Log) -> Result<Fresh> {
        let state = log.state();
        let shapes = shapes_of(log)?;
        let wanted = |stream: &str| {
            let newest = shapes.iter().filter(|shape| shape.table.stream() == stream).max_by_key(|shape| shape.number);
            newest.is_some_and(|shape| (self.selection)(&shape.table))
        };
        let followed =
            state.prefix(FOLLOWED.as_bytes()).map(|(key, _)| String::from_utf8_lossy(&key[FOLLOWED.len()..]));
        let streams = followed.filter(|stream| wanted(stream)).map(|stream| stream.into_owned()).collect();
        Ok(Fresh { sink: self.name.clone(), serial: now_micros(), streams })
    }

    /// Where all is wanted that there was at the start, a reading that was
    /// asked for since is part of it.
    fn ask_anew(&self, at: &Place) {
        if at.until_caught_up {
            at.goal.send_replace(None);
        }
    }

    /// A checkpoint outside of what the log holds is not this log's.
    fn reachable(&self, log: &Log, checkpoint: Checkpoint) -> Result<()> {
        let (start, end) = (log.start(), log.high_water());
        if checkpoint.next > end {
            return Err(Error::halt(format!(
                "sink {:?} holds everything up to offset {}, but the log ends at {end}: the log has lost its end",
                self.name, checkpoint.next
            ))
            .hint(
                "an older copy of the data folder was put back, or its disk lost what it had confirmed. Put the \
                 newer data folder back; or point the sink at an empty destination to begin anew",
            ));
        }
        if checkpoint.next < start {
            return Err(Error::halt(format!(
                "sink {:?} needs the log from offset {}, but retention has kept it only from {start} on",
                self.name, checkpoint.next
            ))
            .hint(format!("`highwater replay {} --from snapshot` has its tables read for it alone", self.name)));
        }
        Ok(())
    }
}

/// Searching is disk work.
async fn searched(log: &Log, search: impl FnOnce(&Log) -> storage::Result<Offset> + Send + 'static) -> Result<Offset> {
    let log = log.clone();
    let found = tokio::task::spawn_blocking(move || search(&log)).await;
    found.map_err(|error| Error::retry("the log's reader has ended").because(error))?.map_err(unreadable)
}

/// What forgets a sink that is no longer configured.
pub(crate) fn forgotten(state: &storage::State, known: impl Fn(&str) -> bool) -> Vec<StateChange> {
    let mut changes = Vec::new();
    for prefix in orders::OF_A_SINK {
        for (key, _) in state.prefix(prefix.as_bytes()) {
            let name = String::from_utf8_lossy(&key[prefix.len()..]);
            let name = name.split('/').next().unwrap_or_default();
            if !known(name) {
                changes.push(StateChange { key: key.to_vec().into(), value: None });
            }
        }
    }
    changes
}
