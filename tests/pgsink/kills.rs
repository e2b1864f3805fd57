//! A mirror while the daemon, or the warehouse, is killed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use highwater_tests::{Daemon, Postgres, Server, Workload, folder, until};
use tokio_postgres::Client;

use super::{config, number, same, warehouse};
use crate::spine::capturing;

/// Money that moves between two tables: what every transaction keeps is the sum.
async fn transfer(client: Client, seed: u64, stop: Arc<AtomicBool>) -> u64 {
    let (mut random, mut done) = (seed * 7919 + 1, 0);
    while !stop.load(Ordering::Relaxed) {
        let mut below = |n: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % n
        };
        let (from, to, amount) = (below(100), below(100), below(50));
        let sql = match below(10) {
            // The account changes its number.
            0 => format!(
                "UPDATE debtors SET id = id + 1000 WHERE id = {from}; UPDATE debtors SET id = id - 1000 WHERE id = {from} + 1000;"
            ),
            _ => String::new(),
        };
        let moved = client
            .batch_execute(&format!(
                "BEGIN; UPDATE debtors SET balance = balance - {amount} WHERE id = {from}; {sql}
                 UPDATE creditors SET balance = balance + {amount} WHERE id = {to}; COMMIT"
            ))
            .await;
        match moved {
            Ok(()) => done += 1,
            Err(_) => drop(client.batch_execute("ROLLBACK").await),
        }
    }
    done
}

/// What was seen of a mirror.
#[derive(Default)]
pub(super) struct Looks {
    pub(super) looks: u64,
    /// The states in which it was not whole.
    pub(super) wrong: Vec<String>,
    /// Looks that found another state than the one before.
    pub(super) states: u64,
}

/// Looks at the mirror again and again, in one statement each time, which says
/// whether it is whole, and in which state.
pub(super) async fn look(warehouse: Arc<Postgres>, sql: String, stop: Arc<AtomicBool>) -> Looks {
    let (mut seen, mut last) = (Looks::default(), None);
    let url = format!("host=127.0.0.1 port={} user=postgres dbname={}", warehouse.server.port, warehouse.database);
    while !stop.load(Ordering::Relaxed) {
        let Ok((client, connection)) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        tokio::spawn(connection);
        while !stop.load(Ordering::Relaxed) {
            let Ok(row) = client.query_one(&sql, &[]).await else { break };
            let (whole, state): (Option<bool>, String) = (row.get(0), row.get(1));
            if whole != Some(true) {
                seen.wrong.push(state.clone());
            }
            seen.looks += 1;
            seen.states += u64::from(last.replace(state.clone()).is_some_and(|last| last != state));
        }
    }
    seen
}

/// The two tables of a transfer.
const WHOLE: &str = "
SELECT d.sum + c.sum = 20000 AND d.count = 100 AND c.count = 100, concat_ws(' ', d.sum, d.count, c.sum, c.count)
  FROM (SELECT sum(balance), count(*) FROM debtors) d, (SELECT sum(balance), count(*) FROM creditors) c";

/// Every instant of the sink that the daemon can be told to die at.
const POINTS: [&str; 4] = ["half-merged", "pre-commit", "post-commit", "snapshot-chunk"];
const TIMES: u64 = 3;

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_shows_only_what_the_source_was_whatever_dies() {
    let source = Postgres::new(17).await;
    let server = tokio::task::spawn_blocking(|| Server::start(17, "")).await.unwrap();
    let server = Arc::new(server);
    let warehouse = Arc::new(warehouse(Some(server.clone()), 17).await);
    let admin = warehouse.client().await;
    admin.batch_execute("CREATE SCHEMA \"Odd \"\"Näme\" AUTHORIZATION loader").await.unwrap();
    let client = source.client().await;
    Workload::prepare(&source, 20_000).await;
    client
        .batch_execute(
            "CREATE TABLE debtors (id int PRIMARY KEY, balance int NOT NULL, memo text);
             ALTER TABLE debtors ALTER memo SET STORAGE EXTERNAL;
             CREATE TABLE creditors (id int PRIMARY KEY, balance int NOT NULL);
             INSERT INTO debtors SELECT i, 100, repeat(md5(i::text), 100) FROM generate_series(0, 99) i;
             INSERT INTO creditors SELECT i, 100 FROM generate_series(0, 99) i;
             ALTER PUBLICATION highwater_shop ADD TABLE debtors, creditors",
        )
        .await
        .unwrap();
    let folder = folder("pgsink-kills");
    let mut daemon = Daemon::new(&folder, &config(&source, &warehouse, "cut = { age = \"50ms\" }"));
    // The chunks of the snapshot first.
    let mut hits: BTreeMap<&str, u64> = BTreeMap::new();
    let mut die = |daemon: &mut Daemon, point: &'static str, nth: u64| {
        daemon.start(&["run"], Some(&format!("{point}:{nth}")));
        let ended = daemon.wait(Duration::from_secs(90));
        assert!(ended.stderr.contains(&format!("fault point hit: {point}")), "{point}: {}", ended.stderr);
        *hits.entry(point).or_default() += 1;
    };
    for _ in 0..TIMES {
        die(&mut daemon, "snapshot-chunk", 1);
    }
    daemon.catch_up();
    let stop = Arc::new(AtomicBool::new(false));
    let looking = tokio::spawn(look(warehouse.clone(), WHOLE.into(), stop.clone()));
    let mut transfers = tokio::task::JoinSet::new();
    for seed in 1..3 {
        transfers.spawn(transfer(source.client().await, seed, stop.clone()));
    }
    let workload = Workload::start(&source, 2, 11).await;
    for round in 1..=TIMES {
        for point in ["half-merged", "pre-commit", "post-commit"] {
            die(&mut daemon, point, round);
        }
    }
    let (mut random, mut kills) = (88_172_645_463_325_252u64, 0);
    for round in 0..24 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        daemon.start(&["run"], None);
        tokio::time::sleep(Duration::from_millis(100 + random % 900)).await;
        if round % 8 == 7 {
            // The warehouse dies under the running daemon, and comes back.
            let server = server.clone();
            tokio::task::spawn_blocking(move || server.down("immediate")).await.unwrap();
            assert!(daemon.is_running(), "the daemon waits");
            let server = warehouse.server.clone();
            tokio::task::spawn_blocking(move || server.up()).await.unwrap();
            let back = warehouse.client().await;
            let before = number(&back, "SELECT next_offset FROM _highwater.checkpoints").await;
            let back = Arc::new(back);
            until(60, "the mirror goes on by itself", || {
                let back = back.clone();
                async move { number(&back, "SELECT next_offset FROM _highwater.checkpoints").await > before }
            })
            .await;
        }
        daemon.kill();
        kills += 1;
    }
    let transactions = workload.stop().await;
    stop.store(true, Ordering::Relaxed);
    let mut moved = 0;
    while let Some(done) = transfers.join_next().await {
        moved += done.unwrap();
    }
    let Looks { looks, wrong, .. } = looking.await.unwrap();
    daemon.catch_up();
    let here = warehouse.client().await;
    let mut total = 0;
    for table in Workload::tables().map(|(sql, _, _)| sql).chain(["debtors", "creditors"]) {
        total += same(&client, &here, table).await;
    }
    println!(
        "fault points hit: {hits:?}; random kills: {kills}; warehouse killed: 3; transactions: {transactions} and {moved} transfers; \
         rows: {total}; looks: {looks}, wrong: {}",
        wrong.len()
    );
    assert!(wrong.is_empty(), "{:?}", &wrong[..wrong.len().min(5)]);
    assert!(looks > 100 && moved > 100, "{looks} looks, {moved} transfers");
    assert!(POINTS.iter().all(|point| hits[point] >= TIMES));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_of_a_warehouse_ends_with_4() {
    let source = Postgres::new(17).await;
    let warehouse = warehouse(None, 17).await;
    let client = source.client().await;
    client.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, status text)").await.unwrap();
    source.publish("highwater_shop", "t").await;
    let home = folder("pgsink-zombie");
    let config = config(&source, &warehouse, "");
    let mut first = Daemon::new(&home, &config);
    first.catch_up();
    // Stopped with its transaction open and the checkpoint locked.
    first.start(&["run"], Some("pre-commit:1:STOP"));
    capturing(&first).await;
    client.batch_execute("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 20000) i").await.unwrap();
    until(30, "the first stands still in its step", || {
        let stopped = first.is_stopped();
        async move { stopped }
    })
    .await;
    client.batch_execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active AND database = current_database()").await.unwrap();
    let other = folder("pgsink-heir");
    highwater_tests::must(std::process::Command::new("cp").arg("-a").arg(home.join("highwater-data")).arg(&other));
    let _ = std::fs::remove_file(other.join("highwater-data/control.sock"));
    let mut second = Daemon::new(&other, &config);
    let began = Instant::now();
    second.start(&["run"], None);
    capturing(&second).await;
    client
        .batch_execute(
            "INSERT INTO t SELECT i, 'y' FROM generate_series(20001, 30000) i; DELETE FROM t WHERE id <= 100",
        )
        .await
        .unwrap();
    let here = Arc::new(warehouse.client().await);
    until(60, "the heir delivers", || {
        let here = here.clone();
        async move {
            number(&here, "SELECT CASE WHEN to_regclass('t') IS NULL THEN 0 ELSE 1 END::int8").await == 1
                && number(&here, "SELECT count(*) FROM t").await == 29_900
        }
    })
    .await;
    assert!(
        began.elapsed() < Duration::from_secs(25),
        "the zombie's session was not waited for: {:?}",
        began.elapsed()
    );
    first.signal("CONT");
    let ended = first.wait(Duration::from_secs(60));
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    client.batch_execute("INSERT INTO t VALUES (99999, 'z')").await.unwrap();
    second.ends_well();
    second.catch_up();
    assert_eq!(same(&client, &here, "t").await, 29_901);
}
