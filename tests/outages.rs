//! What breaks while it runs, and mends: it says so, goes on by itself, and
//! nothing is lost.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use highwater_tests::{Daemon, Postgres, Server, folder, free_port, landed, must, until};
use serde_json::Value;

use crate::spine::{capturing, local, to_folder};

const PATIENCE: u64 = 60;

async fn own_server(settings: &'static str) -> Postgres {
    let server = tokio::task::spawn_blocking(move || Server::start(17, settings)).await.unwrap();
    Postgres::on(Arc::new(server)).await
}

async fn with_table(postgres: &Postgres) {
    let client = postgres.client().await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY, filler text)").await.unwrap();
    client.batch_execute("INSERT INTO t VALUES (0)").await.unwrap();
    postgres.publish("highwater_shop", "t").await;
}

async fn insert(postgres: &Postgres, ids: std::ops::Range<i32>) {
    let sql = format!("INSERT INTO t SELECT generate_series({}, {})", ids.start, ids.end - 1);
    postgres.client().await.batch_execute(&sql).await.unwrap();
}

/// Exactly so many rows of `t`, each once.
async fn lands(lake: &Path, rows: usize) {
    let store = local(lake);
    until(PATIENCE, &format!("{rows} rows land"), || async { landed(&store, "shop.public.t").await.len() >= rows })
        .await;
    let mut ids: Vec<i32> = landed(&store, "shop.public.t")
        .await
        .iter()
        .map(|e| e.row["id"].as_deref().unwrap().parse().unwrap())
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..rows as i32).collect::<Vec<_>>());
}

/// The source's status says it.
async fn says(daemon: &Daemon, part: &str, words: &[&str]) -> Value {
    let found = std::sync::Mutex::new(Value::Null);
    until(PATIENCE, &format!("{part} says {words:?}"), || {
        let status = daemon.status()[part][0].clone();
        let text = status["problem"].to_string();
        let said = words.iter().all(|word| text.contains(word));
        *found.lock().unwrap() = status;
        async move { said }
    })
    .await;
    found.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_restarts_or_is_killed_is_waited_for() {
    let postgres = own_server("").await;
    with_table(&postgres).await;
    let folder = folder("restarts");
    let lake = folder.join("lake");
    let mut daemon = Daemon::new(&folder, &to_folder(&postgres, &lake, "100ms"));
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    insert(&postgres, 1..100).await;
    lands(&lake, 100).await;
    let mut rows = 100;
    for how in ["fast", "immediate", "killed"] {
        insert(&postgres, rows..rows + 10).await;
        match how {
            "killed" => postgres.server.kill(),
            mode => postgres.server.down(mode),
        }
        let state = says(&daemon, "sources", &["could not"]).await;
        assert_eq!(state["health"], "retrying", "{state}");
        postgres.server.up();
        insert(&postgres, rows + 10..rows + 20).await;
        rows += 20;
        lands(&lake, rows as usize).await;
        capturing(&daemon).await;
    }
    daemon.ends_well();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_yet_is_waited_for() {
    let postgres = own_server("").await;
    with_table(&postgres).await;
    postgres.server.down("fast");
    let folder = folder("not-yet");
    let lake = folder.join("lake");
    let mut daemon = Daemon::new(&folder, &to_folder(&postgres, &lake, "100ms"));
    daemon.start(&["run"], None);
    says(&daemon, "sources", &["could not", "refused"]).await;
    postgres.server.up();
    lands(&lake, 1).await;
    daemon.ends_well();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_used_up_or_in_use_is_told_and_waited_for() {
    let postgres = own_server("max_wal_senders = 2\n").await;
    with_table(&postgres).await;
    let first = folder("senders-first");
    let mut holder = Daemon::new(&first, &to_folder(&postgres, &first.join("lake"), "100ms"));
    holder.start(&["run"], None);
    capturing(&holder).await;
    lands(&first.join("lake"), 1).await;
    // The same slot from another folder, then another slot without a sender left.
    let second = folder("senders-second");
    let config = to_folder(&postgres, &second.join("lake"), "100ms");
    let mut other = Daemon::new(&second, &config);
    other.start(&["run"], None);
    let state = says(&other, "sources", &["is in use by the server's process", "another daemon"]).await;
    assert_eq!(state["health"], "retrying");
    other.ends_well();
    postgres.client().await.batch_execute("ALTER SYSTEM SET max_wal_senders = 1").await.unwrap();
    postgres.server.down("fast");
    postgres.server.up();
    capturing(&holder).await;
    let third = folder("senders-third");
    let config = to_folder(&postgres, &third.join("lake"), "100ms").replace("slot = \"hw_", "slot = \"hw2_");
    let mut other = Daemon::new(&third, &config);
    other.start(&["run"], None);
    let state = says(&other, "sources", &["max_wal_senders"]).await;
    assert_eq!(state["health"], "retrying");
    holder.ends_well();
    // A snapshot takes two.
    postgres.client().await.batch_execute("ALTER SYSTEM SET max_wal_senders = 2").await.unwrap();
    postgres.server.down("fast");
    postgres.server.up();
    lands(&third.join("lake"), 1).await;
    other.ends_well();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_timeout_of_the_role_does_not_break_a_snapshot() {
    let postgres = own_server("").await;
    let client = postgres.client().await;
    client
        .batch_execute(
            "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(0, 49999);
             ALTER ROLE highwater SET statement_timeout = '1ms'; ALTER ROLE highwater SET lock_timeout = '1ms';
             ALTER ROLE highwater SET idle_in_transaction_session_timeout = '1ms'; ALTER ROLE highwater SET DateStyle = 'German'",
        )
        .await
        .unwrap();
    postgres.publish("highwater_shop", "t").await;
    let folder = folder("timeouts");
    let lake = folder.join("lake");
    let mut daemon = Daemon::new(&folder, &to_folder(&postgres, &lake, "100ms"));
    daemon.catch_up();
    lands(&lake, 50_000).await;
}

/// A small file system of its own, gone at the end; None where that may not be.
pub(crate) struct Small(pub(crate) PathBuf);

impl Small {
    pub(crate) fn mount(at: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let options = format!("size={size}");
        let output = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(at).output();
        match output {
            Ok(output) if output.status.success() => Some(Self(at.into())),
            Ok(output) => {
                println!("skipped: no file system may be mounted here: {}", String::from_utf8_lossy(&output.stderr));
                None
            }
            Err(error) => {
                println!("skipped: no file system can be mounted here: {error}");
                None
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_the_source_until_there_is_room() {
    let postgres = own_server("").await;
    with_table(&postgres).await;
    let folder = folder("full");
    let Some(small) = Small::mount(&folder.join("highwater-data"), "24m") else { return };
    let lake = folder.join("lake");
    let mut daemon = Daemon::new(&folder, &to_folder(&postgres, &lake, "100ms"));
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    lands(&lake, 1).await;
    std::fs::write(small.0.join("filler"), vec![1; 16 << 20]).unwrap();
    let client = Arc::new(postgres.client().await);
    for i in 0..20 {
        let (from, to) = (1 + i * 100, (i + 1) * 100);
        let sql = format!("INSERT INTO t SELECT g, repeat(md5(g::text), 320) FROM generate_series({from}, {to}) g");
        client.batch_execute(&sql).await.unwrap();
    }
    until(PATIENCE, "status says that the disk is full", || {
        let state = daemon.status()["sources"][0].clone();
        let full = state["log"]["stats"]["disk_full"] == true
            && state["problem"]["error"].as_str().is_some_and(|e| e.contains("disk full"));
        async move { full }
    })
    .await;
    assert!(daemon.is_running());
    // What is not in the log is not acknowledged.
    let sql = "SELECT max(confirmed_flush_lsn) < pg_current_wal_flush_lsn() FROM pg_replication_slots WHERE plugin = 'pgoutput'";
    assert!(client.query_one(sql, &[]).await.unwrap().get::<_, bool>(0));
    std::fs::remove_file(small.0.join("filler")).unwrap();
    lands(&lake, 2001).await;
    let state = daemon.status()["sources"][0].clone();
    assert_eq!(
        (&state["log"]["stats"]["disk_full"], &state["problem"]),
        (&Value::Bool(false), &Value::Null),
        "{state}"
    );
    daemon.ends_well();
    let (code, out, err) = Daemon::new(&folder, &to_folder(&postgres, &lake, "100ms")).run(&["log", "check"]);
    assert_eq!(code, 0, "{out}{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_does_not_hold_up_a_stop() {
    let postgres = own_server("").await;
    with_table(&postgres).await;
    let folder = folder("full-stop");
    let Some(small) = Small::mount(&folder.join("highwater-data"), "12m") else { return };
    let lake = folder.join("lake");
    let config = to_folder(&postgres, &lake, "100ms");
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    lands(&lake, 1).await;
    std::fs::write(small.0.join("filler"), vec![1; 8 << 20]).unwrap();
    let sql = "INSERT INTO t SELECT g, repeat(md5(g::text), 320) FROM generate_series(1, 1000) g";
    postgres.client().await.batch_execute(sql).await.unwrap();
    until(PATIENCE, "the disk is full", || {
        let full = daemon.status()["sources"][0]["log"]["stats"]["disk_full"] == true;
        async move { full }
    })
    .await;
    daemon.ends_well();
    std::fs::remove_file(small.0.join("filler")).unwrap();
    Daemon::new(&folder, &config).catch_up();
    lands(&lake, 1001).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_that_cannot_be_written_is_told_and_waited_for() {
    let postgres = Postgres::new(17).await;
    with_table(&postgres).await;
    let folder = folder("no-lake");
    let lake = folder.join("lake");
    let config = to_folder(&postgres, &lake, "100ms");
    std::fs::remove_dir(&lake).unwrap();
    std::fs::write(&lake, "a file").unwrap();
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run"], None);
    let state = says(&daemon, "sinks", &["could not make the folder", "may write there"]).await;
    assert_eq!(state["health"], "retrying");
    capturing(&daemon).await;
    let (code, out, _) = daemon.run(&["check"]);
    assert_eq!(code, 3);
    assert!(out.contains("could not make the folder"), "{out}");
    std::fs::remove_file(&lake).unwrap();
    until(PATIENCE, "the folder is made", || std::future::ready(lake.is_dir())).await;
    lands(&lake, 1).await;
    daemon.ends_well();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_never_answers_does_not_hold_up_a_stop() {
    let postgres = Postgres::new(17).await;
    with_table(&postgres).await;
    let hole = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = hole.local_addr().unwrap().port();
    // Whoever comes is let in, and never hears a word.
    std::thread::spawn(move || hole.incoming().collect::<Vec<_>>());
    let folder = folder("blackhole");
    let config = to_folder(&postgres, &folder.join("lake"), "100ms");
    let (source, _) = config.split_once("[sinks.lake]").unwrap();
    let config = format!(
        "{source}[sinks.lake]\ntype = \"object-store\"\nfrom = [\"shop\"]\nurl = \"s3://lake/cdc\"\noptions = \
         {{ endpoint = \"http://127.0.0.1:{port}\", region = \"us-east-1\", access_key_id = \"a\", secret_access_key = \"b\" }}\n"
    );
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    insert(&postgres, 1..100).await;
    daemon.ends_well();
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    let asked = Instant::now();
    daemon.signal("TERM");
    daemon.signal("TERM");
    daemon.wait(Duration::from_secs(5));
    assert!(asked.elapsed() < Duration::from_secs(1), "a second one at once: {:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_answers_is_given_up_and_does_not_hold_up_a_stop() {
    let hole = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = hole.local_addr().unwrap().port();
    std::thread::spawn(move || hole.incoming().collect::<Vec<_>>());
    let folder = folder("silent");
    let config = format!("[sources.shop]\ntype = \"postgres\"\nurl = \"postgres://highwater@127.0.0.1:{port}/shop\"\n");
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run"], None);
    let state = says(&daemon, "sources", &["does not answer"]).await;
    assert_eq!(state["health"], "retrying");
    daemon.ends_well();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_postgresql_is_told_at_once() {
    for answer in
        [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"SSH-2.0-OpenSSH_9.2\r\n", b"\x00\x01\x02", b"R\x00\x00\x00\x04"]
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            use std::io::{Read, Write};
            for socket in listener.incoming() {
                let mut socket = socket.unwrap();
                let _ = socket.read(&mut [0; 1024]).and_then(|_| socket.write_all(answer));
            }
        });
        let folder = folder("stranger");
        let config =
            format!("[sources.shop]\ntype = \"postgres\"\nurl = \"postgres://highwater@127.0.0.1:{port}/shop\"\n");
        let mut daemon = Daemon::new(&folder, &config);
        daemon.start(&["run"], None);
        if answer.len() > 4 {
            let ended = daemon.wait(Duration::from_secs(10));
            assert_eq!(ended.code, Some(1), "{}", ended.stderr);
            assert!(ended.stderr.contains("is this a PostgreSQL server"), "{}", ended.stderr);
        } else {
            // Too little to tell from a server that goes down.
            says(&daemon, "sources", &["could not"]).await;
            daemon.ends_well();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_that_cannot_be_is_told() {
    let folder = folder("no-data");
    std::fs::write(folder.join("highwater-data"), "a file").unwrap();
    let port = free_port();
    let config = format!("[sources.shop]\ntype = \"postgres\"\nurl = \"postgres://highwater@127.0.0.1:{port}/shop\"\n");
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run"], None);
    let ended = daemon.wait(Duration::from_secs(5));
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    for word in ["could not make the data folder", "what to do", "data_dir"] {
        assert!(ended.stderr.contains(word), "{}", ended.stderr);
    }
    std::fs::remove_file(folder.join("highwater-data")).unwrap();
    let Some(small) = Small::mount(&folder.join("highwater-data"), "1m") else { return };
    must(Command::new("mount").args(["-o", "remount,ro"]).arg(&small.0));
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run"], None);
    let ended = daemon.wait(Duration::from_secs(5));
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("Read-only file system") && ended.stderr.contains("what to do"), "{}", ended.stderr);
}
