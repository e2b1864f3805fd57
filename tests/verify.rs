//! `verify`: what was planted is found, nothing is invented, and a repair mends.

use std::time::Duration;

use highwater_tests::{Daemon, Postgres, Server, Workload, folder, until};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio_postgres::error::SqlState;

use crate::pgsink::{config, warehouse};
use crate::spine::capturing;

mod files;

/// A verification with its lines, its last one, and its exit code.
pub(crate) struct Verified {
    pub(crate) code: i32,
    pub(crate) lines: Vec<Value>,
    pub(crate) stderr: String,
}

impl Verified {
    pub(crate) fn summary(&self) -> &Value {
        let last = self.lines.iter().rev().find(|line| line["type"] == "summary");
        last.unwrap_or_else(|| panic!("no summary: {:?} {}", self.lines, self.stderr))
    }

    pub(crate) fn findings(&self) -> Vec<&Value> {
        self.lines.iter().filter(|line| line["type"] == "finding").collect()
    }

    /// What was found of a table: what, key, columns.
    pub(crate) fn of(&self, table: &str) -> Vec<(String, Value, Vec<String>)> {
        let of = |line: &&Value| {
            let columns = line["columns"].as_array().unwrap().iter();
            let columns = columns.map(|c| c["column"].as_str().unwrap().to_owned()).collect();
            (line["found"].as_str().unwrap().to_owned(), line["key"].clone(), columns)
        };
        let mut found: Vec<_> = self.findings().iter().filter(|line| line["table"] == table).map(of).collect();
        found.sort_by_key(|(_, key, _)| key.to_string());
        found
    }

    pub(crate) fn verdict(&self, table: &str) -> &Value {
        let line = self.lines.iter().find(|line| line["type"] == "table" && line["table"] == table);
        line.unwrap_or_else(|| panic!("nothing of {table}: {:?} {}", self.lines, self.stderr))
    }

    #[track_caller]
    pub(crate) fn is_equal(&self) {
        assert_eq!(self.code, 0, "{:#?} {}", self.lines, self.stderr);
        assert_eq!(self.summary()["equal"], true);
        assert!(self.findings().is_empty());
    }
}

pub(crate) fn verify_of(daemon: &Daemon, sink: &str, more: &[&str]) -> Verified {
    let (code, out, stderr) = daemon.run(&[&["verify", "shop", sink, "--json"], more].concat());
    let lines = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    Verified { code, lines, stderr }
}

fn verify(daemon: &Daemon, more: &[&str]) -> Verified {
    verify_of(daemon, "warehouse", more)
}

async fn started(daemon: &mut Daemon) {
    daemon.start(&["run"], None);
    capturing(daemon).await;
    until(60, "every table is read", || {
        let status = daemon.status();
        let tables = status["sources"][0]["tables"].as_array().unwrap();
        let done = !tables.is_empty() && tables.iter().all(|table| table["finished"] == true);
        async move { done }
    })
    .await;
}

/// No slot of a point and no snapshot is left at the source.
async fn nothing_left(source: &Postgres, warehouse: &Postgres) {
    let slots = source.client().await;
    until(30, "the temporary slots are gone", || {
        let slots = &slots;
        async move {
            let sql = "SELECT count(*) FROM pg_replication_slots WHERE temporary AND database = current_database()";
            slots.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0
        }
    })
    .await;
    for place in [source, warehouse] {
        let client = place.client().await;
        until(30, "no session holds a snapshot", || {
            let client = &client;
            async move {
                let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                             AND application_name = 'highwater' AND state LIKE 'idle in transaction%'";
                client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0
            }
        })
        .await;
    }
}

const KINDS: &str = "
CREATE TABLE kinds (id int PRIMARY KEY, t text, b bytea, f float8, r real, at timestamptz, n numeric, j jsonb, s smallint,
                    made int GENERATED ALWAYS AS (s * 2) STORED);
INSERT INTO kinds SELECT i, 'text ' || i, decode(md5(i::text), 'hex'), i / 3.0, i / 7.0, '2024-02-29 12:00:00+00',
                         i + 0.5, jsonb_build_object('a', i, 'b', null), i % 100 FROM generate_series(1, 500) i;
UPDATE kinds SET t = '' WHERE id = 7;";

#[tokio::test(flavor = "multi_thread")]
async fn every_difference_that_was_planted_is_found_and_mended() {
    let (source, warehouse) = (Postgres::new(17).await, warehouse(None, 18).await);
    let client = source.client().await;
    client.batch_execute(KINDS).await.unwrap();
    source.publish("highwater_shop", "kinds").await;
    let folder = folder("verify-planted");
    let mut daemon = Daemon::new(&folder, &config(&source, &warehouse, ""));
    started(&mut daemon).await;
    verify(&daemon, &[]).is_equal();
    let there = warehouse.client().await;
    there
        .batch_execute(
            "DELETE FROM kinds WHERE id = 1;
             INSERT INTO kinds (id, t) VALUES (-1, 'nobody''s');
             UPDATE kinds SET b = set_bit(b, 0, 1 - get_bit(b, 0)) WHERE id = 3;
             UPDATE kinds SET t = NULL WHERE id = 7;
             UPDATE kinds SET f = f + 2 * 2.220446049250313e-16 * f WHERE id = 9;
             UPDATE kinds SET at = at + interval '1 microsecond' WHERE id = 11;
             UPDATE kinds SET at = at + interval '1 hour' WHERE id = 12;
             UPDATE kinds SET t = t || ' ' WHERE id = 13;
             UPDATE kinds SET n = (n::text || '0')::numeric WHERE id = 15;
             UPDATE kinds SET j = '{\"a\": 17}' WHERE id = 17;
             UPDATE kinds SET j = '{\"b\": null, \"a\": 18}' WHERE id = 18;
             UPDATE kinds SET s = NULL, r = 'NaN' WHERE id = 19;",
        )
        .await
        .unwrap();
    let found = verify(&daemon, &[]);
    assert_eq!(found.code, 3, "{}", found.stderr);
    let found_of = |found: &Verified| found.of("public.kinds");
    let expected = |what: &str, id: i32, columns: &[&str]| {
        let columns = columns.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>();
        (what.to_owned(), json!({"id": id.to_string()}), columns)
    };
    let mut all = vec![
        expected("missing", 1, &[]),
        expected("extra", -1, &[]),
        expected("different", 3, &["b"]),
        expected("different", 7, &["t"]),
        expected("different", 9, &["f"]),
        expected("different", 11, &["at"]),
        expected("different", 12, &["at"]),
        expected("different", 13, &["t"]),
        expected("different", 15, &["n"]),
        expected("different", 17, &["j"]),
        expected("different", 19, &["r", "s"]),
    ];
    all.sort_by_key(|(_, key, _)| key.to_string());
    assert_eq!(found_of(&found), all);
    assert_eq!(found.summary()["missing"], 1);
    assert_eq!(found.summary()["extra"], 1);
    assert_eq!(found.summary()["different"], 9);
    // A row may be secret: values only where they are asked for.
    assert!(found.lines.iter().all(|line| !line.to_string().contains("text 13")));
    let shown = verify(&daemon, &["--show-values", "--table", "public.kinds"]);
    let line = shown.findings().into_iter().find(|line| line["key"]["id"] == "13").unwrap().clone();
    assert_eq!(line["columns"], json!([{"column": "t", "source": "text 13", "sink": "text 13 "}]));
    let repaired = verify(&daemon, &["--repair"]);
    assert_eq!(repaired.code, 0, "{:#?} {}", repaired.lines, repaired.stderr);
    assert_eq!(repaired.summary()["after_repair"], true);
    verify(&daemon, &[]).is_equal();
    nothing_left(&source, &warehouse).await;
    let (code, ..) = daemon.run(&["log", "check"]);
    assert_eq!(code, 0);
    assert_eq!(daemon_stops(&mut daemon), Some(0));
}

fn daemon_stops(daemon: &mut Daemon) -> Option<i32> {
    daemon.signal("TERM");
    daemon.wait(Duration::from_secs(20)).code
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_invented_while_both_go_on() {
    let (source, warehouse) = (Postgres::new(17).await, warehouse(None, 17).await);
    Workload::prepare(&source, 2_000).await;
    let mine = warehouse.client().await;
    mine.batch_execute(&format!("GRANT CREATE ON DATABASE {} TO loader", warehouse.database)).await.unwrap();
    let folder = folder("verify-load");
    let mut daemon = Daemon::new(&folder, &config(&source, &warehouse, ""));
    started(&mut daemon).await;
    let workload = Workload::start(&source, 3, 5).await;
    let mut compared = 0;
    for round in 0..8 {
        let before = workload.committed.load(std::sync::atomic::Ordering::Relaxed);
        let verified = verify(&daemon, &[]);
        assert!(verified.findings().is_empty(), "round {round}: {:#?} {}", verified.lines, verified.stderr);
        // What was truncated meanwhile shows a snapshot nothing any more, and it is said.
        let skipped = verified.summary()["not_compared"].as_u64().unwrap();
        assert_eq!(verified.code, if skipped == 0 { 0 } else { 3 }, "{:#?} {}", verified.lines, verified.stderr);
        compared += verified.summary()["tables"].as_u64().unwrap() - skipped;
        assert!(workload.committed.load(std::sync::atomic::Ordering::Relaxed) > before, "the writers go on");
    }
    assert!(compared >= 24, "{compared} tables were compared");
    // Rows that change all the time are mended too, and none is put back.
    let planted = "DELETE FROM orders WHERE id % 3 = 0; UPDATE orders SET status = 'planted' WHERE id % 7 = 0; UPDATE nokey SET what = 'planted' WHERE id < 5; INSERT INTO notes (id) VALUES (-5)";
    // The sink writes the same rows in another order: of two that wait for each
    // other the server ends one, and here it is either.
    while let Err(error) = mine.batch_execute(planted).await {
        assert_eq!(error.code(), Some(&SqlState::T_R_DEADLOCK_DETECTED), "{error}");
    }
    let repaired = verify(&daemon, &["--repair"]);
    let last: Vec<_> =
        repaired.lines.iter().rev().take_while(|l| l["type"] != "summary" || l["after_repair"] == true).collect();
    assert!(last.iter().all(|line| line["type"] != "finding"), "{last:#?} {}", repaired.stderr);
    workload.stop().await;
    verify(&daemon, &[]).is_equal();
    nothing_left(&source, &warehouse).await;
}

const SHAPES: &str = r#"
CREATE SCHEMA "Odd ""Näme";
CREATE TABLE "Odd ""Näme"."tab.le" ("i""d" text, "emoji 🐘" int, PRIMARY KEY ("i""d", "emoji 🐘"));
INSERT INTO "Odd ""Näme"."tab.le" VALUES ('it''s \ "quoted"', 1), ('a,b', 2), ('(a', 3), ('', 4), (E'\n', 5);
CREATE TABLE collated (k text COLLATE "und-x-icu" PRIMARY KEY, v int);
INSERT INTO collated SELECT v, n FROM unnest(ARRAY['a', 'A', 'á', 'Z', 'z', '_', 'ß', 'ss', 'a b', 'ab', 'a-b', '😀', 'é', E'e\u0301']) WITH ORDINALITY AS u (v, n);
CREATE TABLE ids (id uuid PRIMARY KEY, v text);
INSERT INTO ids SELECT md5(i::text)::uuid, 'v' || i FROM generate_series(1, 1000) i;
CREATE TABLE pairs (a int, b bigint, c timestamptz, v text, PRIMARY KEY (c, a, b));
INSERT INTO pairs SELECT i % 10, i, timestamptz '2024-01-01 00:00:00+00' + i * interval '1 minute', 'x' FROM generate_series(1, 1000) i;
CREATE TABLE bag (v text, n int);
ALTER TABLE bag REPLICA IDENTITY FULL;
INSERT INTO bag SELECT 'same', 1 FROM generate_series(1, 10); INSERT INTO bag VALUES (NULL, NULL), ('', 0);
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE TABLE own (id bigint PRIMARY KEY, m mood, ms mood[], c char(5), flag boolean, secret text, x xml, d numeric(12,2));
INSERT INTO own VALUES (1, 'sad', '{sad,glad}', 'ab', true, 'hidden', '<a/>', 1.5), (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
CREATE TABLE parts (id int, at date, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
INSERT INTO parts SELECT i, date '2024-01-01' + i, 'p' FROM generate_series(1, 700) i;
CREATE TABLE numbers (n numeric PRIMARY KEY, v text); INSERT INTO numbers VALUES (1.0, 'one'), (2, 'two');
CREATE TABLE flags (f boolean, id int, v text, PRIMARY KEY (f, id)); INSERT INTO flags VALUES (true, 1, 'x'), (false, 1, 'y');
CREATE TABLE large AS SELECT i AS id, 'row ' || i AS v, i % 97 AS n FROM generate_series(1, 200000) i;
ALTER TABLE large ADD PRIMARY KEY (id);
GRANT USAGE ON SCHEMA "Odd ""Näme" TO highwater; GRANT SELECT ON ALL TABLES IN SCHEMA "Odd ""Näme", public TO highwater;"#;

const ALL: &str = r#""Odd ""Näme"."tab.le", collated, ids, pairs, bag, own, parts, numbers, flags, large"#;

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_every_kind_and_none_at_all() {
    let source = Postgres::new(17).await;
    // Of another encoding and order: nothing may depend on either.
    let warehouse = warehouse(None, 18).await;
    let (client, there) = (source.client().await, warehouse.client().await);
    client.batch_execute(SHAPES).await.unwrap();
    source.publish("highwater_shop", ALL).await;
    there.batch_execute(&format!("GRANT CREATE ON DATABASE {} TO loader", warehouse.database)).await.unwrap();
    let folder = folder("verify-kinds");
    let more = "[sources.shop.table.\"public.own\"]\ncolumns = [\"*\", \"!secret\"]";
    let mut daemon = Daemon::new(&folder, &config(&source, &warehouse, more));
    started(&mut daemon).await;
    let equal = verify(&daemon, &[]);
    equal.is_equal();
    assert_eq!(equal.summary()["tables"], 10);
    assert_eq!(equal.verdict("public.large")["source_rows"], 200_000);
    there
        .batch_execute(
            r#"DELETE FROM "Odd ""Näme"."tab.le" WHERE "emoji 🐘" = 1;
               INSERT INTO "Odd ""Näme"."tab.le" VALUES ('\', 9);
               UPDATE collated SET v = 100 WHERE k = 'á'; DELETE FROM collated WHERE k = E'e\u0301';
               UPDATE ids SET v = 'w' WHERE id = md5('500')::uuid;
               DELETE FROM pairs WHERE b = 77; UPDATE pairs SET v = 'y' WHERE b = 78;
               INSERT INTO pairs VALUES (1, 1, 'infinity', 'z');
               DELETE FROM bag WHERE ctid = (SELECT min(ctid) FROM bag WHERE v = 'same'); UPDATE bag SET v = NULL WHERE v = '';
               UPDATE own SET m = 'glad', ms = '{sad}', d = 1.51 WHERE id = 1;
               DELETE FROM parts WHERE id = 699;
               UPDATE numbers SET n = 1.00 WHERE v = 'one';
               UPDATE flags SET v = 'z' WHERE f;
               DELETE FROM large WHERE id IN (1, 100000, 200000); UPDATE large SET n = n + 1 WHERE id = 150000;"#,
        )
        .await
        .unwrap();
    let found = verify(&daemon, &[]);
    assert_eq!(found.code, 3, "{}", found.stderr);
    let of = |table: &str| {
        let of = found.of(table).into_iter();
        of.map(|(what, key, columns)| format!("{what} {key} {}", columns.join(","))).collect::<Vec<_>>()
    };
    assert_eq!(
        of("Odd \"Näme.tab.le"),
        [r#"extra {"i\"d":"\\","emoji 🐘":"9"} "#, r#"missing {"i\"d":"it's \\ \"quoted\"","emoji 🐘":"1"} "#]
    );
    assert_eq!(of("public.collated"), ["missing {\"k\":\"e\u{301}\"} ", "different {\"k\":\"á\"} v"]);
    assert_eq!(of("public.ids"), [r#"different {"id":"cee63112-1c2e-c923-2f3a-2f028ad5c89b"} v"#]);
    assert_eq!(found.of("public.pairs").len(), 3);
    let bag = found.verdict("public.bag");
    assert_eq!((&bag["missing"], &bag["extra"]), (&json!(2), &json!(1)), "{bag}");
    assert_eq!(of("public.own"), [r#"different {"id":"1"} m,ms,d"#]);
    assert_eq!(of("public.parts"), [r#"missing {"id":"699","at":"2025-11-30"} "#]);
    assert_eq!(of("public.numbers"), [r#"missing {"n":"1.0"} "#, r#"extra {"n":"1.00"} "#]);
    assert_eq!(of("public.flags"), [r#"different {"f":"true","id":"1"} v"#]);
    assert_eq!(found.of("public.large").len(), 4);
    let repaired = verify(&daemon, &["--repair"]);
    assert_eq!(repaired.code, 0, "{:#?} {}", repaired.lines, repaired.stderr);
    verify(&daemon, &[]).is_equal();
    // So many that they are not read one by one but all again; told only in part.
    there.batch_execute("DELETE FROM large WHERE id > 20000").await.unwrap();
    let limited = verify(&daemon, &["--table", "public.large", "--limit", "5"]);
    assert_eq!(limited.findings().len(), 5);
    assert_eq!(limited.summary()["missing"], 180_000);
    assert_eq!(limited.summary()["tables"], 1);
    let repaired = verify(&daemon, &["--repair", "--limit", "5"]);
    assert_eq!(repaired.code, 0, "{:#?} {}", repaired.lines, repaired.stderr);
    assert!(repaired.stderr.contains("read again as a whole"), "{}", repaired.stderr);
    let begun = std::time::Instant::now();
    let slow = verify(&daemon, &["--table", "public.large", "--rows-per-second", "100000"]);
    slow.is_equal();
    assert!(begun.elapsed() > Duration::from_millis(1500), "200 000 rows at 100 000 a second");
    nothing_left(&source, &warehouse).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_is_compared_by_its_current_state() {
    let (source, warehouse) = (Postgres::new(17).await, warehouse(None, 17).await);
    let client = source.client().await;
    client
        .batch_execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i;
             CREATE TABLE bag (v text); ALTER TABLE bag REPLICA IDENTITY FULL; INSERT INTO bag VALUES ('x')",
        )
        .await
        .unwrap();
    source.publish("highwater_shop", "t, bag").await;
    let folder = folder("verify-history");
    let mut daemon = Daemon::new(&folder, &config(&source, &warehouse, "mode = \"history\""));
    started(&mut daemon).await;
    client
        .batch_execute(
            "UPDATE t SET v = 'w' WHERE id = 5; DELETE FROM t WHERE id = 6; UPDATE t SET id = 1000 WHERE id = 7",
        )
        .await
        .unwrap();
    verify(&daemon, &["--table", "public.t"]).is_equal();
    let all = verify(&daemon, &[]);
    assert_eq!(all.code, 3);
    assert!(all.verdict("public.bag")["why"].as_str().unwrap().contains("no current state"), "{:?}", all.lines);
    let there = warehouse.client().await;
    there.batch_execute("DELETE FROM t WHERE id = 9; UPDATE t SET v = 'planted' WHERE id = 10").await.unwrap();
    let found = verify(&daemon, &["--table", "public.t", "--repair"]);
    let first = found.of("public.t");
    assert_eq!(first.len(), 2, "{first:?}");
    assert_eq!(found.code, 0, "{:#?} {}", found.lines, found.stderr);
    verify(&daemon, &["--table", "public.t"]).is_equal();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_said_and_nothing_is_left_behind() {
    let (source, warehouse) = (Postgres::on(Arc::new(Server::start(17, ""))).await, warehouse(None, 17).await);
    let client = source.client().await;
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, repeat('v', 100) FROM generate_series(1, 50000) i")
        .await
        .unwrap();
    source.publish("highwater_shop", "t").await;
    let folder = folder("verify-wrong");
    let mut daemon = Daemon::new(&folder, &config(&source, &warehouse, ""));
    let (code, _, stderr) = daemon.run(&["verify", "shop", "warehouse"]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("no daemon answers") && stderr.contains("highwater run"), "{stderr}");
    for (words, wrong) in [
        (["verify", "nothing", "warehouse"], "there is no source"),
        (["verify", "shop", "nothing"], "there is no sink"),
    ] {
        let (code, _, stderr) = daemon.run(&words);
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains(wrong), "{stderr}");
    }
    started(&mut daemon).await;
    let (code, _, stderr) = daemon.run(&["verify", "shop", "warehouse", "--table", "public.nothing"]);
    assert_eq!(code, 1, "{stderr}");
    // The daemon is killed while somebody waits for a point: a transaction of
    // the source holds it up.
    client.batch_execute("BEGIN; INSERT INTO t VALUES (-1, 'waits')").await.unwrap();
    let waiting = std::thread::spawn({
        let folder = folder.clone();
        move || {
            let mut command = std::process::Command::new(Daemon::binary());
            command.current_dir(&folder).args(["verify", "shop", "warehouse"]).output().unwrap()
        }
    });
    let watching = source.client().await;
    until(30, "a slot waits", || {
        let watching = &watching;
        async move {
            let sql = "SELECT count(*) FROM pg_replication_slots WHERE temporary";
            watching.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1
        }
    })
    .await;
    daemon.kill();
    let output = waiting.join().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("no daemon answers"), "{stderr}");
    client.batch_execute("COMMIT").await.unwrap();
    nothing_left(&source, &warehouse).await;
    // Whoever asks is killed while both are held: the sink goes on by itself.
    started(&mut daemon).await;
    for _ in 0..3 {
        let mut command = std::process::Command::new(Daemon::binary());
        command.current_dir(&folder).args(["verify", "shop", "warehouse", "--rows-per-second", "1000"]);
        let mut asker = command.spawn().unwrap();
        until(30, "it holds a snapshot of the warehouse", || {
            let watching = warehouse.client();
            async move {
                let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_xmin IS NOT NULL
                             AND state = 'idle in transaction'";
                watching.await.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) > 0
            }
        })
        .await;
        asker.kill().unwrap();
        asker.wait().unwrap();
    }
    client.batch_execute("UPDATE t SET v = 'after' WHERE id = 1").await.unwrap();
    nothing_left(&source, &warehouse).await;
    verify(&daemon, &[]).is_equal();
    // A table that is altered while it is compared waits for nobody.
    let mut command = std::process::Command::new(Daemon::binary());
    command.current_dir(&folder).args(["verify", "shop", "warehouse", "--json", "--rows-per-second", "20000"]);
    let slow = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    until(30, "it holds a snapshot of the warehouse", || {
        let watching = warehouse.client();
        async move {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'";
            watching.await.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) > 0
        }
    })
    .await;
    client.batch_execute("SET lock_timeout = '1s'; TRUNCATE t").await.unwrap();
    let output = slow.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.contains("finding"), "{text}");
    assert!(text.contains("rewritten, truncated or altered") || output.status.code() == Some(0), "{text}");
    verify(&daemon, &[]).is_equal();
}
