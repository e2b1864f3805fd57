//! `pause` and `resume`: orders that outlive a restart. A running daemon is
//! told; of a stopped one the log is.

use std::collections::BTreeSet;

use config::{Config, Patterns, Source};
use connector::{Error, Result};
use connector_runtime::Order;
use serde_json::{Value, json};
use storage::outside::LogFiles;
use storage::{EventLog, Log, Options, State};

use crate::exit::{Exit, failure, log_error};
use crate::status::{Live, now_micros};
use crate::{control, layout, out};

/// Whose name it is.
enum Named<'a> {
    Source(&'a str),
    Sink(&'a str),
}

pub(crate) async fn pause(config: &Config, name: &str, as_json: bool) -> Exit {
    let Some(named) = named(config, name) else { return Exit::Usage };
    match named {
        Named::Source(source) => {
            let given = give(config, source, &Order::PauseSource).await;
            let running = match given {
                Ok(running) => running,
                Err(error) => return failed("pause", &error),
            };
            let Source::Postgres(server) = &config.sources[source];
            let slot = connector_postgres::slot_state(server).await.ok().flatten();
            let kept = slot.map(|slot| slot.retained_bytes);
            if as_json {
                out::line(json!({"source": source, "paused": true, "running": running, "slot_bytes": kept}));
            } else {
                out::line(format!("source {source} is paused{}", until(running)));
                let now = kept.map_or_else(String::new, |bytes| format!(", {bytes} bytes now"));
                out::line(format!(
                    "the server keeps its log for slot {:?}{now}, and ever more until `highwater resume {name}`",
                    server.slot
                ));
            }
        }
        Named::Sink(sink) => {
            for source in &config.sinks[sink].from {
                let running = match give(config, source, &Order::PauseSink(sink.into())).await {
                    Ok(running) => running,
                    Err(error) => return failed("pause", &error),
                };
                if as_json {
                    out::line(json!({"sink": sink, "source": source, "paused": true, "running": running}));
                } else {
                    out::line(format!("sink {sink} of {source} is paused{}", until(running)));
                }
            }
            if !as_json {
                out::line(match config.sinks[sink].max_backlog {
                    0 => format!("the log is kept for it, however long, until `highwater resume {name}`"),
                    bytes => format!(
                        "the log is kept for it up to its `max_backlog` of {bytes} bytes; beyond, it is detached"
                    ),
                });
            }
        }
    }
    Exit::Done
}

pub(crate) async fn resume(config: &Config, name: &str, tables: &[String], as_json: bool) -> Exit {
    let Some(named) = named(config, name) else { return Exit::Usage };
    let patterns = match Patterns::new(tables.to_vec()) {
        Ok(patterns) => patterns,
        Err((pattern, why)) => {
            eprintln!("{pattern:?} is no pattern: {why}");
            return Exit::Usage;
        }
    };
    let orders: Vec<(&str, Order)> = match named {
        Named::Source(_) if !tables.is_empty() => {
            eprintln!("tables wait apart in sinks, and {name} is a source");
            return Exit::Usage;
        }
        Named::Source(source) => vec![(source, Order::ResumeSource)],
        Named::Sink(sink) => {
            let of = |source: &'_ String| {
                if tables.is_empty() {
                    return Ok(Order::ResumeSink(sink.into()));
                }
                let state = state(config, source)?;
                let waiting: BTreeSet<String> = connector_runtime::lanes(&state, sink)
                    .map(|(stream, _)| stream)
                    .filter(|stream| matches(&patterns, source, stream))
                    .collect();
                Ok(Order::ResumeTables(sink.into(), waiting))
            };
            let orders: Result<Vec<_>> =
                config.sinks[sink].from.iter().map(|source| Ok((source.as_str(), of(source)?))).collect();
            match orders {
                Ok(orders) => orders,
                Err(error) => return failed("resume", &error),
            }
        }
    };
    let waits = |order: &Order| !matches!(order, Order::ResumeTables(_, streams) if streams.is_empty());
    if !orders.iter().any(|(_, order)| waits(order)) {
        eprintln!("no table of {name} that waits apart matches {}", tables.join(", "));
        eprintln!("what to do: names are schema.table; `highwater status` lists those that wait");
        return Exit::Usage;
    }
    for (source, order) in orders.iter().filter(|(_, order)| waits(order)) {
        let running = match give(config, source, order).await {
            Ok(running) => running,
            Err(error) => return failed("resume", &error),
        };
        let then = if running { "" } else { ", with the next `run`" };
        match order {
            Order::ResumeTables(sink, streams) => {
                for stream in streams {
                    out::line(if as_json {
                        json!({"sink": sink, "stream": stream, "resumed": true, "running": running}).to_string()
                    } else {
                        format!("{stream} of sink {sink} tries again from its own checkpoint{then}")
                    });
                }
            }
            _ if as_json => out::line(json!({"name": name, "source": source, "resumed": true, "running": running})),
            _ => out::line(format!("{name} goes on{then}")),
        }
    }
    Exit::Done
}

fn until(running: bool) -> &'static str {
    if running { "" } else { "; it stays so when the daemon is started" }
}

fn failed(what: &str, error: &Error) -> Exit {
    failure(what, error);
    Exit::Halted
}

fn named<'a>(config: &'a Config, name: &str) -> Option<Named<'a>> {
    let source = |name: &str| config.sources.get_key_value(name).map(|(name, _)| Named::Source(name));
    let sink = |name: &str| config.sinks.get_key_value(name).map(|(name, _)| Named::Sink(name));
    let found = match name.split_once(':') {
        Some(("source", name)) => source(name),
        Some(("sink", name)) => sink(name),
        _ => match (source(name), sink(name)) {
            (Some(_), Some(_)) => {
                eprintln!("there are a source and a sink {name:?}: say source:{name} or sink:{name}");
                return None;
            }
            (source, sink) => source.or(sink),
        },
    };
    if found.is_none() {
        let all = |names: Vec<&String>| names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
        eprintln!("there is no source or sink {name:?}");
        eprintln!("sources: {}", all(config.sources.keys().collect()));
        eprintln!("sinks: {}", all(config.sinks.keys().collect()));
    }
    found
}

/// The state of a source's log, from its files.
pub(crate) fn state(config: &Config, source: &str) -> Result<State> {
    let folder = layout::log(config, source);
    layout::has_log(&folder)?;
    let standing = LogFiles::open(&folder).and_then(|log| log.standing());
    let standing = standing.map_err(|error| log_error(&folder, error))?;
    Ok(standing.map(|standing| standing.state).unwrap_or_default())
}

/// Gives an order, durably; whether a daemon runs that obeys it now.
pub(crate) async fn give(config: &Config, source: &str, order: &Order) -> Result<bool> {
    let request = json!({"command": "order", "source": source, "order": order});
    if let Some(answer) = control::ask_for(&layout::socket(config), &request, control::ORDER).await {
        return match answer["error"].as_str() {
            None => Ok(true),
            Some(error) => {
                let failed = Error::halt(error);
                Err(match answer["remedy"].as_str() {
                    Some(remedy) => failed.hint(remedy),
                    None => failed,
                })
            }
        };
    }
    let folder = layout::log(config, source);
    layout::has_log(&folder)?;
    let (log, _) = Log::open(&folder, Options::default()).map_err(|error| log_error(&folder, error))?;
    let batch = order.batch(&log.state(), now_micros());
    let appended = async { log.append(batch).await?.await };
    appended.await.map_err(|error| log_error(&folder, error))?;
    log.close().await;
    Ok(false)
}

/// To a running daemon.
pub(crate) async fn running(lives: &[Live], asked: &Value) -> Value {
    let Some(live) = lives.iter().find(|live| asked["source"] == live.name.as_str()) else {
        return json!({"error": "the daemon that runs has another configuration", "remedy": "restart it with this one"});
    };
    let Ok(order) = serde_json::from_value::<Order>(asked["order"].clone()) else {
        return json!({"error": "this daemon does not know the order", "remedy": "it is of another version: restart it"});
    };
    if order.sink().is_some_and(|sink| !live.sinks.iter().any(|live| live.name == sink)) {
        return json!({"error": "the daemon that runs has another configuration", "remedy": "restart it with this one"});
    }
    match live.orders.give(&order, now_micros()).await {
        Ok(()) => json!({"done": true}),
        Err(error) => json!({"error": error.chain(), "remedy": error.remedy()}),
    }
}

/// A stream's last two parts against patterns of `schema.table`.
fn matches(tables: &Patterns, source: &str, stream: &str) -> bool {
    stream.strip_prefix(source).and_then(|rest| rest.strip_prefix('.')).is_some_and(|rest| tables.matches(rest))
}
