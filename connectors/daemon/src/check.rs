//! Looks at everything, changes nothing.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use config::{Config, Source};
use connector_postgres::{Finding, Severity};
use serde_json::json;

use crate::exit::Exit;
use crate::{control, layout, out, registry, sinks, status};

pub(crate) async fn run(config: Config, as_json: bool, only_sql: bool) -> Exit {
    let mut all: Vec<(String, Finding)> = vec![("data folder".into(), data_folder(&config.data_dir))];
    let mut captured = BTreeMap::new();
    for (name, source) in &config.sources {
        let Source::Postgres(source) = source;
        let findings = connector_postgres::check(source, status::durable(&config, name)).await;
        all.extend(findings.into_iter().map(|finding| (format!("source {name}"), finding)));
        // What hinders this has just been told.
        captured.insert(name, connector_postgres::captured(source).await.unwrap_or_default());
    }
    for (name, sink) in &config.sinks {
        let given = sink.from.iter().filter_map(|source| captured.get(source)).flatten();
        let wanted = given.filter(|(schema, table)| sink.tables.matches(&format!("{schema}.{table}")));
        let tables: Vec<(String, String)> = wanted.cloned().collect();
        let findings = sinks::check(sink, &tables).await;
        all.extend(findings.into_iter().map(|finding| (format!("sink {name}"), finding)));
    }
    let running = control::ask(&layout::socket(&config), &json!({"command": "status"})).await.is_some();
    let findings = registry::check(&config, running).await;
    all.extend(findings.into_iter().map(|finding| ("registry".into(), finding)));
    let failing = all.iter().any(|(_, finding)| finding.severity == Severity::Error);
    for (of, finding) in &all {
        if only_sql {
            if let Some(sql) = &finding.sql {
                out::line(sql);
            }
        } else if as_json {
            out::line(json!({"of": of, "finding": finding}));
        } else {
            let sign = match finding.severity {
                Severity::Ok => "ok     ",
                Severity::Warning => "warning",
                Severity::Error => "ERROR  ",
            };
            out::line(format_args!("{sign} {of}: {}", finding.what));
            if let Some(sql) = &finding.sql {
                out::line(format_args!("        SQL: {sql}"));
            }
            if let Some(remedy) = &finding.remedy {
                out::line(format_args!("        what to do: {remedy}"));
            }
        }
    }
    if failing { Exit::Unequal } else { Exit::Done }
}

/// Whether `run` could write there; a file that no one sees is the proof.
fn data_folder(folder: &Path) -> Finding {
    let nearest = folder.ancestors().find(|folder| folder.exists()).unwrap_or(folder);
    let probe = nearest.join(format!(".highwater-check-{}", std::process::id()));
    let written = std::fs::File::create(&probe).and_then(|mut file| file.write_all(b"check"));
    let _ = std::fs::remove_file(&probe);
    let (severity, what, remedy) = match written {
        Ok(()) if nearest == folder => (Severity::Ok, format!("{} can be written", folder.display()), None),
        Ok(()) => (Severity::Ok, format!("{} is not there yet; `run` makes it", folder.display()), None),
        Err(error) => (
            Severity::Error,
            format!("{} cannot be written: {error}", nearest.display()),
            Some("check `data_dir`, that this user may write there, and that the disk is not full".to_owned()),
        ),
    };
    Finding { severity, what, sql: None, remedy }
}
