//! `verify`: whether a destination is equal to its source, at one position of
//! the log, while both go on.
//!
//! ```text
//!  verify            daemon                         source        destination
//!    ├─ begin ────────► slot with a snapshot ─────────► S
//!    ├─ SET TRANSACTION SNAPSHOT ─────────────────────► S
//!    │                  stream ─► log ─► up to S, end of step ─► sink commits, stands still
//!    ├─ BEGIN, checkpoint = that step's ──────────────────────────────► S
//!    ├─ release ──────► sink goes on
//!    └─ compare
//! ```

mod lake;
mod point;
mod report;
mod serve;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use compare::{Leaf, Limits, Outcome, Pace, Place, Progress, Side, Table};
use config::{Config, Destination, Patterns, Postgres, Source};
use connector::{Action, Error, Result};
use serde_json::{Value, json};

use crate::args::Verify;
use crate::exit::{Exit, failure};
use crate::{control, held, layout, quarantine};
use point::{Daemon, Point};
use report::{Compared, Summary};

pub(crate) use serve::running;

/// Capture may begin anew while a point is made: so often it is asked for again.
const TRIES: u32 = 3;
const AGAIN: Duration = Duration::from_secs(1);
/// Keys that are read again one by one; a table that lacks more is read again whole.
const MENDED: usize = 100_000;
/// Keys of one request.
const KEYS: usize = 2_000;
const BYTES: usize = 256 << 10;

/// What is compared with what.
struct Job<'a> {
    config: &'a Config,
    args: &'a Verify,
    json: bool,
    source: &'a Postgres,
    sink: &'a config::Sink,
    patterns: Patterns,
}

pub(crate) async fn run(config: &Config, args: &Verify, json: bool) -> Exit {
    let usage = |what: String| {
        eprintln!("{what}");
        Exit::Usage
    };
    let Some(Source::Postgres(source)) = config.sources.get(&args.source) else {
        let known: Vec<&str> = config.sources.keys().map(String::as_str).collect();
        return usage(format!("there is no source {:?}; there is: {}", args.source, known.join(", ")));
    };
    let Some(sink) = config.sinks.get(&args.sink) else {
        let known: Vec<&str> = config.sinks.keys().map(String::as_str).collect();
        return usage(format!("there is no sink {:?}; there is: {}", args.sink, known.join(", ")));
    };
    if !sink.from.contains(&args.source) {
        return usage(format!("sink {:?} does not take from source {:?}", args.sink, args.source));
    }
    let patterns = if args.table.is_empty() { vec!["*".to_owned()] } else { args.table.clone() };
    let patterns = match Patterns::new(patterns) {
        Ok(patterns) => patterns,
        Err((pattern, why)) => return usage(format!("{pattern:?} is no pattern: {why}")),
    };
    let job = Job { config, args, json, source, sink, patterns };
    match job.run().await {
        Ok(true) => Exit::Done,
        Ok(false) => Exit::Unequal,
        Err(error) => {
            failure("verify", &error);
            Exit::Halted
        }
    }
}

impl Job<'_> {
    async fn run(&self) -> Result<bool> {
        let (tables, equal) = self.verify(None, false).await?;
        if tables.is_empty() {
            return Err(Error::halt(format!("no captured table of {} matches", self.args.source))
                .hint("names are schema.table; `highwater status --json` lists the captured ones"));
        }
        if equal || !self.args.repair {
            return Ok(equal);
        }
        let mended = self.repair(&tables).await?;
        if mended.is_empty() {
            return Ok(false);
        }
        // Tables that were equal are not compared again: what was proven is proven.
        let (_, equal) = self.verify(Some(&mended), true).await?;
        Ok(equal && tables.iter().all(|table| table.outcome.skipped.is_none()))
    }

    /// Tables of which rows are held back, and what to look at.
    fn waiting(&self) -> Result<BTreeMap<String, String>> {
        let source = &self.args.source;
        let mut waiting = BTreeMap::new();
        for (schema, table) in quarantine::tables(self.config, source)? {
            let why = format!("rows of it wait: `highwater quarantine list {source}`");
            waiting.insert(format!("{schema}.{table}"), why);
        }
        for held in held::from_files(self.config, source)? {
            let table = held["table"].as_str().unwrap_or_default().to_owned();
            let why = format!("it is held back: `highwater schemas diff {source} '{table}'`");
            waiting.insert(table, why);
        }
        Ok(waiting)
    }

    fn daemon(&self) -> Daemon {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        Daemon {
            socket: layout::socket(self.config),
            source: self.args.source.clone(),
            sink: self.args.sink.clone(),
            id: format!("{}-{now}", std::process::id()),
        }
    }

    fn pace(&self) -> Pace {
        Pace::new(self.args.rows_per_second.unwrap_or(0))
    }

    /// Compares at a point of its own; with `only`, these streams.
    async fn verify(&self, only: Option<&[String]>, after_repair: bool) -> Result<(Vec<Compared>, bool)> {
        let begun = Instant::now();
        let mut tries = 0;
        let (point, destination) = loop {
            tries += 1;
            let daemon = self.daemon();
            let stood = self.stand(&daemon).await;
            daemon.release().await;
            match stood {
                Err(error) if error.action() == Action::Retry && tries < TRIES => {
                    eprintln!("{}: once more", error.chain());
                    tokio::time::sleep(AGAIN).await;
                }
                stood => break stood?,
            }
        };
        let wanted = |name: &str| self.sink.tables.matches(name) && self.patterns.matches(name);
        let mut tables = connector_postgres::compared(point.source.holder(), self.source, wanted).await?;
        tables.retain(|table| only.is_none_or(|only| only.contains(&table.stream)));
        // What waits for a person is no difference to be mended.
        let waiting = self.waiting()?;
        for table in &mut tables {
            if let Some(why) = waiting.get(&format!("{}.{}", table.schema, table.name)) {
                table.not_comparable.get_or_insert_with(|| why.clone());
            }
        }
        let summary = (point.position.clone(), point.checkpoint);
        let compared = match destination {
            There::Warehouse(side) => self.warehouse(point, *side, tables).await?,
            There::Lake(files) => self.lake(&point, &files, tables).await?,
        };
        let (position, checkpoint) = summary;
        let summary = Summary {
            source: &self.args.source,
            sink: &self.args.sink,
            position: &position,
            checkpoint,
            took: begun.elapsed(),
            after_repair,
        };
        let equal = report::summary(&summary, &compared, self.json);
        Ok((compared, equal))
    }

    /// Has source and destination stand at a point, and holds both there.
    async fn stand(&self, daemon: &Daemon) -> Result<(Point, There)> {
        let mut last = String::new();
        let mut said = Instant::now();
        let say = |what: String| {
            if what != last && (last.is_empty() || said.elapsed() > Duration::from_secs(5)) {
                eprintln!("{what}");
                (last, said) = (what, Instant::now());
            }
        };
        match &self.sink.destination {
            Destination::Postgres(warehouse) => {
                // Connected before the sink stands still, which is then short.
                let servers = connector_postgres_sink::connect(warehouse).await?;
                let point = daemon.point(self.source, self.pace(), say).await?;
                let mut other = None;
                for server in servers {
                    match self.stands(server, point.checkpoint).await {
                        Ok(side) => return Ok((point, There::Warehouse(Box::new(side)))),
                        Err(error) => drop(other.get_or_insert(error)),
                    }
                }
                Err(other.unwrap_or_else(|| Error::retry("no server of the destination takes writes")))
            }
            Destination::ObjectStore(store) => {
                let files = connector_object_store::Files::new(store, &self.args.sink, &self.args.source)?;
                let point = daemon.point(self.source, self.pace(), say).await?;
                Ok((point, There::Lake(files)))
            }
        }
    }

    /// A server of the destination, if it is the one that has the point.
    async fn stands(&self, (holder, worker): connector_postgres_sink::Sessions, at: u64) -> Result<Side> {
        let side = Side::sink(holder, worker, self.pace()).await?;
        let (sink, source) = (&self.args.sink, &self.args.source);
        match connector_postgres_sink::checkpoint(side.holder(), sink, source).await? {
            Some(found) if found == at => Ok(side),
            found => {
                let found = found.unwrap_or_default();
                Err(Error::retry(format!("the destination has checkpoint {found}, and not {at} of the point")))
            }
        }
    }

    async fn warehouse(
        &self,
        point: Point,
        mut sink: Side,
        tables: Vec<connector_postgres::ComparedTable>,
    ) -> Result<Vec<Compared>> {
        let mut source = point.source;
        let hash = source.hash(&sink).await?;
        let (name, from) = (&self.args.sink, &self.args.source);
        let there = connector_postgres_sink::compared(sink.holder(), name, from).await?;
        let there: BTreeMap<String, _> = there.into_iter().map(|table| (table.stream.clone(), table)).collect();
        let limits = Limits { findings: self.args.limit, keys: MENDED, values: self.args.show_values };
        let jobs: Vec<(connector_postgres::ComparedTable, Result<Table, String>)> = tables
            .into_iter()
            .map(|table| {
                let pair = pair(&table, there.get(&table.stream), &point.reading);
                (table, pair)
            })
            .collect();
        let progress = Arc::new(Progress::default());
        progress.expect(jobs.iter().filter_map(|(_, pair)| pair.as_ref().ok()).map(Table::blocks).sum());
        let shown = report::show(progress.clone(), format!("verify {from} {name}"));
        let mut compared = Vec::new();
        for (table, pair) in jobs {
            let outcome = match pair {
                Ok(pair) => compare::compare(&mut source, &mut sink, &pair, hash, limits, &progress).await?,
                Err(why) => Outcome::skipped(why),
            };
            let name = format!("{}.{}", table.schema, table.name);
            let table = Compared { stream: table.stream, table: name, outcome };
            report::table(&table, self.json);
            compared.push(table);
        }
        drop(shown);
        Ok(compared)
    }

    async fn lake(
        &self,
        point: &Point,
        files: &connector_object_store::Files,
        tables: Vec<connector_postgres::ComparedTable>,
    ) -> Result<Vec<Compared>> {
        let limits = Limits { findings: self.args.limit, keys: MENDED, values: self.args.show_values };
        let progress = Arc::new(Progress::default());
        let blocks = |table: &connector_postgres::ComparedTable| table.leaves.iter().map(|leaf| leaf.3).sum::<u64>();
        progress.expect(tables.iter().map(blocks).sum());
        let shown = report::show(progress.clone(), format!("verify {} {}", self.args.source, self.args.sink));
        let mut compared = Vec::new();
        for table in tables {
            let outcome = match why_not(&table, &point.reading) {
                Some(why) => Outcome::skipped(why),
                None => {
                    let (holder, snapshot) = (point.source.holder(), point.source.snapshot());
                    let rows = connector_postgres::SourceRows::new(holder, self.source, &table, snapshot).await?;
                    let pace = self.args.rows_per_second.unwrap_or(0);
                    lake::compare(files, rows, point.checkpoint, pace, limits).await?
                }
            };
            progress.read(blocks(&table), outcome.source_rows);
            let name = format!("{}.{}", table.schema, table.name);
            let table = Compared { stream: table.stream, table: name, outcome };
            report::table(&table, self.json);
            compared.push(table);
        }
        drop(shown);
        Ok(compared)
    }

    /// Has the daemon mend what differs; the streams that were.
    async fn repair(&self, tables: &[Compared]) -> Result<Vec<String>> {
        let daemon = self.daemon();
        let mut pieces = Vec::new();
        let mut whole = Vec::new();
        let mut mended = Vec::new();
        for table in tables.iter().filter(|t| t.outcome.skipped.is_none() && !t.outcome.is_equal()) {
            mended.push(table.stream.clone());
            match &table.outcome.keys {
                Some(keys) => split(keys).into_iter().for_each(|keys| pieces.push((table.stream.clone(), keys))),
                None => whole.push(table.stream.clone()),
            }
        }
        let before = if whole.is_empty() { BTreeMap::new() } else { self.generations().await? };
        if !whole.is_empty() {
            for stream in &whole {
                eprintln!("{stream} is read again as a whole");
            }
            daemon.ask(&daemon.id, "read_again", json!({"streams": whole})).await?;
        }
        let mut ids = Vec::new();
        for (n, (stream, keys)) in pieces.into_iter().enumerate() {
            let id = format!("{}-{n}", daemon.id);
            daemon.ask(&id, "mend", json!({"stream": stream, "keys": keys})).await?;
            ids.push(id);
        }
        let (mut read, mut deleted) = (0, 0);
        while !ids.is_empty() {
            let mut left = Vec::new();
            for id in ids {
                let now = daemon.ask(&id, "look", json!({})).await?;
                let point = &now["point"];
                match point["is"].as_str() {
                    Some("mended") => {
                        read += point["read"].as_u64().unwrap_or(0);
                        deleted += point["deleted"].as_u64().unwrap_or(0);
                        daemon.ask(&id, "release", json!({})).await?;
                    }
                    Some("failed") | None => {
                        let error = point["error"].as_str().unwrap_or("the daemon has been started anew meanwhile");
                        return Err(Error::halt(format!("could not mend: {error}")).hint(
                            "verify with --repair again; or `highwater snapshot` reads a table again as a whole",
                        ));
                    }
                    _ => left.push(id),
                }
            }
            ids = left;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if read + deleted > 0 {
            eprintln!("{read} rows are read again, {deleted} deleted, at every sink of {}", self.args.source);
        }
        // A reading is whole when its generation is a later one and has ended.
        while !whole.is_empty() {
            let now = self.generations().await?;
            whole.retain(|stream| {
                let generation = |of: &BTreeMap<String, (u64, bool)>| of.get(stream).copied().unwrap_or((0, false));
                let ((old, _), (new, finished)) = (generation(&before), generation(&now));
                !(finished && new > old)
            });
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(mended)
    }

    /// By stream, its generation and whether that is read.
    async fn generations(&self) -> Result<BTreeMap<String, (u64, bool)>> {
        let status = control::ask(&layout::socket(self.config), &json!({"command": "status"})).await;
        let status = status.ok_or_else(|| Error::halt("the daemon does not answer any more"))?;
        let mut sources = status["sources"].as_array().into_iter().flatten();
        let source = sources.find(|source| source["name"] == self.args.source.as_str());
        let tables = source.and_then(|source| source["tables"].as_array());
        let of = |table: &Value| {
            let generation = (table["generation"].as_u64().unwrap_or(0), table["finished"] == true);
            (table["stream"].as_str().unwrap_or_default().to_owned(), generation)
        };
        Ok(tables.into_iter().flatten().map(of).collect())
    }
}

/// A destination that is held.
enum There {
    Warehouse(Box<Side>),
    Lake(connector_object_store::Files),
}

/// In requests of a bearable size.
fn split(keys: &[Vec<String>]) -> Vec<Vec<Vec<String>>> {
    let mut pieces = Vec::new();
    let (mut piece, mut bytes) = (Vec::new(), 0);
    for key in keys {
        bytes += key.iter().map(|value| value.len() * 2 + 8).sum::<usize>();
        piece.push(key.clone());
        if piece.len() >= KEYS || bytes >= BYTES {
            pieces.push(std::mem::take(&mut piece));
            bytes = 0;
        }
    }
    if !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
}

/// Why the source's side of it cannot be compared.
fn why_not(source: &connector_postgres::ComparedTable, reading: &[String]) -> Option<String> {
    let reading = reading.contains(&source.stream);
    let wait = "it is being read: verify again when `highwater status` says that it is done";
    source.not_comparable.clone().or_else(|| reading.then(|| wait.into()))
}

/// The table in both places; else why it cannot be compared.
fn pair(
    source: &connector_postgres::ComparedTable,
    sink: Option<&connector_postgres_sink::ComparedTable>,
    reading: &[String],
) -> Result<Table, String> {
    if let Some(why) = why_not(source, reading) {
        return Err(why);
    }
    let Some(sink) = sink else {
        return Err("the destination does not have it: nothing of it was delivered yet".into());
    };
    if let Some(why) = &sink.not_comparable {
        return Err(why.clone());
    }
    let mut columns = Vec::new();
    let mut places = (Vec::new(), Vec::new());
    for (id, name, ty) in &source.columns {
        // By number, so that a rename that is not yet there is none; a table made anew has others.
        let by_id = sink.columns.iter().find(|(here, _, _)| here == id);
        let here = by_id.or_else(|| sink.columns.iter().find(|(_, here, _)| here == name));
        columns.push(name.clone());
        places.0.push(Some((name.clone(), ty.clone())));
        places.1.push(here.map(|(_, name, ty)| (name.clone(), ty.clone())));
    }
    let key: Vec<usize> = source.key.iter().filter_map(|name| columns.iter().position(|c| c == name)).collect();
    if key.iter().any(|&i| places.1[i].is_none()) {
        return Err("the destination lacks a column of its key".into());
    }
    let place = |quoted: &str, leaves: &[(u32, String, u32, u64)], columns| Place {
        quoted: quoted.to_owned(),
        leaves: leaves
            .iter()
            .map(|(oid, quoted, file_node, blocks)| Leaf {
                oid: *oid,
                quoted: quoted.clone(),
                file_node: *file_node,
                blocks: *blocks,
            })
            .collect(),
        columns,
    };
    Ok(Table {
        columns,
        key,
        source: place(&source.quoted, &source.leaves, places.0),
        sink: place(&sink.quoted, &sink.leaves, places.1),
    })
}
