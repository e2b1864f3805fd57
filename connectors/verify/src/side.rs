//! One of the two servers: a session that holds a snapshot and nothing else,
//! and one that works under it.

use connector::{Error, Result};
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use crate::pace::Pace;
use crate::table::{Leaf, Which, literal};

/// How a text is hashed to 64 bits on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// The server's own hash, where both compute the same.
    Native,
    /// Servers of another byte order or encoding: slower, and the same everywhere.
    Md5,
}

impl Hash {
    pub(crate) fn text(self, text: &str) -> String {
        match self {
            Hash::Native => format!("hashtextextended({text} COLLATE \"C\", 0)"),
            Hash::Md5 => format!("('x' || substr(md5(convert_to({text}, 'UTF8')), 1, 16))::bit(64)::bigint"),
        }
    }

    pub(crate) fn integer(self, number: &str) -> String {
        match self {
            Hash::Native => format!("hashint8extended({number}, 0)"),
            Hash::Md5 => self.text(&format!("({number})::text")),
        }
    }
}

/// Why a piece could not be read.
pub(crate) enum Failure {
    /// The table was rewritten or altered since the snapshot: it cannot tell any more.
    Changed,
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Error(error)
    }
}

/// A server, under one snapshot.
pub struct Side {
    pub(crate) which: Which,
    /// For people.
    name: &'static str,
    holder: Client,
    worker: Client,
    snapshot: String,
    /// Ranges of blocks are read as such, and not by looking at every row.
    pub(crate) by_block: bool,
    pub(crate) pace: Pace,
}

impl Side {
    /// The source, under a snapshot that somebody exports.
    pub async fn source(holder: Client, worker: Client, snapshot: &str, pace: Pace) -> Result<Self> {
        let begin = format!("{BEGIN}; SET TRANSACTION SNAPSHOT {}", literal(snapshot));
        Self::begin(Which::Source, holder, worker, &begin, pace).await
    }

    /// The destination, as it is now.
    pub async fn sink(holder: Client, worker: Client, pace: Pace) -> Result<Self> {
        Self::begin(Which::Sink, holder, worker, BEGIN, pace).await
    }

    async fn begin(which: Which, holder: Client, worker: Client, begin: &str, pace: Pace) -> Result<Self> {
        let name = if which == Which::Source { "source" } else { "destination" };
        let attempt = || format!("could not hold a snapshot of the {name}");
        holder.batch_execute(begin).await.map_err(|error| failed(error, attempt()))?;
        let sql = "SELECT pg_export_snapshot(), current_setting('server_version_num')";
        let row = holder.query_one(sql, &[]).await.map_err(|error| failed(error, attempt()))?;
        let by_block = row.get::<_, String>(1).parse().is_ok_and(|version: u32| version >= 140_000);
        // The planner knows nothing of how few buckets there are, and would sort all rows.
        let settings = "SET lock_timeout = '10s'; SET max_parallel_workers_per_gather = 0; SET jit = off;
                        SET enable_sort = off; SET work_mem = '16MB'";
        worker.batch_execute(settings).await.map_err(|error| failed(error, attempt()))?;
        Ok(Self { which, name, holder, worker, snapshot: row.get(0), by_block, pace })
    }

    /// The session that holds the snapshot: small questions may be asked there.
    pub fn holder(&self) -> &Client {
        &self.holder
    }

    /// The snapshot, for who reads in another form.
    pub fn snapshot(&self) -> &str {
        &self.snapshot
    }

    /// The hash that both sides compute alike.
    pub async fn hash(&self, other: &Side) -> Result<Hash> {
        const PROBE: &str = "SELECT hashtextextended('the high-water mark' COLLATE \"C\", 0)::text
                                 || ' ' || hashint8extended(4711, 0) || ' ' || getdatabaseencoding()";
        let mut answers = Vec::new();
        for side in [self, other] {
            let row = side.holder.query_one(PROBE, &[]).await;
            answers.push(
                row.map_err(|error| failed(error, "could not compare how the servers hash"))?.get::<_, String>(0),
            );
        }
        Ok(if answers[0] == answers[1] { Hash::Native } else { Hash::Md5 })
    }

    /// Runs one statement in a short transaction of its own under the snapshot;
    /// with a relation, only if that is still the same.
    pub(crate) async fn rows(&self, sql: &str, of: Option<&Leaf>) -> Result<Vec<SimpleQueryRow>, Failure> {
        let rows = self.attempt(sql, of).await;
        let end = if rows.is_ok() { "COMMIT" } else { "ROLLBACK" };
        // After an error of the connection there is nothing to end.
        let _ = self.worker.batch_execute(end).await;
        rows
    }

    async fn attempt(&self, sql: &str, of: Option<&Leaf>) -> Result<Vec<SimpleQueryRow>, Failure> {
        let failed = |error: tokio_postgres::Error| match error.code().map(|code| code.code()) {
            Some("42703" | "42P01" | "42804" | "42883" | "42704") => Failure::Changed,
            _ => Failure::Error(failed(error, format!("could not read the {}", self.name))),
        };
        let begin = format!("{BEGIN}; SET TRANSACTION SNAPSHOT {}", literal(&self.snapshot));
        match of {
            None => self.worker.batch_execute(&begin).await.map_err(failed)?,
            Some(leaf) => {
                let lock = format!(
                    "{begin}; LOCK TABLE {} IN ACCESS SHARE MODE; SELECT coalesce(pg_relation_filenode({}), 0)",
                    leaf.quoted, leaf.oid
                );
                let node = texts(self.worker.simple_query(&lock).await.map_err(failed)?);
                let node = node.first().and_then(|row| row.get(0)).and_then(|node| node.parse().ok());
                if node != Some(leaf.file_node) {
                    return Err(Failure::Changed);
                }
            }
        }
        Ok(texts(self.worker.simple_query(sql).await.map_err(failed)?))
    }
}

const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

fn texts(messages: Vec<SimpleQueryMessage>) -> Vec<SimpleQueryRow> {
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    };
    messages.into_iter().filter_map(row).collect()
}

fn failed(error: tokio_postgres::Error, attempt: impl Into<String>) -> Error {
    let hint = match error.code().map(|code| code.code()) {
        Some("42501") => "the role may not read it: docs/verify.md has the grants",
        Some("55P03") => "somebody holds a lock on the table for long: look at pg_stat_activity, then verify again",
        Some("72000" | "22023") => "the snapshot is gone: verify again",
        _ => "verify again; it changes nothing and leaves nothing behind",
    };
    Error::halt(attempt).because(error).hint(hint)
}
