//! Many sinks at their own pace: one that stands still, fails or lags disturbs
//! no other, and says so.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use highwater_tests::{Daemon, Postgres, Server, folder, landed, until};
use serde_json::Value;

use crate::pgsink::{number, same, warehouse};
use crate::spine::{capturing, local};

const PATIENCE: u64 = 60;

pub(crate) async fn own_server() -> Arc<Server> {
    tokio::task::spawn_blocking(|| Arc::new(Server::start(17, ""))).await.unwrap()
}

pub(crate) fn source(source: &Postgres) -> String {
    format!("[sources.shop]\ntype = \"postgres\"\nurl = \"{}\"\nslot = \"hw_{}\"\n", source.url(), source.database)
}

pub(crate) fn lake(name: &str, folder: &Path, more: &str) -> String {
    std::fs::create_dir_all(folder).unwrap();
    format!(
        "[sinks.{name}]\ntype = \"object-store\"\nfrom = [\"shop\"]\nurl = \"file://{}\"\ncut = {{ age = \"100ms\" }}\n{more}\n",
        folder.display()
    )
}

pub(crate) fn hall(name: &str, warehouse: &Postgres, more: &str) -> String {
    format!(
        "[sinks.{name}]\ntype = \"postgres\"\nfrom = [\"shop\"]\nurl = \"postgres://loader@127.0.0.1:{}/{}\"\n{more}\n",
        warehouse.server.port, warehouse.database
    )
}

pub(crate) fn sink(daemon: &Daemon, name: &str) -> Value {
    let status = daemon.status();
    let found = status["sinks"].as_array().unwrap().iter().find(|sink| sink["name"] == name);
    found.cloned().unwrap_or_default()
}

pub(crate) async fn sink_is(daemon: &Daemon, name: &str, health: &str) -> Value {
    until(PATIENCE, &format!("sink {name} is {health}"), || std::future::ready(sink(daemon, name)["health"] == health))
        .await;
    sink(daemon, name)
}

/// Exactly so many events of a table in a lake, each once.
pub(crate) async fn events(lake: &Path, stream: &str, count: usize) {
    let store = local(lake);
    until(PATIENCE, &format!("{count} events of {stream} land"), || async {
        landed(&store, stream).await.len() >= count
    })
    .await;
    let found = landed(&store, stream).await;
    let mut offsets: Vec<i64> = found.iter().map(|event| event.offset).collect();
    offsets.dedup();
    assert_eq!((found.len(), offsets.len()), (count, count), "{stream}");
}

pub(crate) fn ordered(daemon: &Daemon, words: &[&str]) -> String {
    let (code, out, err) = daemon.run(words);
    assert_eq!(code, 0, "{words:?}: {out}{err}");
    out
}

async fn tables(postgres: &Postgres) {
    let client = postgres.client().await;
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, a text); CREATE TABLE u (id int PRIMARY KEY, a text); INSERT INTO t VALUES (0, 'first')")
        .await
        .unwrap();
    postgres.publish("highwater_shop", "t, u").await;
}

async fn insert(postgres: &Postgres, table: &str, ids: std::ops::Range<i32>) {
    let sql = format!("INSERT INTO {table} SELECT i, 'a' || i FROM generate_series({}, {}) i", ids.start, ids.end - 1);
    postgres.client().await.batch_execute(&sql).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_sink_or_source_stays_so_until_it_is_resumed() {
    let postgres = Postgres::new(17).await;
    tables(&postgres).await;
    let folder = folder("paused");
    let (a, b) = (folder.join("a"), folder.join("b"));
    let config = [source(&postgres), lake("a", &a, ""), lake("b", &b, "")].concat();
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run"], None);
    events(&a, "shop.public.t", 1).await;
    events(&b, "shop.public.t", 1).await;
    let out = ordered(&daemon, &["pause", "b"]);
    assert!(out.contains("highwater resume b"), "{out}");
    sink_is(&daemon, "b", "paused").await;
    insert(&postgres, "t", 1..100).await;
    events(&a, "shop.public.t", 100).await;
    let state = sink(&daemon, "b");
    assert!(state["backlog_events"].as_u64() >= Some(99) && state["backlog_bytes"].as_u64() > Some(0), "{state}");
    // Killed at once, for it is durable when the command has returned.
    ordered(&daemon, &["pause", "shop"]);
    daemon.kill();
    daemon.start(&["run"], None);
    sink_is(&daemon, "b", "paused").await;
    insert(&postgres, "t", 100..200).await;
    until(PATIENCE, "the source says that it is paused, and what its slot keeps", || {
        let source = daemon.status()["sources"][0].clone();
        let told = source["health"] == "paused" && source["slot_bytes"].as_u64() > Some(0);
        std::future::ready(told)
    })
    .await;
    let (_, out, _) = daemon.run(&["status"]);
    for word in ["the server keeps its log for the slot: ", "highwater resume shop", "highwater resume b"] {
        assert!(out.contains(word), "{out}");
    }
    // What a paused sink has missed comes, though the source is still paused.
    ordered(&daemon, &["resume", "b"]);
    events(&b, "shop.public.t", 100).await;
    ordered(&daemon, &["resume", "shop"]);
    events(&a, "shop.public.t", 200).await;
    events(&b, "shop.public.t", 200).await;
    capturing(&daemon).await;
    daemon.ends_well();
    // Of a stopped daemon.
    let mut daemon = Daemon::new(&folder, &config);
    ordered(&daemon, &["pause", "a"]);
    assert!(sink(&daemon, "a")["paused_since"].is_i64());
    insert(&postgres, "t", 200..210).await;
    daemon.start(&["run"], None);
    events(&b, "shop.public.t", 210).await;
    events(&a, "shop.public.t", 200).await;
    ordered(&daemon, &["resume", "a"]);
    events(&a, "shop.public.t", 210).await;
    let (code, _, err) = daemon.run(&["pause", "nobody"]);
    assert!(code == 2 && err.contains("sinks: a, b"), "{err}");
    daemon.ends_well();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_halts_leaves_the_others_at_work_and_goes_on_when_told() {
    let postgres = Postgres::new(17).await;
    let mirror = warehouse(Some(own_server().await), 17).await;
    tables(&postgres).await;
    let folder = folder("halts");
    let (a, b) = (folder.join("a"), folder.join("b"));
    std::fs::create_dir_all(a.join("_highwater/streams")).unwrap();
    // Another's folder halts one; the warehouse's role may not log in.
    let claim = r#"{"log":"00000000000000000000000000000000","sink":"other/shop"}"#;
    std::fs::write(a.join("_highwater/streams/shop.public.t.json"), claim).unwrap();
    let client = mirror.client().await;
    client.batch_execute("ALTER ROLE loader NOLOGIN").await.unwrap();
    let config = [source(&postgres), lake("a", &a, ""), lake("b", &b, ""), hall("m", &mirror, "")].concat();
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run"], None);
    for name in ["a", "m"] {
        let state = sink_is(&daemon, name, "halted").await;
        assert!(state["problem"]["remedy"].is_string() && state["problem"]["since"].is_i64(), "{state}");
    }
    insert(&postgres, "t", 1..50).await;
    events(&b, "shop.public.t", 50).await;
    client.batch_execute("ALTER ROLE loader LOGIN").await.unwrap();
    ordered(&daemon, &["resume", "m"]);
    let source = postgres.client().await;
    until(PATIENCE, "the mirror goes on", || async {
        client.query_one("SELECT count(*) FROM public.t", &[]).await.is_ok_and(|row| row.get::<_, i64>(0) == 50)
    })
    .await;
    assert_eq!(same(&source, &client, "t").await, 50);
    assert_eq!(sink(&daemon, "a")["health"], "halted");
    daemon.signal("TERM");
    let ended = daemon.wait(Duration::from_secs(5));
    assert_eq!(ended.code, Some(1), "who has halted is the last thing said: {}", ended.stderr);
    assert!(ended.stderr.lines().rev().take(3).any(|line| line.contains("belongs to sink")), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn four_sinks_go_at_their_own_pace_while_one_server_is_down() {
    let postgres = Postgres::new(17).await;
    let (mirror, history) = (warehouse(Some(own_server().await), 17).await, warehouse(None, 17).await);
    tables(&postgres).await;
    let folder = folder("four");
    let (a, b) = (folder.join("a"), folder.join("b"));
    let config = [
        source(&postgres),
        lake("a", &a, ""),
        lake("b", &b, "tables = [\"public.u\"]"),
        hall("m", &mirror, ""),
        hall("h", &history, "mode = \"history\""),
    ]
    .concat();
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run"], None);
    events(&a, "shop.public.t", 1).await;
    sink_is(&daemon, "m", "running").await;
    mirror.server.down("immediate");
    for i in 0..20 {
        insert(&postgres, "t", 1 + i * 500..1 + (i + 1) * 500).await;
        insert(&postgres, "u", i * 10..(i + 1) * 10).await;
    }
    events(&a, "shop.public.t", 10_001).await;
    events(&b, "shop.public.u", 200).await;
    let here = history.client().await;
    until(PATIENCE, "the history is there", || async { number(&here, "SELECT count(*) FROM t").await == 10_001 }).await;
    let state = sink_is(&daemon, "m", "retrying").await;
    assert!(state["backlog_events"].as_u64() >= Some(10_000), "{state}");
    assert!(state["backlog_bytes"].as_u64() > Some(10_000) && state["lag_seconds"].as_f64() > Some(0.0), "{state}");
    assert!(state["problem"]["since"].is_i64(), "{state}");
    mirror.server.up();
    let (client, mirrored) = (postgres.client().await, mirror.client().await);
    until(PATIENCE, "the mirror catches up", || async {
        mirrored.query_one("SELECT count(*) FROM t", &[]).await.is_ok_and(|row| row.get::<_, i64>(0) == 10_001)
    })
    .await;
    sink_is(&daemon, "m", "running").await;
    same(&client, &mirrored, "t").await;
    println!("peak memory with four sinks: {} MiB", daemon.peak_memory() >> 20);
    daemon.ends_well();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_too_far_behind_is_detached_and_comes_back_with_a_reading_of_its_own() {
    let postgres = Postgres::new(17).await;
    let mirror = warehouse(Some(own_server().await), 17).await;
    tables(&postgres).await;
    let folder = folder("detached");
    let a = folder.join("a");
    let config = [
        source(&postgres),
        "[log]\nsegment_bytes = \"64KiB\"\nretain = { bytes = \"128KiB\" }\n".into(),
        lake("a", &a, ""),
        hall("m", &mirror, "max_backlog = \"128KiB\""),
    ]
    .concat();
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run"], None);
    events(&a, "shop.public.t", 1).await;
    let client = postgres.client().await;
    until(PATIENCE, "the mirror begins", || std::future::ready(sink(&daemon, "m")["checkpoint"].as_u64() > Some(0)))
        .await;
    mirror.server.down("immediate");
    let mut rows = 1;
    for _ in 0..30 {
        insert(&postgres, "t", rows..rows + 1000).await;
        rows += 1000;
    }
    client.batch_execute("DELETE FROM t WHERE id = 0").await.unwrap();
    let state = sink_is(&daemon, "m", "detached").await;
    let told = state["problem"].to_string();
    assert!(told.contains("max_backlog") && told.contains("highwater replay m --from snapshot"), "{told}");
    let behind = state["checkpoint"].as_u64().unwrap();
    until(PATIENCE, "the log is no longer kept for it", || {
        let start = daemon.status()["sources"][0]["log"]["start"].as_u64().unwrap();
        std::future::ready(start > behind)
    })
    .await;
    // It outlives a kill, and nothing else is disturbed.
    daemon.kill();
    daemon.start(&["run"], None);
    sink_is(&daemon, "m", "detached").await;
    events(&a, "shop.public.t", rows as usize + 1).await;
    mirror.server.up();
    let out = ordered(&daemon, &["replay", "m", "--from", "snapshot"]);
    assert!(out.contains("`--yes` does it") && out.contains("for this sink alone"), "{out}");
    assert_eq!(sink(&daemon, "m")["health"], "detached");
    let (code, _, err) = daemon.run(&["replay", "m", "--from", "beginning", "--yes"]);
    assert!(code == 1 && err.contains("goes only forward"), "{err}");
    daemon.kill();
    // Killed while its tables are read.
    daemon.start(&["run"], Some("snapshot-chunk"));
    sink_is(&daemon, "m", "detached").await;
    ordered(&daemon, &["replay", "m", "--from", "snapshot", "--yes"]);
    let ended = daemon.wait(Duration::from_secs(30));
    assert!(ended.stderr.contains("fault point hit: snapshot-chunk"), "{}", ended.stderr);
    daemon.catch_up();
    let here = mirror.client().await;
    assert_eq!(same(&client, &here, "t").await, rows as usize - 1, "what it has missed, and what went meanwhile");
    assert_eq!(same(&client, &here, "u").await, 0);
    // To the other sink the reading is nothing.
    events(&a, "shop.public.t", rows as usize + 1).await;
    events(&a, "shop.public.u", 0).await;
}

/// A mirror of two tables of which one is made to refuse.
async fn parked(name: &str, refuse: &str, mend: &str, kills: &[&str]) {
    let postgres = Postgres::new(17).await;
    let mirror = warehouse(None, 17).await;
    tables(&postgres).await;
    let folder = folder(name);
    let config = [source(&postgres), hall("m", &mirror, "cut = { age = \"10ms\" }")].concat();
    let mut daemon = Daemon::new(&folder, &config);
    daemon.catch_up();
    let (client, here) = (postgres.client().await, mirror.client().await);
    here.batch_execute(refuse).await.unwrap();
    let run = |daemon: &mut Daemon, fault: Option<&str>| daemon.start(&["run"], fault);
    run(&mut daemon, kills.first().copied());
    client
        .batch_execute("BEGIN; INSERT INTO t VALUES (1, 'bad'); INSERT INTO u VALUES (1, 'good'); COMMIT")
        .await
        .unwrap();
    if let Some(kill) = kills.first() {
        let ended = daemon.wait(Duration::from_secs(60));
        assert!(
            ended.stderr.contains(&format!("fault point hit: {}", kill.split(':').next().unwrap())),
            "{}",
            ended.stderr
        );
        run(&mut daemon, None);
    }
    until(PATIENCE, "the other table goes on", || async { number(&here, "SELECT count(*) FROM u").await == 1 }).await;
    for i in 2..200 {
        client
            .batch_execute(&format!("INSERT INTO t VALUES ({i}, 'more'); INSERT INTO u VALUES ({i}, 'more')"))
            .await
            .unwrap();
    }
    client.batch_execute("UPDATE t SET a = 'changed' WHERE id % 2 = 0; DELETE FROM t WHERE id % 5 = 0").await.unwrap();
    until(PATIENCE, "the other table goes on", || async { number(&here, "SELECT count(*) FROM u").await == 199 }).await;
    let state = sink_is(&daemon, "m", "running").await;
    assert_eq!(state["tables_behind"][0]["stream"], "shop.public.t", "{state}");
    let row = here
        .query_one(
            "SELECT stream, behind_why, behind_since IS NOT NULL FROM _highwater.tables WHERE behind_why IS NOT NULL",
            &[],
        )
        .await
        .unwrap();
    assert_eq!((row.get::<_, String>(0).as_str(), row.get(2)), ("shop.public.t", true));
    assert!(!row.get::<_, String>(1).is_empty());
    assert_eq!(number(&here, "SELECT tables_behind FROM _highwater.watermarks").await, 1);
    let (_, out, _) = daemon.run(&["status"]);
    assert!(out.contains("highwater resume m --table 'public.t'"), "{out}");
    // Too early: it waits on.
    ordered(&daemon, &["resume", "m", "--table", "public.t"]);
    until(PATIENCE, "it has tried", || std::future::ready(sink(&daemon, "m")["tables_behind"][0]["resuming"] == false))
        .await;
    here.batch_execute(mend).await.unwrap();
    for kill in kills.iter().skip(1) {
        daemon.kill();
        run(&mut daemon, Some(kill));
        until(PATIENCE, "it answers", || std::future::ready(daemon.status()["running"] == true)).await;
        ordered(&daemon, &["resume", "m", "--table", "public.*"]);
        let ended = daemon.wait(Duration::from_secs(60));
        assert!(ended.stderr.contains("fault point hit"), "{kill}: {}", ended.stderr);
        run(&mut daemon, None);
    }
    let waits =
        |daemon: &Daemon| sink(daemon, "m")["tables_behind"].as_array().is_some_and(|tables| !tables.is_empty());
    until(PATIENCE, "it answers", || std::future::ready(daemon.status()["running"] == true)).await;
    if waits(&daemon) {
        daemon.run(&["resume", "m", "--table", "public.t"]);
    }
    until(PATIENCE, "the table joins the others", || std::future::ready(!waits(&daemon))).await;
    client
        .batch_execute("BEGIN; INSERT INTO t VALUES (1000, 'last'); INSERT INTO u VALUES (1000, 'last'); COMMIT")
        .await
        .unwrap();
    until(PATIENCE, "both go on", || async { number(&here, "SELECT count(*) FROM u").await == 200 }).await;
    same(&client, &here, "t").await;
    same(&client, &here, "u").await;
    assert_eq!(number(&here, "SELECT count(*) FROM _highwater.tables WHERE behind_since IS NOT NULL").await, 0);
    assert_eq!(number(&here, "SELECT count(*) FROM _highwater.checkpoints").await, 1);
    daemon.ends_well();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_a_constraint_refuses_waits_apart_and_joins_again() {
    let refuse = "ALTER TABLE t ADD CONSTRAINT no_bad CHECK (a <> 'bad')";
    parked("parked-check", refuse, "ALTER TABLE t DROP CONSTRAINT no_bad", &["table-parked", "lane-advanced"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_dropped_by_hand_waits_apart_and_joins_again() {
    let refuse = "ALTER TABLE t RENAME TO away";
    parked("parked-dropped", refuse, "ALTER TABLE away RENAME TO t", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_refuses_at_the_commit_waits_apart_and_joins_again() {
    let refuse = "CREATE TABLE other (a text PRIMARY KEY);
        ALTER TABLE t ADD CONSTRAINT late FOREIGN KEY (a) REFERENCES other DEFERRABLE INITIALLY DEFERRED NOT VALID;
        GRANT SELECT ON other TO loader";
    parked("parked-late", refuse, "ALTER TABLE t DROP CONSTRAINT late", &["table-parked"]).await;
}
