//! Looks at everything, changes nothing.

use config::{Config, Source};
use connector_postgres::{Finding, Severity};
use serde_json::json;

use crate::exit::Exit;
use crate::{sinks, status};

pub(crate) async fn run(config: Config, as_json: bool, only_sql: bool) -> Exit {
    let mut all: Vec<(String, Finding)> = Vec::new();
    for (name, source) in &config.sources {
        let Source::Postgres(source) = source;
        let findings = connector_postgres::check(source, status::durable(&config, name)).await;
        all.extend(findings.into_iter().map(|finding| (format!("source {name}"), finding)));
    }
    for (name, sink) in &config.sinks {
        let finding = match sinks::check(sink).await {
            Ok(what) => Finding { severity: Severity::Ok, what, sql: None, remedy: None },
            Err(error) => Finding {
                severity: Severity::Error,
                what: error.chain(),
                sql: None,
                remedy: error.remedy().map(str::to_owned),
            },
        };
        all.push((format!("sink {name}"), finding));
    }
    let failing = all.iter().any(|(_, finding)| finding.severity == Severity::Error);
    for (of, finding) in &all {
        if only_sql {
            if let Some(sql) = &finding.sql {
                println!("{sql}");
            }
        } else if as_json {
            println!("{}", json!({"of": of, "finding": finding}));
        } else {
            let sign = match finding.severity {
                Severity::Ok => "ok     ",
                Severity::Warning => "warning",
                Severity::Error => "ERROR  ",
            };
            println!("{sign} {of}: {}", finding.what);
            if let Some(sql) = &finding.sql {
                println!("        SQL: {sql}");
            }
            if let Some(remedy) = &finding.remedy {
                println!("        what to do: {remedy}");
            }
        }
    }
    if failing { Exit::Unequal } else { Exit::Done }
}
