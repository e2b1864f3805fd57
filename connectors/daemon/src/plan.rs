//! `schemas plan`: what an ALTER would do, before anybody does it.

use std::path::Path;

use config::{Config, Destination, Secret, Source};
use connector::{Difference, Error, Result, Table};
use connector_postgres::Rehearsed;
use connector_runtime::Judged;
use serde_json::{Value, json};
use storage::Log;

use crate::exit::{Exit, failure, log_error};
use crate::status::Live;
use crate::{control, held, layout, out};

/// Exit status 0: all of it may go on; 3: something would be held back, evolve
/// against the level, or halt.
pub(crate) async fn run(
    config: &Config,
    source: &str,
    sql: &Path,
    url: Option<&str>,
    password_file: Option<&Path>,
    as_json: bool,
) -> Exit {
    let Some(Source::Postgres(of)) = config.sources.get(source) else {
        let known: Vec<&str> = config.sources.keys().map(String::as_str).collect();
        eprintln!("there is no source {source:?}; there is: {}", known.join(", "));
        return Exit::Usage;
    };
    let planned = async {
        let text = std::fs::read_to_string(sql)
            .map_err(|error| Error::halt(format!("could not read {}", sql.display())).because(error))?;
        let of = as_role(of, url, password_file)?;
        let tables = connector_postgres::rehearse(&of, &text).await?;
        let judged = judge_all(config, source, &of, &tables).await?;
        Ok::<_, Error>(tables.into_iter().zip(judged).collect::<Vec<_>>())
    };
    let planned = match planned.await {
        Ok(planned) => planned,
        Err(error) => {
            failure("schemas plan", &error);
            return Exit::Halted;
        }
    };
    if planned.is_empty() && !as_json {
        out::line("no captured table would change");
    }
    let mut fits = true;
    for (table, judged) in &planned {
        fits &= judged.as_ref().is_none_or(|judged| judged.violations.is_empty());
        say(config, source, of, table, judged.as_ref(), as_json);
    }
    if fits { Exit::Done } else { Exit::Unequal }
}

fn as_role(of: &config::Postgres, url: Option<&str>, password_file: Option<&Path>) -> Result<config::Postgres> {
    let mut of = of.clone();
    let Some(url) = url else { return Ok(of) };
    let form = || Error::halt("--url is no postgres url").hint("write it like postgres://owner@host:5432/database");
    let url: url::Url = url.parse().map_err(|_| form())?;
    if url.password().is_some() {
        return Err(Error::halt("the url holds a password, which others can see").hint("use --password-file"));
    }
    if !matches!(url.scheme(), "postgres" | "postgresql") || url.username().is_empty() {
        return Err(form());
    }
    of.user = url.username().to_owned();
    of.password = None;
    if let Some(host) = url.host_str().filter(|host| !host.is_empty()) {
        of.hosts = vec![config::PostgresHost { name: host.to_owned(), port: url.port().unwrap_or(5432) }];
    }
    if let Some(database) = Some(url.path().trim_start_matches('/')).filter(|database| !database.is_empty()) {
        of.database = database.to_owned();
    }
    if let Some(file) = password_file {
        let text = std::fs::read_to_string(file)
            .map_err(|error| Error::halt(format!("could not read {}", file.display())).because(error))?;
        of.password = Some(Secret::new(text.trim_end_matches(['\r', '\n'])));
    }
    Ok(of)
}

/// The verdict over each; None: it goes, or nothing was captured yet that it could be compared with.
async fn judge_all(
    config: &Config,
    source: &str,
    of: &config::Postgres,
    tables: &[Rehearsed],
) -> Result<Vec<Option<Judged>>> {
    let shapes: Vec<Option<&Table>> = tables.iter().map(|table| table.after.as_ref()).collect();
    let request = json!({"command": "judge", "source": source, "tables": shapes});
    if let Some(answer) = control::ask_long(&layout::socket(config), &request).await {
        if let Some(error) = answer["error"].as_str() {
            return Err(Error::halt(error));
        }
        return serde_json::from_value(answer["judged"].clone())
            .map_err(|error| Error::halt("the daemon's answer cannot be read").because(error));
    }
    let folder = layout::log(config, source);
    if !folder.exists() {
        return Ok(shapes.iter().map(|_| None).collect());
    }
    let (log, _) = Log::open(&folder, crate::run::log_options(config)).map_err(|error| log_error(&folder, error))?;
    let (registrar, store) = held::registrar(config).await?;
    let judged = async {
        let book = held::book(of, &log, registrar)?;
        let mut judged = Vec::new();
        for shape in shapes {
            judged.push(match shape {
                Some(table) => Some(book.judge(table).await?),
                None => None,
            });
        }
        Ok(judged)
    };
    let judged = judged.await;
    storage::EventLog::close(&log).await;
    if let Some(store) = store {
        store.close().await;
    }
    judged
}

/// Of a running daemon.
pub(crate) async fn judge_running(lives: &[Live], asked: &Value) -> Value {
    let Some(live) = lives.iter().find(|live| asked["source"] == live.name.as_str()) else {
        return json!({"error": "the daemon does not run this source"});
    };
    let Ok(tables) = serde_json::from_value::<Vec<Option<Table>>>(asked["tables"].clone()) else {
        return json!({"error": "the tables cannot be read: is the daemon of another version?"});
    };
    let mut judged = Vec::new();
    for table in &tables {
        match table {
            None => judged.push(None),
            Some(table) => match live.book.judge(table).await {
                Ok(verdict) => judged.push(Some(verdict)),
                Err(error) => return json!({"error": error.chain()}),
            },
        }
    }
    json!({"judged": judged})
}

fn say(
    config: &Config,
    source: &str,
    of: &config::Postgres,
    table: &Rehearsed,
    judged: Option<&Judged>,
    as_json: bool,
) {
    let changes: Vec<String> = match (&table.before, &table.after) {
        (Some(before), Some(after)) if before.stream() != after.stream() => {
            vec![format!("the table was renamed from {}.{}: another stream begins", before.schema, before.name)]
        }
        (Some(before), Some(after)) => Difference::between(before, after).iter().map(ToString::to_string).collect(),
        (None, _) => vec!["the table is new, or is captured from now on".into()],
        (_, None) => vec!["the table goes, or is captured no more".into()],
    };
    let violations = judged.map(|judged| judged.violations.clone()).unwrap_or_default();
    let (schema, name) = table.name.split_once('.').unwrap_or(("", &table.name));
    let verdict = match (judged, violations.is_empty()) {
        (None, _) => "nothing to compare with",
        (_, true) => "compatible: it goes on by itself",
        _ => match of.on_incompatible(schema, name) {
            config::OnIncompatible::Park => "incompatible: the table would be held back until somebody approves",
            config::OnIncompatible::Evolve => "incompatible: it would become a new version all the same (evolve)",
            config::OnIncompatible::Halt => "incompatible: the daemon would halt",
        },
    };
    let takes = |sink: &config::Sink| sink.from.iter().any(|from| from == source) && sink.tables.matches(&table.name);
    let sinks: Vec<(String, &str)> = config
        .sinks
        .iter()
        .filter(|(_, sink)| takes(sink))
        .map(|(name, sink)| {
            let does = match &sink.destination {
                Destination::ObjectStore(_) => "files from the first row of the new shape on have its columns; older ones stay as they are",
                Destination::Postgres(_) => "its table is altered with the first row of the new shape: columns added, renamed, retyped; what is dropped there stays or goes as its `drop` says",
            };
            (name.clone(), does)
        })
        .collect();
    if as_json {
        let sinks: Vec<Value> = sinks.iter().map(|(name, does)| json!({"sink": name, "does": does})).collect();
        out::line(json!({
            "source": source, "table": table.name, "changes": changes, "level": judged.and_then(|j| j.level.clone()),
            "compatible": judged.map(|_| violations.is_empty()), "violations": violations, "verdict": verdict,
            "read_again": table.read_again, "sinks": sinks,
        }));
        return;
    }
    out::line(&table.name);
    changes.iter().for_each(|change| out::line(format_args!("  {change}")));
    out::line(format_args!("  {verdict}"));
    violations.iter().for_each(|violation| out::line(format_args!("    {violation}")));
    match table.read_again {
        Some(why) => out::line(format_args!("  all of it would be read again: {why}")),
        None => out::line("  it would not be read again"),
    }
    sinks.iter().for_each(|(name, does)| out::line(format_args!("  sink {name}: {does}")));
}
