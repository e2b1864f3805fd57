//! How far each table has been read; part of the log's state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use storage::{State, StateChange};

use crate::catalog::CatalogTable;

const TABLE: &str = connector::FOLLOWED;
const CHUNK: &str = "source/chunk/";
const OWED: &str = "source/owed/";
const LEFT: &str = "source/left/";

/// A table's generation, as the log remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Generation {
    /// The table's oid: a table dropped and made anew is another.
    pub(crate) oid: u32,
    /// Of its place in the publication.
    #[serde(default)]
    pub(crate) published: u32,
    /// Of the publication's options; 0: not known.
    #[serde(default)]
    pub(crate) publication: u32,
    /// Counts from 1; 0: never read, by configuration.
    pub(crate) generation: u64,
    /// All was read.
    pub(crate) finished: bool,
    /// By leaf relation: another one was rewritten, and its blocks are no longer these.
    pub(crate) file_nodes: BTreeMap<u32, u32>,
    /// The log's number of the shape that it is read in: rows read in another
    /// would lack what came since.
    #[serde(default)]
    pub(crate) shape: u32,
    /// Blocks of a chunk.
    pub(crate) chunk_blocks: u64,
    /// Rows read so far.
    pub(crate) rows: u64,
    /// The sinks it is meant for; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) sinks: Vec<String>,
    /// Another is to follow, for these sinks alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) next_for: Option<Vec<String>>,
    /// What each sink has asked for itself last, and was heard.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) heard: BTreeMap<String, i64>,
}

impl Generation {
    /// Whether it is a reading of this very table, followed ever since.
    pub(crate) fn is_of(&self, table: &CatalogTable) -> bool {
        let same_options = self.publication == table.publication || self.publication == 0 || table.publication == 0;
        (self.oid, self.published) == (table.oid, table.published) && same_options
    }

    /// For whom the next reading of a table is, after this one.
    pub(crate) fn sinks_of_next(&self, table: &CatalogTable) -> Vec<String> {
        // What was rewritten since is still the table that was asked for.
        match &self.next_for {
            Some(sinks) if self.is_of(table) => sinks.clone(),
            None if self.is_of(table) && !self.finished => self.sinks.clone(),
            _ => Vec::new(),
        }
    }
}

/// A table's progress.
#[derive(Clone, Debug, Default)]
pub(crate) struct TableProgress {
    pub(crate) generation: Option<Generation>,
    /// Finished chunks: leaf relation and number.
    pub(crate) chunks: BTreeSet<(u32, u64)>,
    /// Chunks in all, once counted.
    pub(crate) total: u64,
    /// Keys to be read again, as the database's text.
    pub(crate) owed: BTreeSet<Vec<String>>,
}

/// Shared with whoever asks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    tables: Arc<Mutex<BTreeMap<String, TableProgress>>>,
    /// The last generation of tables that are followed no more.
    left: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl Progress {
    /// As the log's state has it.
    pub(crate) fn from_state(state: &State) -> Self {
        let progress = Self::default();
        {
            let mut tables = progress.lock();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            for (key, value) in state.prefix(TABLE.as_bytes()) {
                let table: &mut TableProgress = tables.entry(text(&key[TABLE.len()..])).or_default();
                table.generation = serde_json::from_slice(value).ok();
            }
            let mut left = progress.left.lock().unwrap_or_else(PoisonError::into_inner);
            for (key, value) in state.prefix(LEFT.as_bytes()) {
                left.insert(text(&key[LEFT.len()..]), text(value).parse().unwrap_or(0));
            }
            for (key, _) in state.prefix(CHUNK.as_bytes()) {
                let key = text(&key[CHUNK.len()..]);
                let mut parts = key.split('/');
                if let (Some(stream), Some(Ok(leaf)), Some(Ok(number))) =
                    (parts.next(), parts.next().map(str::parse), parts.next().map(str::parse))
                {
                    tables.entry(stream.to_owned()).or_default().chunks.insert((leaf, number));
                }
            }
            for (key, _) in state.prefix(OWED.as_bytes()) {
                let key = text(&key[OWED.len()..]);
                if let Some((stream, owed)) = key.split_once('/')
                    && let Ok(owed) = serde_json::from_str(owed)
                {
                    tables.entry(stream.to_owned()).or_default().owed.insert(owed);
                }
            }
        }
        progress
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, TableProgress>> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, stream: &str) -> TableProgress {
        self.lock().get(stream).cloned().unwrap_or_default()
    }

    /// All tables, for people.
    pub(crate) fn all(&self) -> BTreeMap<String, TableProgress> {
        self.lock().clone()
    }

    /// Whether a table's reading has begun and not ended.
    pub(crate) fn is_under_way(&self, stream: &str) -> bool {
        self.lock().get(stream).is_some_and(|t| t.generation.as_ref().is_some_and(|g| !g.finished))
    }

    /// Begins or changes a table's generation; a new one forgets chunks and debts.
    pub(crate) fn set(&self, stream: &str, generation: Generation) -> Vec<StateChange> {
        let mut tables = self.lock();
        let table = tables.entry(stream.to_owned()).or_default();
        let anew =
            table.generation.as_ref().is_none_or(|g| g.generation != generation.generation) || generation.oid == 0;
        let mut changes = Vec::new();
        if anew || generation.finished {
            for (leaf, number) in std::mem::take(&mut table.chunks) {
                changes.push(remove(chunk_key(stream, leaf, number)));
            }
            for owed in std::mem::take(&mut table.owed) {
                changes.push(remove(owed_key(stream, &owed)));
            }
        }
        changes.push(put(format!("{TABLE}{stream}"), serde_json::to_vec(&generation).expect("it serialises")));
        table.generation = Some(generation);
        changes
    }

    /// What was read counts for nothing any more: the table is read again.
    pub(crate) fn again(&self, stream: &str) -> Vec<StateChange> {
        match self.get(stream).generation {
            // Another oid than any table's.
            Some(generation) => {
                let (sinks, next_for) = (Vec::new(), None);
                self.set(stream, Generation { oid: 0, finished: false, sinks, next_for, ..generation })
            }
            None => Vec::new(),
        }
    }

    /// The reading under way has to begin anew, for whom it is.
    pub(crate) fn anew(&self, stream: &str) -> Vec<StateChange> {
        match self.get(stream).generation {
            Some(generation) => {
                let next_for = Some(generation.next_for.unwrap_or_else(|| generation.sinks.clone()));
                self.set(stream, Generation { finished: false, next_for, ..generation })
            }
            None => Vec::new(),
        }
    }

    /// The table is read again for one sink alone, once for each asking. What
    /// is under way for others begins anew, for both.
    pub(crate) fn again_for(&self, stream: &str, sink: &str, serial: i64) -> Vec<StateChange> {
        let Some(mut generation) = self.get(stream).generation else { return Vec::new() };
        if generation.heard.get(sink) == Some(&serial) {
            return Vec::new();
        }
        let pending = match generation.next_for.take() {
            Some(sinks) => Some(sinks),
            None if generation.finished => None,
            None => Some(std::mem::take(&mut generation.sinks)),
        };
        // None is waited for; of those under way an empty list is all.
        let sinks = match pending {
            None => vec![sink.to_owned()],
            Some(all) if all.is_empty() => all,
            Some(mut sinks) => {
                if !sinks.iter().any(|other| other == sink) {
                    sinks.push(sink.into());
                }
                sinks
            }
        };
        generation.heard.insert(sink.into(), serial);
        self.set(stream, Generation { finished: false, next_for: Some(sinks), ..generation })
    }

    /// Counts the next reading of a table: destinations may still hold what an
    /// earlier one brought, be it followed no more since.
    pub(crate) fn next_generation(&self, stream: &str) -> u64 {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner).get(stream).copied();
        self.get(stream).generation.map(|read| read.generation).max(left).unwrap_or(0) + 1
    }

    /// The table is followed no more.
    pub(crate) fn forget(&self, stream: &str) -> Vec<StateChange> {
        let last = self.next_generation(stream) - 1;
        let Some(table) = self.lock().remove(stream) else { return Vec::new() };
        self.left.lock().unwrap_or_else(PoisonError::into_inner).insert(stream.to_owned(), last);
        let chunks = table.chunks.iter().map(|&(leaf, number)| chunk_key(stream, leaf, number));
        let owed = table.owed.iter().map(|key| owed_key(stream, key));
        let all = chunks.chain(owed).chain([format!("{TABLE}{stream}")]).map(remove);
        all.chain([put(format!("{LEFT}{stream}"), last.to_string().into_bytes())]).collect()
    }

    pub(crate) fn set_total(&self, stream: &str, total: u64) {
        self.lock().entry(stream.to_owned()).or_default().total = total;
    }

    /// A chunk is done.
    pub(crate) fn done(&self, stream: &str, leaf: u32, number: u64, rows: u64) -> StateChange {
        let mut tables = self.lock();
        let table = tables.entry(stream.to_owned()).or_default();
        table.chunks.insert((leaf, number));
        if let Some(generation) = &mut table.generation {
            generation.rows += rows;
        }
        put(chunk_key(stream, leaf, number), Vec::new())
    }

    /// A key must be read again.
    pub(crate) fn owe(&self, stream: &str, key: Vec<Option<String>>) -> Option<StateChange> {
        let key: Vec<String> = key.into_iter().collect::<Option<_>>()?;
        let fresh = self.lock().entry(stream.to_owned()).or_default().owed.insert(key.clone());
        (fresh && !key.is_empty()).then(|| put(owed_key(stream, &key), Vec::new()))
    }

    /// Keys were read again.
    pub(crate) fn paid(&self, stream: &str, keys: &BTreeSet<Vec<String>>) -> Vec<StateChange> {
        let mut tables = self.lock();
        let table = tables.entry(stream.to_owned()).or_default();
        keys.iter()
            .map(|key| {
                table.owed.remove(key);
                remove(owed_key(stream, key))
            })
            .collect()
    }
}

fn chunk_key(stream: &str, leaf: u32, number: u64) -> String {
    format!("{CHUNK}{stream}/{leaf}/{number}")
}

fn owed_key(stream: &str, key: &[String]) -> String {
    format!("{OWED}{stream}/{}", serde_json::to_string(key).expect("texts serialise"))
}

fn put(key: String, value: Vec<u8>) -> StateChange {
    StateChange { key: key.into_bytes().into(), value: Some(value.into()) }
}

fn remove(key: String) -> StateChange {
    StateChange { key: key.into_bytes().into(), value: None }
}
