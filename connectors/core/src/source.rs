//! Where changes come from.

use std::future::Future;

use serde::{Deserialize, Serialize};
use std::sync::Arc;
use storage::{Durable, LogBatch, Position, State, StateChange};

use crate::error::Result;
use crate::shape::SchemaNumber;
use crate::table::Table;

/// A batch that a source captured, ready for the log.
#[derive(Debug)]
pub struct Captured {
    /// What goes into the log, with the state that changes by it.
    pub batch: LogBatch,
    /// Rows in it that are as they came ([`crate::Unfit`]).
    pub unfit: u32,
}

/// A schema's number, and what the log must remember if it is new.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The log's own number.
    pub number: SchemaNumber,
    /// Goes with the first batch that uses the number, in the same transaction.
    pub change: Option<StateChange>,
}

/// A reading that a sink needs for itself alone, as the log's state has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fresh {
    /// The sink.
    #[serde(skip)]
    pub sink: String,
    /// Tells this asking from earlier ones.
    pub serial: i64,
    /// What is to be read.
    pub streams: Vec<String>,
}

impl Fresh {
    /// Entries of the state begin so, and end with the sink's name.
    pub const PREFIX: &'static str = "fresh/";

    /// From an entry; None if it is none.
    pub fn from_entry(key: &[u8], value: &[u8]) -> Option<Self> {
        let sink = std::str::from_utf8(key.strip_prefix(Self::PREFIX.as_bytes())?).ok()?;
        let fresh: Self = serde_json::from_slice(value).ok()?;
        Some(Self { sink: sink.into(), ..fresh })
    }

    /// All that are asked for.
    pub fn all(state: &State) -> Vec<Self> {
        let entries = state.prefix(Self::PREFIX.as_bytes());
        entries.filter_map(|(key, value)| Self::from_entry(key, value)).collect()
    }

    /// As the log's state has it.
    pub fn change(&self) -> StateChange {
        let value = serde_json::to_vec(self).expect("it serialises");
        StateChange { key: format!("{}{}", Self::PREFIX, self.sink).into(), value: Some(value.into()) }
    }
}

/// A source keeps an entry for each table that it follows under this, by
/// stream.
pub const FOLLOWED: &str = "source/table/";

/// Numbers shapes and has them registered. Blocking: sources call it from
/// their own thread, once per new shape.
pub trait Schemas: Send + Sync + 'static {
    /// The number of this very shape; the same for equal tables, for ever.
    fn resolve(&self, table: &Table) -> Result<Resolved>;

    /// The shapes that a stream had, the newest first: the catalog may be
    /// further than the log, and no longer know what a column was called.
    fn shapes(&self, stream: &str) -> Vec<(SchemaNumber, Table)>;
}

/// Tails a database. One instance, one log.
pub trait Source: Send {
    /// Compares what the log holds with what the server offers, and begins
    /// behind `resume`. `state` is the log's: the source's own entries begin
    /// with `source/`. May be called again after an error.
    fn open(&mut self, resume: Option<&Position>, state: Arc<State>) -> impl Future<Output = Result<()>> + Send;

    /// The next batch; None when the source has ended for good. Cancel-safe.
    /// After an error only `open` may follow.
    fn next(&mut self) -> impl Future<Output = Result<Option<Captured>>> + Send;

    /// The source may forget everything up to here. Never blocks on the server.
    fn acknowledge(&mut self, upto: Durable<Position>) -> impl Future<Output = Result<()>> + Send;

    /// Whether all that was committed at the source before the first call of
    /// this, initial snapshots included, lies at or before `durable`.
    fn caught_up(&mut self, durable: Option<&Position>) -> impl Future<Output = Result<bool>> + Send;

    /// Reads tables for one sink alone, each once for this asking; what the
    /// state held when it was opened needs no telling. Not caught up before.
    fn read_for(&mut self, fresh: &Fresh) {
        let _ = fresh;
    }

    /// Stops cleanly, in bounded time.
    fn close(&mut self) -> impl Future<Output = ()> + Send;
}
