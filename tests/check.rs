//! What `check` sees of a server that is set up badly, and that the SQL it
//! prints mends it.

use std::collections::BTreeMap;
use std::sync::Arc;

use highwater_tests::{Daemon, Postgres, Server, folder};
use serde_json::Value;

use crate::spine::to_folder;

/// What `check` finds that is not as it should be.
fn found(daemon: &Daemon) -> (i32, Vec<Value>) {
    let (code, out, _) = daemon.run(&["check", "--json"]);
    let all = out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["finding"].clone());
    (code, all.filter(|finding| finding["severity"] != "ok").collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_badly_set_up_server_is_told_and_its_sql_makes_check_green() {
    let settings = "wal_level = replica\nmax_replication_slots = 1\nmax_wal_senders = 1\nwal_sender_timeout = 2s\n\
                    idle_replication_slot_timeout = '1d'\n";
    let server = tokio::task::spawn_blocking(move || Server::start(18, settings)).await.unwrap();
    let postgres = Postgres::on(Arc::new(server)).await;
    let client = postgres.client().await;
    let sql = "
        ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE SELECT ON TABLES FROM highwater;
        ALTER ROLE highwater NOREPLICATION CONNECTION LIMIT 2 VALID UNTIL 'tomorrow';
        ALTER ROLE highwater SET statement_timeout = '1min'; ALTER ROLE highwater SET lock_timeout = '1min';
        ALTER ROLE highwater SET idle_in_transaction_session_timeout = '1min';
        ALTER ROLE highwater SET transaction_timeout = '1min'; ALTER ROLE highwater SET idle_session_timeout = '1min';
        SELECT pg_create_physical_replication_slot('somebody');
        CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders SELECT i, 'x' FROM generate_series(1, 10) i;
        CREATE TABLE keyless (a int); INSERT INTO keyless VALUES (1);
        CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
        CREATE TABLE harmed (a int);
        CREATE TABLE guarded (id int PRIMARY KEY); ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
        INSERT INTO guarded VALUES (1);
        CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10); INSERT INTO parts VALUES (1);
        CREATE SCHEMA \"Odd one\"; CREATE TABLE \"Odd one\".\"it's\" (id int PRIMARY KEY);
        CREATE PUBLICATION highwater_shop FOR TABLE orders WHERE (id > 5), harmed WITH (publish = 'insert, update')";
    client.batch_execute(sql).await.unwrap();
    let folder = folder("badly");
    let mut daemon = Daemon::new(&folder, &to_folder(&postgres, &folder.join("lake"), "300ms"));
    let (code, findings) = found(&daemon);
    assert_eq!(code, 3);
    let has = |severity: &str, words: &str| {
        let with = |f: &&Value| f["severity"] == severity && f["what"].as_str().unwrap().contains(words);
        let finding = findings.iter().find(with).unwrap_or_else(|| panic!("{severity} {words:?}: {findings:#?}"));
        assert!(finding["why"].is_string() && finding["sql"].is_string(), "{finding}");
    };
    let expected = [
        ("error", "wal_level = replica"),
        ("error", "lacks REPLICATION"),
        ("error", "the role may have 2 connections"),
        ("error", "max_replication_slots = 1: 0 free, 2 needed"),
        ("error", "max_wal_senders = 1: 1 free, 2 needed"),
        ("error", "may not read public.orders"),
        ("error", "may not read public.keyless"),
        ("error", "may not read public.nothing"),
        ("error", "may not read public.harmed"),
        ("error", "may not read public.guarded"),
        ("error", "may not read public.parts"),
        ("error", "may not read public.parts_1"),
        ("error", "may not read Odd one.it's"),
        ("error", "row security is active for this role on public.guarded"),
        ("error", "publication \"highwater_shop\" is not in step, and the role may not mend it"),
        ("error", "public.harmed has no replica identity and is published with updates"),
        ("error", "public.keyless has no replica identity, and is not published"),
        ("error", "public.nothing has no replica identity, and is not published"),
        ("warning", "the role's password is valid until"),
        ("warning", "max_slot_wal_keep_size = -1"),
        ("warning", "idle_replication_slot_timeout"),
        ("warning", "statement_timeout"),
        ("warning", "lock_timeout"),
        ("warning", "idle_in_transaction_session_timeout"),
        ("warning", "transaction_timeout"),
        ("warning", "idle_session_timeout"),
        ("warning", "wal_sender_timeout = 2000 ms"),
        ("warning", "public.orders is published with a row filter"),
    ];
    expected.iter().for_each(|(severity, words)| has(severity, words));
    assert_eq!(findings.len(), expected.len(), "{findings:#?}");
    let mut counts = BTreeMap::new();
    findings.iter().for_each(|finding| *counts.entry(finding["severity"].to_string()).or_insert(0) += 1);
    let (_, sql, _) = daemon.run(&["check", "--sql"]);
    println!("{counts:?}, mended by {} statements", sql.lines().count());

    let script = folder.join("mend.sql");
    std::fs::write(&script, &sql).unwrap();
    postgres.psql(&script);
    // What is left is said, and is no SQL any more.
    let (code, left) = found(&daemon);
    assert_eq!(code, 3);
    assert!(left.iter().all(|f| f["remedy"].as_str().unwrap_or_default().contains("restart the server")), "{left:#?}");
    assert!(left.iter().all(|f| f["sql"].is_null()), "{left:#?}");
    postgres.server.down("fast");
    postgres.server.up();
    let (code, left) = found(&daemon);
    assert_eq!((code, left.len()), (0, 0), "{left:#?}");
    daemon.catch_up();
    let read = daemon.tail("shop", &[]).len();
    assert_eq!(read, 13, "each row, whatever the filter and the policy were");
    postgres.client().await.batch_execute("UPDATE keyless SET a = 2; DELETE FROM orders WHERE id = 1").await.unwrap();
    daemon.catch_up();
    assert_eq!(daemon.tail("shop", &[]).len(), read + 2);
    assert_eq!(found(&daemon), (0, Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn for_a_role_that_is_not_there_the_whole_set_up_is_printed() {
    whole_set_up("root", "parts").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_set_up_publishes_partitions_each_by_itself_where_that_is_asked_for() {
    whole_set_up("leaf", "parts_1").await;
}

async fn whole_set_up(partitions: &str, captured: &str) {
    let postgres = Postgres::new(17).await;
    let sql = "
        CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders VALUES (1), (2);
        CREATE TABLE tmp_1 (id int PRIMARY KEY); CREATE TABLE keyless (a int); INSERT INTO keyless VALUES (1);
        CREATE TABLE guarded (id int PRIMARY KEY); ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
        CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10); INSERT INTO parts VALUES (1);
        CREATE SCHEMA other; CREATE TABLE other.t (id int PRIMARY KEY)";
    postgres.client().await.batch_execute(sql).await.unwrap();
    let folder = folder(&format!("new-role-{partitions}"));
    let role = format!("new \"role\" of {}", postgres.database);
    let encoded = role.replace(' ', "%20").replace('"', "%22");
    let config = to_folder(&postgres, &folder.join("lake"), "300ms")
        .replace("highwater@", &format!("{encoded}@"))
        .replace("[log]", &format!("tables = [\"public.*\", \"!public.tmp_*\"]\npartitions = \"{partitions}\"\n[log]"));
    let mut daemon = Daemon::new(&folder, &config);
    let (code, findings) = found(&daemon);
    assert_eq!(code, 3, "{findings:#?}");
    assert!(findings[0]["what"].as_str().unwrap().contains("does not exist"), "{findings:#?}");
    let (_, sql, _) = daemon.run(&["check", "--sql"]);
    let script = folder.join("new.sql");
    std::fs::write(&script, &sql).unwrap();
    // Twice: what is there already is left as it is.
    postgres.psql(&script);
    postgres.psql(&script);
    let (code, findings) = found(&daemon);
    assert!(findings.iter().all(|finding| finding["severity"] == "warning"), "{findings:#?}");
    assert_eq!(code, 0);
    daemon.catch_up();
    let mut tables: Vec<String> =
        daemon.tail("shop", &[]).iter().map(|event| event["table"].as_str().unwrap().to_owned()).collect();
    tables.sort();
    assert_eq!(tables, ["keyless", "orders", "orders", captured]);
    let may = format!(
        "SELECT r.rolsuper, r.rolcreatedb, has_table_privilege(r.oid, 'public.tmp_1', 'SELECT'),
                has_table_privilege(r.oid, 'other.t', 'SELECT'), has_table_privilege(r.oid, 'public.orders', 'INSERT')
           FROM pg_roles r WHERE r.rolname = '{role}'"
    );
    let row = postgres.client().await.query_one(&may, &[]).await.unwrap();
    assert!((0..5).all(|i| !row.get::<_, bool>(i)), "no more than it needs");
}
