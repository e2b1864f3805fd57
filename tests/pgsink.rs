//! From a live PostgreSQL into another one.

mod backlog;
mod hosts;
mod kills;
mod order;
mod shop;
mod types;
mod versions;
mod watermark;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use highwater_tests::{Daemon, Postgres, Server, Workload, folder, until};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::spine::capturing;
use crate::values::{EXTENSIONS, TYPES, VALUES};

/// A warehouse, written by a role that has the least (docs/postgres-sink.md).
pub(crate) async fn warehouse(server: Option<Arc<Server>>, version: u32) -> Postgres {
    let warehouse = match server {
        Some(server) => Postgres::on(server).await,
        None => Postgres::new(version).await,
    };
    let client = warehouse.client().await;
    let role = "DO $$ BEGIN CREATE ROLE loader LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$";
    client.batch_execute(role).await.unwrap();
    client
        .batch_execute("CREATE SCHEMA _highwater AUTHORIZATION loader; GRANT USAGE, CREATE ON SCHEMA public TO loader")
        .await
        .unwrap();
    warehouse
}

pub(crate) fn config(source: &Postgres, warehouse: &Postgres, more: &str) -> String {
    format!(
        "[sources.shop]\ntype = \"postgres\"\nurl = \"{}\"\nslot = \"hw_{}\"\n\
         [log]\nsegment_bytes = \"1MiB\"\n\
         [sinks.warehouse]\ntype = \"postgres\"\nfrom = [\"shop\"]\nurl = \"postgres://loader@127.0.0.1:{}/{}\"\n{more}\n",
        source.url(),
        source.database,
        warehouse.server.port,
        warehouse.database
    )
}

/// All rows of a table as text, sorted, by the columns of `of`.
async fn rows(client: &Client, table: &str, columns: &[String]) -> Vec<String> {
    client
        .batch_execute("SET DateStyle = ISO; SET IntervalStyle = iso_8601; SET TimeZone = UTC; SET extra_float_digits = 1; SET bytea_output = hex")
        .await
        .unwrap();
    let list: Vec<String> = columns.iter().map(|c| format!("\"{}\"::text", c.replace('"', "\"\""))).collect();
    let sql = format!("SELECT ROW({})::text FROM {table} ORDER BY 1", list.join(", "));
    let rows = client.simple_query(&sql).await.unwrap();
    rows.iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap().to_owned()),
            _ => None,
        })
        .collect()
}

async fn columns(client: &Client, table: &str) -> Vec<String> {
    let sql = "SELECT attname::text FROM pg_attribute
                WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum";
    client.query(sql, &[&table]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// Every row of the source's table is in the warehouse's, column by column, and no other.
pub(crate) async fn same(source: &Client, warehouse: &Client, table: &str) -> usize {
    same_as(source, table, warehouse, table).await
}

async fn same_as(source: &Client, table: &str, warehouse: &Client, other: &str) -> usize {
    let columns = columns(source, table).await;
    let (there, here) = (rows(source, table, &columns).await, rows(warehouse, other, &columns).await);
    let missing: Vec<_> = there.iter().filter(|row| here.binary_search(row).is_err()).take(3).collect();
    let extra: Vec<_> = here.iter().filter(|row| there.binary_search(row).is_err()).take(3).collect();
    if let (Some(a), Some(b)) = (missing.first(), extra.first()) {
        let at = a.bytes().zip(b.bytes()).position(|(a, b)| a != b).unwrap_or(0).saturating_sub(20);
        let part = |text: &str| text.chars().skip(at).take(80).collect::<String>();
        println!("{table}: the first differ at {:?} and {:?}", part(a), part(b));
    }
    assert!(missing.is_empty() && extra.is_empty(), "{table}: missing {missing:?}, too many {extra:?}");
    assert_eq!(there.len(), here.len(), "{table}: rows that are there twice");
    there.len()
}

/// One number.
pub(crate) async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

async fn values(version: u32) {
    let source = Postgres::new(version).await;
    let warehouse = warehouse(None, version).await;
    let client = source.client().await;
    client.batch_execute(TYPES).await.unwrap();
    let mut values = VALUES.to_vec();
    // The warehouse has one of them; what it lacks it keeps as the source's text.
    for &(extension, ty, literal, expected) in EXTENSIONS {
        if client.batch_execute(&format!("CREATE EXTENSION IF NOT EXISTS {extension}")).await.is_ok() {
            values.push((ty, literal, expected));
        }
    }
    let extension = "CREATE EXTENSION IF NOT EXISTS hstore";
    let has_hstore = warehouse.client().await.batch_execute(extension).await.is_ok();
    let columns: Vec<String> = values.iter().enumerate().map(|(i, (ty, _, _))| format!("c{i} {ty}")).collect();
    let row: Vec<String> = values.iter().map(|(ty, literal, _)| format!("({literal})::{ty}")).collect();
    let (columns, row) = (columns.join(", "), row.join(", "));
    client
        .batch_execute(&format!(
            "CREATE TABLE t (id int PRIMARY KEY, {columns}); INSERT INTO t SELECT 1, {row}; INSERT INTO t (id) VALUES (2);
             CREATE TABLE bag (id int, {columns}); ALTER TABLE bag REPLICA IDENTITY FULL; INSERT INTO bag SELECT 1, {row}"
        ))
        .await
        .unwrap();
    // What a warehouse or a role sets must not change how values are read.
    warehouse
        .client()
        .await
        .batch_execute(&format!(
            "ALTER DATABASE {0} SET DateStyle = 'German'; ALTER DATABASE {0} SET IntervalStyle = 'sql_standard';
             ALTER DATABASE {0} SET TimeZone = 'Asia/Kolkata'; ALTER DATABASE {0} SET bytea_output = 'escape'",
            warehouse.database
        ))
        .await
        .unwrap();
    source.publish("highwater_shop", "t, bag").await;
    let folder = folder(&format!("pgsink-values-{version}"));
    let mut daemon = Daemon::new(&folder, &config(&source, &warehouse, ""));
    daemon.catch_up();
    // By the short way, by the long one, and where every column is compared.
    client
        .batch_execute(&format!(
            "INSERT INTO t SELECT 3, {row}; INSERT INTO t (id) VALUES (4); UPDATE t SET id = 5 WHERE id = 1;
             INSERT INTO t SELECT i, {row} FROM generate_series(100, 200) i;
             INSERT INTO bag SELECT 2, {row} FROM generate_series(1, 3); DELETE FROM bag WHERE id = 1;
             UPDATE bag SET id = 3 WHERE ctid IN (SELECT max(ctid) FROM bag)"
        ))
        .await
        .unwrap();
    daemon.catch_up();
    client.batch_execute(&format!("INSERT INTO t SELECT 6, {row}")).await.unwrap();
    daemon.catch_up();
    let here = warehouse.client().await;
    assert_eq!(same(&client, &here, "t").await, 106);
    assert_eq!(same(&client, &here, "bag").await, 3);
    let own = ["mood", "positive", "deep", "pair", "nested", "regclass"];
    let lacks = |ty: &str| {
        let ty = ty.trim_end_matches("[]").split('(').next().unwrap_or(ty);
        own.contains(&ty)
            || EXTENSIONS.iter().any(|(_, of, _, _)| of.starts_with(ty) && !(ty == "hstore" && has_hstore))
    };
    let types = |rows: Vec<tokio_postgres::Row>| -> BTreeMap<String, String> {
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    };
    let sql = "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute
                WHERE attrelid = 't'::regclass AND attnum > 0 AND NOT attisdropped";
    let (there, here) = (types(client.query(sql, &[]).await.unwrap()), types(here.query(sql, &[]).await.unwrap()));
    for (name, ty) in &there {
        if !lacks(ty) {
            assert_eq!(&here[name], ty, "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_of_15_arrives_as_it_was() {
    values(15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_of_18_arrives_as_it_was() {
    values(18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn schema_changes_come_in_their_order_while_rows_are_written() {
    let source = Postgres::new(17).await;
    let warehouse = warehouse(None, 17).await;
    let client = source.client().await;
    client
        .batch_execute(
            "CREATE TABLE empty (id int PRIMARY KEY, a text);
             CREATE TABLE t (id int PRIMARY KEY, a int, b varchar(10), c text, gone text);
             INSERT INTO t SELECT i, i, 'b' || i, 'c' || i, 'g' FROM generate_series(1, 1000) i",
        )
        .await
        .unwrap();
    source.publish("highwater_shop", "t, empty").await;
    let folder = folder("pgsink-ddl");
    // The last change is one that the gate would park.
    let config = config(&source, &warehouse, "drop = \"drop\"").replace("[log]", "on_incompatible = \"evolve\"\n[log]");
    let mut daemon = Daemon::new(&folder, &config);
    daemon.catch_up();
    let here = Arc::new(warehouse.client().await);
    assert_eq!(columns(&here, "empty").await, ["id", "a"], "a table without rows is there too");
    let script = [
        "ALTER TABLE t ADD COLUMN d date; UPDATE t SET d = '2024-02-29' WHERE id % 2 = 0",
        "ALTER TABLE t ALTER b TYPE varchar(20); UPDATE t SET b = repeat('w', 20) WHERE id % 3 = 0",
        "ALTER TABLE t RENAME COLUMN a TO z; INSERT INTO t (id, z) VALUES (2001, -1)",
        "ALTER TABLE t DROP COLUMN gone; INSERT INTO t (id) VALUES (2002)",
        "ALTER TABLE t ALTER z TYPE bigint; INSERT INTO t (id, z) VALUES (2003, 1::bigint << 40)",
        // Names change places.
        "BEGIN; ALTER TABLE t RENAME COLUMN b TO x; ALTER TABLE t RENAME COLUMN c TO b; ALTER TABLE t RENAME COLUMN x TO c; COMMIT; INSERT INTO t (id, b, c) VALUES (2004, 'was c', 'was b')",
        // In one transaction, with rows before and behind.
        "BEGIN; INSERT INTO t (id, z) VALUES (2005, 5); ALTER TABLE t ADD COLUMN e int; INSERT INTO t (id, e) VALUES (2006, 6); COMMIT",
        "ALTER TABLE t DROP COLUMN e; ALTER TABLE t ADD COLUMN e text; INSERT INTO t (id, e) VALUES (2007, 'another')",
    ];
    // Each step is killed at the alteration, then goes on by itself.
    let mut altered = 0;
    for (i, sql) in script.iter().enumerate() {
        if i % 3 == 0 {
            daemon.start(&["run"], Some("table-altered"));
            capturing(&daemon).await;
            client.batch_execute(sql).await.unwrap();
            let ended = daemon.wait(Duration::from_secs(30));
            assert!(ended.stderr.contains("fault point hit: table-altered"), "{}", ended.stderr);
            altered += 1;
        } else {
            client.batch_execute(sql).await.unwrap();
        }
        if i % 2 == 0 {
            daemon.catch_up();
            same(&client, &here, "t").await;
        }
    }
    assert_eq!(altered, 3);
    daemon.catch_up();
    assert_eq!(same(&client, &here, "t").await, 1007);
    let mut names = columns(&here, "t").await;
    names.sort();
    assert_eq!(names, ["b", "c", "d", "e", "id", "z"], "what the source dropped is dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_column_is_kept_unless_told_otherwise_and_another_key_is_taken() {
    let source = Postgres::new(17).await;
    let warehouse = warehouse(None, 17).await;
    let client = source.client().await;
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, a text, other int UNIQUE NOT NULL); INSERT INTO t VALUES (1, 'kept', 10), (2, 'kept', 20)")
        .await
        .unwrap();
    source.publish("highwater_shop", "t").await;
    let folder = folder("pgsink-keep");
    // Another key is a change that the gate would park.
    let config = config(&source, &warehouse, "").replace("[log]", "on_incompatible = \"evolve\"\n[log]");
    let mut daemon = Daemon::new(&folder, &config);
    daemon.catch_up();
    client
        .batch_execute(
            "ALTER TABLE t DROP COLUMN a; INSERT INTO t VALUES (3, 30); ALTER TABLE t ADD COLUMN a int; INSERT INTO t VALUES (4, 40, 4);
             ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ADD PRIMARY KEY (other); UPDATE t SET id = 7 WHERE other = 20;
             INSERT INTO t VALUES (7, 70, 7)",
        )
        .await
        .unwrap();
    daemon.catch_up();
    let here = warehouse.client().await;
    assert_eq!(same(&client, &here, "t").await, 5);
    let kept = number(&here, "SELECT count(*) FROM t WHERE a_dropped_1 = 'kept'").await;
    assert_eq!(kept, 2, "what was there stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_new_reading_does_not_find_goes() {
    let source = Postgres::new(17).await;
    let warehouse = warehouse(None, 17).await;
    let client = source.client().await;
    client
        .batch_execute(
            "CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t SELECT i, 'old' FROM generate_series(1, 5000) i;
             CREATE TABLE bag (a int); ALTER TABLE bag REPLICA IDENTITY FULL; INSERT INTO bag SELECT i % 10 FROM generate_series(1, 100) i",
        )
        .await
        .unwrap();
    source.publish("highwater_shop", "t, bag").await;
    let folder = folder("pgsink-generation");
    let mut daemon = Daemon::new(&folder, &config(&source, &warehouse, ""));
    daemon.catch_up();
    let here = warehouse.client().await;
    assert_eq!(same(&client, &here, "t").await, 5000);
    // Made anew: nobody tells of the rows that are not there any more.
    client
        .batch_execute(
            "DROP TABLE t, bag; CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t SELECT i, 'new' FROM generate_series(4000, 6000) i;
             CREATE TABLE bag (a int); ALTER TABLE bag REPLICA IDENTITY FULL; INSERT INTO bag SELECT i FROM generate_series(5, 50) i;
             GRANT SELECT ON t, bag TO highwater; ALTER PUBLICATION highwater_shop ADD TABLE t, bag",
        )
        .await
        .unwrap();
    // Killed between the rows and the end of the reading: what was seen is kept.
    daemon.start(&["run"], Some("pre-commit:1"));
    let ended = daemon.wait(Duration::from_secs(60));
    assert!(ended.stderr.contains("fault point hit: pre-commit"), "{}", ended.stderr);
    daemon.start(&["run"], Some("post-commit:1"));
    daemon.wait(Duration::from_secs(60));
    daemon.catch_up();
    assert_eq!(same(&client, &here, "t").await, 2001);
    assert_eq!(same(&client, &here, "bag").await, 46);
    assert_eq!(
        number(&here, "SELECT count(*) FROM pg_tables WHERE schemaname = '_highwater' AND tablename LIKE 'seen%'")
            .await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_a_table_again_mends_a_mirror_that_was_tampered_with() {
    let source = Postgres::new(17).await;
    let warehouse = warehouse(None, 17).await;
    let client = source.client().await;
    client
        .batch_execute(
            "CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t SELECT i, 'a' || i FROM generate_series(1, 20000) i;
             CREATE TABLE bag (a int, b text); ALTER TABLE bag REPLICA IDENTITY FULL;
             INSERT INTO bag SELECT i % 100, 'x' FROM generate_series(1, 1000) i",
        )
        .await
        .unwrap();
    source.publish("highwater_shop", "t, bag").await;
    let folder = folder("pgsink-again");
    let mut daemon = Daemon::new(&folder, &config(&source, &warehouse, ""));
    daemon.catch_up();
    let here = Arc::new(warehouse.client().await);
    here.batch_execute("DELETE FROM t WHERE id % 7 = 0; UPDATE t SET a = 'bent' WHERE id % 11 = 0; INSERT INTO t SELECT -i, 'too many' FROM generate_series(1, 500) i; DELETE FROM bag WHERE a = 5; INSERT INTO bag VALUES (5, 'y')")
        .await
        .unwrap();
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let (client, stop) = (source.client().await, stop.clone());
        async move {
            let mut i = 0;
            while !stop.load(Ordering::Relaxed) {
                i += 1;
                let sql = format!(
                    "UPDATE t SET a = 'w{i}' WHERE id = {}; DELETE FROM t WHERE id = {}; INSERT INTO t VALUES ({}, 'new'); INSERT INTO bag VALUES ({i}, 'w'); DELETE FROM bag WHERE a = {} AND b = 'w'",
                    i * 3 % 20000,
                    i * 17 % 20000,
                    30000 + i,
                    i - 5
                );
                client.batch_execute(&sql).await.unwrap();
            }
        }
    });
    for table in ["public.t", "public.bag"] {
        let (code, out, err) = daemon.run(&["snapshot", "shop", table]);
        assert_eq!(code, 0, "{out}{err}");
    }
    let swept = "SELECT count(*) FROM _highwater.tables WHERE generation = 2 AND seen IS NULL";
    until(60, "both readings have ended", || {
        let here = here.clone();
        async move { number(&here, swept).await == 2 }
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    writing.await.unwrap();
    daemon.signal("TERM");
    daemon.wait(Duration::from_secs(10));
    daemon.catch_up();
    same(&client, &here, "t").await;
    same(&client, &here, "bag").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_visible_at_once_when_little_happens() {
    let source = Postgres::new(17).await;
    let warehouse = warehouse(None, 17).await;
    let client = source.client().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    source.publish("highwater_shop", "t").await;
    let folder = folder("pgsink-latency");
    let mut daemon = Daemon::new(&folder, &config(&source, &warehouse, ""));
    client.batch_execute("INSERT INTO t VALUES (0)").await.unwrap();
    daemon.catch_up();
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    let here = Arc::new(warehouse.client().await);
    let mut waits = Vec::new();
    for id in 1..=20 {
        client.batch_execute(&format!("INSERT INTO t VALUES ({id})")).await.unwrap();
        let began = Instant::now();
        while number(&here, "SELECT max(id)::int8 FROM t").await < id {
            assert!(began.elapsed() < Duration::from_secs(20), "it never came");
        }
        waits.push(began.elapsed());
    }
    waits.sort();
    println!("visible after {:?} (median), {:?} (most)", waits[10], waits[19]);
    assert!(waits[10] < Duration::from_secs(1), "{waits:?}");
    let behind = "SELECT (extract(epoch FROM now() - watermark))::int8 FROM _highwater.watermarks";
    assert!(number(&here, behind).await < 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_warehouse_refuses_is_told_with_the_remedy() {
    let source = Postgres::new(17).await;
    let client = source.client().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)").await.unwrap();
    source.publish("highwater_shop", "t").await;
    for (prepare, words) in [
        (
            "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (7); GRANT ALL ON t TO loader",
            &["holds rows that this sink did not put there", "schema"][..],
        ),
        ("CREATE VIEW t AS SELECT 1 AS id", &["no table", "schema"]),
        ("REVOKE CREATE ON SCHEMA public FROM loader", &["permission denied", "grants"]),
    ] {
        let warehouse = warehouse(None, 17).await;
        warehouse.client().await.batch_execute(prepare).await.unwrap();
        let folder = folder(&format!("pgsink-refused-{}", warehouse.database));
        let config = config(&source, &warehouse, "").replace("slot = \"", &format!("slot = \"{}_", warehouse.database));
        let mut daemon = Daemon::new(&folder, &config);
        daemon.start(&["run", "--until-caught-up"], None);
        let ended = daemon.wait(Duration::from_secs(30));
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        words.iter().for_each(|word| assert!(ended.stderr.contains(word), "{word:?} is not in\n{}", ended.stderr));
    }
    // Another log.
    let warehouse = warehouse(None, 17).await;
    let folder = folder("pgsink-other-log");
    let config = config(&source, &warehouse, "");
    Daemon::new(&folder, &config).catch_up();
    std::fs::remove_dir_all(folder.join("highwater-data")).unwrap();
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run"], None);
    let ended = daemon.wait(Duration::from_secs(30));
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    for word in ["holds the changes of log", "what to do"] {
        assert!(ended.stderr.contains(word), "{}", ended.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_has_every_change_once_and_its_view_is_the_source() {
    let source = Postgres::new(17).await;
    let warehouse = warehouse(None, 17).await;
    let here = warehouse.client().await;
    here.batch_execute("CREATE SCHEMA \"Odd \"\"Näme\" AUTHORIZATION loader").await.unwrap();
    Workload::prepare(&source, 4_000).await;
    let client = source.client().await;
    client
        .batch_execute(
            "CREATE TYPE mood AS ENUM ('fine');
             CREATE TABLE typed (id numeric(9,1) PRIMARY KEY, at inet, m mood, j jsonb, a int[]);
             INSERT INTO typed VALUES (1.5, '::1', 'fine', '{}', '{1}'); ALTER PUBLICATION highwater_shop ADD TABLE typed",
        )
        .await
        .unwrap();
    let folder = folder("pgsink-history");
    let mut daemon = Daemon::new(&folder, &config(&source, &warehouse, "mode = \"history\""));
    daemon.catch_up();
    let workload = Workload::start(&source, 2, 5).await;
    for point in ["half-merged", "pre-commit", "post-commit"] {
        daemon.start(&["run"], Some(&format!("{point}:5")));
        let ended = daemon.wait(Duration::from_secs(60));
        assert!(ended.stderr.contains(&format!("fault point hit: {point}")), "{}", ended.stderr);
    }
    for round in 0..5 {
        daemon.start(&["run"], None);
        tokio::time::sleep(Duration::from_millis(200 + 100 * round)).await;
        daemon.kill();
    }
    workload.stop().await;
    client
        .batch_execute(
            "UPDATE typed SET id = 2.5, at = '10.0.0.1'; ALTER TABLE typed RENAME COLUMN at TO address; ALTER TABLE typed ADD COLUMN n int;
             INSERT INTO typed VALUES (3, NULL, 'fine', NULL, NULL, 7)",
        )
        .await
        .unwrap();
    daemon.catch_up();
    for (sql, name, _) in Workload::tables() {
        let events = daemon.tail("shop", &["--table", &name.replace('"', "").replace("Odd Näme", "Odd \"Näme")]);
        let mut expected: Vec<i64> = events.iter().map(|event| event["offset"].as_i64().unwrap()).collect();
        expected.sort_unstable();
        let found = here.query(&format!("SELECT _hw_offset FROM {sql} ORDER BY 1"), &[]).await.unwrap();
        let found: Vec<i64> = found.iter().map(|row| row.get(0)).collect();
        assert!(!found.is_empty() && found == expected, "{name}: {} changes, {} rows", expected.len(), found.len());
        if sql != "nokey" {
            let view = match sql.strip_suffix('"') {
                Some(quoted) => format!("{quoted}_current\""),
                None => format!("{sql}_current"),
            };
            same_as(&client, sql, &here, &view).await;
        }
    }
    assert_eq!(same_as(&client, "typed", &here, "typed_current").await, 2);
    let moved = here
        .query_one("SELECT _hw_op, _hw_old_key::text, _hw_tx IS NOT NULL FROM typed WHERE _hw_old_key IS NOT NULL", &[])
        .await
        .unwrap();
    assert_eq!((moved.get(0), moved.get(1), moved.get(2)), ("update", "{\"id\": \"1.5\"}", true));
    let mut daemon = Daemon::new(&folder, &config(&source, &warehouse, "mode = \"mirror\""));
    daemon.start(&["run"], None);
    let ended = daemon.wait(Duration::from_secs(30));
    assert!(ended.code == Some(1) && ended.stderr.contains("its tables are of mode history"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_larger_than_memory_goes_in_one() {
    let source = Postgres::new(17).await;
    let warehouse = warehouse(None, 17).await;
    let client = source.client().await;
    client
        .batch_execute(
            "CREATE TABLE t (id int PRIMARY KEY, body text, n int); ALTER TABLE t ALTER body SET STORAGE EXTERNAL;
             INSERT INTO t SELECT i, repeat(md5(i::text), 100), 0 FROM generate_series(1, 500) i",
        )
        .await
        .unwrap();
    source.publish("highwater_shop", "t").await;
    let folder = folder("pgsink-large");
    let mut daemon = Daemon::new(&folder, &config(&source, &warehouse, "cut = { bytes = \"64KiB\" }"));
    daemon.catch_up();
    let here = Arc::new(warehouse.client().await);
    // Rows change their keys, and places, across what fits into memory.
    client
        .batch_execute(
            "BEGIN; INSERT INTO t SELECT i, 'small', 1 FROM generate_series(1001, 20000) i;
             UPDATE t SET id = -id WHERE id <= 500; INSERT INTO t SELECT i, 'in their place', 2 FROM generate_series(1, 500) i;
             UPDATE t SET n = n + 1; UPDATE t SET id = id + 100000 WHERE id < 0; DELETE FROM t WHERE id BETWEEN 5000 AND 15000; COMMIT",
        )
        .await
        .unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let looking = tokio::spawn({
        let (here, stop) = (here.clone(), stop.clone());
        async move {
            let mut seen = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                seen.push(number(&here, "SELECT count(*) FROM t").await);
            }
            seen.dedup();
            seen
        }
    });
    daemon.catch_up();
    stop.store(true, Ordering::Relaxed);
    let seen = looking.await.unwrap();
    let end = same(&client, &warehouse.client().await, "t").await as i64;
    assert!(seen.iter().all(|count| [500, end].contains(count)), "all or nothing: {seen:?}");
    let sql = "SELECT count(*) FROM t WHERE id BETWEEN 99500 AND 99999 AND length(body) = 3200 AND n = 1";
    assert_eq!(number(&here, sql).await, 500, "what was not sent is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_prints_the_grants_that_are_missing() {
    let source = Postgres::new(17).await;
    let client = source.client().await;
    client.batch_execute("CREATE SCHEMA other; CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other.t (id int PRIMARY KEY); GRANT USAGE ON SCHEMA other TO highwater; GRANT SELECT ON other.t TO highwater").await.unwrap();
    source.publish("highwater_shop", "t, other.t").await;
    let warehouse = warehouse(None, 17).await;
    let here = warehouse.client().await;
    here.batch_execute("DROP SCHEMA _highwater; REVOKE CREATE ON SCHEMA public FROM loader").await.unwrap();
    let folder = folder("pgsink-check");
    let daemon = Daemon::new(&folder, &config(&source, &warehouse, ""));
    let (code, out, _) = daemon.run(&["check"]);
    assert_eq!(code, 3, "{out}");
    let (_, sql, _) = daemon.run(&["check", "--sql"]);
    let grants: Vec<&str> = sql.lines().filter(|line| line.contains("loader")).collect();
    assert_eq!(
        grants,
        [
            "CREATE SCHEMA \"_highwater\" AUTHORIZATION \"loader\";",
            "CREATE SCHEMA \"other\" AUTHORIZATION \"loader\";",
            "GRANT USAGE, CREATE ON SCHEMA \"public\" TO \"loader\";"
        ]
    );
    here.batch_execute(&grants.join(" ")).await.unwrap();
    let (code, out, _) = daemon.run(&["check"]);
    assert_eq!(code, 0, "{out}");
    let mut daemon = Daemon::new(&folder, &config(&source, &warehouse, ""));
    daemon.catch_up();
    // Both would be one.
    let daemon = Daemon::new(&folder, &config(&source, &warehouse, "schema = \"public\""));
    let (code, out, _) = daemon.run(&["check"]);
    assert_eq!(code, 3);
    assert!(out.contains("other.t and public.t would all be public.t"), "{out}");
}
