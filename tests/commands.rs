//! The commands as a user types them: what they print, and how they end.

use std::process::{Command, Stdio};

use highwater_tests::{Daemon, Postgres, folder};
use serde_json::Value;

use crate::spine::to_folder;

fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in:\n{text}");
    }
}

/// A database with a table, captured once.
async fn captured(name: &str) -> (Postgres, Daemon) {
    let postgres = Postgres::new(17).await;
    let sql = "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 30);
               CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)";
    postgres.client().await.batch_execute(sql).await.unwrap();
    postgres.publish("highwater_shop", "t, other").await;
    let folder = folder(name);
    let mut daemon = Daemon::new(&folder, &to_folder(&postgres, &folder.join("lake"), "300ms"));
    daemon.catch_up();
    (postgres, daemon)
}

fn ids(out: &str) -> Vec<i64> {
    let event = |line: &str| serde_json::from_str::<Value>(line).unwrap()["key"]["id"].as_i64().unwrap();
    out.lines().map(event).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_prints_what_was_asked_for() {
    let (_postgres, daemon) = captured("tail").await;
    let tail = |words: &[&str]| {
        let (code, out, stderr) = daemon.run(&[&["tail", "shop"], words].concat());
        assert_eq!(code, 0, "{stderr}");
        out
    };
    assert_eq!(tail(&[]).lines().count(), 10);
    assert_eq!(ids(&tail(&["-n", "2", "--table", "public.t"])), [29, 30]);
    assert_eq!(ids(&tail(&["--from", "beginning", "-n", "3", "--table", "public.t"])), [1, 2, 3]);
    assert_eq!(tail(&["--from", "beginning", "-n", "0"]), "");
    assert_eq!(tail(&["--from", "beginning"]).lines().count(), 31);
    assert_eq!(tail(&["--from", "2001-01-01T00:00:00Z"]).lines().count(), 31);
    assert_eq!(tail(&["--from", "beginning", "--table", "public.*", "--table", "!public.t"]).lines().count(), 1);
    says(&tail(&["--from", "beginning", "--control"]), &["\"op\":\"snapshot_begin\"", "\"op\":\"snapshot_end\""]);
    // It ends by itself at the N-th, whoever goes on waiting.
    assert_eq!(tail(&["--from", "beginning", "-f", "-n", "4"]).lines().count(), 4);
    for (words, word) in [
        (&["tail", "shop", "--from", "yesterday"][..], "neither `beginning`, an offset, nor a time"),
        (&["tail", "nope"], "there is: shop"),
        (&["tail", "shop", "--table", "a[."], "is no pattern"),
        (&["log", "check", "nope"], "there is: shop"),
    ] {
        let (code, _, stderr) = daemon.run(words);
        assert_eq!(code, 2, "{words:?}");
        says(&stderr, &[word]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_of_a_stopped_daemon_tells_what_its_files_know() {
    let (_postgres, daemon) = captured("stopped").await;
    let (code, out, _) = daemon.run(&["status"]);
    assert_eq!(code, 0);
    says(&out, &["not running", "position ", "log 0 to ", "of shop; checkpoint ", "backlog 0 events"]);
    assert!(!out.contains("null"), "{out}");
}

#[test]
fn before_the_first_run_there_is_no_log_and_that_is_said() {
    let folder = folder("first");
    let config = "[sources.shop]\ntype = \"postgres\"\nurl = \"postgres://u@127.0.0.1:1/x\"\n";
    let daemon = Daemon::new(&folder, config);
    for words in [&["tail", "shop"][..], &["log", "check"], &["log", "inspect"]] {
        let (code, _, stderr) = daemon.run(words);
        assert_eq!(code, 1, "{words:?}");
        says(&stderr, &["there is no log in", "`highwater run` makes it"]);
    }
    let (code, out, _) = daemon.run(&["status"]);
    assert_eq!(code, 0);
    says(&out, &["no log yet"]);
    let (code, out, _) = daemon.run(&["check"]);
    assert_eq!(code, 3);
    says(&out, &["ok      data folder", "could not connect", "what to do: is the server up"]);
    assert!(!folder.join("highwater-data").exists(), "check changes nothing");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let folder = folder("pipe");
    let config = "[sources.shop]\ntype = \"postgres\"\nurl = \"postgres://u@127.0.0.1:1/x\"\n";
    Daemon::new(&folder, config);
    for words in ["status", "check"] {
        let mut command = Command::new(Daemon::binary());
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.current_dir(&folder).arg(words).stdout(writer).stderr(Stdio::piped());
        let output = command.output().unwrap();
        assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"), "{words}");
        assert_eq!(output.status.code(), Some(if words == "check" { 3 } else { 0 }), "{words}");
    }
}

#[test]
fn a_data_folder_that_cannot_be_written_is_told() {
    let folder = folder("nowhere");
    let config =
        "data_dir = \"/proc/1/nowhere\"\n[sources.shop]\ntype = \"postgres\"\nurl = \"postgres://u@127.0.0.1:1/x\"\n";
    let daemon = Daemon::new(&folder, config);
    let (code, out, _) = daemon.run(&["check"]);
    assert_eq!(code, 3);
    says(&out, &["ERROR   data folder: /proc/1 cannot be written", "check `data_dir`"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn init_looks_at_the_database_and_writes_a_file_that_works() {
    let postgres = Postgres::new(17).await;
    postgres
        .client()
        .await
        .batch_execute(
            "CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders SELECT generate_series(1, 500); ANALYZE orders;
             CREATE SCHEMA \"Odd.one\"; CREATE TABLE \"Odd.one\".\"it's\" (a int); CREATE VIEW v AS SELECT 1;
             GRANT USAGE ON SCHEMA \"Odd.one\" TO highwater",
        )
        .await
        .unwrap();
    let folder = folder("init");
    let init = |words: &[&str]| {
        let mut command = Command::new(Daemon::binary());
        command.current_dir(&folder).arg("init").args(words).env_remove("HIGHWATER_CONFIG");
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let file = folder.join("highwater.toml");
    // What cannot be looked at is not written about.
    let (code, stderr) = init(&["postgres://u@127.0.0.1:1/x"]);
    assert_eq!(code, Some(1));
    says(&stderr, &["could not look at the database", "what to do"]);
    for bad in ["mysql://u:sesame@127.0.0.1/x", "postgres://u:sesame@127.0.0.1/x?pool=3"] {
        let (code, stderr) = init(&[bad]);
        assert_eq!(code, Some(2), "{stderr}");
        assert!(!stderr.contains("sesame"), "{stderr}");
    }
    assert!(!file.exists());

    let url = postgres.url().replace("highwater@", "highwater:ses%61me@");
    let (code, stderr) = init(&[&url]);
    assert_eq!(code, Some(0), "{stderr}");
    let written = std::fs::read_to_string(&file).unwrap();
    assert!(!written.contains("ses"), "a password is not written:\n{written}");
    let name = &postgres.database;
    let variable = format!("{}_PASSWORD", name.to_uppercase());
    says(
        &written,
        &[
            &format!("[sources.{name}]"),
            &format!("password = {{ env = \"{variable}\" }}"),
            "tables   = [\"Odd.one.*\", \"public.*\"]",
            "public.orders                    500 rows",
            "no replica identity",
            "Still to be done on the server",
            "GRANT SELECT ON \"Odd.one\".\"it's\" TO \"highwater\";",
            "CREATE PUBLICATION",
            "the role may not mend it",
        ],
    );
    assert!(!written.contains("public.v "), "views are not captured:\n{written}");
    let (code, stderr) = init(&[]);
    assert_eq!(code, Some(2));
    says(&stderr, &["is there already", "--config"]);
    // What check prints as SQL mends it.
    let highwater = |words: &[&str]| {
        let mut command = Command::new(Daemon::binary());
        let output = command.current_dir(&folder).args(words).env(&variable, "sesame").output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    assert_eq!(highwater(&["check"]).0, Some(3));
    let (_, sql) = highwater(&["check", "--sql"]);
    let client = postgres.client().await;
    for line in sql.lines().filter(|line| !line.starts_with("ALTER SYSTEM")) {
        client.batch_execute(line).await.unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    // The lines say two ways to publish a table without a key: the second is seen now.
    let (_, sql) = highwater(&["check", "--sql"]);
    for line in sql.lines().filter(|line| !line.starts_with("ALTER SYSTEM")) {
        client.batch_execute(line).await.unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    let written = std::fs::read_to_string(&file).unwrap();
    std::fs::write(
        &file,
        written.replace("file:///var/lib/highwater/lake", &format!("file://{}/lake", folder.display())),
    )
    .unwrap();
    let (code, out) = highwater(&["check"]);
    assert_eq!(code, Some(0), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_a_partition_that_the_role_may_not_read() {
    let postgres = Postgres::new(17).await;
    let sql = "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
               CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (10); REVOKE ALL ON p_1 FROM highwater";
    postgres.client().await.batch_execute(sql).await.unwrap();
    postgres.publish("highwater_shop", "p").await;
    let folder = folder("partition");
    let daemon = Daemon::new(&folder, &to_folder(&postgres, &folder.join("lake"), "300ms"));
    let (code, out, _) = daemon.run(&["check"]);
    assert_eq!(code, 3, "{out}");
    says(&out, &["may not read public.p_1", "GRANT SELECT ON \"public\".\"p_1\" TO \"highwater\";"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_names_a_table_that_came_later_and_may_not_be_read() {
    let (postgres, mut daemon) = captured("left-out").await;
    let sql = "CREATE TABLE later (id int PRIMARY KEY); REVOKE ALL ON later FROM highwater";
    postgres.client().await.batch_execute(sql).await.unwrap();
    daemon.start(&["run"], None);
    crate::spine::capturing(&daemon).await;
    let status = daemon.status();
    assert_eq!(status["sources"][0]["not_captured"][0]["table"], "public.later", "{status}");
    let (_, out, _) = daemon.run(&["status"]);
    says(&out, &["not captured: public.later", "GRANT SELECT ON \"public\".\"later\""]);
}
