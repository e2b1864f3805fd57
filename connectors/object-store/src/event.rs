//! What folding takes of an event, whatever the format of its file.

use connector::Table;

/// An event of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) act: Act,
    /// Its place in the log.
    pub(crate) offset: u64,
    /// The key's values as text; without a key there are none.
    pub(crate) key: Box<[String]>,
    /// A hash for each of the table's columns.
    pub(crate) hashes: Box<[u64]>,
    /// The columns that the database did not send.
    pub(crate) absent: Vec<usize>,
    /// The key that it had before, if that was another.
    pub(crate) old_key: Option<Box<[String]>>,
    /// The hashes of the whole old row, where the file has it.
    pub(crate) before: Option<Box<[u64]>>,
}

/// What it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Read,
    Insert,
    Update,
    Delete,
    Truncate,
    /// A reading of the whole table begins.
    Begin,
    /// It ends.
    End,
}

impl Act {
    /// As files have it.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "read" => Act::Read,
            "insert" => Act::Insert,
            "update" => Act::Update,
            "delete" => Act::Delete,
            "truncate" => Act::Truncate,
            "snapshot_begin" => Act::Begin,
            "snapshot_end" => Act::End,
            _ => return None,
        })
    }

    /// Whether it is one row's.
    pub(crate) fn has_row(self) -> bool {
        !matches!(self, Act::Truncate | Act::Begin | Act::End)
    }
}

/// Why a file is of no use.
#[derive(Debug)]
pub(crate) enum Unread {
    /// It is not as it was written.
    Broken(String),
    /// It does not tell what would have to be known.
    Incomparable(String),
}

impl Unread {
    pub(crate) fn broken(error: impl std::fmt::Display) -> Self {
        Unread::Broken(error.to_string())
    }

    /// It lacks one of our own columns.
    pub(crate) fn lacks(prefix: &str, name: &str) -> Self {
        Unread::Broken(format!("it has no column {prefix}{name}"))
    }

    /// A column has another name by now, and the file does not say which.
    pub(crate) fn renamed() -> Self {
        Unread::Incomparable("columns were renamed since its files were written, which they do not tell".into())
    }
}

/// Places of columns, by their names.
pub(crate) fn places<'a>(table: &Table, names: impl Iterator<Item = &'a str>) -> Vec<usize> {
    names.filter_map(|name| table.columns.iter().position(|column| column.name == name)).collect()
}
