//! A large table is added to what is captured while writers go on, and the
//! daemon is killed again and again while it reads it.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use highwater_tests::{Daemon, Postgres, Server, folder, must, root, until};
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::spine::{capturing, to_folder};

const KILLS: u64 = 5;
const CONNECTIONS: u64 = 2;
/// Of a row on a page; a chunk is 8 MiB of pages.
const ROW: u64 = 280;
const CHUNK: u64 = 8 << 20;

/// What is asked for by the environment, or enough for every day.
fn size(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Transactions at a pace, each of a new row beside and a change of the large table.
async fn writers(
    postgres: &Postgres,
    rows: u64,
    each_second: u64,
    stop: &Arc<AtomicBool>,
) -> (JoinSet<()>, Arc<AtomicU64>) {
    // A commit may wait long for the disk while a table is read and logged.
    let writers = (each_second / 25).clamp(4, 64);
    let (done, next) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicI64::new(0)));
    let mut set = JoinSet::new();
    for writer in 0..writers {
        let client = postgres.client().await;
        let (stop, done, next) = (stop.clone(), done.clone(), next.clone());
        set.spawn(async move {
            let mut pace = tokio::time::interval(Duration::from_micros(1_000_000 * writers / each_second));
            let mut random = writer + 1;
            while !stop.load(Ordering::Relaxed) {
                pace.tick().await;
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let (id, new) = ((random >> 33) % rows, next.fetch_add(1, Ordering::Relaxed));
                // Keys of one's own, so that nobody waits for anybody.
                let id = id - id % writers + writer;
                let large = match random >> 60 {
                    0 => format!("DELETE FROM large WHERE id = {id}"),
                    1 => format!("INSERT INTO large VALUES ({}, 'new', 'x')", rows + writers + new as u64),
                    _ => format!("UPDATE large SET v = 'v{new}' WHERE id = {id}"),
                };
                client
                    .batch_execute(&format!("BEGIN; INSERT INTO live VALUES ({new}); {large}; COMMIT"))
                    .await
                    .unwrap();
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    (set, done)
}

/// Rows read, and how many of them are others.
fn read(lake: &std::path::Path) -> (u64, u64) {
    let sql = format!(
        "import duckdb; print(*duckdb.sql(\"SELECT count(*), count(DISTINCT id) FROM read_parquet('{}/shop.public.large/*.parquet') WHERE _hw_op = 'read'\").fetchall()[0])",
        lake.display()
    );
    let out = must(Command::new(root().join("target/servers/python/bin/python")).args(["-c", &sql]));
    let mut numbers = out.split_whitespace().map(|word| word.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Where the WAL ends; from where on the slot, and those of rounds, retain it;
/// and up to where it is acknowledged.
async fn places(client: &Client, slot: &str) -> [u64; 3] {
    let sql = "SELECT (pg_current_wal_lsn() - '0/0')::bigint, (min(restart_lsn) - '0/0')::bigint,
                      (min(confirmed_flush_lsn) FILTER (WHERE slot_name = $1) - '0/0')::bigint
                 FROM pg_replication_slots WHERE slot_name LIKE $1 || '%'";
    let row = client.query_one(sql, &[&slot]).await.unwrap();
    [0, 1, 2].map(|at| row.get::<_, i64>(at) as u64)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_table_is_added_while_writers_go_on_and_the_daemon_is_killed() {
    let (rows, pace) = (size("HIGHWATER_ADDED_ROWS", 200_000), size("HIGHWATER_ADDED_RATE", 200));
    let server = tokio::task::spawn_blocking(|| Server::start(17, "max_wal_size = '1GB'")).await.unwrap();
    let postgres = Postgres::on(Arc::new(server)).await;
    let client = postgres.client().await;
    let sql = format!(
        "CREATE TABLE live (id bigint PRIMARY KEY); CREATE TABLE large (id bigint PRIMARY KEY, v text, filler text);
         INSERT INTO large SELECT i, 'old', repeat('x', 230) FROM generate_series(0, {rows} - 1) i"
    );
    client.batch_execute(&sql).await.unwrap();
    postgres.publish("highwater_shop", "live, large").await;
    let folder = folder("added");
    let lake = folder.join("lake");
    let config = to_folder(&postgres, &lake, "1s").replace("1MiB", "64MiB").replace("2MiB", "32MiB");
    // So that writers keep their pace on a small machine.
    let limit = format!("snapshot = {{ rows_per_second = {} }}\n[log]", size("HIGHWATER_ADDED_LIMIT", 0));
    let config = config.replace("[log]", &limit);
    let without = config.replace("[log]", "tables = [\"public.live\"]\n[log]");
    let mut daemon = Daemon::new(&folder, &without);
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (mut writing, done) = writers(&postgres, rows, pace, &stop).await;
    let started = Instant::now();
    until(60, "writers write", || async { done.load(Ordering::Relaxed) > 100 }).await;
    daemon.ends_well();

    let (kept, retained) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (most, most_retained, looking) = (kept.clone(), retained.clone(), stop.clone());
    let looker = postgres.client().await;
    let slot = format!("hw_{}", postgres.database);
    let look = tokio::spawn(async move {
        while !looking.load(Ordering::Relaxed) {
            let [end, restart, confirmed] = places(&looker, &slot).await;
            most.fetch_max(end.saturating_sub(confirmed), Ordering::Relaxed);
            most_retained.fetch_max(end.saturating_sub(restart), Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let begin: String = client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap().get(0);
    let mut daemon = Daemon::new(&folder, &config);
    let chunks = (rows * ROW).div_ceil(CHUNK);
    let each = (chunks / (KILLS + 1)).max(1);
    let slot = format!("hw_{}", postgres.database);
    let mut acknowledged = Vec::new();
    let mut bounded = 0;
    for kill in 1..=KILLS {
        let [began, ..] = places(&client, &slot).await;
        daemon.start(&["run"], Some(&format!("snapshot-chunk:{each}")));
        let ended = daemon.wait(Duration::from_secs(300));
        assert!(ended.stderr.contains("fault point hit"), "kill {kill}: {}", ended.stderr);
        // Each round has the server log which transactions run, to which a slot may
        // go on, a step behind; so what is retained is of the last runs, and not all
        // since the table was added. (One killed before its first word to the server
        // has moved nothing.)
        let [_, restart, confirmed] = places(&client, &slot).await;
        acknowledged.extend((confirmed > began).then_some(began));
        if let Some(before) = acknowledged.iter().rev().nth(2) {
            assert!(restart >= *before, "kill {kill}: retained from {restart:X} on, and {before:X} is two rounds ago");
            bounded += 1;
        }
    }
    let [last, ..] = places(&client, &slot).await;
    daemon.start(&["run"], None);
    until(600, "the table is read", || {
        let tables = daemon.status()["sources"][0]["tables"].as_array().cloned().unwrap_or_default();
        async move { tables.len() == 2 && tables.iter().all(|table| table["finished"] == true) }
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    let seconds = started.elapsed().as_secs_f64();
    while writing.join_next().await.is_some_and(|ended| ended.is_ok()) {}
    look.await.unwrap();
    // No chunk's transaction is left that would hold it back.
    until(60, "nothing is retained of what was before the last run", || async {
        client.batch_execute("SELECT pg_log_standby_snapshot()").await.unwrap();
        places(&client, &slot).await[1] >= last
    })
    .await;
    daemon.ends_well();
    daemon.catch_up();
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    let (code, out, err) = daemon.run(&["verify", "shop", "lake"]);
    assert_eq!(code, 0, "{out}{err}");
    let (events, others) = read(&lake);
    let sql = format!("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '{begin}'::pg_lsn)::bigint");
    let written: i64 = client.query_one(&sql, &[]).await.unwrap().get(0);
    let (transactions, kept) = (done.load(Ordering::Relaxed), kept.load(Ordering::Relaxed));
    println!(
        "{rows} rows in about {chunks} chunks, {transactions} transactions in {seconds:.0} s meanwhile, {KILLS} kills: {events} rows read, {} of them again; WAL {} KiB, not acknowledged at most {} KiB, retained at most {} KiB, and of two rounds at {bounded} kills",
        events - others,
        written >> 10,
        kept >> 10,
        retained.load(Ordering::Relaxed) >> 10
    );
    // Of each kill the chunks that were open; and keys that moved between rounds.
    let open = KILLS * CONNECTIONS * (CHUNK / ROW + 1) + transactions;
    assert!(events - others <= open, "{events} read, {others} of them once");
    assert!(others >= rows - transactions, "{others}");
}
