//! Reads tables again: at once where a daemon runs, else with its next start.

use config::{Config, Patterns};
use connector::Error;
use serde_json::{Value, json};
use storage::{EventLog, Log, Options};

use crate::exit::{Exit, failure, log_error};
use crate::status::Live;
use crate::{control, layout, out};

pub(crate) async fn run(config: &Config, source: &str, tables: &[String], as_json: bool) -> Exit {
    if !config.sources.contains_key(source) {
        let known: Vec<&str> = config.sources.keys().map(String::as_str).collect();
        eprintln!("there is no source {source:?}; there is: {}", known.join(", "));
        return Exit::Usage;
    }
    if let Err((pattern, why)) = Patterns::new(tables.to_vec()) {
        eprintln!("{pattern:?} is no pattern: {why}");
        return Exit::Usage;
    }
    let request = json!({"command": "snapshot", "source": source, "tables": tables});
    let streams = match control::ask(&layout::socket(config), &request).await {
        Some(answer) => {
            answer["streams"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        None => match stopped(config, source, tables).await {
            Ok(streams) => streams,
            Err(error) => {
                failure("snapshot", &error);
                return Exit::Halted;
            }
        },
    };
    if streams.is_empty() {
        eprintln!("no captured table of {source} matches {}", tables.join(", "));
        eprintln!("what to do: names are schema.table; `highwater status --json` lists the captured ones");
        return Exit::Usage;
    }
    for stream in &streams {
        let told = json!({"stream": stream, "read_again": true}).to_string();
        out::line(if as_json { told } else { format!("{stream} is read again") });
    }
    Exit::Done
}

/// Of a running daemon.
pub(crate) fn running(lives: &[Live], asked: &Value) -> Value {
    let tables =
        asked["tables"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    let Ok(tables) = Patterns::new(tables) else { return json!({"error": "not a pattern"}) };
    let live = lives.iter().find(|live| asked["source"] == live.name.as_str());
    let streams = live.map(|live| live.watch.read_again(|stream| matches(&tables, &live.name, stream)));
    json!({"streams": streams.unwrap_or_default()})
}

async fn stopped(config: &Config, source: &str, tables: &[String]) -> connector::Result<Vec<String>> {
    let folder = layout::log(config, source);
    if !folder.exists() {
        let what = format!("nothing of {source} was read yet");
        return Err(Error::halt(what).hint("`highwater run` reads every table first"));
    }
    let (log, _) = Log::open(&folder, Options::default()).map_err(|error| log_error(&folder, error))?;
    let tables =
        Patterns::new(tables.to_vec()).unwrap_or_else(|_| Patterns::new(Vec::new()).expect("no pattern is wrong"));
    let (streams, batch) = connector_postgres::read_again(&log.state(), |stream| matches(&tables, source, stream));
    let appended = async { log.append(batch).await?.await };
    appended.await.map_err(|error| log_error(&folder, error))?;
    log.close().await;
    Ok(streams)
}

/// A stream's last two parts against patterns of `schema.table`.
fn matches(tables: &Patterns, source: &str, stream: &str) -> bool {
    stream.strip_prefix(source).and_then(|rest| rest.strip_prefix('.')).is_some_and(|rest| tables.matches(rest))
}
