//! Whether what belongs together still agrees: a source's catalogue, the
//! schemas in its log, the registry, and the destinations' tables.

use std::sync::Arc;
use std::time::Duration;

use config::{Config, Destination, Source};
use connector::{Column, Error, Result, Shape, Shapes, Table};
use schema_registry::{Client, Registry, Shown, Store, Subject, Which, is_same};
use serde::Serialize;
use serde_json::json;
use storage::outside::LogFiles;
use tokio_util::sync::CancellationToken;

use crate::exit::{Exit, failure, log_error};
use crate::{layout, out, registry};

/// Two that do not agree about a table.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Difference {
    /// Its stream.
    stream: String,
    /// Which two.
    between: String,
    what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    sql: Option<String>,
    remedy: String,
    /// Nobody need do anything.
    by_itself: bool,
}

impl Difference {
    fn new(stream: &str, between: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (between, what, remedy) = (between.into(), what.into(), remedy.into());
        Self { stream: stream.to_owned(), between, what, sql: None, remedy, by_itself: false }
    }
}

/// What a look found, and what could not be looked at.
#[derive(Debug, Default)]
struct Found {
    differences: Vec<Difference>,
    tables: usize,
    unseen: Vec<(String, Error)>,
}

/// `highwater schemas check SOURCE`.
pub(crate) async fn run(config: &Config, source: &str, as_json: bool) -> Exit {
    let found = match look(config, source).await {
        Ok(found) => found,
        Err(error) => {
            failure(&format!("source {source}"), &error);
            return Exit::Halted;
        }
    };
    for difference in &found.differences {
        if as_json {
            out::line(json!(difference));
            continue;
        }
        out::line(format_args!("{}: {}: {}", difference.stream, difference.between, difference.what));
        if let Some(sql) = &difference.sql {
            out::line(format_args!("        SQL: {sql}"));
        }
        out::line(format_args!("        what to do: {}", difference.remedy));
    }
    if !found.unseen.is_empty() {
        for (what, error) in &found.unseen {
            failure(what, error);
        }
        return Exit::Halted;
    }
    if !found.differences.is_empty() {
        return Exit::Unequal;
    }
    if !as_json {
        out::line(format_args!("{} tables: source, log, registry and destinations agree", found.tables));
    }
    Exit::Done
}

/// Beside a daemon that starts: what will not mend itself is said in its log,
/// whenever that is known. Nothing waits for it.
pub(crate) async fn watch(config: Config, stop: CancellationToken) {
    const PATIENCE: Duration = Duration::from_secs(60);
    for source in config.sources.keys() {
        let looked = tokio::select! {
            () = stop.cancelled() => return,
            looked = tokio::time::timeout(PATIENCE, look(&config, source)) => looked,
        };
        // What cannot be reached is told by whoever needs it.
        let Ok(Ok(found)) = looked else { continue };
        for difference in found.differences.iter().filter(|difference| !difference.by_itself) {
            let Difference { stream, between, what, remedy, .. } = difference;
            tracing::warn!(
                stream,
                between,
                what,
                remedy,
                "schemas differ: `highwater schemas check {source}` has it all"
            );
        }
    }
}

async fn look(config: &Config, source: &str) -> Result<Found> {
    let Some(Source::Postgres(configured)) = config.sources.get(source) else {
        let known: Vec<&str> = config.sources.keys().map(String::as_str).collect();
        let hint = match known.is_empty() {
            true => "the configuration has none".to_owned(),
            false => format!("the configuration has: {}", known.join(", ")),
        };
        return Err(Error::halt(format!("there is no source {source:?}")).hint(hint));
    };
    let tables = connector_postgres::shapes(source, configured).await?;
    let shapes = shapes(config, source)?;
    let mut found = Found { tables: tables.len(), ..Found::default() };
    let held = match Held::open(config).await {
        Ok(held) => Some(held),
        Err(error) => {
            found.unseen.push(("registry".into(), error));
            None
        }
    };
    for table in &tables {
        let stream = table.stream();
        let mut known: Vec<&Arc<Shape>> = shapes.iter().filter(|shape| shape.table.stream() == stream).collect();
        known.sort_by_key(|shape| shape.number);
        // A table that was never written has nothing that could differ.
        let Some(last) = known.last() else { continue };
        // A change that was taken back is no new shape.
        let current = known.iter().rev().find(|shape| shape.table == *table);
        if current.is_none() {
            for what in changes(&last.table, table) {
                let remedy = "nothing: it is taken over with the next change of the table";
                let difference = Difference::new(&stream, "source and log", what, remedy);
                found.differences.push(Difference { by_itself: true, ..difference });
            }
        }
        if let Some(held) = &held
            && let Err(error) = held.compare(current.unwrap_or(last), &known, &mut found.differences).await
        {
            found.unseen.push((format!("registry, of {stream}"), error));
        }
    }
    for (name, sink) in config.sinks.iter().filter(|(_, sink)| sink.from.iter().any(|from| from == source)) {
        let taken = |table: &&Table| sink.tables.matches(&format!("{}.{}", table.schema, table.name));
        let tables: Vec<Table> = tables.iter().filter(taken).cloned().collect();
        // Files keep the shape they were written with: there is nothing to alter.
        let Destination::Postgres(warehouse) = &sink.destination else { continue };
        match connector_postgres_sink::drift(warehouse, name, source, &tables).await {
            Ok(all) => found.differences.extend(all.into_iter().map(|drift| {
                let (between, remedy) = match drift.by_itself {
                    true => ("source and sink", "nothing: the sink does it with the next rows of the table"),
                    false => ("sink and its table", "run the SQL in the warehouse, as the table's owner"),
                };
                Difference {
                    stream: drift.stream,
                    between: format!("{between} {name}"),
                    what: drift.what,
                    sql: drift.sql,
                    remedy: remedy.into(),
                    by_itself: drift.by_itself,
                }
            })),
            Err(error) => found.unseen.push((format!("sink {name}"), error)),
        }
    }
    Ok(found)
}

/// The schemas in a source's log.
fn shapes(config: &Config, source: &str) -> Result<Shapes> {
    let folder = layout::log(config, source);
    if !folder.exists() {
        return Ok(Shapes::default());
    }
    let standing = LogFiles::open(&folder).and_then(|log| log.standing());
    let Some(standing) = standing.map_err(|error| log_error(&folder, error))? else { return Ok(Shapes::default()) };
    let shapes = Shapes::from_state(standing.state.prefix(Shape::STATE_PREFIX.as_bytes()));
    shapes.map_err(|error| Error::halt("could not read the schemas in the log's state").because(error))
}

/// The registry, wherever it is.
enum Held {
    Own(Box<Registry>),
    Elsewhere(Box<Client>),
}

impl Held {
    async fn open(config: &Config) -> Result<Self> {
        if let Some(config::Registry::External(external)) = &config.registry {
            return Ok(Self::Elsewhere(Box::new(registry::client(registry::elsewhere(external))?)));
        }
        let folder = layout::registry(config);
        if !folder.exists() {
            return Ok(Self::Own(Box::default()));
        }
        let read = tokio::task::spawn_blocking(move || Store::peek(&folder)).await;
        let read = read.map_err(|error| Error::halt("could not read the registry").because(error))?;
        Ok(Self::Own(Box::new(read.map_err(|error| Error::halt("could not read the registry").because(error))?)))
    }

    async fn by_id(&self, id: u32) -> Result<Option<String>> {
        match self {
            Self::Own(registry) => Ok(registry.schema(".", id).map(|content| content.text.to_string())),
            Self::Elsewhere(client) => client.by_id(id).await.map_err(unread),
        }
    }

    /// The last version, and whether a schema is any version, under a subject.
    async fn versions(&self, subject: &str, id: u32, text: &str) -> Result<(Option<(u32, String)>, bool)> {
        match self {
            Self::Own(registry) => {
                let name = Subject::parse(subject)
                    .map_err(|error| Error::halt(format!("{subject:?} is no subject")).because(error))?;
                let last = registry.version(&name, Which::Latest, Shown::Live).ok();
                let uses = registry.uses(".", id, Shown::Live).unwrap_or_default();
                let holds = uses.iter().any(|(user, _)| *user == subject);
                Ok((last.map(|found| (found.version.version, found.content.text.to_string())), holds))
            }
            Self::Elsewhere(client) => {
                let last = client.latest(subject).await.map_err(unread)?;
                let holds = last.is_some() && client.holds(subject, text).await.map_err(unread)?;
                Ok((last, holds))
            }
        }
    }

    /// What the log wrote under, against what the registry has.
    async fn compare(&self, current: &Shape, known: &[&Arc<Shape>], all: &mut Vec<Difference>) -> Result<()> {
        const BETWEEN: &str = "log and registry";
        let stream = current.table.stream();
        let value = Some((format!("{stream}.Value"), current.value_id, current.value.as_str()));
        let key = current.key_id.zip(current.key.as_deref()).map(|(id, text)| (format!("{stream}.Key"), id, text));
        for (subject, id, text) in value.into_iter().chain(key) {
            let restore = "put back the registry's copy that fits this log, or import an export of it: \
                           `highwater schemas import`";
            match self.by_id(id).await? {
                None => {
                    let what = format!("the registry has no id {id}, under which rows of {subject} were written");
                    all.push(Difference::new(&stream, BETWEEN, what, restore));
                    continue;
                }
                Some(held) if !is_same(&held, text) => {
                    let what = format!("id {id} means another schema in the registry than rows of {subject} have");
                    all.push(Difference::new(&stream, BETWEEN, what, restore));
                    continue;
                }
                Some(_) => {}
            }
            let (last, holds) = self.versions(&subject, id, text).await?;
            if !holds {
                let what = format!("subject {subject} has no version with id {id}: it was deleted");
                let remedy = format!("register it again: POST /subjects/{subject}/versions; its id stays");
                all.push(Difference::new(&stream, BETWEEN, what, remedy));
            }
            let ours = |text: &str| {
                known.iter().flat_map(|s| [Some(&s.value), s.key.as_ref()]).flatten().any(|k| is_same(k, text))
            };
            if let Some((version, last)) = last
                && !ours(&last)
            {
                let what =
                    format!("version {version} of subject {subject} is not of this source: somebody registered it");
                let remedy =
                    format!("find out who writes under it; else DELETE /subjects/{subject}/versions/{version}");
                all.push(Difference::new(&stream, BETWEEN, what, remedy));
            }
        }
        Ok(())
    }
}

fn unread(error: schema_registry::Error) -> Error {
    Error::retry("could not read the registry").because(error).hint("check that it is up, and who may ask it")
}

/// What has become of a table, in words.
fn changes(old: &Table, new: &Table) -> Vec<String> {
    let mut all = Vec::new();
    let find = |table: &Table, id: i32| table.columns.iter().position(|column| column.id == id);
    for column in &new.columns {
        let Column { name, db_type, .. } = column;
        let Some(at) = find(old, column.id) else {
            all.push(format!("column {name:?}, {db_type}, is new at the source"));
            continue;
        };
        let before = &old.columns[at];
        if before.name != *name {
            all.push(format!("column {:?} is called {name:?} at the source", before.name));
        }
        if before.db_type != *db_type {
            all.push(format!("column {name:?} was {}, and is {db_type} at the source", before.db_type));
        } else if before.ty != column.ty {
            all.push(format!("column {name:?} is carried otherwise by this configuration"));
        }
        if before.nullable != column.nullable {
            let may = if column.nullable { "may be NULL now" } else { "may not be NULL any more" };
            all.push(format!("column {name:?} {may} at the source"));
        }
    }
    for column in old.columns.iter().filter(|column| find(new, column.id).is_none()) {
        all.push(format!("column {:?} is dropped or left out at the source", column.name));
    }
    let key = |table: &Table| table.key.iter().map(|at| table.columns[*at].id).collect::<Vec<_>>();
    if key(old) != key(new) {
        let names: Vec<&str> = new.key.iter().map(|at| new.columns[*at].name.as_str()).collect();
        all.push(format!("the key is ({}) at the source", names.join(", ")));
    }
    if old.full_identity != new.full_identity {
        let full = if new.full_identity { "FULL" } else { "not FULL" };
        all.push(format!("the replica identity is {full} at the source"));
    }
    if all.is_empty() {
        all.push("the columns are in another order at the source".into());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use connector::{TableKind, Type};

    fn table(columns: &[(i32, &str, &str, bool)], key: &[usize]) -> Table {
        let column = |(id, name, db_type, nullable): &(i32, &str, &str, bool)| Column {
            name: (*name).into(),
            ty: Type::String,
            db_type: (*db_type).into(),
            nullable: *nullable,
            id: *id,
        };
        Table {
            source: "shop".into(),
            schema: "public".into(),
            name: "t".into(),
            kind: TableKind::Table,
            columns: columns.iter().map(column).collect(),
            key: key.to_vec(),
            full_identity: false,
        }
    }

    #[test]
    fn every_change_is_told_in_words() {
        let old = table(&[(1, "a", "text", false), (2, "b", "text", true), (3, "c", "text", true)], &[0]);
        let new = table(&[(1, "a", "text", false), (2, "bee", "citext", false), (4, "d", "date", true)], &[1]);
        assert_eq!(
            changes(&old, &new),
            [
                "column \"b\" is called \"bee\" at the source",
                "column \"bee\" was text, and is citext at the source",
                "column \"bee\" may not be NULL any more at the source",
                "column \"d\", date, is new at the source",
                "column \"c\" is dropped or left out at the source",
                "the key is (bee) at the source",
            ]
        );
        let turned = table(&[(2, "b", "text", true), (1, "a", "text", false), (3, "c", "text", true)], &[1]);
        assert_eq!(changes(&old, &turned), ["the columns are in another order at the source"]);
    }
}
