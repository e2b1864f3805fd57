//! From a live PostgreSQL to Parquet.

use std::sync::Arc;
use std::time::Duration;

use highwater_tests::{Daemon, Postgres, Truth, Workload, compare, final_state, folder, landed, until};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;

/// A configuration from a database to a folder.
pub(crate) fn to_folder(postgres: &Postgres, lake: &std::path::Path, age: &str) -> String {
    std::fs::create_dir_all(lake).unwrap();
    format!(
        "[sources.shop]\ntype = \"postgres\"\nurl = \"{}\"\nslot = \"hw_{}\"\n\
         [log]\nsegment_bytes = \"1MiB\"\n\
         [sinks.lake]\ntype = \"object-store\"\nfrom = [\"shop\"]\nurl = \"file://{}\"\ncut = {{ bytes = \"2MiB\", age = \"{age}\" }}\n",
        postgres.url(),
        postgres.database,
        lake.display()
    )
}

pub(crate) fn local(lake: &std::path::Path) -> Arc<dyn ObjectStore> {
    Arc::new(LocalFileSystem::new_with_prefix(lake).unwrap())
}

/// The daemon streams: its slot is made, and what is committed from here on is captured.
pub(crate) async fn capturing(daemon: &Daemon) {
    until(30, "the daemon captures", || {
        let running = daemon.status()["sources"][0]["health"] == "running";
        async move { running }
    })
    .await;
}

/// Each committed change is in the files once and in order, and they come to the tables.
pub(crate) async fn all_is_there(postgres: &Postgres, store: &Arc<dyn ObjectStore>) -> usize {
    let client = postgres.client().await;
    let mut total = 0;
    for (sql, name, part) in Workload::tables() {
        let stream = format!("shop.{part}");
        let events = landed(store, &stream).await;
        total += events.len();
        compare(&stream, &Truth::of(postgres, name).await, &events);
        if sql != "nokey" {
            final_state(&client, sql, &events).await;
        }
    }
    total
}

async fn snapshot_and_stream(version: u32) {
    let postgres = Postgres::new(version).await;
    Workload::prepare(&postgres, 20_000).await;
    Truth::watch(&postgres).await;
    let folder = folder(&format!("spine-{version}"));
    let lake = folder.join("lake");
    let mut daemon = Daemon::new(&folder, &to_folder(&postgres, &lake, "300ms"));
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    let workload = Workload::start(&postgres, 4, u64::from(version)).await;
    until(60, "a thousand transactions", || {
        let committed = workload.committed.load(std::sync::atomic::Ordering::Relaxed);
        async move { committed > 1_000 }
    })
    .await;
    workload.stop().await;
    daemon.ends_well();
    daemon.catch_up();
    let events = all_is_there(&postgres, &local(&lake)).await;
    assert!(events > 20_000, "{events}");
    let (code, out, err) = daemon.run(&["log", "check"]);
    assert_eq!(code, 0, "{out}{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_while_tables_are_read_lands_once_and_in_order_from_15() {
    snapshot_and_stream(15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_while_tables_are_read_lands_once_and_in_order_from_17() {
    snapshot_and_stream(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_while_tables_are_read_lands_once_and_in_order_from_18() {
    snapshot_and_stream(18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_changes_in_mid_stream_is_another_schema_from_its_first_row_on() {
    let postgres = Postgres::new(17).await;
    let client = postgres.client().await;
    client
        .batch_execute("CREATE TABLE t (id bigint PRIMARY KEY, a int, b text); INSERT INTO t VALUES (1, 1, 'one')")
        .await
        .unwrap();
    postgres.publish("highwater_shop", "t").await;
    let folder = folder("ddl");
    let lake = folder.join("lake");
    // The last change is one that the gate would park.
    let config = to_folder(&postgres, &lake, "300ms").replace("[log]", "on_incompatible = \"evolve\"\n[log]");
    let mut daemon = Daemon::new(&folder, &config);
    daemon.catch_up();
    client
        .batch_execute(
            "INSERT INTO t VALUES (2, 2, 'two');
             ALTER TABLE t ADD COLUMN c date; INSERT INTO t VALUES (3, 3, 'three', '2024-02-29');
             ALTER TABLE t RENAME COLUMN a TO z; INSERT INTO t VALUES (4, 4, 'four', NULL);
             ALTER TABLE t DROP COLUMN b; INSERT INTO t VALUES (5, 5, 'infinity');
             ALTER TABLE t ALTER z TYPE text; INSERT INTO t VALUES (6, 'six', '0044-03-15 BC')",
        )
        .await
        .unwrap();
    daemon.catch_up();
    let events = daemon.tail("shop", &[]);
    // Behind them the table is read again: what was a number is a text now.
    let after: Vec<String> = events.iter().map(|event| event["after"].to_string()).collect();
    assert_eq!(
        after[..6],
        [
            r#"{"id":1,"a":1,"b":"one"}"#,
            r#"{"id":2,"a":2,"b":"two"}"#,
            r#"{"id":3,"a":3,"b":"three","c":"2024-02-29"}"#,
            r#"{"id":4,"z":4,"b":"four","c":null}"#,
            r#"{"id":5,"z":5,"c":"infinity"}"#,
            r#"{"id":6,"z":"six","c":"0044-03-15 BC"}"#,
        ]
    );
    let ids: std::collections::BTreeSet<_> = events.iter().map(|event| event["schema_id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), 5, "a schema each");
    let files = std::fs::read_dir(lake.join("shop.public.t")).unwrap().count();
    assert_eq!(files, 6, "a file each, and one for the first run");
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_prints_the_lines_of_the_contract() {
    let postgres = Postgres::new(17).await;
    let client = postgres.client().await;
    client
        .batch_execute(
            "CREATE TABLE public.orders (id int PRIMARY KEY, status text, notes text);
             ALTER TABLE orders ALTER notes SET STORAGE EXTERNAL;
             INSERT INTO orders VALUES (42, 'new', repeat('x', 10000))",
        )
        .await
        .unwrap();
    postgres.publish("highwater_shop", "orders").await;
    let folder = folder("tail");
    let mut daemon = Daemon::new(&folder, &to_folder(&postgres, &folder.join("lake"), "300ms"));
    daemon.catch_up();
    client
        .batch_execute(
            "UPDATE orders SET status = 'paid'; UPDATE orders SET id = 43; DELETE FROM orders; TRUNCATE orders;
             SELECT pg_logical_emit_message(true, 'app', 'hello')",
        )
        .await
        .unwrap();
    client.batch_execute("SELECT pg_logical_emit_message(false, 'app', '\\xff'::bytea)").await.unwrap();
    daemon.catch_up();
    let events = daemon.tail("shop", &["--control"]);
    let line = |i: usize| {
        let event = &events[i];
        (
            event["op"].as_str().unwrap(),
            event["key"].to_string(),
            event["old_key"].to_string(),
            event["absent"].to_string(),
        )
    };
    assert_eq!(line(0).0, "snapshot_begin");
    assert_eq!(line(1).0, "read");
    assert_eq!(line(2).0, "snapshot_end");
    assert_eq!(line(3), ("update", r#"{"id":42}"#.into(), "null".into(), r#"["notes"]"#.into()));
    assert_eq!(events[3]["after"].to_string(), r#"{"id":42,"status":"paid"}"#);
    assert_eq!(line(4), ("update", r#"{"id":43}"#.into(), r#"{"id":42}"#.into(), r#"["notes"]"#.into()));
    assert_eq!(line(5), ("delete", r#"{"id":43}"#.into(), "null".into(), "[]".into()));
    assert!(events[5]["after"].is_null() && events[5]["tx"].is_string());
    assert_eq!(line(6).0, "truncate");
    let messages: Vec<_> = events.iter().filter(|event| event["op"] == "message").collect();
    assert_eq!(messages.len(), 2);
    assert!(messages.iter().any(|m| m["after"]["content"] == "hello" && m["after"]["prefix"] == "app"));
    assert!(messages.iter().any(|m| m["after"]["binary"] == "/w==" && m["after"]["transactional"] == false));
    let times: Vec<_> = events.iter().map(|event| event["commit_time"].as_str().unwrap().to_owned()).collect();
    assert!(times.iter().all(|time| time.ends_with('Z')));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_identity_is_captured_by_its_inserts_and_its_updates_go_on() {
    let postgres = Postgres::new(17).await;
    let client = postgres.client().await;
    client
        .batch_execute(
            "CREATE TABLE plain (a int); CREATE TABLE keyed (id int PRIMARY KEY); INSERT INTO plain VALUES (1)",
        )
        .await
        .unwrap();
    client.batch_execute(&format!("GRANT CREATE ON DATABASE {} TO highwater; ALTER TABLE plain OWNER TO highwater; ALTER TABLE keyed OWNER TO highwater", postgres.database)).await.unwrap();
    let folder = folder("plain");
    let mut daemon = Daemon::new(&folder, &to_folder(&postgres, &folder.join("lake"), "300ms"));
    daemon.start(&["run", "--until-caught-up"], None);
    let ended = daemon.wait(Duration::from_secs(60));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("no replica identity"), "{}", ended.stderr);
    client
        .batch_execute("UPDATE plain SET a = 2; INSERT INTO plain VALUES (3); TRUNCATE plain")
        .await
        .expect("the primary is never at risk");
    daemon.catch_up();
    let ops: Vec<String> =
        daemon.tail("shop", &[]).iter().map(|event| event["op"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ops, ["read", "insert", "truncate"]);
}
