//! The daemon: one match over connectors, and everything wired.

use std::sync::Arc;
use std::time::Duration;

use config::{Config, Source};
use connector::{Error, Result, Table, TableKind};
use connector_postgres::PostgresSource;
use connector_runtime::{Delivery, Desk, Ended, Holds, Orders, Pipeline, SinkStatus, SourceStatus, Start};
use serde_json::{Value, json};
use storage::{EventLog, Log, Offset, Options, Retain};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::exit::{Exit, failure, log_error};
use crate::http::Http;
use crate::registry::{Face, Registry};
use crate::status::{Live, LiveSink};
use crate::{control, drift, held, layout, order, plan, progress, quarantine, sinks, snapshot, status, verify};

pub(crate) async fn run(config: Config, until_caught_up: bool) -> Exit {
    let stop = CancellationToken::new();
    tokio::spawn(signals(stop.clone()));
    match daemon(config, until_caught_up, stop).await {
        Ok(ended) if ended.superseded() => {
            for (what, error) in &ended.failures {
                failure(what, error);
            }
            Exit::Superseded
        }
        Ok(ended) if ended.failures.is_empty() => Exit::Done,
        Ok(ended) => {
            // The worst comes last, where a person looks first.
            for (what, error) in ended.failures.iter().rev() {
                failure(what, error);
            }
            Exit::Halted
        }
        Err(error) => {
            failure("could not start", &error);
            Exit::Halted
        }
    }
}

/// The first asks for a clean stop, the second ends at once.
async fn signals(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    let mut next = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    next().await;
    tracing::info!("stopping");
    stop.cancel();
    next().await;
    std::process::exit(1);
}

async fn daemon(config: Config, until_caught_up: bool, stop: CancellationToken) -> Result<Ended> {
    std::fs::create_dir_all(&config.data_dir).map_err(|error| {
        Error::halt(format!("could not make the data folder {}", config.data_dir.display()))
            .because(error)
            .hint("check `data_dir`, and that this user may write there")
    })?;
    // The logs first: their locks say that no other daemon is here.
    let mut logs = Vec::new();
    for name in config.sources.keys() {
        let folder = layout::log(&config, name);
        let options = log_options(&config);
        let opened = folder.clone();
        let log = tokio::task::spawn_blocking(move || Log::open(opened, options)).await;
        let log = log.map_err(|error| Error::halt("could not open the log").because(error))?;
        let (log, recovered) = log.map_err(|error| log_error(&folder, error))?;
        tracing::info!(source = name, log = %log.id(), epoch = log.epoch().0, offset = log.high_water().0, cut_bytes = recovered.cut_bytes, "log open");
        logs.push((name.clone(), log));
    }
    let registry = Registry::open(&config).await?;
    let face = registry.face.clone();
    let http = Http::open(&config).await?;
    if !until_caught_up {
        tokio::spawn(drift::watch(config.clone(), stop.clone()));
    }

    let mut pipelines = JoinSet::new();
    let mut lives = Vec::new();
    for (name, log) in &logs {
        let Source::Postgres(source_config) = &config.sources[name];
        let rules = quarantine::rules(&config, source_config);
        let book = held::book(source_config, log, registry.registrar.clone())?;
        let book = Arc::new(book.with_contracts(rules.contracts.clone()));
        let source = Arc::new((**source_config).clone());
        let source = PostgresSource::new(name, source, book.clone(), layout::spool(&config, name))?;
        let (desk, requests) = Desk::new(book.clone());
        let mut deliveries = Vec::new();
        let orders = Orders::new(log.clone());
        let mut live = Live {
            name: name.clone(),
            config: Arc::new((**source_config).clone()),
            orders: orders.clone(),
            log: log.clone(),
            status: SourceStatus::default(),
            watch: source.watch(),
            desk,
            book: book.clone(),
            sinks: Vec::new(),
            holds: Holds::default(),
        };
        for (sink_name, sink) in config.sinks.iter().filter(|(_, sink)| sink.from.contains(name)) {
            let status = SinkStatus::default();
            live.sinks.push(LiveSink {
                name: sink_name.clone(),
                kind: sink.destination.kind(),
                status: status.clone(),
            });
            let (tables, narrowed) = (sink.tables.clone(), sink.narrowed);
            deliveries.push(Delivery {
                name: sink_name.clone(),
                sink: sinks::open(sink_name, name, sink, layout::staging(&config, sink_name, name))?,
                selection: Arc::new(move |table: &Table| match table.kind {
                    TableKind::Table => tables.matches(&format!("{}.{}", table.schema, table.name)),
                    TableKind::Messages => !narrowed,
                }),
                age: sink.destination.cut_age(),
                start: start(sink_name, &sink.start)?,
                max_backlog: sink.max_backlog,
                heartbeat: source_config.heartbeat.max(Duration::from_secs(1)),
                status,
                holds: live.holds.clone(),
            });
        }
        tokio::spawn(progress::show(name.clone(), source.watch(), stop.clone()));
        let pipeline = Pipeline {
            name: name.clone(),
            source,
            log: log.clone(),
            book,
            requests,
            rules,
            deliveries,
            status: live.status.clone(),
            orders,
            until_caught_up,
        };
        lives.push(live);
        let stop = stop.clone();
        pipelines.spawn(async move { pipeline.run(&stop).await });
    }
    let socket = layout::socket(&config);
    let serving = CancellationToken::new();
    let (lives, face) = (Arc::new(lives), Arc::new(face));
    let http = http.map(|http| tokio::spawn(http.run(lives.clone(), face.clone(), serving.clone())));
    let server = tokio::spawn({
        let serving = serving.clone();
        let (lives, face) = (lives.clone(), face.clone());
        async move { control::serve(&socket, move |asked| answer(lives.clone(), face.clone(), asked), serving).await }
    });

    let mut ended = Ended::default();
    // Without sources, this is a registry until it is stopped.
    let alone = pipelines.is_empty() && !until_caught_up;
    let (registry, served) = registry.serve(&stop);
    while let Some(pipeline) = pipelines.join_next().await {
        match pipeline {
            Ok(pipeline) => {
                let failed = !pipeline.failures.is_empty();
                ended.failures.extend(pipeline.failures);
                if failed {
                    stop.cancel();
                }
            }
            Err(error) => {
                ended.failures.push(("a pipeline".into(), Error::halt("it panicked").because(error)));
                stop.cancel();
            }
        }
    }
    if !alone {
        stop.cancel();
    }
    if let Ok(Some(error)) = served.await {
        ended.failures.push(("the registry".into(), error));
    }
    stop.cancel();
    serving.cancel();
    let _ = server.await;
    if let Some(http) = http {
        let _ = http.await;
    }
    if until_caught_up {
        let left = logs.iter().filter_map(|(name, log)| Some((format!("source {name:?}"), held::left(name, log)?)));
        ended.failures.extend(left);
        let sinks = config.sinks.iter().flat_map(|(sink, of)| of.from.iter().map(move |from| (sink, from)));
        let left = sinks.filter_map(|(sink, from)| {
            let log = logs.iter().find(|(name, _)| name == from)?;
            Some((format!("sink {sink:?}"), status::left(sink, &log.1)?))
        });
        ended.failures.extend(left);
        let left =
            logs.iter().filter_map(|(name, log)| Some((format!("source {name:?}"), quarantine::left(name, log)?)));
        ended.failures.extend(left);
    }
    for (_, log) in &logs {
        log.close().await;
    }
    if let Some(registry) = registry {
        registry.close().await;
    }
    Ok(ended)
}

/// How the logs of a configuration are kept.
pub(crate) fn log_options(config: &Config) -> Options {
    Options {
        segment_bytes: config.log.segment_bytes,
        retain: Retain { age: Some(config.log.retain_age), bytes: Some(config.log.retain_bytes) },
        ..Options::default()
    }
}

fn start(sink: &str, start: &config::Start) -> Result<Start> {
    Ok(match start {
        config::Start::Log => Start::Log,
        config::Start::Snapshot => Start::Snapshot,
        config::Start::Offset(offset) => Start::Offset(Offset(*offset)),
        config::Start::Time(text) => Start::Time(crate::tail::time(text).ok_or_else(|| {
            Error::halt(format!("`start` of sink {sink:?} is {text:?}, which is no time"))
                .hint("write it like \"2026-11-22T10:00:00Z\"")
        })?),
    })
}

/// What commands ask of a running daemon.
async fn answer(lives: Arc<Vec<Live>>, registry: Arc<Face>, asked: Value) -> Value {
    match asked["command"].as_str() {
        Some("status") => status::live(&lives, registry.status()).await,
        Some("order") => order::running(&lives, &asked).await,
        Some("snapshot") => snapshot::running(&lives, &asked),
        Some("approve") => held::approve_running(&lives, &asked).await,
        Some("quarantine") => quarantine::act_running(&lives, &asked).await,
        Some("judge") => plan::judge_running(&lives, &asked).await,
        Some("verify") => verify::running(&lives, &asked),
        _ => json!({"error": "this daemon does not know the command"}),
    }
}
