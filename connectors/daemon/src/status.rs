//! What runs, how far it is, and why not.

use std::sync::Arc;

use config::{Config, Postgres};
use connector::Error;
use connector_postgres::{Lsn, Watch};
use connector_runtime::{Desk, Health, Hold, Holds, Orders, SchemaBook, SinkStatus, SourceStatus, source_paused};
use serde_json::{Value, json};
use storage::outside::LogFiles;
use storage::{EventLog, Log, Offset, State};

use crate::control;
use crate::exit::{Exit, failure, log_error};
use crate::tail::position_text;
use crate::{held, layout, out, quarantine, registry};

/// A source that runs, with its sinks.
pub(crate) struct Live {
    pub(crate) name: String,
    pub(crate) config: Arc<Postgres>,
    pub(crate) orders: Orders,
    pub(crate) log: Log,
    pub(crate) status: SourceStatus,
    pub(crate) watch: Watch,
    pub(crate) desk: Desk,
    pub(crate) book: Arc<SchemaBook>,
    pub(crate) sinks: Vec<LiveSink>,
    pub(crate) holds: Holds,
}

/// A sink that runs.
pub(crate) struct LiveSink {
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    pub(crate) status: SinkStatus,
}

pub(crate) fn now_micros() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64)
}

/// Tables that wait apart, as the log remembers them.
fn behind(state: &State, sink: &str) -> Vec<Value> {
    connector_runtime::lanes(state, sink)
        .map(|(stream, lane)| {
            json!({
                "stream": stream, "next": lane.next, "since": lane.since, "why": lane.why,
                "resuming": lane.resume, "lost": lane.lost,
            })
        })
        .collect()
}

/// What a sink has not delivered although it was to deliver all.
pub(crate) fn left(sink: &str, log: &Log) -> Option<Error> {
    let apart: Vec<_> = connector_runtime::lanes(&log.state(), sink).collect();
    let (stream, lane) = apart.first()?;
    let (count, table) = (apart.len(), stream.split_once('.').map_or(stream.as_str(), |(_, table)| table));
    let remedy = match lane.lost {
        true => format!("`highwater replay {sink} --from snapshot`"),
        false => format!("mend that; then `highwater resume {sink} --table '{table}'`"),
    };
    Some(
        Error::halt(format!("everything else is delivered, but {count} tables wait apart: {table}: {}", lane.why))
            .hint(remedy),
    )
}

/// A server that does not answer must not hold up the answer.
const SERVER: std::time::Duration = std::time::Duration::from_secs(1);

/// The status of a running daemon.
pub(crate) async fn live(pieces: &[Live], registry: Value) -> Value {
    let now = now_micros();
    let seconds_since = |time: i64| if time <= 0 { 0.0 } else { (now - time).max(0) as f64 / 1e6 };
    let mut sources = Vec::new();
    let mut sinks = Vec::new();
    for live in pieces {
        let state = live.status.get();
        let (received, durable) = live.watch.positions();
        let lag = received.0.saturating_sub(durable.0);
        let (high_water, event_time) = (live.log.high_water().0, live.log.event_time().0);
        let reading = live.watch.is_reading();
        let stats = live.log.stats();
        let log_state = live.log.state();
        let paused = source_paused(&log_state);
        let slot = match paused {
            // Nobody reads the slot: only the server knows what it keeps for it.
            Some(_) => tokio::time::timeout(SERVER, connector_postgres::slot_state(&live.config)).await.ok(),
            None if state.health == Health::Running => Some(Ok(live.watch.slot())),
            None => None,
        };
        let slot = slot.and_then(|slot| slot.ok().flatten());
        let problem = match stats.disk_full {
            true => json!({
                "error": "disk full: nothing more is read from the source until there is room",
                "remedy": "make room on the disk of `data_dir`; it then goes on by itself",
            }),
            false => match live.watch.waits_for().filter(|_| state.problem.is_none()) {
                Some((error, remedy)) => json!({"error": error, "remedy": remedy}),
                None => json!(state.problem),
            },
        };
        sources.push(json!({
            "name": live.name,
            "type": "postgres",
            "health": state.health,
            "doing": if reading { "snapshot" } else { "streaming" },
            "server": live.watch.server(),
            "slot": live.config.slot,
            "paused_since": paused,
            "slot_bytes": slot.as_ref().map(|slot| slot.retained_bytes),
            "slot_safe_bytes": slot.as_ref().and_then(|slot| slot.safe_bytes),
            "slot_wal_status": slot.as_ref().map(|slot| &slot.wal_status),
            "silent_seconds": live.watch.silent_seconds(),
            "position": durable.to_string(),
            "received": received.to_string(),
            "lag_bytes": lag,
            "lag_seconds": if lag == 0 { 0.0 } else { seconds_since(event_time) },
            "spool_bytes": live.watch.spooled(),
            "events": state.events,
            "events_by_op": state.ops,
            "retries": state.retries,
            "problem": problem,
            "quarantine": state.quarantine,
            "held": held::told(&live.name, &live.log.state(), &state.held),
            "tables": live.watch.tables(),
            "not_captured": live.watch.left_out(),
            "log": {
                "id": live.log.id(), "epoch": live.log.epoch(), "start": live.log.start(), "end": high_water,
                "stats": stats,
            },
        }));
        for LiveSink { name, kind, status } in &live.sinks {
            let state = status.get();
            let backlog = state.checkpoint.map(|checkpoint| high_water.saturating_sub(checkpoint));
            let lags = backlog.is_none_or(|backlog| backlog > 0);
            sinks.push(json!({
                "name": name,
                "source": live.name,
                "type": kind,
                "health": state.health,
                "checkpoint": state.checkpoint,
                "backlog_events": backlog,
                "backlog_bytes": state.checkpoint.and_then(|next| live.log.bytes_from(Offset(next)).ok()),
                "paused_since": connector_runtime::sink_paused(&log_state, name),
                "tables_behind": behind(&log_state, name),
                "lag_seconds": if lags { seconds_since(state.event_time.unwrap_or(event_time)) } else { 0.0 },
                "events": state.events,
                "steps": state.steps,
                "committed": state.committed,
                "retries": state.retries,
                "problem": state.problem,
            }));
        }
    }
    json!({"running": true, "pid": std::process::id(), "version": env!("CARGO_PKG_VERSION"), "sources": sources, "sinks": sinks, "registry": registry})
}

/// What a stopped daemon's files tell.
fn stopped(config: &Config) -> connector::Result<Value> {
    let mut sources = Vec::new();
    let mut sinks = Vec::new();
    for name in config.sources.keys() {
        let folder = layout::log(config, name);
        if !folder.exists() {
            sources.push(json!({"name": name, "type": "postgres", "health": "stopped", "position": null, "log": null}));
            continue;
        }
        let standing = LogFiles::open(&folder).and_then(|log| log.standing());
        let Some(standing) = standing.map_err(|error| log_error(&folder, error))? else { continue };
        sources.push(json!({
            "name": name,
            "type": "postgres",
            "health": "stopped",
            "position": standing.position.as_ref().map(|p| position_text(p.as_bytes())),
            "quarantine": quarantine::of_state(config, &standing.state),
            "held": held::told(name, &standing.state, &Hold::from_state(&standing.state)?),
            "paused_since": source_paused(&standing.state),
            "log": {"id": standing.id, "epoch": standing.epoch, "start": standing.start, "end": standing.end},
        }));
        for (sink, of) in config.sinks.iter().filter(|(_, sink)| sink.from.contains(name)) {
            let checkpoint = connector_runtime::checkpoint(&standing.state, sink);
            let detached = connector_runtime::detached(&standing.state, sink);
            let paused = connector_runtime::sink_paused(&standing.state, sink);
            sinks.push(json!({
                "name": sink,
                "source": name,
                "type": of.destination.kind(),
                "health": if detached.is_some() { "detached" } else { "stopped" },
                "checkpoint": checkpoint,
                "backlog_events": checkpoint.map(|c| standing.end.0.saturating_sub(c)),
                "paused_since": paused,
                "tables_behind": behind(&standing.state, sink),
            }));
        }
    }
    Ok(json!({"running": false, "sources": sources, "sinks": sinks, "registry": registry::stopped(config)}))
}

pub(crate) async fn run(config: Config, as_json: bool) -> Exit {
    let status = match control::ask(&layout::socket(&config), &json!({"command": "status"})).await {
        Some(status) => status,
        None => match stopped(&config) {
            Ok(status) => status,
            Err(error) => {
                failure("status", &error);
                return Exit::Halted;
            }
        },
    };
    if as_json {
        out::line(status);
    } else {
        print(&status);
    }
    Exit::Done
}

fn print(status: &Value) {
    match status["running"] == true {
        true => out::line(format_args!("running, process {}", status["pid"])),
        false => out::line("not running"),
    }
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    for source in status["sources"].as_array().into_iter().flatten() {
        let mut told = Vec::new();
        if !source["position"].is_null() {
            told.push(format!("position {}", text(&source["position"])));
        }
        if let (Some(bytes), Some(seconds)) = (source["lag_bytes"].as_u64(), source["lag_seconds"].as_f64()) {
            told.push(format!("lag {bytes} bytes, {seconds:.1} s"));
        }
        if let Some(bytes @ 1..) = source["spool_bytes"].as_u64() {
            told.push(format!("transactions in progress {bytes} bytes"));
        }
        match &source["log"] {
            Value::Null => told.push("no log yet".into()),
            log => told.push(format!("log {} to {}", log["start"], log["end"])),
        }
        let (name, health) = (text(&source["name"]), text(&source["health"]));
        out::line(format_args!("source {name:<16} {health:<9} {}", told.join("; ")));
        if !source["paused_since"].is_null() {
            let kept = source["slot_bytes"].as_u64().map_or_else(String::new, |bytes| format!(": {bytes} bytes now"));
            out::line(format_args!("       paused; the server keeps its log for the slot{kept}"));
            out::line(format_args!("       what to do: `highwater resume {name}`"));
        }
        problem(&source["problem"]);
        source["held"].as_array().into_iter().flatten().for_each(held::print);
        quarantine::print(&name, &source["quarantine"]);
        for table in source["not_captured"].as_array().into_iter().flatten() {
            out::line(format_args!("       not captured: {}: {}", text(&table["table"]), text(&table["why"])));
            out::line(format_args!("       what to do: {}", text(&table["sql"])));
        }
        for table in source["tables"].as_array().into_iter().flatten().filter(|table| table["finished"] == false) {
            let stream = text(&table["stream"]);
            let (chunks, total, rows) = (&table["chunks"], &table["total"], &table["rows"]);
            out::line(format_args!("       reading {stream} {chunks}/{total} chunks, {rows} rows"));
        }
    }
    for sink in status["sinks"].as_array().into_iter().flatten() {
        let mut told = vec![format!("of {}", text(&sink["source"]))];
        match (&sink["checkpoint"], &sink["backlog_events"]) {
            (Value::Null, _) => told.push("checkpoint not known".into()),
            (checkpoint, backlog) => told.push(format!("checkpoint {checkpoint}; backlog {backlog} events")),
        }
        if let Some(bytes) = sink["backlog_bytes"].as_u64() {
            told.push(format!("{bytes} bytes"));
        }
        if let Some(seconds) = sink["lag_seconds"].as_f64() {
            told.push(format!("lag {seconds:.1} s"));
        }
        let (name, health) = (text(&sink["name"]), text(&sink["health"]));
        out::line(format_args!("sink   {name:<16} {health:<9} {}", told.join("; ")));
        problem(&sink["problem"]);
        if !sink["paused_since"].is_null() {
            out::line(format_args!("       paused; the log is kept for it"));
            out::line(format_args!("       what to do: `highwater resume {name}`"));
        }
        for table in sink["tables_behind"].as_array().into_iter().flatten() {
            let (stream, next, why) = (text(&table["stream"]), &table["next"], text(&table["why"]));
            let how = match (table["lost"] == true, table["resuming"] == true) {
                (true, _) => ", for which the log is no longer kept",
                (_, true) => ", catching up",
                _ => "",
            };
            out::line(format_args!("       waits apart from offset {next}{how}: {stream}: {why}"));
            if table["lost"] == true {
                out::line(format_args!("       then: `highwater replay {name} --from snapshot`"));
            } else if table["resuming"] != true {
                let short = stream.split_once('.').map_or(stream.as_str(), |(_, rest)| rest);
                out::line(format_args!("       then: `highwater resume {name} --table '{short}'`"));
            }
        }
    }
    print_registry(&status["registry"]);
}

fn print_registry(registry: &Value) {
    let count = |what: &str| registry[what].as_u64().map_or_else(|| "not known how many".into(), |n| n.to_string());
    if registry["kind"] == "external" {
        let url = registry["url"].as_str().unwrap_or_default();
        out::line(format_args!("registry at {url}; {} subjects of these sources", count("subjects")));
    } else if !registry.is_null() {
        let address = registry["address"].as_str().unwrap_or("no address, for the sources alone");
        out::line(format_args!("registry on {address}; {} subjects, {} schemas", count("subjects"), count("schemas")));
    }
    problem(&registry["problem"]);
    if let Some(since) = registry["problem"]["since"].as_i64() {
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64);
        let (seconds, tries) = ((now - since).max(0) / 1_000_000, &registry["problem"]["tries"]);
        out::line(format_args!("       for {seconds} s, asked {tries} times in vain"));
    }
}

fn problem(problem: &Value) {
    if let Some(error) = problem["error"].as_str() {
        out::line(format_args!("       error: {error}"));
        if let Some(remedy) = problem["remedy"].as_str() {
            out::line(format_args!("       what to do: {remedy}"));
        }
    }
}

/// Where a source's log stands, for `check`.
pub(crate) fn standing(config: &Config, source: &str) -> connector_postgres::Standing {
    let found = LogFiles::open(layout::log(config, source)).and_then(|log| log.standing()).ok().flatten();
    let Some(found) = found else { return connector_postgres::Standing::default() };
    let durable = found.position.and_then(|position| Lsn::from_bytes(position.as_bytes()));
    connector_postgres::Standing { durable, state: found.state }
}
