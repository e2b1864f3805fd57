//! The whole file.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::Figment;
use figment::providers::{Env, Format, Toml};
use figment::value::Value;
use toml::de::{DeTable, DeValue};

use crate::fault::{Fault, Faults, nearest};
use crate::listen::Http;
use crate::object_store::ObjectStore;
use crate::pattern::Patterns;
use crate::postgres::Postgres;
use crate::postgres_sink::PostgresSink;
use crate::registry::Registry;
use crate::section::{Faulty, Section, whole};

/// A configuration without faults.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it came from.
    pub file: PathBuf,
    /// Absolute.
    pub data_dir: PathBuf,
    /// By name.
    pub sources: BTreeMap<String, Source>,
    /// By name.
    pub sinks: BTreeMap<String, Sink>,
    /// Of every source's log.
    pub log: Log,
    /// Rows that wait for a person.
    pub quarantine: Quarantine,
    /// Served or elsewhere; None: ours, for ourselves.
    pub registry: Option<Registry>,
    /// Served, if at all.
    pub http: Option<Http>,
}

/// A source.
#[derive(Clone, Debug)]
pub enum Source {
    /// PostgreSQL.
    Postgres(Box<Postgres>),
}

/// A sink.
#[derive(Clone, Debug)]
pub struct Sink {
    /// Sources it takes from.
    pub from: Vec<String>,
    /// Tables it takes, as `schema.table`.
    pub tables: Patterns,
    /// Whether `tables` was given.
    pub narrowed: bool,
    /// Where a new sink begins.
    pub start: Start,
    /// A sink further behind is detached; 0: never.
    pub max_backlog: u64,
    /// The destination.
    pub destination: Destination,
}

/// Where a new sink begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the log's beginning, which must still be there.
    Log,
    /// At the log's end, with a reading of its own.
    Snapshot,
    /// At an offset, whatever came before.
    Offset(u64),
    /// At a time, like `2026-11-22T10:00:00Z`, whatever came before.
    Time(String),
}

/// Where a sink's changes go.
#[derive(Clone, Debug)]
pub enum Destination {
    /// Files in a folder or a bucket.
    ObjectStore(Box<ObjectStore>),
    /// Tables of a PostgreSQL warehouse.
    Postgres(Box<PostgresSink>),
}

impl Destination {
    /// As `type` has it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ObjectStore(_) => "object-store",
            Self::Postgres(_) => "postgres",
        }
    }

    /// A step ends when its first event has waited so long.
    pub fn cut_age(&self) -> Duration {
        match self {
            Self::ObjectStore(store) => store.cut_age,
            Self::Postgres(warehouse) => warehouse.cut_age,
        }
    }
}

/// How logs are kept.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    /// Of a segment.
    pub segment_bytes: u64,
    /// Kept at least as far as sinks need it, else so long.
    pub retain_age: Duration,
    /// Or so much.
    pub retain_bytes: u64,
}

/// Rows that wait for a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quarantine {
    /// How much of a source's rows is held back at most.
    pub max_bytes: u64,
    /// What comes then.
    pub on_full: OnFull,
}

/// What a source does with a row that its quarantine has no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFull {
    /// It stops: a person must act.
    Halt,
    /// All of the row's table waits from then on, however much it is.
    Park,
}

impl Config {
    /// Reads a file, under the environment.
    pub fn load(file: &Path) -> Result<Self, Faults> {
        let file = std::path::absolute(file).unwrap_or_else(|_| file.into());
        let text = std::fs::read_to_string(&file).map_err(|error| {
            let suggestion = (error.kind() == std::io::ErrorKind::NotFound)
                .then(|| "`highwater init` writes one; --config names another".to_owned());
            let what = format!("cannot be read: {error}");
            let fault = Fault { place: file.display().to_string(), key: String::new(), what, suggestion };
            Faults { file: file.clone(), faults: vec![fault] }
        })?;
        let environment = Env::prefixed("HIGHWATER_").ignore(&["CONFIG", "LOG", "FAULT"]).split("__");
        Self::parse(&file, &text, Some(environment))
    }

    /// Reads a text alone, as if it stood in `file`; the environment has no say.
    pub fn from_text(file: &Path, text: &str) -> Result<Self, Faults> {
        Self::parse(file, text, None)
    }

    fn parse(file: &Path, text: &str, environment: Option<Env>) -> Result<Self, Faults> {
        let file = file.to_path_buf();
        let fail = |place: String, what: String, suggestion: Option<String>| Faults {
            file: file.clone(),
            faults: vec![Fault { place, key: String::new(), what, suggestion }],
        };
        let lines = lines(text).map_err(|(line, what)| fail(format!("{}:{line}", file.display()), what, None))?;
        let figment = Figment::from(Toml::string(text));
        let layered = environment.is_some();
        let merged: Result<Value, _> = match environment {
            Some(environment) => figment.merge(environment),
            None => figment,
        }
        .extract();
        let merged = merged.map_err(|error| fail(file.display().to_string(), error.to_string(), None))?;
        let mut faulty = Faulty { file: file.clone(), lines, layered, faults: Vec::new() };
        let config = Self::read(&file, merged, &mut faulty);
        if faulty.faults.is_empty() {
            return Ok(config);
        }
        Err(Faults { file, faults: faulty.in_order() })
    }

    fn read(file: &Path, merged: Value, faulty: &mut Faulty) -> Self {
        let mut root = Section::new("", merged, faulty);
        let folder = file.parent().map(PathBuf::from).unwrap_or_default();
        let data_dir = folder.join(root.text("data_dir").unwrap_or_else(|| "highwater-data".into()));
        let mut log =
            Log { segment_bytes: 256 << 20, retain_age: Duration::from_secs(7 * 86_400), retain_bytes: 50 << 30 };
        if let Some(mut section) = root.section("log") {
            log.segment_bytes = section.bytes("segment_bytes").unwrap_or(log.segment_bytes).max(64 << 10);
            if let Some(mut retain) = section.section("retain") {
                log.retain_age = retain.duration("age").unwrap_or(log.retain_age);
                log.retain_bytes = retain.bytes("bytes").unwrap_or(log.retain_bytes);
                retain.finish();
            }
            section.finish();
        }
        let mut quarantine = Quarantine { max_bytes: 256 << 20, on_full: OnFull::Halt };
        if let Some(mut section) = root.section("quarantine") {
            quarantine.max_bytes = section.bytes("max_bytes").unwrap_or(quarantine.max_bytes);
            if section.choice("on_full", &["halt", "park"]) == "park" {
                quarantine.on_full = OnFull::Park;
            }
            section.finish();
        }
        let registry = root.section("registry").and_then(Registry::read);
        let http = root.section("http").and_then(Http::read);
        let mut sources = BTreeMap::new();
        for (name, value) in root.named("sources") {
            let path = format!("sources.{name}");
            check_name(&path, &name, root.faulty);
            let mut section = Section::new(&path, value, root.faulty);
            match section.choice("type", &["postgres", "mysql"]) {
                "mysql" => section.fault("type", "\"mysql\" is not in this version", Some("\"postgres\"")),
                _ => drop(sources.insert(name.clone(), Source::Postgres(Box::new(Postgres::read(&name, section))))),
            }
        }
        two_on_one_slot(&sources, root.faulty);
        let mut sinks = BTreeMap::new();
        for (name, value) in root.named("sinks") {
            let path = format!("sinks.{name}");
            check_name(&path, &name, root.faulty);
            let mut section = Section::new(&path, value, root.faulty);
            let kind = section.choice("type", &["object-store", "postgres"]);
            let from = section.list("from").unwrap_or_default();
            if from.is_empty() {
                section.fault("from", "names no source", Some("write it like [\"shop\"]"));
            }
            for source in from.iter().filter(|source| !sources.contains_key(*source)) {
                let meant = nearest(source, sources.keys().map(String::as_str));
                let meant = meant.map(|meant| format!("did you mean {meant:?}?"));
                section.fault("from", format!("there is no source {source:?}"), meant.as_deref());
            }
            let start = start(&mut section);
            let max_backlog = section.bytes("max_backlog").unwrap_or(0);
            let given = section.list("tables");
            let narrowed = given.is_some();
            let tables = Patterns::new(given.unwrap_or_else(|| vec!["*".into()])).unwrap_or_else(|(pattern, why)| {
                section.fault("tables", format!("{pattern:?} is no pattern: {why}"), None);
                Patterns::new(Vec::new()).expect("no pattern cannot be wrong")
            });
            let destination = match kind {
                "postgres" => Destination::Postgres(Box::new(PostgresSink::read(section))),
                _ => Destination::ObjectStore(Box::new(ObjectStore::read(section))),
            };
            sinks.insert(name, Sink { from, tables, narrowed, start, max_backlog, destination });
        }
        let is_registry = matches!(registry, Some(Registry::Served(_)));
        if sources.is_empty() && !is_registry && root.faulty.faults.is_empty() {
            root.fault("sources", "there is none", Some("`highwater init` shows one"));
        }
        root.finish();
        Self { file: file.into(), data_dir, sources, sinks, log, quarantine, registry, http }
    }
}

/// Slots are the server's, whatever the database: two sources on one would
/// wait for each other for ever.
fn two_on_one_slot(sources: &BTreeMap<String, Source>, faulty: &mut Faulty) {
    let mut slots = HashMap::new();
    for (name, Source::Postgres(source)) in sources {
        let insert = |host| slots.insert((host, &source.slot), name).filter(|first| *first != name);
        // Each is put in, whatever came before.
        let same: Vec<&String> = source.hosts.iter().filter_map(insert).collect();
        if let Some(first) = same.first() {
            let what = format!("slot {:?} is that of source {first:?} too, on the same server", source.slot);
            faulty.add(&format!("sources.{name}.slot"), what, Some("give each source a slot of its own".into()));
        }
    }
}

fn start(section: &mut Section<'_>) -> Start {
    const FORM: &str = "one of \"log\", \"snapshot\", an offset like 1337, a time like \"2026-11-22T10:00:00Z\"";
    let is_time =
        |text: &str| text.ends_with('Z') && text.contains(['T', ' ']) && text.starts_with(|c: char| c.is_ascii_digit());
    match section.take("start") {
        None => Start::Log,
        Some(Value::String(_, text)) => match text.as_str() {
            "log" => Start::Log,
            "snapshot" => Start::Snapshot,
            text if text.parse::<u64>().is_ok() => Start::Offset(text.parse().unwrap_or(0)),
            text if is_time(text) => Start::Time(text.into()),
            text => {
                section.fault("start", format!("{text:?} is not known"), Some(FORM));
                Start::Log
            }
        },
        Some(value) => match whole(&value) {
            Some(offset) => Start::Offset(offset),
            None => {
                section.fault("start", "is no place in the log", Some(FORM));
                Start::Log
            }
        },
    }
}

fn check_name(path: &str, name: &str, faulty: &mut Faulty) {
    let mut chars = name.chars();
    let good = chars.next().is_some_and(|c| c.is_ascii_lowercase())
        && chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !good {
        faulty.add(path, "a name begins with a-z and has only a-z, 0-9 and _", None);
    }
}

/// The line of every key by its path; else the line and text of the first
/// thing that is no TOML.
fn lines(text: &str) -> Result<HashMap<String, usize>, (usize, String)> {
    let line_of = |at: usize| text.as_bytes().iter().take(at).filter(|&&b| b == b'\n').count() + 1;
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(span.start));
        (line, error.message().to_owned())
    })?;
    let mut lines = HashMap::new();
    let mut open = vec![(String::new(), table.into_inner())];
    while let Some((path, table)) = open.pop() {
        for (key, value) in table {
            let name = if path.is_empty() { key.get_ref().to_string() } else { format!("{path}.{}", key.get_ref()) };
            lines.insert(name.clone(), line_of(key.span().start));
            if let DeValue::Table(inner) = value.into_inner() {
                open.push((name, inner));
            }
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests;
