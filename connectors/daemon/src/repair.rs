//! Mends a gap, after saying what it will do.

use config::{Config, Source};
use connector::Result;
use connector_postgres::{Lsn, Plan};
use serde_json::json;
use storage::{EventLog, Log, Options};

use crate::exit::{Exit, failure, log_error};
use crate::{layout, out};

pub(crate) async fn run(config: &Config, source: &str, yes: bool, as_json: bool) -> Exit {
    let Some(Source::Postgres(wanted)) = config.sources.get(source) else {
        let known: Vec<&str> = config.sources.keys().map(String::as_str).collect();
        eprintln!("there is no source {source:?}; there is: {}", known.join(", "));
        return Exit::Usage;
    };
    match repair(config, source, wanted, yes).await {
        Ok(plan) => {
            say(source, plan.as_ref(), yes, as_json);
            Exit::Done
        }
        Err(error) => {
            failure("repair", &error);
            Exit::Halted
        }
    }
}

/// The log is locked from here on: a daemon that runs is not repaired.
async fn repair(config: &Config, source: &str, wanted: &config::Postgres, yes: bool) -> Result<Option<Plan>> {
    let folder = layout::log(config, source);
    let (log, _) = Log::open(&folder, Options::default()).map_err(|error| log_error(&folder, error))?;
    let position = log.position().await.map_err(|error| log_error(&folder, error))?;
    let durable = position.and_then(|position| Lsn::from_bytes(position.as_bytes()));
    let plan = connector_postgres::plan(wanted, &log.state(), durable).await?;
    if yes && plan.is_some() {
        let batch = connector_postgres::repair(wanted, &log.state()).await?;
        let appended = async {
            log.abort().await?;
            log.append(batch).await?.await
        };
        appended.await.map_err(|error| log_error(&folder, error))?;
    }
    log.close().await;
    Ok(plan)
}

fn say(source: &str, plan: Option<&Plan>, done: bool, as_json: bool) {
    if as_json {
        let steps = plan.map(|plan| plan.steps.as_slice()).unwrap_or_default();
        out::line(format!(
            "{}",
            json!({"source": source, "why": plan.map(|plan| &plan.why), "steps": steps, "done": done && plan.is_some()})
        ));
        return;
    }
    let Some(plan) = plan else {
        out::line(format!("{source}: nothing to repair"));
        return;
    };
    out::line(format!("{source}: {}", plan.why));
    for step in &plan.steps {
        out::line(format!("  {} {step}", if done { "-" } else { "will" }));
    }
    out::line(if done { "done; now `highwater run`" } else { "`--yes` does it" });
}
