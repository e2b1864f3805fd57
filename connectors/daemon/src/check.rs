//! Looks at everything, changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use config::{Config, Source};
use connector::Table;
use connector_postgres::{Finding, Severity};
use serde_json::json;

use crate::exit::Exit;
use crate::{control, held, http, layout, out, quarantine, registry, sinks, status};

pub(crate) async fn run(config: Config, as_json: bool, only_sql: bool) -> Exit {
    let mut all: Vec<(String, Finding)> = vec![("data folder".into(), data_folder(&config.data_dir))];
    let mut captured = BTreeMap::new();
    for (name, source) in &config.sources {
        let Source::Postgres(source) = source;
        let findings = connector_postgres::check(source, &status::standing(&config, name)).await;
        all.extend(findings.into_iter().map(|finding| (format!("source {name}"), finding)));
        // What hinders this has just been told.
        let tables = connector_postgres::shapes(source).await.unwrap_or_default();
        let unfitting = contracts(&config, source, &tables);
        all.extend(unfitting.into_iter().map(|finding| (format!("source {name}"), finding)));
        let held = held::from_files(&config, name).unwrap_or_default();
        all.extend(held.iter().map(|held| (format!("source {name}"), finding(held))));
        captured.insert(name, tables);
    }
    for (name, sink) in &config.sinks {
        let given = sink.from.iter().filter_map(|source| captured.get(source)).flatten();
        let wanted = given.filter(|table| sink.tables.matches(&format!("{}.{}", table.schema, table.name)));
        let tables: Vec<Table> = wanted.cloned().collect();
        let findings = sinks::check(sink, &tables).await;
        all.extend(findings.into_iter().map(|finding| (format!("sink {name}"), finding)));
    }
    let running = control::ask(&layout::socket(&config), &json!({"command": "status"})).await.is_some();
    let findings = registry::check(&config, running).await;
    all.extend(findings.into_iter().map(|finding| ("registry".into(), finding)));
    all.extend(http::check(&config, running).await.map(|finding| ("http".into(), finding)));
    let failing = all.iter().any(|(_, finding)| finding.severity == Severity::Error);
    if only_sql {
        sql(&all);
        return if failing { Exit::Unequal } else { Exit::Done };
    }
    for (of, finding) in &all {
        if as_json {
            out::line(json!({"of": of, "finding": finding}));
        } else {
            let sign = match finding.severity {
                Severity::Ok => "ok     ",
                Severity::Warning => "warning",
                Severity::Error => "ERROR  ",
            };
            out::line(format_args!("{sign} {of}: {}", finding.what));
            if let Some(why) = &finding.why {
                out::line(format_args!("        why: {why}"));
            }
            for line in finding.sql.iter().flat_map(|sql| sql.lines()) {
                out::line(format_args!("        SQL: {line}"));
            }
            if let Some(remedy) = &finding.remedy {
                out::line(format_args!("        what to do: {remedy}"));
            }
        }
    }
    if failing { Exit::Unequal } else { Exit::Done }
}

/// Every statement once, in order: some must not be run twice. One over several
/// lines stays as it is.
fn sql(all: &[(String, Finding)]) {
    let mut said = BTreeSet::new();
    for sql in all.iter().filter_map(|(_, finding)| finding.sql.as_deref()) {
        if sql.contains("$highwater$") {
            out::line(sql);
            continue;
        }
        for line in sql.lines().filter(|line| said.insert(*line) || line.starts_with("SELECT pg_reload_conf")) {
            out::line(line);
        }
    }
}

/// Rules that do not fit their tables.
fn contracts(config: &Config, source: &config::Postgres, tables: &[Table]) -> Vec<Finding> {
    let contracts = quarantine::rules(config, source).contracts;
    let unfitting = tables.iter().flat_map(|table| contracts.unfitting(table));
    unfitting
        .map(|rule| {
            let what = format!("{}: {}", rule.place, rule.what);
            Finding::error(what).remedy("change the contract in the configuration")
        })
        .collect()
}

/// A table that is held back: what was captured of it does not arrive.
fn finding(held: &serde_json::Value) -> Finding {
    let text = |name: &str| held[name].as_str().unwrap_or_default().to_owned();
    let why = |shape: &serde_json::Value| {
        let all = shape["violations"].as_array().cloned().unwrap_or_default();
        all.iter().filter_map(|violation| violation.as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let why: Vec<String> = held["shapes"].as_array().into_iter().flatten().flat_map(why).collect();
    let why: Vec<String> = why.into_iter().chain(held["rules"].as_str().map(str::to_owned)).collect();
    let what = format!(
        "{} is held back since {}, {} events wait: {}",
        text("table"),
        text("since"),
        held["events"],
        if why.is_empty() { "its shape was another for a while".into() } else { why.join("; ") }
    );
    Finding::error(what).remedy(text("remedy"))
}

/// Whether `run` could write there; a file that no one sees is the proof.
fn data_folder(folder: &Path) -> Finding {
    let nearest = folder.ancestors().find(|folder| folder.exists()).unwrap_or(folder);
    let probe = nearest.join(format!(".highwater-check-{}", std::process::id()));
    let written = std::fs::File::create(&probe).and_then(|mut file| file.write_all(b"check"));
    let _ = std::fs::remove_file(&probe);
    match written {
        Ok(()) if nearest == folder => Finding::ok(format!("{} can be written", folder.display())),
        Ok(()) => Finding::ok(format!("{} is not there yet; `run` makes it", folder.display())),
        Err(error) => Finding::error(format!("{} cannot be written: {error}", nearest.display()))
            .remedy("check `data_dir`, that this user may write there, and that the disk is not full"),
    }
}
