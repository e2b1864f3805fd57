//! `highwater quarantine`: what waits, and what is to be done with it.

use std::collections::BTreeSet;
use std::sync::Arc;

use config::{Config, Patterns, Postgres, Source};
use connector::{Batch, Error, Result};
use connector_runtime::{Contracts, Deed, Discarded, Done, Filter, Quarantined, Rules, held_rows};
use serde_json::{Value, json};
use storage::outside::{Cursor, LogFiles};
use storage::{Kind, Log, Offset, State};

use crate::args::{Picked, Quarantine};
use crate::exit::{Exit, failure, log_error};
use crate::status::Live;
use crate::tail::position_text;
use crate::{control, layout, out};

/// How a source's quarantine is kept.
pub(crate) fn rules(config: &Config, source: &Postgres) -> Rules {
    let any = source.table_options.iter().any(|(_, options)| !options.contract.rules.is_empty());
    let of = Arc::new(source.clone());
    let contract = move |schema: &str, table: &str| of.options(schema, table).map(|options| options.contract.clone());
    Rules {
        contracts: Contracts::new(any, contract),
        max_bytes: config.quarantine.max_bytes,
        on_full: config.quarantine.on_full,
        max_row: source.max_row,
        recode: |to, number, from, op, unfit, into| {
            connector_postgres::recode(to, number, from, op, unfit, into).map_err(|misfit| (misfit.column, misfit.why))
        },
    }
}

pub(crate) async fn run(config: &Config, command: &Quarantine, as_json: bool) -> Exit {
    let (source, picked) = match command {
        Quarantine::List { source, picked, .. }
        | Quarantine::Show { source, picked }
        | Quarantine::Redrive { source, picked }
        | Quarantine::Discard { source, picked, .. } => (source, picked),
    };
    let Some(Source::Postgres(of)) = config.sources.get(source) else {
        let known: Vec<&str> = config.sources.keys().map(String::as_str).collect();
        eprintln!("there is no source {source:?}; there is: {}", known.join(", "));
        return Exit::Usage;
    };
    let filter = match filter(&picked.table, picked.key.as_deref(), picked.reason.as_deref()) {
        Ok(filter) => filter,
        Err(what) => {
            eprintln!("{what}");
            return Exit::Usage;
        }
    };
    let done = match command {
        Quarantine::List { discarded: true, .. } => list_discarded(config, source, as_json),
        Quarantine::List { .. } => list(config, source, &filter, as_json),
        Quarantine::Show { .. } => show(config, source, &filter, as_json),
        Quarantine::Redrive { .. } => {
            let done = act(config, source, of, Deed::Redrive, picked, filter).await;
            done.map(|done| tell(&done, source, as_json))
        }
        Quarantine::Discard { yes: false, .. } => would_discard(config, source, &filter, as_json),
        Quarantine::Discard { .. } => {
            let done = act(config, source, of, Deed::Discard, picked, filter).await;
            done.map(|done| tell(&done, source, as_json))
        }
    };
    match done {
        Ok(()) => Exit::Done,
        Err(error) => {
            failure("quarantine", &error);
            Exit::Halted
        }
    }
}

/// Schemas and names of tables of which rows wait.
pub(crate) fn tables(config: &Config, source: &str) -> Result<BTreeSet<(String, String)>> {
    let mut tables = BTreeSet::new();
    let name = |row: &Value, of: &str| row[of].as_str().unwrap_or_default().to_owned();
    let tell = |row: Value| _ = tables.insert((name(&row, "schema"), name(&row, "table")));
    each(config, source, &Filter::default(), tell, false)?;
    Ok(tables)
}

fn filter(tables: &[String], key: Option<&str>, reason: Option<&str>) -> std::result::Result<Filter, String> {
    let tables = match tables {
        [] => None,
        tables => {
            Some(Patterns::new(tables.to_vec()).map_err(|(pattern, why)| format!("{pattern:?} is no pattern: {why}"))?)
        }
    };
    // What is no JSON is a text as it stands.
    let key = key.map(|key| serde_json::from_str(key).unwrap_or_else(|_| Value::from(key)));
    Ok(Filter { tables, key, reason: reason.map(str::to_owned) })
}

/// The rows of a source, from its log's files; beside a running daemon too.
fn each(config: &Config, source: &str, filter: &Filter, mut tell: impl FnMut(Value), whole: bool) -> Result<()> {
    let folder = layout::log(config, source);
    layout::has_log(&folder)?;
    let failed = |error| log_error(&folder, error);
    let files = LogFiles::open(&folder).map_err(failed)?;
    let Some(standing) = files.standing().map_err(failed)? else { return Ok(()) };
    let mut cursor: Option<(u64, Cursor)> = None;
    let read = |from: u64| -> Result<Batch> {
        // On from where the last one was, unless that is far.
        const FAR: u64 = 1 << 20;
        let mut reading = match cursor.take().filter(|(at, _)| *at <= from && from - at < FAR) {
            Some((_, cursor)) => cursor,
            None => files.read(Offset(from)).map_err(failed)?,
        };
        while let Some(frame) = reading.next().map_err(failed)? {
            if frame.kind == Kind::Pending && frame.offsets.start.0 == from && frame.offsets.end.0 > from {
                cursor = Some((frame.offsets.end.0, reading));
                return Ok(Batch::new(frame));
            }
        }
        let what = format!("the log has no pending batch at offset {from}, of which its state tells");
        Err(Error::halt(what).hint("run `highwater log check`"))
    };
    held_rows(&standing.state, filter, read, |row| {
        tell(row.json(&position_text(row.position()), whole));
        Ok(())
    })
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn list(config: &Config, source: &str, filter: &Filter, as_json: bool) -> Result<()> {
    let (mut rows, mut behind) = (0u64, 0u64);
    let print = |row: Value| {
        rows += 1;
        behind += u64::from(row["reason"] == "behind");
        if as_json {
            out::line(row);
        } else {
            let key = if row["key"].is_null() { "no key".into() } else { text(&row["key"]) };
            let (schema, table, op) = (text(&row["schema"]), text(&row["table"]), text(&row["op"]));
            let (reason, detail) = (text(&row["reason"]), text(&row["detail"]));
            out::line(format!("{}  {schema}.{table}  {op:<6}  {key}  {reason}: {detail}", text(&row["position"])));
        }
    };
    each(config, source, filter, print, false)?;
    if !as_json {
        match rows {
            0 => eprintln!("nothing waits"),
            _ => eprintln!("{} rows for themselves, {behind} behind them", rows - behind),
        }
    }
    Ok(())
}

fn show(config: &Config, source: &str, filter: &Filter, as_json: bool) -> Result<()> {
    let print = |row: Value| out::line(if as_json { row.to_string() } else { format!("{row:#}") });
    each(config, source, filter, print, true)
}

fn list_discarded(config: &Config, source: &str, as_json: bool) -> Result<()> {
    let folder = layout::log(config, source);
    layout::has_log(&folder)?;
    let standing = LogFiles::open(&folder).and_then(|files| files.standing());
    let standing = standing.map_err(|error| log_error(&folder, error))?;
    let Some(discarded) = standing.map(|standing| Discarded::of(&standing.state)) else { return Ok(()) };
    for one in &discarded.last {
        let time = connector::timestamp(one.time, true);
        if as_json {
            out::line(json!({"time": time, "stream": one.stream, "rows": one.rows, "cause": one.cause}));
        } else {
            out::line(format!("{time}  {}  {} rows  {}", one.stream, one.rows, one.cause));
        }
    }
    Ok(())
}

fn would_discard(config: &Config, source: &str, filter: &Filter, as_json: bool) -> Result<()> {
    let mut rows = 0u64;
    each(config, source, filter, |row| rows += u64::from(row["reason"] != "behind"), false)?;
    if as_json {
        out::line(json!({"would_discard": rows}));
        return Ok(());
    }
    out::line(format!(
        "{rows} rows would be given up: the destinations never get them. What waits behind them goes on."
    ));
    out::line("`highwater quarantine show` shows them; the same with --yes does it");
    Ok(())
}

fn tell(done: &Done, source: &str, as_json: bool) {
    if as_json {
        out::line(json!(done));
        return;
    }
    let Done { released, discarded, left, still } = done;
    out::line(format!("{released} rows went on, {discarded} were given up, {left} wait still"));
    for (reason, rows) in still {
        out::line(format!("       {rows} stay: {reason}"));
    }
    if *discarded > 0 {
        out::line(format!(
            "       a destination's row that was to be changed by them is as it was: `highwater snapshot {source} TABLE` mends it"
        ));
    }
}

/// In a running daemon, or in the log of a stopped one.
async fn act(
    config: &Config,
    source: &str,
    of: &Postgres,
    deed: Deed,
    picked: &Picked,
    filter: Filter,
) -> Result<Done> {
    let request = json!({
        "command": "quarantine", "source": source,
        "deed": match deed { Deed::Redrive => "redrive", Deed::Discard => "discard" },
        "tables": picked.table, "key": picked.key, "reason": picked.reason,
    });
    if let Some(answer) = control::ask_long(&layout::socket(config), &request).await {
        if let Some(error) = answer["error"].as_str() {
            let error = Error::halt(error);
            return Err(match answer["remedy"].as_str() {
                Some(remedy) => error.hint(remedy),
                None => error,
            });
        }
        let unread = |error| Error::halt("the daemon's answer cannot be read").because(error);
        return serde_json::from_value(answer).map_err(unread);
    }
    let folder = layout::log(config, source);
    layout::has_log(&folder)?;
    let (log, _) = Log::open(&folder, crate::run::log_options(config)).map_err(|error| log_error(&folder, error))?;
    let done = connector_runtime::act_stopped(&log, rules(config, of), deed, &filter).await;
    storage::EventLog::close(&log).await;
    done
}

/// Of a running daemon.
pub(crate) async fn act_running(lives: &[Live], asked: &Value) -> Value {
    let done = async {
        let live = lives.iter().find(|live| asked["source"] == live.name.as_str());
        let live = live.ok_or_else(|| Error::halt("the daemon does not run this source"))?;
        let tables: Vec<String> =
            asked["tables"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        let filter = filter(&tables, asked["key"].as_str(), asked["reason"].as_str()).map_err(Error::halt)?;
        let deed = if asked["deed"] == "discard" { Deed::Discard } else { Deed::Redrive };
        live.desk.quarantine(deed, filter).await
    };
    match done.await {
        Ok(done) => json!(done),
        Err(error) => json!({"error": error.chain(), "remedy": error.remedy()}),
    }
}

/// Of a stopped daemon, for `status`.
pub(crate) fn of_state(config: &Config, state: &State) -> Value {
    Quarantined::of_state(state, config.quarantine.max_bytes).map_or(Value::Null, |waits| json!(waits))
}

/// For people.
pub(crate) fn print(source: &str, waits: &Value) {
    if waits["rows"].as_u64().unwrap_or(0) == 0 {
        return;
    }
    let keys = match &waits["keys"] {
        Value::Null => String::new(),
        keys => format!(" under {keys} keys"),
    };
    let (rows, bytes, most) = (&waits["rows"], &waits["bytes"], &waits["max_bytes"]);
    out::line(format!("       IN QUARANTINE: {rows} rows{keys}, {bytes} of {most} bytes"));
    for stream in waits["parked"].as_array().into_iter().flatten() {
        out::line(format!("         full: all of {} waits", text(stream)));
    }
    out::line(format!(
        "       what to do: `highwater quarantine list {source}` tells why; mend the cause, then `highwater quarantine \
         redrive {source}`, or `discard`"
    ));
}

/// What an until-caught-up run leaves behind.
pub(crate) fn left(source: &str, log: &Log) -> Option<Error> {
    let waits = Quarantined::of_state(&storage::EventLog::state(log), 0)?;
    (waits.rows > 0).then(|| {
        Error::halt(format!("everything else is delivered, but {} rows wait in quarantine", waits.rows))
            .hint(format!("`highwater quarantine list {source}` tells why; then `redrive` or `discard` them"))
    })
}
