//! The real process, killed with work in flight.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use highwater_tests::{Daemon, Postgres, Truth, Workload, folder, until};

use crate::spine::{all_is_there, capturing, local, to_folder};

/// Every instant that the daemon can be told to die at.
const POINTS: [&str; 9] = [
    "after-frame",
    "before-fsync",
    "after-fsync",
    "before-feedback",
    "announced",
    "half-uploaded",
    "uploaded",
    "manifest-lost-answer",
    "snapshot-chunk",
];
const TIMES: u64 = 3;

#[tokio::test(flavor = "multi_thread")]
async fn every_change_lands_once_whatever_instant_the_daemon_is_killed_at() {
    let postgres = Postgres::new(17).await;
    Workload::prepare(&postgres, 60_000).await;
    // More chunks to be killed between.
    for sql in ["ALTER TABLE orders SET (fillfactor = 20)", "VACUUM FULL orders"] {
        postgres.client().await.batch_execute(sql).await.unwrap();
    }
    Truth::watch(&postgres).await;
    let folder = folder("kills");
    let lake = folder.join("lake");
    let mut daemon = Daemon::new(&folder, &to_folder(&postgres, &lake, "150ms"));
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    daemon.kill();

    let mut hits: BTreeMap<&str, u64> = BTreeMap::new();
    let workload = Workload::start(&postgres, 3, 7).await;
    // The snapshot is still to come: its chunks first.
    let mut order: Vec<&str> = POINTS.to_vec();
    order.rotate_right(1);
    for round in 1..=TIMES {
        for point in &order {
            daemon.start(&["run"], Some(&format!("{point}:{}", if *point == "snapshot-chunk" { 1 } else { round })));
            let ended = daemon.wait(Duration::from_secs(60));
            assert!(ended.stderr.contains(&format!("fault point hit: {point}")), "{point}: {}", ended.stderr);
            *hits.entry(point).or_default() += 1;
        }
    }
    let seconds = std::env::var("HIGHWATER_TORTURE_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    let (began, mut kills, mut random) = (Instant::now(), 0u64, 88_172_645_463_325_252u64);
    while kills < 40 || began.elapsed() < Duration::from_secs(seconds) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        daemon.start(&["run"], None);
        tokio::time::sleep(Duration::from_millis(100 + random % 900)).await;
        daemon.kill();
        kills += 1;
    }
    let transactions = workload.stop().await;
    daemon.catch_up();
    let events = all_is_there(&postgres, &local(&lake)).await;
    println!("fault points hit: {hits:?}; random kills: {kills}; transactions: {transactions}; events: {events}");
    assert!(hits.len() == POINTS.len() && hits.values().all(|n| *n >= TIMES));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_ends_with_4_and_writes_nothing_that_counts() {
    let postgres = Postgres::new(17).await;
    let client = postgres.client().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, status text)").await.unwrap();
    postgres.publish("highwater_shop", "t").await;
    let home = folder("zombie");
    let lake = home.join("lake");
    let config = to_folder(&postgres, &lake, "200ms");
    let mut first = Daemon::new(&home, &config);
    // Stopped in the middle of a step: announced, and not a byte uploaded.
    first.start(&["run"], Some("announced:1:STOP"));
    capturing(&first).await;
    client.batch_execute("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 20000) i").await.unwrap();
    until(30, "the first stands still in its step", || {
        let stopped = first.is_stopped();
        async move { stopped }
    })
    .await;
    // Its server lets go of the slot, as it would after wal_sender_timeout.
    client.batch_execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active AND database = current_database()").await.unwrap();
    let other = folder("zombie-heir");
    highwater_tests::must(std::process::Command::new("cp").arg("-a").arg(home.join("highwater-data")).arg(&other));
    let _ = std::fs::remove_file(other.join("highwater-data/control.sock"));
    let mut second = Daemon::new(&other, &config);
    second.start(&["run"], None);
    capturing(&second).await;
    client.batch_execute("INSERT INTO t SELECT i, 'y' FROM generate_series(20001, 30000) i").await.unwrap();
    // The heir has taken over when something of its own is there.
    let store = local(&lake);
    until(30, "the heir delivers", || {
        let store = store.clone();
        async move { highwater_tests::landed(&store, "shop.public.t").await.len() >= 30_000 }
    })
    .await;
    first.signal("CONT");
    let ended = first.wait(Duration::from_secs(60));
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    second.ends_well();
    second.catch_up();
    let events = highwater_tests::landed(&store, "shop.public.t").await;
    let mut ids: Vec<_> = events.iter().map(|event| event.row["id"].clone()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!((events.len(), ids.len()), (30_000, 30_000), "each once");
}
