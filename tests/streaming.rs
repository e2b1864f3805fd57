//! Transactions that are streamed while they are in progress.

use std::path::Path;
use std::time::Duration;

use highwater_tests::{Daemon, Event, Postgres, Truth, Workload, compare, final_state, folder, landed, until};
use serde_json::Value;
use tokio_postgres::Client;

use crate::outages::Small;
use crate::spine::{all_is_there, capturing, local, to_folder};

/// The least that a server takes: what is larger is streamed.
async fn stream_early(postgres: &Postgres) {
    let sql = format!("ALTER DATABASE {} SET logical_decoding_work_mem = '64kB'", postgres.database);
    postgres.client().await.batch_execute(&sql).await.unwrap();
}

/// Two tables, followed by the daemon and by the truth.
async fn with_tables(version: u32) -> Postgres {
    let postgres = Postgres::new(version).await;
    postgres
        .client()
        .await
        .batch_execute(
            "CREATE TABLE t (id bigint PRIMARY KEY, what text, body text);
             ALTER TABLE t ALTER body SET STORAGE EXTERNAL;
             CREATE TABLE u (id bigint PRIMARY KEY, n int, at timestamptz);
             ALTER TABLE u REPLICA IDENTITY FULL;
             INSERT INTO t SELECT i, 'before', repeat(md5(i::text), 200) FROM generate_series(1, 50) i;
             INSERT INTO u SELECT i, i, now() FROM generate_series(1, 50) i",
        )
        .await
        .unwrap();
    postgres.publish("highwater_shop", "t, u").await;
    stream_early(&postgres).await;
    Truth::watch(&postgres).await;
    postgres
}

async fn same(postgres: &Postgres, lake: &Path) -> usize {
    let client = postgres.client().await;
    let mut total = 0;
    for table in ["t", "u"] {
        let events = landed(&local(lake), &format!("shop.public.{table}")).await;
        compare(table, &Truth::of(postgres, &format!("public.{table}")).await, &events);
        final_state(&client, table, &events).await;
        total += events.len();
    }
    total
}

/// Ordinals of each transaction, over all tables: from 0 without a hole.
fn no_holes(events: &[Value]) {
    let mut last: Option<(String, u64)> = None;
    for event in events.iter().filter(|event| !event["tx"].is_null()) {
        let (position, ordinal) = (event["position"].to_string(), event["ordinal"].as_u64().unwrap());
        let expected = match &last {
            Some((before, ordinal)) if *before == position => ordinal + 1,
            _ => 0,
        };
        assert_eq!(ordinal, expected, "{event}");
        last = Some((position, ordinal));
    }
}

async fn many(client: &Client, what: &str, from: i64) {
    let sql = format!(
        "INSERT INTO t SELECT {from} + i, '{what}', repeat(md5(i::text), 25) FROM generate_series(1, 700) i;
         INSERT INTO u SELECT {from} + i, i, clock_timestamp() FROM generate_series(1, 700) i"
    );
    client.batch_execute(&sql).await.unwrap();
}

/// Two huge transactions that are in progress at once, with small ones between;
/// savepoints, half of them rolled back, one in another; all there is of
/// messages; one that is rolled back as a whole.
async fn transactions(postgres: &Postgres, from: i64) {
    let (a, b, c, small) =
        (postgres.client().await, postgres.client().await, postgres.client().await, postgres.client().await);
    for client in [&a, &b, &c] {
        client.batch_execute("BEGIN").await.unwrap();
    }
    for step in 0..4 {
        let from = from + step * 100_000;
        many(&a, "a", from).await;
        a.batch_execute("SAVEPOINT s").await.unwrap();
        many(&a, "rolled back", from + 10_000).await;
        a.batch_execute("SAVEPOINT inner_one").await.unwrap();
        many(&a, "rolled back too", from + 20_000).await;
        a.batch_execute("RELEASE inner_one; ROLLBACK TO s").await.unwrap();
        many(&b, "b", from + 30_000).await;
        let sql = format!(
            "SAVEPOINT kept; UPDATE t SET what = 'b again' WHERE id BETWEEN {0} + 30001 AND {0} + 30100;
             UPDATE u SET n = -n WHERE id BETWEEN {0} + 30001 AND {0} + 30400; UPDATE u SET id = -id WHERE id = {0} + 30500;
             DELETE FROM t WHERE id BETWEEN {0} + 30200 AND {0} + 30400; RELEASE kept;
             SELECT pg_logical_emit_message(true, 'app', 'in b, {step}')",
            from
        );
        b.batch_execute(&sql).await.unwrap();
        many(&c, "never", from + 40_000).await;
        let sql = format!(
            "INSERT INTO u VALUES ({from} + 50000, 0, now()); UPDATE t SET what = 'small {from}' WHERE id = 1 + {step}"
        );
        small.batch_execute(&sql).await.unwrap();
    }
    b.batch_execute("COMMIT").await.unwrap();
    c.batch_execute("ROLLBACK").await.unwrap();
    a.batch_execute(&format!("UPDATE t SET what = 'a last' WHERE id BETWEEN {from} AND {from} + 200; COMMIT"))
        .await
        .unwrap();
    let sql = format!(
        "BEGIN; INSERT INTO t SELECT {from} + 900000 + i, 'gone soon', NULL FROM generate_series(1, 3000) i; TRUNCATE t;
         INSERT INTO t SELECT i, 'after', repeat(md5(i::text), 200) FROM generate_series(1, 50) i; COMMIT"
    );
    small.batch_execute(&sql).await.unwrap();
}

async fn kills(version: u32) {
    let postgres = with_tables(version).await;
    let home = folder(&format!("streaming-{version}"));
    let lake = home.join("lake");
    let mut daemon = Daemon::new(&home, &to_folder(&postgres, &lake, "200ms"));
    daemon.catch_up();
    transactions(&postgres, 1_000_000).await;
    let mut sets: i64 = 1;
    // Every chunk of these transactions, and every batch that is copied, is one to die behind.
    for fault in
        ["spool-chunk:1", "spool-chunk:7", "spool-commit:1", "spool-chunk:10", "spool-commit:2", "spool-commit:3"]
    {
        loop {
            daemon.start(&["run", "--until-caught-up"], Some(fault));
            let ended = daemon.wait(Duration::from_secs(120));
            if ended.stderr.contains("fault point hit") {
                break;
            }
            // What an earlier life has landed and told the server of does not come
            // again: how much that is depends on when it died. Then there is more.
            assert_eq!(ended.code, Some(0), "{fault}: {}", ended.stderr);
            assert!(sets < 10, "{fault} is never hit");
            transactions(&postgres, 1_000_000 + sets * 10_000_000).await;
            sets += 1;
        }
    }
    let spool = home.join("highwater-data/spool/shop");
    assert!(std::fs::read_dir(&spool).unwrap().count() > 0, "what a crash leaves");
    daemon.catch_up();
    assert_eq!(std::fs::read_dir(&spool).unwrap().count(), 0, "nothing is left behind");
    // And once without a kill, behind what is there.
    transactions(&postgres, 5_000_000).await;
    sets += 1;
    daemon.catch_up();
    let total = same(&postgres, &lake).await;
    let events = daemon.tail("shop", &[]);
    no_holes(&events);
    let messages = events.iter().filter(|event| event["op"] == "message").count();
    assert_eq!(messages as i64, 4 * sets, "those of transactions that were committed");
    let streamed: i64 = postgres
        .client()
        .await
        .query_one("SELECT sum(stream_txns)::bigint FROM pg_stat_replication_slots WHERE slot_name = 'hw_' || current_database()", &[])
        .await
        .unwrap()
        .get(0);
    assert!(streamed >= 4 * sets, "the server streamed {streamed} transactions");
    let (code, out, err) = daemon.run(&["log", "check"]);
    assert_eq!(code, 0, "{out}{err}");
    println!("PostgreSQL {version}: {total} rows of {streamed} streamed transactions, each once and in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_transactions_in_progress_at_once_land_whole_from_14() {
    kills(14).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_transactions_in_progress_at_once_land_whole_from_15() {
    kills(15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_transactions_in_progress_at_once_land_whole_from_16() {
    kills(16).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_transactions_in_progress_at_once_land_whole_from_18() {
    kills(18).await;
}

/// Every transaction, however small, comes as chunks of a row each.
#[tokio::test(flavor = "multi_thread")]
async fn what_writers_do_while_tables_are_read_lands_once_if_all_of_it_is_streamed() {
    let postgres = Postgres::new(18).await;
    Workload::prepare(&postgres, 20_000).await;
    let sql = format!("ALTER DATABASE {} SET debug_logical_replication_streaming = immediate", postgres.database);
    postgres.client().await.batch_execute(&sql).await.unwrap();
    Truth::watch(&postgres).await;
    let home = folder("streaming-all");
    let lake = home.join("lake");
    let mut daemon = Daemon::new(&home, &to_folder(&postgres, &lake, "200ms"));
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    let workload = Workload::start(&postgres, 4, 11).await;
    for millis in [1500, 700, 300, 1100, 900] {
        if !daemon.is_running() {
            daemon.start(&["run"], None);
        }
        tokio::time::sleep(Duration::from_millis(millis)).await;
        daemon.kill();
    }
    let transactions = workload.stop().await;
    daemon.catch_up();
    let events = all_is_there(&postgres, &local(&lake)).await;
    no_holes(&daemon.tail("shop", &[]));
    println!("{transactions} transactions, {events} events");
}

async fn alters(version: u32) {
    let postgres = with_tables(version).await;
    let home = folder(&format!("streaming-alter-{version}"));
    let lake = home.join("lake");
    let mut daemon = Daemon::new(&home, &to_folder(&postgres, &lake, "200ms"));
    daemon.catch_up();
    let (client, other) = (postgres.client().await, postgres.client().await);
    // Altered and rolled back; altered for good, while other transactions use
    // another table, which keeps its own shape.
    client.batch_execute("BEGIN").await.unwrap();
    many(&client, "before", 1_000_000).await;
    client
        .batch_execute(
            "SAVEPOINT s; ALTER TABLE t ADD COLUMN never date;
             INSERT INTO t SELECT 2000000 + i, 'never', NULL, '2024-02-29' FROM generate_series(1, 3000) i;
             ROLLBACK TO s;
             INSERT INTO t SELECT 3000000 + i, 'rolled back', repeat('x', 60) FROM generate_series(1, 3000) i; COMMIT;
             BEGIN; INSERT INTO t SELECT 3500000 + i, 'soon altered', repeat('x', 60) FROM generate_series(1, 3000) i;
             ALTER TABLE t ADD COLUMN extra int; ALTER TABLE t RENAME COLUMN what TO que;
             INSERT INTO t SELECT 4000000 + i, 'altered', repeat('x', 60), i FROM generate_series(1, 3000) i;",
        )
        .await
        .unwrap();
    other.batch_execute("INSERT INTO u SELECT 9000000 + i, 1, now() FROM generate_series(1, 2000) i").await.unwrap();
    client.batch_execute("COMMIT").await.unwrap();
    other
        .batch_execute("INSERT INTO t VALUES (8000000, 'plain', NULL, 7); UPDATE u SET n = 2 WHERE id = 9000001")
        .await
        .unwrap();
    // One that is rolled back whole, with an ALTER in it.
    client.batch_execute("BEGIN; ALTER TABLE u ADD COLUMN gone text").await.unwrap();
    client
        .batch_execute("INSERT INTO u SELECT 7000000 + i, i, now(), 'gone' FROM generate_series(1, 3000) i; ROLLBACK")
        .await
        .unwrap();
    other.batch_execute("INSERT INTO u VALUES (9900000, 3, now())").await.unwrap();
    daemon.start(&["run"], Some("spool-commit:1"));
    let ended = daemon.wait(Duration::from_secs(60));
    assert!(ended.stderr.contains("fault point hit"), "{}", ended.stderr);
    daemon.catch_up();
    let events = daemon.tail("shop", &["--table", "public.t"]);
    no_holes(&daemon.tail("shop", &[]));
    let of = |column: &str, value: &str| events.iter().filter(|event| event["after"][column] == value).count();
    assert_eq!((of("what", "before"), of("what", "rolled back"), of("what", "never")), (700 + 50, 3000, 0));
    assert_eq!((of("what", "soon altered"), of("que", "soon altered")), (3000, 0));
    assert_eq!((of("que", "altered"), of("que", "plain"), of("que", "rolled back")), (3000, 1, 0));
    let altered = events.iter().find(|event| event["after"]["que"] == "altered").unwrap();
    assert_eq!(altered["after"]["extra"], 1);
    // What was rolled back is in no schema.
    let (code, out, err) = daemon.run(&["schemas", "list", "--json"]);
    assert_eq!(code, 0, "{err}");
    let (_, shown, _) = daemon.run(&["schemas", "show", "shop.public.t.Value"]);
    assert!(shown.contains("extra") && !shown.contains("never"), "{shown}\n{out}");
    let (_, shown, _) = daemon.run(&["schemas", "show", "shop.public.u.Value"]);
    assert!(!shown.contains("gone"), "{shown}");
    let client = postgres.client().await;
    let rows: Vec<Event> = landed(&local(&lake), "shop.public.u").await;
    compare("u", &Truth::of(&postgres, "public.u").await, &rows);
    final_state(&client, "u", &rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alter_that_is_rolled_back_in_a_huge_transaction_leaves_no_schema_from_15() {
    alters(15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alter_that_is_rolled_back_in_a_huge_transaction_leaves_no_schema_from_18() {
    alters(18).await;
}

/// The server itself loses sight of the table then: "could not map filenode".
#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_cannot_stream_comes_whole() {
    let postgres = with_tables(18).await;
    let home = folder("streaming-lost");
    let mut daemon = Daemon::new(&home, &to_folder(&postgres, &home.join("lake"), "200ms"));
    daemon.catch_up();
    let client = postgres.client().await;
    client
        .batch_execute(
            "BEGIN; SAVEPOINT s; ALTER TABLE t ADD COLUMN never date;
             INSERT INTO t SELECT 2000000 + i, 'never', NULL, '2024-02-29' FROM generate_series(1, 3000) i;
             ROLLBACK TO s; INSERT INTO t SELECT 3000000 + i, 'kept', NULL FROM generate_series(1, 3000) i;
             ALTER TABLE t ADD COLUMN extra int; INSERT INTO t SELECT 4000000 + i, 'kept', NULL, i FROM generate_series(1, 3000) i;
             COMMIT",
        )
        .await
        .unwrap();
    daemon.start(&["run", "--until-caught-up"], None);
    let ended = daemon.wait(Duration::from_secs(60));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("for now they come whole"), "{}", ended.stderr);
    let events = daemon.tail("shop", &["--table", "public.t"]);
    assert_eq!(events.iter().filter(|event| event["after"]["what"] == "kept").count(), 6000);
    assert_eq!(events.len(), 50 + 6000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_and_its_types_made_in_a_huge_transaction_are_known_at_its_commit() {
    let postgres = Postgres::new(18).await;
    let client = postgres.client().await;
    client
        .batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, what text); CREATE PUBLICATION highwater_shop FOR ALL TABLES WITH (publish_via_partition_root = true)")
        .await
        .unwrap();
    stream_early(&postgres).await;
    let home = folder("streaming-made");
    let mut daemon = Daemon::new(&home, &to_folder(&postgres, &home.join("lake"), "200ms"));
    daemon.catch_up();
    client
        .batch_execute(
            "BEGIN; CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN small AS int; CREATE TYPE pair AS (a int, b text);
             CREATE TABLE made (id bigint PRIMARY KEY, m mood, s small, p pair, a mood[]);
             INSERT INTO made SELECT i, 'ok', i, row(i, 'b')::pair, '{sad,ok}' FROM generate_series(1, 5000) i; COMMIT",
        )
        .await
        .unwrap();
    daemon.catch_up();
    let events = daemon.tail("shop", &["--table", "public.made"]);
    let inserts: Vec<&Value> = events.iter().filter(|event| event["op"] == "insert").collect();
    assert_eq!(inserts.len(), 5000);
    assert_eq!(
        inserts[41]["after"],
        serde_json::json!({"id": 42, "m": "ok", "s": 42, "p": {"a": 42, "b": "b"}, "a": ["sad", "ok"]})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_transaction_that_is_rolled_back_leaves_no_trace() {
    let postgres = with_tables(18).await;
    let home = folder("streaming-rollback");
    let lake = home.join("lake");
    let mut daemon = Daemon::new(&home, &to_folder(&postgres, &lake, "200ms"));
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    let spooled = |daemon: &Daemon| daemon.status()["sources"][0]["spool_bytes"].as_u64().unwrap();
    let client = postgres.client().await;
    let before = daemon.status()["sources"][0]["log"]["end"].clone();
    client
        .batch_execute("BEGIN; INSERT INTO t SELECT i, 'no', repeat('x', 50) FROM generate_series(1000, 100000) i")
        .await
        .unwrap();
    until(30, "status shows the transaction in progress", || std::future::ready(spooled(&daemon) > 1 << 20)).await;
    let (_, out, _) = daemon.run(&["status"]);
    assert!(out.contains("transactions in progress"), "{out}");
    // Meanwhile the slot goes on.
    let sql =
        "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'hw_' || current_database()";
    let other = postgres.client().await;
    let stood: String = other.query_one(sql, &[]).await.unwrap().get(0);
    other.batch_execute("INSERT INTO u VALUES (77, 7, now())").await.unwrap();
    until(30, "the slot goes on", || {
        let other = &other;
        let stood = stood.clone();
        async move { other.query_one(sql, &[]).await.unwrap().get::<_, String>(0) != stood }
    })
    .await;
    client.batch_execute("ROLLBACK").await.unwrap();
    until(30, "nothing is left of it", || std::future::ready(spooled(&daemon) == 0)).await;
    assert_eq!(std::fs::read_dir(home.join("highwater-data/spool/shop")).unwrap().count(), 0);
    daemon.ends_well();
    daemon.catch_up();
    same(&postgres, &lake).await;
    let end = daemon.status()["sources"][0]["log"]["end"].as_u64().unwrap();
    assert!(end - before.as_u64().unwrap() <= 101 + 2 * 2, "{before} to {end}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_of_a_transaction_in_progress_is_named_and_nothing_is_lost() {
    let postgres = with_tables(18).await;
    let home = folder("streaming-full");
    let Some(small) = Small::mount(&home.join("highwater-data"), "24m") else { return };
    let lake = home.join("lake");
    let mut daemon = Daemon::new(&home, &to_folder(&postgres, &lake, "200ms"));
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    std::fs::write(small.0.join("filler"), vec![1; 14 << 20]).unwrap();
    let client = postgres.client().await;
    client
        .batch_execute(
            "BEGIN; INSERT INTO t SELECT i, 'much', repeat(md5(i::text), 4) FROM generate_series(1000, 160000) i",
        )
        .await
        .unwrap();
    until(60, "status says that the disk is full", || {
        let problem = daemon.status()["sources"][0]["problem"].to_string();
        std::future::ready(problem.contains("disk full: transaction") && problem.contains("make room"))
    })
    .await;
    assert!(daemon.is_running());
    client.batch_execute("ROLLBACK").await.unwrap();
    std::fs::remove_file(small.0.join("filler")).unwrap();
    let sql = "INSERT INTO t SELECT i, 'less', repeat(md5(i::text), 4) FROM generate_series(1000, 20000) i";
    client.batch_execute(sql).await.unwrap();
    until(60, "it goes on by itself", || {
        let events = daemon.status()["sources"][0]["events"].as_u64().unwrap();
        std::future::ready(events >= 19_000)
    })
    .await;
    daemon.ends_well();
    daemon.catch_up();
    same(&postgres, &lake).await;
}
