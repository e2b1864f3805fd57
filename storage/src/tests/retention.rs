//! What is removed, and what is not.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::corruption::segments;
use super::history::block_on;
use crate::simulated::Simulated;
use crate::{EventLog, Kind, Log, LogBatch, Micros, Offset, Options, PENDING_KEY, Retain, StateChange};

const HOUR: Duration = Duration::from_secs(3600);

/// A log whose frames, a segment for every three or so, are this old each.
async fn log(retain: Retain, ages: &[Duration]) -> (Simulated, Log<Simulated>) {
    let disk = Simulated::new();
    let (log, _) = open(&disk, retain);
    for age in ages {
        append(&log, Kind::Data, *age).await;
    }
    (disk, log)
}

fn open(disk: &Simulated, retain: Retain) -> (Log<Simulated>, crate::Recovered) {
    let options = Options { segment_bytes: 3000, retain, ..Options::default() };
    Log::open_on(disk.clone(), "/log", options).unwrap()
}

async fn append(log: &Log<Simulated>, kind: Kind, age: Duration) -> Offset {
    let then = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() - age;
    let batch = LogBatch {
        kind,
        position: None,
        records: 1,
        event_time: Micros(then.as_micros() as i64),
        payload: vec![7; 1000].into(),
        state: Vec::new(),
        ends_transaction: true,
    };
    log.append(batch).await.unwrap().await.unwrap().offsets.start
}

/// Tells the floor, and returns the first offset when that was heeded.
async fn floor(log: &Log<Simulated>, floor: Offset) -> u64 {
    log.retain_from(floor);
    // Requests are taken in order.
    log.trim(Offset(0)).await.unwrap();
    log.start().0
}

#[test]
fn nothing_is_removed_that_was_not_said_to_be_done_with() {
    block_on(async {
        let retain = Retain { age: Some(HOUR), bytes: Some(1) };
        let (_disk, log) = log(retain, &[HOUR * 5; 30]).await;
        assert_eq!(log.start(), Offset(0));
        assert_eq!(floor(&log, Offset(0)).await, 0);
        for next in 1..30 {
            let start = floor(&log, Offset(next)).await;
            assert!(start <= next && start + 4 > next, "{start} of {next}");
        }
    });
}

#[test]
fn what_is_old_is_removed() {
    block_on(async {
        let mut ages = [HOUR * 5; 30];
        ages[15..].fill(HOUR / 2);
        let (_disk, log) = log(Retain { age: Some(HOUR), bytes: None }, &ages).await;
        let start = floor(&log, log.high_water()).await;
        assert!((12..=15).contains(&start), "{start}");
    });
}

#[test]
fn what_is_too_much_is_removed() {
    block_on(async {
        let (disk, log) = log(Retain { age: None, bytes: Some(10_000) }, &[HOUR; 30]).await;
        let before = log.stats();
        let start = floor(&log, log.high_water()).await;
        let after = log.stats();
        assert!(before.bytes > 30_000 && after.bytes <= 10_000 && after.bytes > 6_000, "{after:?}");
        // And without being told again, whenever a segment is full.
        for _ in 0..10 {
            append(&log, Kind::Data, HOUR).await;
        }
        assert_eq!(floor(&log, log.high_water()).await, log.start().0);
        assert!(log.start().0 > start);
        let files = segments(&disk, Path::new("/log"));
        assert_eq!(files.len() as u64, log.stats().segments);
        // An index goes with its segment.
        let names = crate::files::Files::list(&disk, Path::new("/log")).unwrap();
        assert_eq!(names.iter().filter(|name| name.ends_with(".idx")).count(), files.len() - 1);
    });
}

#[test]
fn without_a_bound_everything_stays() {
    block_on(async {
        let (_disk, log) = log(Retain { age: None, bytes: None }, &[HOUR * 100; 30]).await;
        assert_eq!(floor(&log, log.high_water()).await, 0);
    });
}

#[test]
fn what_is_held_back_stays_until_it_is_released() {
    block_on(async {
        let retain = Retain { age: Some(HOUR), bytes: Some(1) };
        let (disk, mut log) = log(retain, &[HOUR * 5; 10]).await;
        let held = append(&log, Kind::Pending, HOUR * 5).await;
        for n in 0..20 {
            append(&log, if n % 5 == 0 { Kind::Pending } else { Kind::Data }, HOUR * 5).await;
        }
        for _ in 0..2 {
            let start = floor(&log, log.high_water()).await;
            assert!(start <= held.0 && start + 4 > held.0, "{start} of {held}");
            log.trim(log.high_water()).await.unwrap();
            assert_eq!(log.start().0, start);
            // It is remembered.
            log.close().await;
            log = open(&disk, retain).0;
        }
        let release = LogBatch {
            kind: Kind::Control,
            position: None,
            records: 0,
            event_time: Micros(0),
            payload: Default::default(),
            state: vec![StateChange { key: PENDING_KEY.into(), value: None }],
            ends_transaction: true,
        };
        log.append(release).await.unwrap().await.unwrap();
        assert!(floor(&log, log.high_water()).await > held.0 + 15);
    });
}

#[test]
fn trimming_does_not_pass_the_least_checkpoint() {
    block_on(async {
        let (_disk, log) = log(Retain { age: None, bytes: None }, &[HOUR; 30]).await;
        log.retain_from(Offset(10));
        log.trim(Offset(25)).await.unwrap();
        assert!((7..=10).contains(&log.start().0), "{}", log.start());
    });
}
