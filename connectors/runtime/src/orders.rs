//! What people have ordered of sources and sinks. It stands in the log's state,
//! which outlives a restart, and is the only place that says it: who has to
//! obey looks there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use connector::{Error, Fresh, Result};
use serde::{Deserialize, Serialize};
use storage::{EventLog, Kind, Log, LogBatch, Micros, Offset, State, StateChange};
use tokio::sync::watch;

use crate::notes::Notes;

/// An order must be durable before it is confirmed, which a full disk or a
/// transaction that is being written holds up.
const PATIENCE: Duration = Duration::from_secs(30);

/// An order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// The source stands still, and its log takes nothing from it.
    PauseSource,
    /// It goes on.
    ResumeSource,
    /// A sink stands still; the log is kept for it.
    PauseSink(String),
    /// It goes on; one that has halted tries again.
    ResumeSink(String),
    /// Tables that wait apart try again.
    ResumeTables(String, BTreeSet<String>),
    /// A sink moves to another place in the log, or has its tables read again.
    Replay(String, Replay),
}

/// Where a sink goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Replay {
    /// To this offset.
    To(u64),
    /// On, with a reading of its tables for it alone.
    Snapshot,
}

/// A sink that was too far behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detached {
    /// In microseconds since the Unix epoch.
    pub since: i64,
    /// How far behind it was, in bytes.
    pub bytes: u64,
    /// How far it might have been.
    pub max_backlog: u64,
}

/// A table that waits apart, as the log remembers it: for retention, and for
/// `status` while the daemon is stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lane {
    /// The first offset of the table that is not there.
    pub next: u64,
    /// In microseconds since the Unix epoch.
    pub since: i64,
    /// What refused it.
    pub why: String,
    /// It is to try again.
    #[serde(default)]
    pub resume: bool,
    /// The log was not kept for it any longer: it must be read again.
    #[serde(default)]
    pub lost: bool,
}

pub(crate) const SINK: &str = "sink/";
const PAUSED_SOURCE: &str = "paused/source";
const PAUSED: &str = "paused/sink/";
const REPLAY: &str = "replay/";
const DETACHED: &str = "detached/";
const LANE: &str = "lane/";
pub(crate) const START: &str = "start/";

/// Everything of a sink begins with one of these.
pub(crate) const OF_A_SINK: [&str; 7] = [SINK, PAUSED, REPLAY, DETACHED, LANE, START, Fresh::PREFIX];

impl Order {
    /// As changes of the log's state. Empty: it is so already, or there is
    /// nothing to do.
    pub fn changes(&self, state: &State, now: i64) -> Vec<StateChange> {
        match self {
            Order::PauseSource => vec![put(PAUSED_SOURCE, now.to_string())],
            Order::ResumeSource => vec![remove(PAUSED_SOURCE)],
            Order::PauseSink(sink) => vec![put(format!("{PAUSED}{sink}"), now.to_string())],
            Order::ResumeSink(sink) => vec![remove(format!("{PAUSED}{sink}"))],
            Order::ResumeTables(sink, streams) => lanes(state, sink)
                .filter(|(stream, _)| streams.contains(stream))
                .map(|(stream, lane)| lane_note(sink, &stream, Some(&Lane { resume: true, ..lane })))
                .collect(),
            Order::Replay(sink, replay) => {
                vec![put(format!("{REPLAY}{sink}"), serde_json::to_string(replay).expect("it serialises"))]
            }
        }
    }

    /// As a batch, for the log of a stopped daemon.
    pub fn batch(&self, state: &State, now: i64) -> LogBatch {
        batch(self.changes(state, now))
    }

    /// The sink that must look at it, if it is one's.
    pub fn sink(&self) -> Option<&str> {
        match self {
            Order::PauseSource | Order::ResumeSource => None,
            Order::PauseSink(sink)
            | Order::ResumeSink(sink)
            | Order::ResumeTables(sink, _)
            | Order::Replay(sink, _) => Some(sink),
        }
    }
}

/// Since when a source is paused, in microseconds.
pub fn source_paused(state: &State) -> Option<i64> {
    text(state, PAUSED_SOURCE).and_then(|since| since.parse().ok())
}

/// Since when a sink is paused, in microseconds.
pub fn sink_paused(state: &State, sink: &str) -> Option<i64> {
    text(state, &format!("{PAUSED}{sink}")).and_then(|since| since.parse().ok())
}

/// A sink that was detached.
pub fn detached(state: &State, sink: &str) -> Option<Detached> {
    text(state, &format!("{DETACHED}{sink}")).and_then(|value| serde_json::from_str(value).ok())
}

/// What a sink last said of how far it is.
pub fn checkpoint(state: &State, sink: &str) -> Option<u64> {
    text(state, &format!("{SINK}{sink}")).and_then(|next| next.parse().ok())
}

/// Where a sink is to go.
pub fn replay(state: &State, sink: &str) -> Option<Replay> {
    text(state, &format!("{REPLAY}{sink}")).and_then(|value| serde_json::from_str(value).ok())
}

/// A sink's tables that wait apart, by stream.
pub fn lanes<'a>(state: &'a State, sink: &str) -> impl Iterator<Item = (String, Lane)> + use<'a> {
    let prefix = format!("{LANE}{sink}/");
    let all: Vec<_> = state
        .prefix(prefix.as_bytes())
        .filter_map(|(key, value)| {
            let stream = String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
            Some((stream, serde_json::from_slice(value).ok()?))
        })
        .collect();
    all.into_iter()
}

/// The least offset that a sink may still need; None: it has said nothing yet.
pub(crate) fn needs(state: &State, sink: &str) -> Option<u64> {
    let lanes = lanes(state, sink).filter(|(_, lane)| !lane.lost).map(|(_, lane)| lane.next);
    let replay = match replay(state, sink) {
        Some(Replay::To(offset)) => Some(offset),
        _ => None,
    };
    checkpoint(state, sink).into_iter().chain(lanes).chain(replay).min()
}

pub(crate) fn replay_done(sink: &str) -> StateChange {
    remove(format!("{REPLAY}{sink}"))
}

pub(crate) fn detached_note(sink: &str, detached: Option<&Detached>) -> StateChange {
    let key = format!("{DETACHED}{sink}");
    match detached {
        Some(detached) => put(key, serde_json::to_string(detached).expect("it serialises")),
        None => remove(key),
    }
}

pub(crate) fn lane_note(sink: &str, stream: &str, lane: Option<&Lane>) -> StateChange {
    let key = format!("{LANE}{sink}/{stream}");
    match lane {
        Some(lane) => put(key, serde_json::to_string(lane).expect("it serialises")),
        None => remove(key),
    }
}

pub(crate) fn checkpoint_note(sink: &str, next: Offset) -> StateChange {
    put(format!("{SINK}{sink}"), next.0.to_string())
}

/// Where a new sink has begun, until it has a checkpoint.
pub(crate) fn start_note(sink: &str, at: Option<Offset>) -> StateChange {
    let key = format!("{START}{sink}");
    at.map_or_else(|| remove(key.clone()), |at| put(key.clone(), at.0.to_string()))
}

pub(crate) fn start(state: &State, sink: &str) -> Option<Offset> {
    text(state, &format!("{START}{sink}")).and_then(|at| at.parse().ok()).map(Offset)
}

pub(crate) fn fresh_done(sink: &str) -> StateChange {
    remove(format!("{}{sink}", Fresh::PREFIX))
}

/// Leaves notes, and waits until they are durable: by ingest, which alone
/// appends. Cancel-safe: they are on their way all the same.
pub(crate) async fn settle(log: &Log, notes: &Notes, changes: Vec<StateChange>) -> Result<()> {
    notes.put_all(changes.clone());
    let mut moved = log.subscribe();
    let settled = async {
        loop {
            let state = log.state();
            if changes.iter().all(|change| state.get(&change.key) == change.value.as_deref()) {
                break;
            }
            tokio::select! {
                moved = moved.changed() => if moved.is_err() { break },
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
        // Answered after a sync; nothing lies below the log's beginning.
        log.trim(Offset(0)).await.map_err(|error| Error::halt("could not write the log").because(error))
    };
    tokio::time::timeout(PATIENCE, settled).await.unwrap_or_else(|_| {
        Err(Error::retry("the log does not take the order")
            .hint("is the disk full, or a large transaction being written? `highwater status` says it"))
    })
}

/// Gives orders to a pipeline that runs.
#[derive(Clone, Debug)]
pub struct Orders {
    log: Log,
    pub(crate) notes: Notes,
    /// By sink; the source's has no name.
    kicks: Arc<Mutex<BTreeMap<String, watch::Sender<u64>>>>,
}

/// Who obeys the orders of a source.
pub(crate) const SOURCE: &str = "";

impl Orders {
    /// Of a log's pipeline.
    pub fn new(log: Log) -> Self {
        Self { log, notes: Notes::default(), kicks: Arc::default() }
    }

    /// Durable when it returns; obeyed soon after.
    pub async fn give(&self, order: &Order, now: i64) -> Result<()> {
        settle(&self.log, &self.notes, order.changes(&self.log.state(), now)).await?;
        self.kick(order.sink().unwrap_or(SOURCE));
        Ok(())
    }

    /// Has somebody look at the state.
    pub(crate) fn kick(&self, whom: &str) {
        if let Some(kick) = self.kicks.lock().unwrap_or_else(PoisonError::into_inner).get(whom) {
            kick.send_modify(|kicks| *kicks += 1);
        }
    }

    /// Changes when there is something to look at.
    pub(crate) fn listen(&self, whom: &str) -> watch::Receiver<u64> {
        let mut kicks = self.kicks.lock().unwrap_or_else(PoisonError::into_inner);
        kicks.entry(whom.into()).or_insert_with(|| watch::Sender::new(0)).subscribe()
    }
}

pub(crate) fn batch(state: Vec<StateChange>) -> LogBatch {
    LogBatch {
        kind: Kind::Control,
        position: None,
        records: 0,
        event_time: Micros(0),
        payload: Bytes::new(),
        state,
        ends_transaction: true,
    }
}

fn text<'a>(state: &'a State, key: &str) -> Option<&'a str> {
    std::str::from_utf8(state.get(key.as_bytes())?).ok()
}

fn put(key: impl Into<String>, value: String) -> StateChange {
    StateChange { key: key.into().into_bytes().into(), value: Some(value.into_bytes().into()) }
}

fn remove(key: impl Into<String>) -> StateChange {
    StateChange { key: key.into().into_bytes().into(), value: None }
}
