//! Capture from a standby, whose slot is its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use highwater_tests::{Daemon, Postgres, Server, final_state, folder, landed, until};
use tokio_postgres::Client;

use crate::accidents::STOPS_WITHIN;
use crate::spine::{capturing, local, to_folder};

const PATIENCE: u64 = 60;

/// A primary, a standby of it, and a daemon that knows the standby alone.
struct Pair {
    /// The database at the primary, and at the standby.
    primary: Postgres,
    standby: Postgres,
    daemon: Daemon,
    lake: PathBuf,
}

/// Logs the primary's running transactions again and again, as a busy one does
/// by itself every 15 seconds; ends when dropped.
struct Busy(tokio::task::JoinHandle<()>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Pair {
    async fn new(version: u32, name: &str) -> Self {
        let primary = Arc::new(tokio::task::spawn_blocking(move || Server::start(version, "")).await.unwrap());
        let admin = primary.connect("postgres").await;
        admin.batch_execute("SELECT pg_create_physical_replication_slot('standby', true)").await.unwrap();
        drop(admin);
        let primary = Postgres::on(primary).await;
        let sql = "CREATE TABLE t (id bigint PRIMARY KEY, v text); INSERT INTO t SELECT i, 'x' FROM generate_series(1, 300) i";
        primary.client().await.batch_execute(sql).await.unwrap();
        let copied = primary.server.clone();
        let standby = tokio::task::spawn_blocking(move || copied.standby()).await.unwrap();
        let standby = Postgres { server: Arc::new(standby), database: primary.database.clone() };
        let folder = folder(&format!("{name}-{version}"));
        let lake = folder.join("lake");
        let config = to_folder(&standby, &lake, "200ms").replace("[log]", "heartbeat = \"1s\"\n[log]");
        Self { primary, standby, daemon: Daemon::new(&folder, &config), lake }
    }

    async fn busy(&self) -> Busy {
        let client = self.primary.client().await;
        Busy(tokio::spawn(async move {
            while client.batch_execute("SELECT pg_log_standby_snapshot()").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }))
    }

    /// The standby has replayed all that the primary has written by now.
    async fn is_in_step(&self) {
        let end: String =
            self.primary.client().await.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap().get(0);
        let there = self.standby.client().await;
        until(PATIENCE, "the standby has it all", || async {
            let sql = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn";
            there.query_one(sql, &[&end]).await.unwrap().get(0)
        })
        .await;
    }

    async fn has(&self, count: usize) {
        let store = local(&self.lake);
        until(PATIENCE, &format!("{count} events"), || async { landed(&store, "shop.public.t").await.len() >= count })
            .await;
    }

    async fn is_exact(&self, client: &Client) {
        let events = landed(&local(&self.lake), "shop.public.t").await;
        final_state(client, "t", &events).await;
    }

    /// The standby shows that the slot is of no use any more.
    async fn is_lost(&self) {
        let there = self.standby.client().await;
        until(PATIENCE, "the slot is lost", || async {
            let sql = "SELECT count(*) FROM pg_replication_slots WHERE conflicting OR wal_status = 'lost'";
            there.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) > 0
        })
        .await;
    }

    fn stops(&mut self, words: &[&str]) {
        let ended = self.daemon.wait(STOPS_WITHIN);
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        for word in words {
            assert!(ended.stderr.contains(word), "{word:?} is not in:\n{}", ended.stderr);
        }
    }
}

async fn followed_through_its_promotion(version: u32) {
    let mut pair = Pair::new(version, "standby").await;
    // What is to be changed is said with where.
    pair.daemon.start(&["run"], None);
    pair.stops(&["this is a standby", "run on the primary", "CREATE PUBLICATION"]);
    let (code, out, _) = pair.daemon.run(&["check"]);
    assert_eq!(code, 3);
    assert!(out.contains("the server is a standby") && out.contains("run the SQL on the primary"), "{out}");
    pair.primary.publish("highwater_shop", "t").await;
    let mut writer = pair.primary.client().await;
    let open = writer.transaction().await.unwrap();
    open.batch_execute("INSERT INTO t VALUES (1000, 'in progress')").await.unwrap();
    pair.is_in_step().await;
    pair.daemon.start(&["run"], None);
    until(PATIENCE, "status says what the slot waits for", || {
        let problem = pair.daemon.status()["sources"][0]["problem"].to_string();
        async move { problem.contains("made on a standby") && problem.contains("SELECT pg_log_standby_snapshot()") }
    })
    .await;
    open.commit().await.unwrap();
    let busy = pair.busy().await;
    capturing(&pair.daemon).await;
    pair.has(301).await;
    let client = pair.primary.client().await;
    client
        .batch_execute("UPDATE t SET v = 'y' WHERE id <= 50; DELETE FROM t WHERE id BETWEEN 60 AND 69; UPDATE t SET id = -1 WHERE id = 1")
        .await
        .unwrap();
    pair.has(362).await;
    pair.is_exact(&client).await;
    let (code, out, err) = pair.daemon.run(&["check"]);
    assert_eq!(code, 0, "{out}{err}");

    // Without a change of ours its slot moves on all the same.
    let other = pair.primary.server.connect("postgres").await;
    other.batch_execute("CREATE TABLE other AS SELECT generate_series(1, 1000)").await.unwrap();
    drop(other);
    let end: String = client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap().get(0);
    let there = pair.standby.client().await;
    until(PATIENCE, "an idle slot moves on", || async {
        let sql = "SELECT coalesce(max(confirmed_flush_lsn) >= $1::text::pg_lsn, false) FROM pg_replication_slots WHERE plugin = 'pgoutput' AND NOT temporary";
        there.query_one(sql, &[&end]).await.unwrap().get(0)
    })
    .await;

    // A later round has its own slot on the standby.
    let (code, _, err) = pair.daemon.run(&["snapshot", "shop", "public.t"]);
    assert_eq!(code, 0, "{err}");
    until(PATIENCE, "it is read again", || {
        let table = pair.daemon.status()["sources"][0]["tables"][0].clone();
        async move { table["generation"] == 2 && table["finished"] == true }
    })
    .await;
    drop(busy);

    // The primary goes, the standby becomes one, and is read on.
    client.batch_execute("INSERT INTO t VALUES (2000, 'last of the old')").await.unwrap();
    pair.is_in_step().await;
    drop((client, writer));
    let (old, new) = (pair.primary.server.clone(), pair.standby.server.clone());
    tokio::task::spawn_blocking(move || {
        old.down("immediate");
        new.promote();
    })
    .await
    .unwrap();
    there.batch_execute("INSERT INTO t SELECT i, 'first of the new' FROM generate_series(3000, 3009) i").await.unwrap();
    let store = local(&pair.lake);
    until(PATIENCE, "what the new primary writes is there", || async {
        landed(&store, "shop.public.t").await.iter().any(|event| event.row["id"].as_deref() == Some("3009"))
    })
    .await;
    // Told and durable beyond the place where the timelines part.
    there.batch_execute("CHECKPOINT").await.unwrap();
    let sql = "SELECT timeline_id, redo_lsn::text FROM pg_control_checkpoint()";
    let row = there.query_one(sql, &[]).await.unwrap();
    let (timeline, beyond): (i32, String) = (row.get(0), row.get(1));
    assert_eq!(timeline, 2);
    there.batch_execute("UPDATE t SET v = 'z' WHERE id = 3009").await.unwrap();
    until(PATIENCE, "it was acknowledged", || async {
        let sql = "SELECT confirmed_flush_lsn > $1::text::pg_lsn FROM pg_replication_slots WHERE plugin = 'pgoutput'";
        there.query_one(sql, &[&beyond]).await.unwrap().get(0)
    })
    .await;
    pair.daemon.kill();
    there.batch_execute("DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (4000, 'after the kill')").await.unwrap();
    pair.daemon.catch_up();
    pair.is_exact(&there).await;
    let (code, out, err) = pair.daemon.run(&["check"]);
    assert_eq!(code, 0, "{out}{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_captured_from_and_through_its_promotion_at_16() {
    followed_through_its_promotion(16).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_captured_from_and_through_its_promotion_at_18() {
    followed_through_its_promotion(18).await;
}

async fn following(version: u32, name: &str) -> (Pair, Busy) {
    let mut pair = Pair::new(version, name).await;
    pair.primary.publish("highwater_shop", "t").await;
    pair.is_in_step().await;
    let busy = pair.busy().await;
    pair.daemon.start(&["run"], None);
    capturing(&pair.daemon).await;
    pair.has(300).await;
    (pair, busy)
}

/// A new slot, and all is read again.
async fn is_repaired(mut pair: Pair) {
    let _busy = pair.busy().await;
    let client = pair.primary.client().await;
    client.batch_execute("DELETE FROM t WHERE id <= 10; INSERT INTO t VALUES (5000, 'in the gap')").await.unwrap();
    pair.is_in_step().await;
    let (code, out, err) = pair.daemon.run(&["repair", "shop", "--yes"]);
    assert_eq!(code, 0, "{out}{err}");
    pair.daemon.catch_up();
    pair.is_exact(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_whose_primary_no_longer_logs_enough_is_stopped_at_and_repaired() {
    let (mut pair, busy) = following(16, "standby-level").await;
    drop(busy);
    let primary = pair.primary.server.clone();
    let restart = move |level: &'static str| {
        let primary = primary.clone();
        tokio::task::spawn_blocking(move || {
            primary.set(&format!("wal_level = {level}"));
            primary.down("fast");
            primary.up();
        })
    };
    restart("replica").await.unwrap();
    pair.is_lost().await;
    pair.stops(&["was invalidated", "wal_level", "highwater repair shop"]);
    restart("logical").await.unwrap();
    is_repaired(pair).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_vacuum_has_taken_rows_from_is_stopped_at_and_repaired() {
    let (mut pair, busy) = following(18, "standby-vacuum").await;
    drop(busy);
    let there = pair.standby.client().await;
    there.batch_execute("ALTER SYSTEM SET hot_standby_feedback = off").await.unwrap();
    there.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let client = pair.primary.client().await;
    until(PATIENCE, "the primary keeps no rows for the standby", || async {
        let sql = "SELECT xmin IS NULL AND catalog_xmin IS NULL FROM pg_replication_slots WHERE slot_name = 'standby'";
        client.query_one(sql, &[]).await.unwrap().get(0)
    })
    .await;
    let (_, out, _) = pair.daemon.run(&["check"]);
    assert!(out.contains("hot_standby_feedback is off"), "{out}");
    // Each in a transaction of its own, or there is nothing that anybody could have seen.
    for sql in ["CREATE TABLE gone (id int)", "DROP TABLE gone", "VACUUM pg_class"] {
        client.batch_execute(sql).await.unwrap();
    }
    client.batch_execute("INSERT INTO t VALUES (4000, 'behind the vacuum')").await.unwrap();
    pair.is_lost().await;
    pair.stops(&[
        "was invalidated",
        "removed rows of its catalog",
        "hot_standby_feedback = on",
        "highwater repair shop",
    ]);
    there.batch_execute("ALTER SYSTEM SET hot_standby_feedback = on").await.unwrap();
    there.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    is_repaired(pair).await;
}
