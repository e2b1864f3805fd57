//! A standby takes over.

use std::sync::Arc;

use highwater_tests::{Daemon, Postgres, Server, final_state, folder, landed, until};

use crate::accidents::STOPS_WITHIN;
use crate::spine::{capturing, local, to_folder};

const PATIENCE: u64 = 60;

async fn promoted(version: u32) {
    let primary = Arc::new(tokio::task::spawn_blocking(move || Server::start(version, "")).await.unwrap());
    let admin = primary.connect("postgres").await;
    admin.batch_execute("SELECT pg_create_physical_replication_slot('standby', true)").await.unwrap();
    drop(admin);
    let postgres = Postgres::on(primary.clone()).await;
    postgres.client().await.batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, v text); INSERT INTO t SELECT i, 'x' FROM generate_series(1, 500) i").await.unwrap();
    postgres.publish("highwater_shop", "t").await;
    let copied = primary.clone();
    let standby = Arc::new(tokio::task::spawn_blocking(move || copied.standby()).await.unwrap());
    let folder = folder(&format!("failover-{version}"));
    let lake = folder.join("lake");
    let config = to_folder(&postgres, &lake, "200ms");
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    let client = postgres.client().await;
    client
        .batch_execute(
            "INSERT INTO t SELECT i, 'y' FROM generate_series(1000, 1099) i; UPDATE t SET v = 'z' WHERE id <= 50",
        )
        .await
        .unwrap();
    let there = Arc::new(standby.connect("postgres").await);
    until(60, "the slot is on the standby", || {
        let there = there.clone();
        async move {
            let sql =
                "SELECT count(*) FROM pg_replication_slots WHERE plugin = 'pgoutput' AND synced AND NOT temporary";
            there.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1
        }
    })
    .await;
    daemon.ends_well();
    // What the standby has and the daemon has not.
    client
        .batch_execute("DELETE FROM t WHERE id BETWEEN 60 AND 69; INSERT INTO t VALUES (2000, 'late')")
        .await
        .unwrap();
    let end: String = client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap().get(0);
    until(30, "the standby has it all", || {
        let (there, end) = (there.clone(), end.clone());
        async move {
            let sql = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn";
            there.query_one(sql, &[&end]).await.unwrap().get(0)
        }
    })
    .await;
    drop((client, there));
    let (old, new) = (primary.clone(), standby.clone());
    tokio::task::spawn_blocking(move || {
        old.down("immediate");
        new.promote();
    })
    .await
    .unwrap();
    let heir = Postgres { server: standby.clone(), database: postgres.database.clone() };
    heir.client().await.batch_execute("INSERT INTO t VALUES (3000, 'new primary')").await.unwrap();
    let moved = config.replace(&primary.port.to_string(), &standby.port.to_string());
    let mut daemon = Daemon::new(&folder, &moved);
    daemon.catch_up();
    let events = landed(&local(&lake), "shop.public.t").await;
    final_state(&heir.client().await, "t", &events).await;
    assert!(events.iter().all(|event| event.op != "snapshot_begin"), "nothing was read again");

    // The old primary, with changes that the new one never saw: not ours to follow any more.
    let old = primary.clone();
    tokio::task::spawn_blocking(move || old.up()).await.unwrap();
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run"], None);
    let ended = daemon.wait(STOPS_WITHIN);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("timeline") && ended.stderr.contains("highwater repair shop"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_is_followed_without_a_loss_on_17() {
    promoted(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_is_followed_without_a_loss_on_18() {
    promoted(18).await;
}

/// The daemon's source says it, and where it reads from.
async fn says(daemon: &Daemon, what: &str, is: impl Fn(&serde_json::Value) -> bool) {
    until(PATIENCE, what, || {
        let found = is(&daemon.status()["sources"][0]);
        async move { found }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_hosts_the_one_that_takes_writes_is_followed_through_a_failover() {
    let primary = Arc::new(tokio::task::spawn_blocking(|| Server::start(17, "")).await.unwrap());
    let admin = primary.connect("postgres").await;
    admin.batch_execute("SELECT pg_create_physical_replication_slot('standby', true)").await.unwrap();
    drop(admin);
    let postgres = Postgres::on(primary.clone()).await;
    let sql =
        "CREATE TABLE t (id bigint PRIMARY KEY, v text); INSERT INTO t SELECT i, 'x' FROM generate_series(1, 300) i";
    postgres.client().await.batch_execute(sql).await.unwrap();
    postgres.publish("highwater_shop", "t").await;
    let copied = primary.clone();
    let standby = Arc::new(tokio::task::spawn_blocking(move || copied.standby()).await.unwrap());
    let client = postgres.client().await;
    // What the standby lacks is not sent to us either.
    client.batch_execute("ALTER SYSTEM SET synchronized_standby_slots = 'standby'").await.unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let folder = folder("several-hosts");
    let lake = folder.join("lake");
    let (old, new) = (format!("127.0.0.1:{}", primary.port), format!("localhost:{}", standby.port));
    // The standby first, and before it one where nobody listens.
    let none = highwater_tests::free_port();
    let url = format!(
        "postgres://highwater@127.0.0.1:{none},{new},{old}/{}?target_session_attrs=read-write",
        postgres.database
    );
    let config = to_folder(&postgres, &lake, "200ms").replace(&postgres.url(), &url);
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    says(&daemon, "it reads from the primary", |source| source["server"] == *old).await;
    client.batch_execute("UPDATE t SET v = 'y' WHERE id <= 50").await.unwrap();
    let there = Arc::new(standby.connect("postgres").await);
    until(PATIENCE, "the slot is on the standby", || {
        let there = there.clone();
        async move {
            let sql =
                "SELECT count(*) FROM pg_replication_slots WHERE plugin = 'pgoutput' AND synced AND NOT temporary";
            there.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1
        }
    })
    .await;
    client
        .batch_execute("DELETE FROM t WHERE id BETWEEN 60 AND 69; INSERT INTO t VALUES (2000, 'late')")
        .await
        .unwrap();
    let end: String = client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap().get(0);
    until(PATIENCE, "the standby has it all", || {
        let (there, end) = (there.clone(), end.clone());
        async move {
            let sql = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn";
            there.query_one(sql, &[&end]).await.unwrap().get(0)
        }
    })
    .await;
    drop((client, there));
    let down = primary.clone();
    tokio::task::spawn_blocking(move || down.down("immediate")).await.unwrap();
    says(&daemon, "it says of each why it does not fit", |source| {
        let error = source["problem"]["error"].as_str().unwrap_or_default();
        source["health"] == "retrying"
            && error.contains("none of the 3 servers")
            && error.contains(&format!("{new}/{} takes no writes, and read-write is wanted", postgres.database))
            && error.contains(&format!("could not connect to postgres://highwater@{old}"))
            && error.contains(&format!(":{none}/"))
    })
    .await;
    let heir = standby.clone();
    tokio::task::spawn_blocking(move || heir.promote()).await.unwrap();
    says(&daemon, "it reads from the new primary", |source| source["server"] == *new && source["health"] == "running")
        .await;
    let heir = Postgres { server: standby.clone(), database: postgres.database.clone() };
    heir.client()
        .await
        .batch_execute("INSERT INTO t VALUES (3000, 'new primary'); DELETE FROM t WHERE id = 1")
        .await
        .unwrap();
    daemon.ends_well();
    daemon.catch_up();
    let events = landed(&local(&lake), "shop.public.t").await;
    final_state(&heir.client().await, "t", &events).await;
    assert_eq!(events.iter().filter(|event| event.op == "read").count(), 300, "nothing was read again");
    let (_, out, _) = daemon.run(&["check"]);
    assert!(out.contains(&format!("reached {new}")), "{out}");
}
