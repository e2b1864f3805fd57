//! What happens to a source behind our back: it is gone on with exactly, or
//! said, with the command that mends it.

mod clock;
mod partitions;
mod table;
mod timeouts;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use highwater_tests::{Daemon, Postgres, final_state, folder, landed, until};
use tokio_postgres::Client;

use crate::spine::{capturing, local, to_folder};

/// What stops does so within this, from when it could be seen.
pub(crate) const STOPS_WITHIN: Duration = Duration::from_secs(5);

/// A line of the table of accidents.
fn line(accident: &str, ending: &str) {
    println!("accident | {accident:<58} | {ending}");
}

/// A database whose tables belong to the role, and a daemon that looks every second.
struct Case {
    postgres: Postgres,
    client: Client,
    lake: PathBuf,
    daemon: Daemon,
    /// Since when the last accident is there to be seen.
    since: Instant,
}

impl Case {
    async fn new(name: &str, sql: &str) -> Self {
        Self::on(Postgres::new(17).await, name, sql).await
    }

    async fn on(postgres: Postgres, name: &str, sql: &str) -> Self {
        let client = postgres.client().await;
        let grant = format!(
            "GRANT CREATE ON DATABASE {} TO highwater; GRANT ALL ON SCHEMA public TO highwater",
            postgres.database
        );
        client.batch_execute(&grant).await.unwrap();
        client.batch_execute(&format!("SET ROLE highwater; {sql}; RESET ROLE")).await.unwrap();
        let folder = folder(name);
        let lake = folder.join("lake");
        let config = to_folder(&postgres, &lake, "200ms")
            .replace("[log]", "heartbeat = \"1s\"\non_incompatible = \"evolve\"\n[log]");
        Self { daemon: Daemon::new(&folder, &config), postgres, client, lake, since: Instant::now() }
    }

    async fn run(&mut self, sql: &str) {
        self.client.batch_execute(&format!("SET ROLE highwater; {sql}; RESET ROLE")).await.unwrap();
    }

    /// Catches up, and compares what landed with the tables.
    async fn is_exact(&mut self, tables: &[&str]) {
        self.daemon.catch_up();
        for table in tables {
            let events = landed(&local(&self.lake), &format!("shop.public.{table}")).await;
            final_state(&self.postgres.client().await, table, &events).await;
        }
    }

    async fn stop(&mut self) {
        self.daemon.ends_well();
    }

    /// It starts, and what has happened before is there to be seen.
    fn starts(&mut self) {
        self.since = Instant::now();
        self.daemon.start(&["run"], None);
    }

    async fn halts(&mut self, words: &[&str]) {
        self.starts();
        self.has_halted(words);
    }

    /// It runs, and ends by itself; why, in its own words.
    fn has_halted(&mut self, words: &[&str]) -> String {
        let ended = self.daemon.wait(STOPS_WITHIN.saturating_sub(self.since.elapsed()));
        let after = self.since.elapsed().as_secs_f64();
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        for word in words {
            assert!(ended.stderr.contains(word), "{word:?} is not in:\n{}", ended.stderr);
        }
        let why = |line: &&str| !line.starts_with("what to do") && !line.is_empty();
        format!("{} ({after:.1} s)", ended.stderr.lines().rfind(why).unwrap_or_default())
    }

    /// Waits until so many events of a table are there.
    async fn has(&self, table: &str, events: usize) {
        let (store, stream) = (local(&self.lake), format!("shop.public.{table}"));
        until(30, &format!("{events} events of {table}"), || {
            let (store, stream) = (store.clone(), stream.clone());
            async move { landed(&store, &stream).await.len() >= events }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_made_while_running_is_read_and_followed() {
    let mut case =
        Case::new("made", "CREATE TABLE a (id bigint PRIMARY KEY, v text); INSERT INTO a VALUES (1, 'x')").await;
    case.daemon.start(&["run"], None);
    capturing(&case.daemon).await;
    case.run(
        "CREATE TABLE b (id bigint PRIMARY KEY, v text); INSERT INTO b SELECT i, 'y' FROM generate_series(1, 500) i",
    )
    .await;
    case.has("b", 500).await;
    case.run("UPDATE b SET v = 'z' WHERE id <= 10; INSERT INTO a VALUES (2, 'x')").await;
    case.has("b", 510).await;
    case.stop().await;
    case.is_exact(&["a", "b"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_a_grant_is_told_of_and_stops_nobody() {
    let mut case =
        Case::new("ungranted", "CREATE TABLE a (id bigint PRIMARY KEY, v text); INSERT INTO a VALUES (1, 'x')").await;
    case.daemon.start(&["run"], None);
    capturing(&case.daemon).await;
    // Made by somebody else, as superuser.
    case.client
        .batch_execute("ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE SELECT ON TABLES FROM highwater; CREATE TABLE secret (id bigint PRIMARY KEY, v text)")
        .await
        .unwrap();
    until(20, "status tells of it", || {
        let told = case.daemon.status()["sources"][0]["not_captured"].to_string().contains("GRANT SELECT");
        async move { told }
    })
    .await;
    case.run("INSERT INTO a VALUES (2, 'x')").await;
    case.has("a", 2).await;
    case.client.batch_execute("INSERT INTO secret VALUES (1, 'x'); GRANT SELECT ON secret TO highwater; ALTER TABLE secret OWNER TO highwater").await.unwrap();
    case.has("secret", 1).await;
    case.stop().await;
    case.is_exact(&["a", "secret"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_taken_out_of_the_publication_and_put_back_is_read_anew() {
    let mut case = Case::new(
        "unpublished",
        "CREATE TABLE a (id bigint PRIMARY KEY, v text); INSERT INTO a SELECT i, 'x' FROM generate_series(1, 100) i",
    )
    .await;
    case.daemon.catch_up();
    case.run("ALTER PUBLICATION highwater_shop DROP TABLE a; DELETE FROM a WHERE id <= 50").await;
    case.run("INSERT INTO a VALUES (1000, 'silent'); ALTER PUBLICATION highwater_shop ADD TABLE a; UPDATE a SET v = 'y' WHERE id = 60").await;
    case.is_exact(&["a"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_ddl_gives_to_rows_that_are_there_are_read_anew() {
    let sql = "CREATE TABLE a (id bigint PRIMARY KEY, v text, n text); INSERT INTO a SELECT i, 'x', i FROM generate_series(1, 100) i;
               CREATE TABLE b (id bigint PRIMARY KEY, v varchar(10)); INSERT INTO b SELECT i, 'x' FROM generate_series(1, 100) i";
    let mut case = Case::new("rewritten", sql).await;
    case.daemon.start(&["run"], None);
    capturing(&case.daemon).await;
    case.has("a", 100).await;
    case.run("ALTER TABLE a ADD COLUMN d int DEFAULT 7").await;
    case.has("a", 200).await;
    case.run("INSERT INTO a VALUES (1000, 'x', '5', 8); ALTER TABLE a ALTER n TYPE bigint USING n::bigint * 2; UPDATE a SET v = 'y' WHERE id = 5").await;
    case.has("a", 300).await;
    // No value changes by these: nothing is read again.
    case.run("ALTER TABLE b ALTER v TYPE text; ALTER TABLE b ADD COLUMN e int; INSERT INTO b VALUES (1000, 'z', 1)")
        .await;
    case.has("b", 101).await;
    case.stop().await;
    case.is_exact(&["a", "b"]).await;
    let b = landed(&local(&case.lake), "shop.public.b").await;
    assert!(b.iter().all(|event| event.op != "snapshot_begin"), "b was read once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_made_anew_under_its_name_is_another() {
    let mut case = Case::new(
        "anew",
        "CREATE TABLE a (id bigint PRIMARY KEY, v text); INSERT INTO a SELECT i, 'x' FROM generate_series(1, 100) i",
    )
    .await;
    case.daemon.catch_up();
    case.run("DROP TABLE a; CREATE TABLE a (id bigint PRIMARY KEY, w int, v text); INSERT INTO a VALUES (3, 3, 'three'), (4, 4, 'four')").await;
    case.is_exact(&["a"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_slot_is_repaired_by_the_command_that_is_named() {
    let mut case = Case::new(
        "repair",
        "CREATE TABLE a (id bigint PRIMARY KEY, v text); INSERT INTO a SELECT i, 'x' FROM generate_series(1, 100) i",
    )
    .await;
    case.daemon.catch_up();
    let (_, out, _) = case.daemon.run(&["repair", "shop"]);
    assert!(out.contains("nothing to repair"), "{out}");
    let slot = format!("hw_{}", case.postgres.database);
    case.run("DELETE FROM a WHERE id <= 10; UPDATE a SET v = 'y' WHERE id = 20").await;
    case.client.batch_execute(&format!("SELECT pg_drop_replication_slot('{slot}')")).await.unwrap();
    case.run("INSERT INTO a VALUES (1000, 'unseen')").await;
    case.halts(&["is gone", "highwater repair shop"]).await;
    let (code, out, _) = case.daemon.run(&["repair", "shop"]);
    assert!(code == 0 && out.contains("read 1 tables again") && out.contains("--yes"), "{out}");
    case.halts(&["is gone"]).await;
    let (code, out, err) = case.daemon.run(&["repair", "shop", "--yes"]);
    assert_eq!(code, 0, "{out}{err}");
    case.run("INSERT INTO a VALUES (1001, 'seen')").await;
    case.is_exact(&["a"]).await;
    // Moved on by somebody else.
    case.run("DELETE FROM a WHERE id = 30").await;
    case.client
        .batch_execute(&format!("SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())"))
        .await
        .unwrap();
    case.halts(&["moved on", "highwater repair shop"]).await;
    let (code, out, err) = case.daemon.run(&["repair", "shop", "--yes", "--json"]);
    assert!(code == 0 && out.contains("\"done\":true"), "{out}{err}");
    case.is_exact(&["a"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_read_again_when_it_is_asked_for() {
    let mut case = Case::new(
        "asked",
        "CREATE TABLE a (id bigint PRIMARY KEY, v text); INSERT INTO a SELECT i, 'x' FROM generate_series(1, 100) i",
    )
    .await;
    case.daemon.start(&["run"], None);
    capturing(&case.daemon).await;
    case.has("a", 100).await;
    let (code, out, err) = case.daemon.run(&["snapshot", "shop", "public.a"]);
    assert!(code == 0 && out.contains("shop.public.a is read again"), "{out}{err}");
    case.has("a", 202).await;
    let (code, _, _) = case.daemon.run(&["snapshot", "shop", "public.none"]);
    assert_eq!(code, 2);
    case.stop().await;
    let (code, out, err) = case.daemon.run(&["snapshot", "shop", "public.*"]);
    assert!(code == 0 && out.contains("shop.public.a"), "{out}{err}");
    case.is_exact(&["a"]).await;
    assert_eq!(
        landed(&local(&case.lake), "shop.public.a").await.len(),
        304,
        "three readings, two of them between marks"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_come_and_go_leave_their_root_exact() {
    let sql = "CREATE TABLE p (id bigint PRIMARY KEY, v text) PARTITION BY RANGE (id);
               CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (1000); CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (1000) TO (2000);
               INSERT INTO p SELECT i, 'x' FROM generate_series(1, 1500) i";
    let mut case = Case::new("partitions", sql).await;
    case.daemon.start(&["run"], None);
    capturing(&case.daemon).await;
    case.has("p", 1500).await;
    // Made as a partition: its rows are streamed, nothing is read again.
    case.run("CREATE TABLE p3 PARTITION OF p FOR VALUES FROM (2000) TO (3000); INSERT INTO p SELECT i, 'y' FROM generate_series(2000, 2099) i").await;
    case.has("p", 1600).await;
    case.run("UPDATE p SET v = 'z' WHERE id BETWEEN 500 AND 599; DELETE FROM p WHERE id < 100").await;
    case.has("p", 1799).await;
    case.stop().await;
    case.is_exact(&["p"]).await;
    let read_again =
        |events: &[highwater_tests::Event]| events.iter().filter(|event| event.op == "snapshot_begin").count();
    assert_eq!(read_again(&landed(&local(&case.lake), "shop.public.p").await), 0);
    // A table with rows of its own, attached; and one detached.
    case.run("CREATE TABLE q (id bigint PRIMARY KEY, v text); INSERT INTO q SELECT i, 'q' FROM generate_series(3000, 3099) i").await;
    case.run("ALTER TABLE p ATTACH PARTITION q FOR VALUES FROM (3000) TO (4000); ALTER TABLE p DETACH PARTITION p2")
        .await;
    case.is_exact(&["p"]).await;
    assert_eq!(read_again(&landed(&local(&case.lake), "shop.public.p").await), 1);
    // Emptied by itself, while running.
    case.daemon.start(&["run"], None);
    capturing(&case.daemon).await;
    let before = landed(&local(&case.lake), "shop.public.p").await.len();
    case.run("TRUNCATE p1").await;
    case.has("p", before + 102).await;
    case.stop().await;
    case.is_exact(&["p"]).await;
}
