//! Tables that are held back: how they are told of, and let go.

use std::sync::Arc;

use config::{Config, SnapshotMode, Source};
use connector::{Error, Result, Shapes, civil_from_days};
use connector_runtime::{Approval, Approved, Hold, Parked, SchemaBook};
use schema_registry::{Registrar, Store};
use serde_json::{Value, json};
use storage::outside::LogFiles;
use storage::{EventLog, Log, State};
use tokio::runtime::Handle;

use crate::exit::log_error;
use crate::status::Live;
use crate::tail::position_text;
use crate::{control, layout, out, quarantine, registry};

/// As `status`, `schemas list` and `schemas diff` tell it.
pub(crate) fn told(source: &str, state: &State, holds: &[Hold]) -> Vec<Value> {
    // What does not read back was said where the log was opened.
    let parked = Parked::from_state(state).unwrap_or_default();
    let approved = Shapes::from_state(state.iter()).unwrap_or_default();
    let mut all = Vec::new();
    for hold in holds {
        let of_stream = parked.iter().filter(|parked| parked.shape.table.stream() == hold.stream);
        let waits = |parked: &&Parked| {
            let number = parked.shape.number;
            hold.shapes.contains(&number) || hold.last == number
        };
        let shapes: Vec<Value> = of_stream
            .filter(waits)
            .map(|parked| {
                json!({
                    "number": parked.shape.number, "last_good": parked.good, "level": parked.level,
                    "changes": parked.changes, "violations": parked.violations, "undecided": parked.undecided,
                })
            })
            .collect();
        let table = format!("{}.{}", hold.schema, hold.table);
        all.push(json!({
            "source": source,
            "table": table,
            "stream": hold.stream,
            "since": utc(hold.since),
            "position": hold.position.as_deref().map(position_text),
            "events": hold.events,
            "bytes": hold.bytes,
            "shapes": shapes,
            "compatible_again": approved.get(hold.last).is_some(),
            "reset": hold.reset,
            "rules": hold.rules,
            "remedy": remedy(source, &table, hold, &shapes, approved.get(hold.last).is_some()),
        }));
    }
    all
}

fn remedy(source: &str, table: &str, hold: &Hold, shapes: &[Value], again: bool) -> String {
    if hold.reset {
        return "nothing: what waits is given up as soon as the table is read anew".into();
    }
    if hold.rules.is_some() {
        return Hold::MEND.into();
    }
    if !shapes.is_empty() && shapes.iter().all(|shape| shape["undecided"] == true) {
        return "nothing: it goes on by itself once the registry of `[registry] url` answers and its level allows it; \
                look at that registry if it does not"
            .into();
    }
    if shapes.is_empty() && again {
        return format!("`highwater schemas approve {source} {table}`: its shape is compatible again");
    }
    format!(
        "`highwater schemas diff {source} {table}` shows both sides; `highwater schemas approve {source} {table}` tries \
         the level again, with --as-new-version it goes on whatever the level says, with --reset-table what waits is \
         given up and the table read anew"
    )
}

/// For people.
pub(crate) fn print(held: &Value) {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let (events, bytes) = (&held["events"], &held["bytes"]);
    out::line(format_args!(
        "       HELD BACK: {} since {}: {events} events, {bytes} bytes wait",
        text(&held["table"]),
        text(&held["since"])
    ));
    if let Some(why) = held["rules"].as_str() {
        out::line(format_args!("         rules of the registry: {why}"));
    }
    for shape in held["shapes"].as_array().into_iter().flatten() {
        for change in shape["changes"].as_array().into_iter().flatten() {
            out::line(format_args!("         changed: {}", text(change)));
        }
        let level = shape["level"].as_str().unwrap_or("why");
        for violation in shape["violations"].as_array().into_iter().flatten() {
            out::line(format_args!("         {level}: {}", text(violation)));
        }
    }
    if held["compatible_again"] == true && held["shapes"].as_array().is_some_and(|shapes| !shapes.is_empty()) {
        out::line("         by now its shape is a compatible one; rows wait under the one that is not");
    }
    out::line(format_args!("       what to do: {}", text(&held["remedy"])));
}

/// What is held of a source, from its log's files; beside a running daemon too.
pub(crate) fn from_files(config: &Config, source: &str) -> Result<Vec<Value>> {
    let folder = layout::log(config, source);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let standing = LogFiles::open(&folder).and_then(|log| log.standing());
    let Some(standing) = standing.map_err(|error| log_error(&folder, error))? else { return Ok(Vec::new()) };
    Ok(told(source, &standing.state, &Hold::from_state(&standing.state)?))
}

/// Of every source; a running daemon knows best.
pub(crate) async fn all(config: &Config) -> Result<Vec<Value>> {
    if let Some(status) = control::ask(&layout::socket(config), &json!({"command": "status"})).await {
        let sources = status["sources"].as_array().cloned().unwrap_or_default();
        return Ok(sources.iter().filter_map(|source| source["held"].as_array().cloned()).flatten().collect());
    }
    let mut all = Vec::new();
    for source in config.sources.keys() {
        all.extend(from_files(config, source)?);
    }
    Ok(all)
}

/// What an until-caught-up run leaves behind.
pub(crate) fn left(source: &str, log: &Log) -> Option<Error> {
    let state = log.state();
    let holds = Hold::from_state(&state).unwrap_or_default();
    let all = told(source, &state, &holds);
    let first = all.first()?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let tables: Vec<String> =
        all.iter().map(|held| format!("{} ({} events)", text(&held["table"]), held["events"])).collect();
    Some(
        Error::halt(format!(
            "everything else is delivered, but held back{} are {}",
            if all.iter().all(|held| held["rules"].is_null()) { " for their new shapes" } else { "" },
            tables.join(", ")
        ))
        .hint(text(&first["remedy"])),
    )
}

/// Lets a table go on: in a running daemon, or in the log of a stopped one.
pub(crate) async fn approve(config: &Config, source: &str, table: &str, how: Approval) -> Result<Approved> {
    let Some(Source::Postgres(of)) = config.sources.get(source) else {
        let known: Vec<&str> = config.sources.keys().map(String::as_str).collect();
        return Err(
            Error::halt(format!("there is no source {source:?}")).hint(format!("there is: {}", known.join(", ")))
        );
    };
    if how == Approval::ResetTable && of.snapshot == SnapshotMode::Never {
        return Err(Error::halt(format!("{source} reads no tables: snapshot = {{ mode = \"never\" }}"))
            .hint("approve with --as-new-version instead; nothing is given up then"));
    }
    let word = match how {
        Approval::AtLevel => "at-level",
        Approval::AsNewVersion => "as-new-version",
        Approval::ResetTable => "reset-table",
    };
    let request = json!({"command": "approve", "source": source, "table": table, "how": word});
    if let Some(answer) = control::ask_long(&layout::socket(config), &request).await {
        if let Some(error) = answer["error"].as_str() {
            let error = Error::halt(error);
            return Err(match answer["remedy"].as_str() {
                Some(remedy) => error.hint(remedy),
                None => error,
            });
        }
        let number = |name: &str| answer[name].as_u64().unwrap_or(0);
        return Ok(Approved { events: number("events"), bytes: number("bytes"), shapes: number("shapes") });
    }
    let folder = layout::log(config, source);
    layout::has_log(&folder)?;
    let options = crate::run::log_options(config);
    let (log, _) = Log::open(&folder, options).map_err(|error| log_error(&folder, error))?;
    let (registrar, store) = registrar(config).await?;
    let done = async {
        let rules = quarantine::rules(config, of);
        let book = book(of, &log, registrar)?.with_contracts(rules.contracts.clone());
        let stream = stream_of(&Hold::from_state(&log.state())?, table)?;
        connector_runtime::approve_stopped(&log, Arc::new(book), &stream, how, rules, || again(&log, &stream)).await
    };
    let done = done.await;
    log.close().await;
    if let Some(store) = store {
        store.close().await;
    }
    done
}

/// Of a running daemon.
pub(crate) async fn approve_running(lives: &[Live], asked: &Value) -> Value {
    let approved = async {
        let live = lives.iter().find(|live| asked["source"] == live.name.as_str());
        let live = live.ok_or_else(|| Error::halt("the daemon does not run this source"))?;
        let stream = stream_of(&live.status.get().held, asked["table"].as_str().unwrap_or_default())?;
        let how = match asked["how"].as_str() {
            Some("as-new-version") => Approval::AsNewVersion,
            Some("reset-table") => Approval::ResetTable,
            _ => Approval::AtLevel,
        };
        live.desk.approve(&stream, how, || again(&live.log, &stream)).await
    };
    match approved.await {
        Ok(approved) => json!(approved),
        Err(error) => json!({"error": error.chain(), "remedy": error.remedy()}),
    }
}

fn again(log: &Log, stream: &str) -> Vec<storage::StateChange> {
    connector_postgres::read_again(&log.state(), |other| other == stream).1.state
}

fn stream_of(holds: &[Hold], table: &str) -> Result<String> {
    let name = |hold: &Hold| format!("{}.{}", hold.schema, hold.table);
    if let Some(hold) = holds.iter().find(|hold| name(hold) == table || hold.stream == table) {
        return Ok(hold.stream.clone());
    }
    let names: Vec<String> = holds.iter().map(name).collect();
    let held = if names.is_empty() { "no table is".to_owned() } else { format!("held back are: {}", names.join(", ")) };
    Err(Error::halt(format!("{table} is not held back")).hint(held))
}

/// The shapes of a source, with its policy.
pub(crate) fn book(source: &config::Postgres, log: &Log, registrar: Registrar) -> Result<SchemaBook> {
    let source = source.clone();
    let policy = Arc::new(move |table: &connector::Table| source.on_incompatible(&table.schema, &table.name));
    SchemaBook::open(log.clone(), registrar, Handle::current(), policy)
}

/// Where a stopped daemon's sources register.
pub(crate) async fn registrar(config: &Config) -> Result<(Registrar, Option<Arc<Store>>)> {
    if let Some(config::Registry::External(external)) = &config.registry {
        let client = registry::client(registry::elsewhere(external))?;
        return Ok((Registrar::Elsewhere(Arc::new(client)), None));
    }
    let store = Arc::new(registry::open_store(config).await?);
    Ok((Registrar::Own(store.clone()), Some(store)))
}

/// A time to the second.
fn utc(micros: i64) -> String {
    let seconds = micros.div_euclid(1_000_000);
    let (year, month, day) = civil_from_days(seconds.div_euclid(86_400));
    let of_day = seconds.rem_euclid(86_400);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", of_day / 3_600, of_day / 60 % 60, of_day % 60)
}
