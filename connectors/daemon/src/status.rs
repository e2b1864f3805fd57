//! What runs, how far it is, and why not.

use config::Config;
use connector_postgres::{Lsn, Watch};
use connector_runtime::{Holds, SinkStatus, SourceStatus};
use serde_json::{Value, json};
use storage::outside::LogFiles;
use storage::{EventLog, Log};

use crate::control;
use crate::exit::{Exit, failure, log_error};
use crate::tail::position_text;
use crate::{layout, out, registry};

/// A source that runs, with its sinks.
pub(crate) struct Live {
    pub(crate) name: String,
    pub(crate) slot: String,
    pub(crate) log: Log,
    pub(crate) status: SourceStatus,
    pub(crate) watch: Watch,
    pub(crate) sinks: Vec<(String, SinkStatus)>,
    pub(crate) holds: Holds,
}

/// The status of a running daemon.
pub(crate) fn live(pieces: &[Live], registry: Value) -> Value {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64);
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
        let problem = match stats.disk_full {
            true => json!({
                "error": "disk full: nothing more is read from the source until there is room",
                "remedy": "make room on the disk of `data_dir`; it then goes on by itself",
            }),
            false => json!(state.problem),
        };
        sources.push(json!({
            "name": live.name,
            "type": "postgres",
            "health": state.health,
            "doing": if reading { "snapshot" } else { "streaming" },
            "slot": live.slot,
            "position": durable.to_string(),
            "received": received.to_string(),
            "lag_bytes": lag,
            "lag_seconds": if lag == 0 { 0.0 } else { seconds_since(event_time) },
            "events": state.events,
            "problem": problem,
            "tables": live.watch.tables(),
            "not_captured": live.watch.left_out(),
            "log": {
                "id": live.log.id(), "epoch": live.log.epoch(), "start": live.log.start(), "end": high_water,
                "stats": stats,
            },
        }));
        for (name, status) in &live.sinks {
            let state = status.get();
            let backlog = state.checkpoint.map(|checkpoint| high_water.saturating_sub(checkpoint));
            let behind = backlog.is_none_or(|backlog| backlog > 0);
            sinks.push(json!({
                "name": name,
                "source": live.name,
                "type": "object-store",
                "health": state.health,
                "checkpoint": state.checkpoint,
                "backlog_events": backlog,
                "lag_seconds": if behind { seconds_since(state.event_time.unwrap_or(event_time)) } else { 0.0 },
                "events": state.events,
                "steps": state.steps,
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
            "log": {"id": standing.id, "epoch": standing.epoch, "start": standing.start, "end": standing.end},
        }));
        for (key, value) in standing.state.prefix(b"sink/") {
            let checkpoint: Option<u64> = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            sinks.push(json!({
                "name": String::from_utf8_lossy(&key[5..]),
                "source": name,
                "type": "object-store",
                "health": "stopped",
                "checkpoint": checkpoint,
                "backlog_events": checkpoint.map(|c| standing.end.0.saturating_sub(c)),
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
        match &source["log"] {
            Value::Null => told.push("no log yet".into()),
            log => told.push(format!("log {} to {}", log["start"], log["end"])),
        }
        let (name, health) = (text(&source["name"]), text(&source["health"]));
        out::line(format_args!("source {name:<16} {health:<9} {}", told.join("; ")));
        problem(&source["problem"]);
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
        if let Some(seconds) = sink["lag_seconds"].as_f64() {
            told.push(format!("lag {seconds:.1} s"));
        }
        let (name, health) = (text(&sink["name"]), text(&sink["health"]));
        out::line(format_args!("sink   {name:<16} {health:<9} {}", told.join("; ")));
        problem(&sink["problem"]);
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
pub(crate) fn durable(config: &Config, source: &str) -> Option<Lsn> {
    let standing = LogFiles::open(layout::log(config, source)).ok()?.standing().ok()??;
    Lsn::from_bytes(standing.position?.as_bytes())
}
