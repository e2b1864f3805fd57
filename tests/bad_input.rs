//! What is wrong is said, with what to do, by the right exit code; nothing is lost.

use std::sync::Arc;
use std::time::Duration;

use highwater_tests::{Daemon, Postgres, Server, folder, must};

use crate::spine::to_folder;

/// Runs until it ends by itself; code and stderr.
fn run(folder: &std::path::Path, config: &str) -> (Option<i32>, String) {
    let mut daemon = Daemon::new(folder, config);
    daemon.start(&["run", "--until-caught-up"], None);
    let ended = daemon.wait(Duration::from_secs(20));
    (ended.code, ended.stderr)
}

fn says(stderr: &str, words: &[&str]) {
    for word in words {
        assert!(stderr.contains(word), "{word:?} is not in:\n{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_logical_wal_is_named_with_its_sql() {
    let server = tokio::task::spawn_blocking(|| Server::start(15, "wal_level = replica")).await.unwrap();
    let postgres = Postgres::on(Arc::new(server)).await;
    postgres.client().await.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    let folder = folder("replica");
    let config = to_folder(&postgres, &folder.join("lake"), "1s");
    let (code, stderr) = run(&folder, &config);
    assert_eq!(code, Some(1));
    says(&stderr, &["wal_level = replica", "ALTER SYSTEM SET wal_level = 'logical'"]);
    let daemon = Daemon::new(&folder, &config);
    let (code, out, _) = daemon.run(&["check"]);
    assert_eq!(code, 3);
    says(&out, &["wal_level = replica", "ALTER SYSTEM SET wal_level = 'logical'"]);
    let (_, sql, _) = daemon.run(&["check", "--sql"]);
    says(&sql, &["ALTER SYSTEM SET wal_level = 'logical'"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_refuses_is_told_with_the_remedy() {
    let postgres = Postgres::new(17).await;
    let client = postgres.client().await;
    client
        .batch_execute(
            "CREATE TABLE t (id int PRIMARY KEY); CREATE UNLOGGED TABLE u (id int PRIMARY KEY); CREATE VIEW v AS SELECT 1;
             DO $$ BEGIN CREATE ROLE plain LOGIN; EXCEPTION WHEN duplicate_object THEN END $$; GRANT SELECT ON t TO plain;
             REVOKE SELECT ON u FROM highwater; CREATE TABLE secret (id int PRIMARY KEY); REVOKE ALL ON secret FROM highwater",
        )
        .await
        .unwrap();
    postgres.publish("highwater_shop", "t").await;
    let folder = folder("refused");
    let config = to_folder(&postgres, &folder.join("lake"), "1s");
    let with = |line: &str| config.replace("[log]", &format!("{line}\n[log]"));
    for (config, words) in [
        (with("tables = [\"public.nothing\"]"), &["public.nothing does not exist"][..]),
        (with("tables = [\"public.u\"]"), &["unlogged", "take it out"]),
        (with("tables = [\"public.v\"]"), &["it is a view"]),
        (with("tables = [\"public.secret\"]"), &["may not read public.secret", "GRANT SELECT"]),
        (config.replace("highwater@", "plain@").replace("[log]", "tables = [\"public.t\"]\n[log]"), &["REPLICATION"]),
        (config.replace("highwater@", "nobody@"), &["nobody", "what to do"]),
        (config.replace(&format!("/{}\"", postgres.database), "/nowhere\""), &["nowhere", "does not exist"]),
    ] {
        let (code, stderr) = run(&folder, &config);
        assert_eq!(code, Some(1), "{stderr}");
        says(&stderr, words);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_is_named_and_stops_the_daemon() {
    let postgres = Postgres::new(17).await;
    let client = postgres.client().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    postgres.publish("highwater_shop", "t").await;
    let folder = folder("gap");
    let config = to_folder(&postgres, &folder.join("lake"), "300ms");
    Daemon::new(&folder, &config).catch_up();
    let slot = format!("hw_{}", postgres.database);
    client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    let advance = format!("SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())");
    client.batch_execute(&advance).await.unwrap();
    let (code, stderr) = run(&folder, &config);
    assert_eq!(code, Some(1));
    says(&stderr, &["are missing", "moved on", "what to do"]);
    client.batch_execute(&format!("SELECT pg_drop_replication_slot('{slot}')")).await.unwrap();
    let (code, stderr) = run(&folder, &config);
    assert_eq!(code, Some(1));
    says(&stderr, &["is gone", "what to do"]);
    // The server is another: the same database name elsewhere.
    let other = tokio::task::spawn_blocking(|| Server::start(17, "")).await.unwrap();
    let admin = other.connect("postgres").await;
    admin.batch_execute("CREATE ROLE highwater LOGIN REPLICATION").await.unwrap();
    admin.batch_execute(&format!("CREATE DATABASE {}", postgres.database)).await.unwrap();
    let swapped = config.replace(&postgres.server.port.to_string(), &other.port.to_string());
    let (code, stderr) = run(&folder, &swapped);
    assert_eq!(code, Some(1));
    says(&stderr, &["another server", "system identifier"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_is_refused_and_a_corrupt_log_is_told_by_its_offset() {
    let postgres = Postgres::new(17).await;
    let client = postgres.client().await;
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 1000)")
        .await
        .unwrap();
    postgres.publish("highwater_shop", "t").await;
    let folder = folder("second");
    let config = to_folder(&postgres, &folder.join("lake"), "300ms");
    let mut first = Daemon::new(&folder, &config);
    first.start(&["run"], None);
    crate::spine::capturing(&first).await;
    let (code, stderr) = run(&folder, &config);
    assert_eq!(code, Some(1));
    says(&stderr, &["in use by another daemon", "what to do"]);
    first.ends_well();
    first.catch_up();

    let segment = folder.join("highwater-data/sources/shop/00000000000000000000.log");
    let whole = std::fs::read(&segment).unwrap();
    let mut bytes = whole.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    let (code, stderr) = run(&folder, &config);
    assert_eq!(code, Some(1));
    says(&stderr, &["is corrupt at byte", "offset", "log check"]);
    let daemon = Daemon::new(&folder, &config);
    let (code, _, stderr) = daemon.run(&["log", "check"]);
    assert_eq!(code, 1);
    says(&stderr, &["is corrupt at byte"]);
    let (code, out, _) = daemon.run(&["tail", "shop", "--from", "beginning"]);
    assert_eq!(code, 1, "the intact prefix, then an error");
    assert!(out.lines().count() < 1000);
    std::fs::write(&segment, &whole).unwrap();
    Daemon::new(&folder, &config).catch_up();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_of_another_log_is_refused() {
    let postgres = Postgres::new(17).await;
    let client = postgres.client().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)").await.unwrap();
    postgres.publish("highwater_shop", "t").await;
    let folder = folder("other-log");
    let config = to_folder(&postgres, &folder.join("lake"), "300ms");
    Daemon::new(&folder, &config).catch_up();
    must(std::process::Command::new("rm").arg("-r").arg(folder.join("highwater-data")));
    let (code, stderr) = run(&folder, &config);
    assert_eq!(code, Some(1), "{stderr}");
    says(&stderr, &["holds the changes of log", "what to do"]);
}

#[test]
fn a_configuration_with_faults_ends_with_2_and_tells_them_all() {
    let folder = folder("faults");
    let daemon = Daemon::new(
        &folder,
        "[sources.shop]\ntyp = \"postgres\"\nurl = \"postgres://u@db.example/x\"\npassword = \"sesame\"\n",
    );
    let (code, _, stderr) = daemon.run(&["run"]);
    assert_eq!(code, 2);
    says(&stderr, &["highwater.toml:2: sources.shop.typ: is not a setting", "did you mean `type`", "highwater.toml:4"]);
    assert!(!stderr.contains("sesame"));
    let (code, _, _) = daemon.run(&["tail"]);
    assert_eq!(code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_larger_than_rows_may_be_waits_with_its_key_and_nothing_is_lost() {
    let postgres = Postgres::new(17).await;
    let client = postgres.client().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'x')").await.unwrap();
    postgres.publish("highwater_shop", "t").await;
    let folder = folder("large");
    let config = to_folder(&postgres, &folder.join("lake"), "300ms");
    let small = config.replace("[log]", "max_row = \"64KiB\"\n[log]");
    Daemon::new(&folder, &small).catch_up();
    client
        .batch_execute("INSERT INTO t SELECT 7, string_agg(md5(i::text), '') FROM generate_series(1, 4000) i")
        .await
        .unwrap();
    let (code, stderr) = run(&folder, &small);
    assert_eq!(code, Some(1));
    says(&stderr, &["1 rows wait in quarantine", "quarantine list shop"]);
    let (_, out, _) = Daemon::new(&folder, &small).run(&["quarantine", "list", "shop"]);
    says(&out, &["public.t", "{\"id\":7}", "max_row"]);
    let mut daemon = Daemon::new(&folder, &config);
    let (code, _, stderr) = daemon.run(&["quarantine", "redrive", "shop"]);
    assert_eq!(code, 0, "{stderr}");
    daemon.catch_up();
    assert_eq!(daemon.tail("shop", &[]).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_not_ours_to_use_is_refused() {
    let postgres = Postgres::new(17).await;
    let client = postgres.client().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    postgres.publish("highwater_shop", "t").await;
    let folder = folder("slots");
    let config = to_folder(&postgres, &folder.join("lake"), "100ms");
    let slot = format!("hw_{}", postgres.database);
    client
        .batch_execute(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')"))
        .await
        .unwrap();
    let (code, stderr) = run(&folder, &config);
    assert_eq!(code, Some(1));
    says(&stderr, &["is of plugin \"test_decoding\"", "what to do", "`slot`"]);
    client
        .batch_execute(&format!(
            "SELECT pg_drop_replication_slot('{slot}'); SELECT pg_create_physical_replication_slot('{slot}')"
        ))
        .await
        .unwrap();
    let (code, stderr) = run(&folder, &config);
    assert_eq!(code, Some(1), "{stderr}");
    says(&stderr, &["is of plugin \"\"", "what to do"]);
    let elsewhere = Postgres::on(postgres.server.clone()).await;
    let other = elsewhere.client().await;
    client.batch_execute(&format!("SELECT pg_drop_replication_slot('{slot}')")).await.unwrap();
    other.batch_execute(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await.unwrap();
    let (code, stderr) = run(&folder, &config);
    assert_eq!(code, Some(1));
    says(&stderr, &["is of database", "what to do"]);
    other.batch_execute(&format!("SELECT pg_drop_replication_slot('{slot}')")).await.unwrap();
    Daemon::new(&folder, &config).catch_up();
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_of_a_table_that_cannot_tell_old_rows_go_on_at_the_primary() {
    let postgres = Postgres::new(17).await;
    let client = postgres.client().await;
    client
        .batch_execute(&format!(
            "CREATE TABLE nothing (id int PRIMARY KEY, a int); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
             INSERT INTO nothing VALUES (1, 1); ALTER TABLE nothing OWNER TO highwater;
             GRANT CREATE ON DATABASE {} TO highwater",
            postgres.database
        ))
        .await
        .unwrap();
    let folder = folder("nothing");
    let mut daemon = Daemon::new(&folder, &to_folder(&postgres, &folder.join("lake"), "100ms"));
    daemon.catch_up();
    daemon.start(&["run"], None);
    crate::spine::capturing(&daemon).await;
    let sql = "UPDATE nothing SET a = 2; DELETE FROM nothing; INSERT INTO nothing VALUES (2, 2)";
    client.batch_execute(sql).await.expect("the primary is never at risk");
    daemon.signal("TERM");
    let ended = daemon.wait(Duration::from_secs(5));
    assert_eq!(ended.code, Some(0));
    says(&ended.stderr, &["no replica identity", "public.nothing", "REPLICA IDENTITY FULL"]);
    daemon.catch_up();
    let ops: Vec<String> = daemon.tail("shop", &[]).iter().map(|event| event["op"].as_str().unwrap().into()).collect();
    assert_eq!(ops, ["read", "insert"]);
}

#[test]
fn what_is_wrong_in_a_configuration_is_told_by_its_key() {
    let folder = folder("configuration");
    let source = "[sources.shop]\ntype = \"postgres\"\nurl = \"postgres://u@db.example/x\"\n";
    let sink = "[sinks.lake]\ntype = \"object-store\"\nfrom = [\"shop\"]\nurl = \"file:///lake\"\n";
    let whole = format!("{source}{sink}");
    for (config, words) in [
        (
            whole.replace("[\"shop\"]", "[\"shpo\"]"),
            &["highwater.toml:6", "there is no source \"shpo\"", "\"shop\"?"][..],
        ),
        (format!("{whole}[sources.shop]\n"), &["highwater.toml:8", "duplicate"]),
        (source.replace("postgres://u@db.example/x", "db.example"), &["highwater.toml:3", "is no postgres url"]),
        (source.replace("u@", "u:sesame@"), &["highwater.toml:3", "password"]),
        (format!("{source}password = \"sesame\"\n"), &["highwater.toml:4", "password", "env ="]),
        (format!("{source}password = {{ env = \"NOT_THERE\" }}\n"), &["highwater.toml:4", "NOT_THERE"]),
        (whole.replace("file:///lake", "ftp://lake"), &["highwater.toml:7", "url"]),
        (
            format!("{source}slot = \"same\"\n{}slot = \"same\"\n", source.replace("shop", "other")),
            &["slot", "\"same\"", "shop"],
        ),
        (
            format!("{source}{}slot = \"highwater_shop\"\n", source.replace("shop", "other")),
            &["slot", "\"highwater_shop\"", "shop"],
        ),
    ] {
        let daemon = Daemon::new(&folder, &config);
        let (code, out, stderr) = daemon.run(&["run"]);
        assert_eq!(code, 2, "{out}{stderr}");
        says(&stderr, words);
        assert!(!stderr.contains("sesame"), "{stderr}");
    }
    // The environment goes above the file, and is named where it is wrong.
    let mut daemon = Daemon::new(&folder, &whole);
    daemon.environment = vec![("HIGHWATER_SOURCES__SHOP__SLOT".into(), "Not A Slot".into())];
    let (code, _, stderr) = daemon.run(&["run"]);
    assert_eq!(code, 2);
    says(&stderr, &["HIGHWATER_SOURCES__SHOP__SLOT", "a slot's name"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_goes_above_the_file() {
    let postgres = Postgres::new(17).await;
    postgres.client().await.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    postgres.publish("highwater_shop", "t").await;
    let folder = folder("environment");
    let config = to_folder(&postgres, &folder.join("lake"), "100ms");
    let mut daemon = Daemon::new(&folder, &config.replace(&postgres.url(), "postgres://nobody@127.0.0.1:1/nowhere"));
    daemon.environment = vec![("HIGHWATER_SOURCES__SHOP__URL".into(), postgres.url())];
    daemon.catch_up();
}
