//! The one match over sinks.

use std::path::PathBuf;
use std::sync::Arc;

use config::{Destination, Sink as Config};
use connector::{Checkpoint, Error, Mark, Moved, Opened, Result, Run, Shape, Sink, Step, Table};
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
pub(crate) async fn check(config: &Config, tables: &[Table]) -> Vec<Finding> {
    match &config.destination {
        Destination::ObjectStore(store) => {
            let found = match ObjectStoreSink::check(store).await {
                Ok(what) => Finding::ok(what),
                Err(error) => Finding::failed(&error),
            };
            let why = "the table would wait apart, and the others go on without it";
            let refused = connector_object_store::refused(store, tables).into_iter();
            std::iter::once(found).chain(refused.map(|error| Finding::failed(&error).why(why))).collect()
        }
        Destination::Postgres(warehouse) => {
            let tables: Vec<_> = tables.iter().map(|table| (table.schema.clone(), table.name.clone())).collect();
            let found = connector_postgres_sink::check(warehouse, &tables).await.into_iter();
            let severity = |fails| if fails { Severity::Error } else { Severity::Ok };
            found
                .map(|f| Finding { severity: severity(f.fails), what: f.what, why: None, sql: f.sql, remedy: f.remedy })
                .collect()
        }
    }
}

/// Where a sink ends when it is moved back to an offset of the log, and what
/// that means for it; `beginning`: as far back as may be.
pub(crate) async fn move_back(
    config: &Config,
    name: &str,
    source: &str,
    to: Offset,
    start: Offset,
    beginning: bool,
) -> Result<(Offset, Vec<String>)> {
    match &config.destination {
        Destination::ObjectStore(store) => {
            // Below what the log holds nothing could be put back.
            let up = beginning && start.0 > 0;
            let reach = ObjectStoreSink::reach(store, &format!("{name}/{source}"), to.0, up).await?;
            if reach.to < start.0 {
                return Err(Error::halt(format!(
                    "a file that begins at offset {} reaches beyond {to}, and the log is kept only from {start} on",
                    reach.to
                ))
                .hint("`--from beginning` goes as far back as there is; `--from snapshot` reads the tables again"));
            }
            let mut steps = Vec::new();
            if reach.to != to.0 {
                steps.push(format!("a file must not be cut in two: offset {} instead of {to}", reach.to));
            }
            steps.push(format!(
                "{} files, {} bytes, from offset {} on are taken out of the manifest and then deleted",
                reach.files, reach.bytes, reach.to
            ));
            Ok((Offset(reach.to), steps))
        }
        Destination::Postgres(warehouse) => {
            connector_postgres_sink::may_move_back(warehouse, name)?;
            let steps = vec![format!(
                "rows of its tables from offset {to} on are deleted, in the transaction that moves the checkpoint back"
            )];
            Ok((to, steps))
        }
    }
}

/// What a reading of its own means for a sink.
pub(crate) fn read_again(config: &Config, source: &str) -> Vec<String> {
    let (comes, ends) = match &config.destination {
        Destination::Postgres(warehouse) if warehouse.mode == config::WarehouseMode::Mirror => (
            "rows are put as they are read",
            "rows that are gone at the source go with the end of each table's reading",
        ),
        _ => ("rows come as `read`, between a snapshot_begin and a snapshot_end", "what was there stays"),
    };
    vec![
        format!("its tables are read again from {source}, which must be reachable, for this sink alone"),
        comes.into(),
        ends.into(),
        "tables that wait apart join the others".into(),
    ]
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

    async fn move_to(&mut self, to: Offset) -> Result<Moved> {
        match self {
            Self::ObjectStore(sink) => sink.move_to(to).await,
            Self::Postgres(sink) => sink.move_to(to).await,
        }
    }

    async fn park(&mut self, stream: &str, at: Offset, why: &str) -> Result<bool> {
        match self {
            Self::ObjectStore(sink) => sink.park(stream, at, why).await,
            Self::Postgres(sink) => sink.park(stream, at, why).await,
        }
    }

    fn tells_time(&self) -> bool {
        match self {
            Self::ObjectStore(sink) => sink.tells_time(),
            Self::Postgres(sink) => sink.tells_time(),
        }
    }

    fn is_full(&self) -> bool {
        match self {
            Self::ObjectStore(sink) => sink.is_full(),
            Self::Postgres(sink) => sink.is_full(),
        }
    }
}
