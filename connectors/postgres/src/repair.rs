//! What mends a gap: a new slot, and every table read again.
//!
//! Where the WAL between what the log holds and what the server offers is lost,
//! nobody can tell which rows changed or went meanwhile. So every table begins
//! a new generation: what is neither read nor changed in it does not exist.
//! The slot comes first and the log last. Broken off in between, the slot
//! stands before nothing that the log holds, and the repair is done again.

use std::time::{Duration, Instant};

use config::Postgres;
use connector::{Action, Error, Result};
use storage::{Kind, LogBatch, Micros, State, StateChange};
use tokio_postgres::Client;

use crate::control;
use crate::error::WireError;
use crate::lsn::Lsn;
use crate::replication::{Event, Replication};
use crate::slot::{self, Identity};
use crate::snapshot::Progress;
use crate::source::{Reached, SNAPSHOT_AT_PRIMARY, WAITS_FOR_PRIMARY, connect, identity};
use crate::stream::is_unpublished;
use crate::tables::select;
use crate::target::{Servers, Target};

/// How long the server is given to say what it cannot decode, or to let a slot go.
const ASKED: Duration = Duration::from_secs(10);

/// What is wrong, and what will be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What does not fit, and the gap.
    pub why: String,
    /// In the order in which it is done.
    pub steps: Vec<String>,
}

/// Looks, and changes nothing. None: there is nothing to repair.
pub async fn plan(config: &Postgres, state: &State, durable: Option<Lsn>) -> Result<Option<Plan>> {
    let Reached { target, client, system, standby, .. } = connect(&Servers::of(config)?).await?;
    let now = identity(&client, &system, standby, config).await?;
    let known = Identity::of(state);
    let found = slot::read(&client, &config.slot).await?;
    let same = known
        .as_ref()
        .map_or(Ok(()), |known| slot::same_server(config.into(), known, &now, &system, found.as_ref(), durable));
    let fits = same.and_then(|()| slot::fits(config.into(), found.as_ref(), durable));
    let error = match (fits, durable) {
        // It passes by itself.
        (Err(error), _) if error.action() == Action::Retry => return Err(error),
        (Err(error), _) => error,
        (Ok(()), None) => return Ok(None),
        (Ok(()), Some(durable)) => match undecodable(config, target, &client, durable, system.flushed).await? {
            Some(error) => error,
            None => return Ok(None),
        },
    };
    if let Some(found) = &found {
        if found.plugin != "pgoutput" || found.database != config.database {
            return Err(error);
        }
        if let Some(pid) = found.active_pid {
            let what = format!("slot {:?} is in use by the server's process {pid}", config.slot);
            return Err(Error::halt(what).hint("stop whoever reads from it first"));
        }
    }
    let tables = select(&client, config, false).await?.tables;
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let sql = "SELECT coalesce(sum(greatest(reltuples, 0)), 0)::bigint, coalesce(sum(pg_table_size(oid)), 0)::bigint
                 FROM pg_class WHERE oid = ANY($1)";
    let size = client.query_one(sql, &[&oids]).await;
    let size = size.map_err(|error| crate::error::control_failed(error, "could not measure the tables"))?;
    let mut steps = Vec::new();
    if found.is_some() {
        steps.push(format!("drop slot {:?}", config.slot));
    }
    steps.push(format!("make slot {:?} anew, and go on from where it begins", config.slot));
    steps.push(format!(
        "read {} tables again with the next `run`, about {} rows, {} MiB; rows that are gone at the source end with it",
        tables.len(),
        size.get::<_, i64>(0),
        size.get::<_, i64>(1) >> 20
    ));
    Ok(Some(Plan { why: error.chain(), steps }))
}

/// Whether what comes next can be had from the server, by asking for it.
async fn undecodable(
    config: &Postgres,
    target: Target,
    client: &Client,
    from: Lsn,
    upto: Lsn,
) -> Result<Option<Error>> {
    let tables = select(client, config, true).await?.tables;
    let publications = crate::tables::publications(config, &tables);
    let slot = config.slot.clone();
    let attempt = format!("could not decode what slot {slot:?} has from {from} on");
    let asked = tokio::task::spawn_blocking(move || {
        let mut replication = Replication::connect(&target)?;
        replication.start(&slot, from, &publications, 1)?;
        let began = Instant::now();
        loop {
            match replication.poll()? {
                Event::Keepalive { end, .. } if end < upto => {}
                Event::Idle if began.elapsed() < ASKED => {}
                _ => return Ok(()),
            }
        }
    });
    match asked.await.map_err(|error| Error::retry(attempt.clone()).because(error))? {
        Err(error) if is_unpublished(&error) => Ok(Some(error.during(attempt))),
        // One in use, or away, is told of by whoever needs it.
        _ => Ok(None),
    }
}

/// Whether the slot is there; a walsender that has just lost its client holds
/// it for a moment.
async fn is_let_go(client: &Client, config: &Postgres) -> Result<bool> {
    let began = Instant::now();
    loop {
        match slot::read(client, &config.slot).await? {
            Some(slot) if slot.active_pid.is_some() && began.elapsed() < ASKED => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            found => return Ok(found.is_some()),
        }
    }
}

/// Does it; the batch makes the log go on from the new slot, and must be
/// durable before the source is opened.
pub async fn repair(config: &Postgres, state: &State) -> Result<LogBatch> {
    let Reached { client, mut replication, system, standby, .. } = connect(&Servers::of(config)?).await?;
    let identity = identity(&client, &system, standby, config).await?;
    if is_let_go(&client, config).await? {
        control::scalar(&client, &format!("SELECT pg_drop_replication_slot('{}')", config.slot)).await?;
    }
    if standby {
        tracing::warn!(slot = config.slot, remedy = SNAPSHOT_AT_PRIMARY, "{WAITS_FOR_PRIMARY}");
    }
    let (name, failover) = (config.slot.clone(), config.failover && !standby);
    let attempt = format!("could not make slot {name:?}");
    let made = tokio::task::spawn_blocking(move || replication.permanent_slot(&name, failover)).await;
    let made = made.map_err(|error| Error::retry(attempt.clone()).because(error))?;
    let (point, _) = made.map_err(|error: WireError| error.during(attempt))?;
    let progress = Progress::from_state(state);
    let mut changes: Vec<StateChange> = progress.all().into_keys().flat_map(|stream| progress.again(&stream)).collect();
    changes.push(identity.change());
    Ok(batch(Some(point), changes))
}

/// Has tables read again that pass `wanted`, by stream, with the next `run`;
/// which they are.
pub fn read_again(state: &State, wanted: impl Fn(&str) -> bool) -> (Vec<String>, LogBatch) {
    let progress = Progress::from_state(state);
    let streams: Vec<String> = progress.all().into_keys().filter(|stream| wanted(stream)).collect();
    let changes = streams.iter().flat_map(|stream| progress.again(stream)).collect();
    (streams, batch(None, changes))
}

fn batch(position: Option<Lsn>, state: Vec<StateChange>) -> LogBatch {
    LogBatch {
        kind: Kind::Data,
        position: position.map(Lsn::position),
        records: 0,
        event_time: Micros(0),
        payload: Default::default(),
        state,
        ends_transaction: true,
    }
}
