//! Every operation fails once: with an error, for want of room, half done.

use super::history::{Life, Model, Step, block_on, eventful, going_on, options};
use crate::simulated::{Fault, Only, Simulated, Survival};
use crate::{Error, EventLog, Kind, Log, LogBatch, Micros, Options};

enum Outcome {
    /// Nobody noticed.
    Fine,
    /// There was no log to be had.
    NotOpened,
    Failed(Error),
}

/// Lives with the fault, is killed, and goes on without it.
async fn live_with(fault: Fault) -> Result<Outcome, String> {
    let mut life = Life::new(Simulated::new().failing(Some(fault)), Model::default(), options());
    let mut outcome = Outcome::Fine;
    for step in eventful() {
        if life.step(&step).await.is_err() {
            outcome = Outcome::NotOpened;
            break;
        }
        if let Some(error) = &life.failure {
            outcome = Outcome::Failed(error.clone());
            break;
        }
    }
    if life.disk.syncs_tried_again() > 0 {
        return Err("a file was synced again after that had failed".into());
    }
    life.disk = life.disk.clone().failing(None);
    life.step(&Step::Kill).await.map_err(|wrong| format!("opened again: {wrong}"))?;
    life.live(&going_on()).await?;
    if let Some(error) = &life.failure {
        return Err(format!("cannot be written any more: {error:?}"));
    }
    life.step(&Step::Cut(Survival::Nothing)).await?;
    Ok(outcome)
}

/// Fails each operation of a life in turn.
fn every_operation(fault: Fault) -> Vec<Outcome> {
    let mut life = Life::new(Simulated::new(), Model::default(), options());
    block_on(life.live(&eventful())).unwrap();
    let live = |at| {
        let fault = Fault { at, ..fault };
        block_on(live_with(fault)).unwrap_or_else(|wrong| panic!("{fault:?}: {wrong}"))
    };
    (0..life.disk.operations()).map(live).collect()
}

const BROKEN: Fault = Fault { at: 0, times: 1, code: Fault::EIO, short: false, only: Only::Any };
const FULL: Fault = Fault { at: 0, times: u64::MAX, code: Fault::ENOSPC, short: true, only: Only::Writes };

#[test]
fn nothing_acknowledged_is_lost_whatever_operation_fails() {
    for short in [false, true] {
        let outcomes = every_operation(Fault { short, ..BROKEN });
        let mut fatal = 0;
        for outcome in &outcomes {
            match outcome {
                Outcome::Failed(Error::Fatal { .. }) => fatal += 1,
                // Old segments stay a while longer.
                Outcome::Failed(Error::Io { what: "remove" | "sync the removal of", .. }) => {}
                Outcome::Failed(error) => panic!("{error:?}"),
                Outcome::Fine | Outcome::NotOpened => {}
            }
        }
        println!("{} operations failed, {fatal} of them ended the log", outcomes.len());
        assert!(fatal * 2 > outcomes.len());
    }
}

#[test]
fn nothing_acknowledged_is_lost_if_the_disk_fails_for_good() {
    every_operation(Fault { times: u64::MAX, short: true, ..BROKEN });
}

#[test]
fn a_full_disk_is_waited_for_at_every_operation() {
    for times in [1, 3] {
        let outcomes = every_operation(Fault { times, ..FULL });
        let fine = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Fine)).count();
        let failed = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Failed(_))).count();
        println!("{} operations found the disk full: {fine} were made up for, {failed} not", outcomes.len());
        assert_eq!(failed, 0, "only opening may give up");
    }
}

#[test]
fn a_sync_for_which_there_is_no_room_ends_the_log() {
    let outcomes = every_operation(Fault { times: 1, only: Only::Syncs, ..FULL });
    assert!(outcomes.iter().any(|outcome| matches!(outcome, Outcome::Failed(Error::Fatal { what: "sync of", .. }))));
}

fn batch() -> LogBatch {
    LogBatch {
        kind: Kind::Data,
        position: None,
        records: 1,
        event_time: Micros(1),
        payload: b"row".as_slice().into(),
        state: Vec::new(),
        ends_transaction: true,
    }
}

async fn append(log: &Log<Simulated>) -> crate::Result<crate::Appended> {
    log.append(batch()).await?.await
}

#[test]
fn a_failed_sync_ends_the_log() {
    block_on(async {
        let disk = Simulated::new();
        let (log, _) = Log::open_on(disk.clone(), "/log", options()).unwrap();
        append(&log).await.unwrap();
        disk.clone().failing(Some(Fault { times: u64::MAX, only: Only::Syncs, ..BROKEN }));
        let error = append(&log).await.unwrap_err();
        assert!(matches!(error, Error::Fatal { what: "sync of", .. }), "{error:?}");
        assert!(matches!(log.failed().await, Error::Fatal { .. }));
        let changes = disk.changes();
        assert!(append(&log).await.is_err());
        assert!(log.abort().await.is_err());
        log.close().await;
        assert_eq!(disk.changes(), changes, "nothing more is done to the disk");
        assert_eq!(log.high_water().0, 1, "what was not synced is not shown");
    });
}

#[test]
fn a_full_disk_is_told_and_the_log_goes_on_when_there_is_room() {
    block_on(async {
        let disk = Simulated::new();
        let (log, _) = Log::open_on(disk.clone(), "/log", options()).unwrap();
        append(&log).await.unwrap();
        disk.clone().failing(Some(FULL));
        let mut commit = log.append(batch()).await.unwrap();
        // The second try comes after the first was told.
        disk.wait_for_failures(2);
        assert!(log.stats().disk_full);
        assert!(futures_util::FutureExt::now_or_never(&mut commit).is_none());
        assert_eq!(log.high_water().0, 1);
        disk.clone().failing(None);
        assert_eq!(commit.await.unwrap().offsets.end.0, 2);
        assert!(!log.stats().disk_full);
    });
}

#[test]
fn a_log_on_a_full_disk_can_be_closed() {
    block_on(async {
        let disk = Simulated::new();
        let (log, _) = Log::open_on(disk.clone(), "/log", options()).unwrap();
        append(&log).await.unwrap();
        disk.clone().failing(Some(FULL));
        let commit = log.append(batch()).await.unwrap();
        disk.wait_for_failures(1);
        log.close().await;
        assert!(matches!(commit.await, Err(Error::Fatal { .. } | Error::Closed)));
        disk.clone().failing(None);
        drop(log);
        let (log, _) = Log::open_on(disk.clone(), "/log", options()).unwrap();
        assert_eq!(log.high_water().0, 1);
    });
}

#[test]
fn many_appends_share_a_sync() {
    block_on(async {
        let disk = Simulated::new();
        let (log, _) = Log::open_on(disk.clone(), "/log", Options::default()).unwrap();
        let before = disk.syncs();
        disk.hold();
        let mut commits = Vec::new();
        for _ in 0..1000 {
            commits.push(log.append(batch()).await.unwrap());
        }
        disk.release();
        for commit in commits {
            commit.await.unwrap();
        }
        // One, but for the linger on a busy machine.
        assert!(disk.syncs() - before < 50, "{}", disk.syncs() - before);
    });
}
