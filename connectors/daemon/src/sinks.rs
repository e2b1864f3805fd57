//! The one match over sinks.

use std::path::PathBuf;
use std::sync::Arc;

use config::{Destination, Sink as Config};
use connector::{Checkpoint, Mark, Opened, Result, Run, Shape, Sink, Step};
use connector_object_store::{ObjectStoreSink, Uploaded};
use connector_postgres::{Finding, Severity};
use connector_postgres_sink::{Merged, PostgresSink};
use storage::{Epoch, LogId, Offset};

/// A sink for one source.
pub(crate) fn open(name: &str, source: &str, config: &Config, staging: PathBuf) -> Result<AnySink> {
    let position = crate::tail::position_text;
    Ok(match &config.destination {
        Destination::ObjectStore(store) => {
            let settings = connector_object_store::Settings::new(name, source, store, staging, position);
            AnySink::ObjectStore(Box::new(ObjectStoreSink::new(settings, store)?))
        }
        Destination::Postgres(warehouse) => {
            let settings = connector_postgres_sink::Settings::new(name, source, warehouse, position);
            AnySink::Postgres(Box::new(PostgresSink::new(settings, warehouse)?))
        }
    })
}

/// Whether it would work; `tables` are what it would be given.
pub(crate) async fn check(config: &Config, tables: &[(String, String)]) -> Vec<Finding> {
    match &config.destination {
        Destination::ObjectStore(store) => vec![match ObjectStoreSink::check(store).await {
            Ok(what) => Finding { severity: Severity::Ok, what, sql: None, remedy: None },
            Err(error) => {
                let remedy = error.remedy().map(str::to_owned);
                Finding { severity: Severity::Error, what: error.chain(), sql: None, remedy }
            }
        }],
        Destination::Postgres(warehouse) => {
            let found = connector_postgres_sink::check(warehouse, tables).await.into_iter();
            let severity = |fails| if fails { Severity::Error } else { Severity::Ok };
            found.map(|f| Finding { severity: severity(f.fails), what: f.what, sql: f.sql, remedy: f.remedy }).collect()
        }
    }
}

/// Any sink: the choice is made once a call, never once a row.
pub(crate) enum AnySink {
    ObjectStore(Box<ObjectStoreSink>),
    Postgres(Box<PostgresSink>),
}

/// What any sink has staged.
pub(crate) enum AnyStaged {
    ObjectStore(Uploaded),
    Postgres(Merged),
}

impl Sink for AnySink {
    type Staged = AnyStaged;

    async fn open(&mut self, log: LogId, epoch: Epoch) -> Result<Opened> {
        match self {
            Self::ObjectStore(sink) => sink.open(log, epoch).await,
            Self::Postgres(sink) => sink.open(log, epoch).await,
        }
    }

    async fn stage(&mut self, shape: &Arc<Shape>, run: Run<'_>) -> Result<()> {
        match self {
            Self::ObjectStore(sink) => sink.stage(shape, run).await,
            Self::Postgres(sink) => sink.stage(shape, run).await,
        }
    }

    async fn stage_mark(&mut self, shape: &Arc<Shape>, mark: &Mark, offset: Offset) -> Result<()> {
        match self {
            Self::ObjectStore(sink) => sink.stage_mark(shape, mark, offset).await,
            Self::Postgres(sink) => sink.stage_mark(shape, mark, offset).await,
        }
    }

    async fn staged(&mut self) -> Result<Vec<AnyStaged>> {
        Ok(match self {
            Self::ObjectStore(sink) => sink.staged().await?.into_iter().map(AnyStaged::ObjectStore).collect(),
            Self::Postgres(sink) => sink.staged().await?.into_iter().map(AnyStaged::Postgres).collect(),
        })
    }

    async fn commit(&mut self, staged: Vec<AnyStaged>, step: Step) -> Result<Checkpoint> {
        match self {
            Self::ObjectStore(sink) => {
                let of = |staged| if let AnyStaged::ObjectStore(staged) = staged { Some(staged) } else { None };
                sink.commit(staged.into_iter().filter_map(of).collect(), step).await
            }
            Self::Postgres(sink) => {
                let of = |staged| if let AnyStaged::Postgres(staged) = staged { Some(staged) } else { None };
                sink.commit(staged.into_iter().filter_map(of).collect(), step).await
            }
        }
    }

    fn is_full(&self) -> bool {
        match self {
            Self::ObjectStore(sink) => sink.is_full(),
            Self::Postgres(sink) => sink.is_full(),
        }
    }
}
