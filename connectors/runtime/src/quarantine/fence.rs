//! Which keys must wait, and how a row's keys are read.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use connector::{Change, Malformed, Op, Reader, Shape, Table, TableKind, Type, Unfit};

use crate::contract::{Check, Contracts};

/// What is known of a shape whose rows pass.
pub(crate) struct Known {
    pub(crate) shape: Arc<Shape>,
    pub(crate) stream: Arc<str>,
    pub(crate) check: Option<Check>,
    /// The key's columns by id and type: keys of another kind do not compare.
    pub(crate) kind: KeyKind,
}

/// What keys are made of.
pub(crate) type KeyKind = Vec<(i32, Type)>;

impl Known {
    pub(crate) fn new(shape: Arc<Shape>, contracts: &Contracts) -> Self {
        let table = &shape.table;
        let kind = table.key.iter().map(|&i| match &table.columns[i] {
            // An int is written as a long is.
            column if column.ty == Type::Int => (column.id, Type::Long),
            column => (column.id, column.ty.clone()),
        });
        let kind = kind.collect();
        Self { stream: table.stream().into(), check: contracts.check(table), kind, shape }
    }

    pub(crate) fn is_table(&self) -> bool {
        self.shape.table.kind == TableKind::Table
    }
}

/// The keys that a row touches; its buffers are used again.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    /// Whether `key` tells which row it is.
    pub(crate) known: bool,
    pub(crate) key: Vec<u8>,
    pub(crate) old: Option<Vec<u8>>,
    slices: Vec<(usize, usize)>,
}

impl Keys {
    /// Of a row. One without a key, or whose key cannot be carried, has none.
    pub(crate) fn read(&mut self, table: &Table, change: &Change<'_>) -> Result<(), Malformed> {
        self.known = false;
        self.key.clear();
        self.old = None;
        if table.key.is_empty() || change.op == Op::Truncate {
            return Ok(());
        }
        if change.unfit {
            let unfit = Unfit::read(change.value)?;
            if let Some(key) = unfit.key {
                self.known = true;
                self.key.extend_from_slice(key);
                self.old = unfit.old_key.map(<[u8]>::to_vec);
            }
            return Ok(());
        }
        let last = table.key.iter().max().copied().unwrap_or(0);
        let mut reader = Reader::new(change.value);
        self.slices.clear();
        for (i, column) in table.columns.iter().enumerate().take(last + 1) {
            let start = change.value.len() - reader.rest().len();
            if table.in_key(i) {
                reader.skip(&column.ty)?;
            } else {
                reader.skip_nullable(&column.ty)?;
            }
            self.slices.push((start, change.value.len() - reader.rest().len()));
        }
        for &i in &table.key {
            let (start, end) = self.slices[i];
            self.key.extend_from_slice(&change.value[start..end]);
        }
        self.known = true;
        self.old = change.old_key.map(<[u8]>::to_vec);
        Ok(())
    }
}

/// What of a stream must wait.
#[derive(Debug, Default)]
pub(crate) struct Fence {
    /// All of it: a row without a key waits, or keys are of two kinds.
    whole: bool,
    /// All of it, since the quarantine was full.
    pub(crate) parked: bool,
    keys: HashSet<Box<[u8]>>,
    kind: KeyKind,
}

/// By stream.
#[derive(Debug, Default)]
pub(crate) struct Fences {
    streams: HashMap<Arc<str>, Fence>,
}

impl Fences {
    pub(crate) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    pub(crate) fn has(&self, stream: &str) -> bool {
        self.streams.contains_key(stream)
    }

    pub(crate) fn remove(&mut self, stream: &str) {
        self.streams.remove(stream);
    }

    /// All of a stream waits from now on.
    pub(crate) fn park(&mut self, stream: &Arc<str>) {
        self.streams.entry(stream.clone()).or_default().parked = true;
    }

    pub(crate) fn is_parked(&self, stream: &str) -> bool {
        self.streams.get(stream).is_some_and(|fence| fence.parked)
    }

    /// Streams that wait as a whole for want of room.
    pub(crate) fn parked(&self) -> impl Iterator<Item = &Arc<str>> {
        self.streams.iter().filter(|(_, fence)| fence.parked).map(|(stream, _)| stream)
    }

    /// Keys that wait, over all streams; a whole stream counts as one.
    pub(crate) fn count(&self) -> u64 {
        let of = |fence: &Fence| if fence.whole || fence.parked { 1 } else { fence.keys.len() as u64 };
        self.streams.values().map(of).sum()
    }

    /// Whether a row must wait behind another.
    pub(crate) fn blocks(&self, known: &Known, keys: &Keys) -> bool {
        let Some(fence) = self.streams.get(&known.stream) else { return false };
        let fenced = |key: &[u8]| fence.keys.contains(key);
        fence.whole
            || fence.parked
            || !keys.known
            || fence.kind != known.kind
            || fenced(&keys.key)
            || keys.old.as_deref().is_some_and(fenced)
    }

    /// A row waits: so does what comes after it.
    pub(crate) fn touch(&mut self, known: &Known, keys: &Keys) {
        let fence = self.streams.entry(known.stream.clone()).or_default();
        if fence.keys.is_empty() && !fence.whole {
            fence.kind.clone_from(&known.kind);
        }
        if !keys.known || fence.kind != known.kind {
            fence.whole = true;
        }
        // One that waits as a whole asks for no key, and may have very many.
        if !fence.whole && !fence.parked {
            for key in [Some(&keys.key), keys.old.as_ref()].into_iter().flatten() {
                if !fence.keys.contains(key.as_slice()) {
                    fence.keys.insert(key.as_slice().into());
                }
            }
        }
    }
}
