//! A table whose new shape its subject's level forbids waits, and nothing else does.

mod elsewhere;
mod kills;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use highwater_tests::{Daemon, Postgres, Truth, compare, folder, free_port, landed, until};
use serde_json::Value;
use tokio_postgres::Client;

use crate::pgsink::{same, warehouse};
use crate::registry::http::ask;
use crate::spine::{capturing, local};

/// A source with tables of one shape, delivered to files and to a mirror.
pub(crate) struct Case {
    pub(crate) source: Postgres,
    pub(crate) client: Client,
    pub(crate) here: Client,
    pub(crate) daemon: Daemon,
    lake: std::path::PathBuf,
    registry: u16,
}

impl Case {
    pub(crate) async fn new(name: &str, tables: usize, policy: &str) -> Self {
        let registry = free_port();
        Self::at(name, tables, policy, registry, &format!("bind = \"127.0.0.1:{registry}\"")).await
    }

    /// With a registry as `settings` have it, which listens on a port.
    async fn at(name: &str, tables: usize, policy: &str, registry: u16, settings: &str) -> Self {
        let source = Postgres::new(17).await;
        let warehouse = warehouse(Some(source.server.clone()), 17).await;
        let client = source.client().await;
        let names: Vec<String> = (0..tables).map(|i| format!("t{i}")).collect();
        for name in &names {
            let sql = format!(
                "CREATE TABLE {name} (id bigint PRIMARY KEY, v int);
                 INSERT INTO {name} SELECT i, i FROM generate_series(1, 20) i"
            );
            client.batch_execute(&sql).await.unwrap();
        }
        source.publish("highwater_shop", &names.join(", ")).await;
        Truth::watch(&source).await;
        let folder = folder(name);
        let lake = folder.join("lake");
        std::fs::create_dir_all(&lake).unwrap();
        let config = format!(
            "[sources.shop]\ntype = \"postgres\"\nurl = \"{}\"\nslot = \"hw_{}\"\n{policy}\n\
             [log]\nsegment_bytes = \"1MiB\"\n[registry]\n{settings}\n\
             [sinks.lake]\ntype = \"object-store\"\nfrom = [\"shop\"]\nurl = \"file://{}\"\ncut = {{ bytes = \"2MiB\", age = \"200ms\" }}\n\
             [sinks.warehouse]\ntype = \"postgres\"\nfrom = [\"shop\"]\nurl = \"postgres://loader@127.0.0.1:{}/{}\"\n",
            source.url(),
            source.database,
            lake.display(),
            warehouse.server.port,
            warehouse.database
        );
        let here = warehouse.client().await;
        Self { daemon: Daemon::new(&folder, &config), source, client, here, lake, registry }
    }

    pub(crate) async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    /// What `status` says is held of the source.
    pub(crate) fn held(&self) -> Vec<Value> {
        self.daemon.status()["sources"][0]["held"].as_array().cloned().unwrap_or_default()
    }

    /// Catches up, with a table that stays held.
    fn catch_up_but_held(&mut self) -> String {
        self.daemon.start(&["run", "--until-caught-up"], None);
        let ended = self.daemon.wait(Duration::from_secs(60));
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        assert!(ended.stderr.contains("held back for their new shapes"), "{}", ended.stderr);
        ended.stderr
    }

    fn approve(&self, table: &str, how: &[&str]) -> String {
        let (code, out, err) = self.daemon.run(&[&["schemas", "approve", "shop", table], how].concat());
        assert_eq!(code, 0, "{out}{err}");
        out
    }

    /// Mirror and files hold what the source has, each change once and in order.
    pub(crate) async fn all_equal(&self, tables: usize) {
        let store = local(&self.lake);
        for i in 0..tables {
            same(&self.client, &self.here, &format!("t{i}")).await;
            let stream = format!("shop.public.t{i}");
            let events = landed(&store, &stream).await;
            compare(&stream, &Truth::of(&self.source, &format!("public.t{i}")).await, &events);
        }
    }
}

/// Writes to all tables until stopped: values that are numbers and texts alike.
struct Writers {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Writers {
    async fn start(source: &Postgres, tables: usize, writers: u64) -> Self {
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = Vec::new();
        for writer in 0..writers {
            let (client, stop, committed) = (source.client().await, stop.clone(), committed.clone());
            tasks.push(tokio::spawn(async move {
                let mut n = 1000 + writer * 1_000_000;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let (one, two) = (n as usize % tables, (n as usize * 7 + 3) % tables);
                    // Two tables in a transaction; a row that comes, changes, and sometimes goes.
                    let sql = format!(
                        "BEGIN; INSERT INTO t{one} VALUES ({n}, '{n}'); UPDATE t{two} SET v = '{n}' WHERE id = {};
                         DELETE FROM t{one} WHERE id = {}; COMMIT",
                        1 + n % 20,
                        n - 5 * tables as u64
                    );
                    // An ALTER may have come between: the statement is tried anew.
                    if client.batch_execute(&sql).await.is_ok() {
                        committed.fetch_add(1, Ordering::Relaxed);
                    } else {
                        let _ = client.batch_execute("ROLLBACK").await;
                    }
                }
            }));
        }
        Self { stop, committed, tasks }
    }

    async fn more(&self, many: u64) {
        let from = self.committed.load(Ordering::Relaxed);
        until(60, "more is written", || {
            let there = self.committed.load(Ordering::Relaxed) >= from + many;
            async move { there }
        })
        .await;
    }

    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.committed.load(Ordering::Relaxed)
    }
}

/// How long a row of a table takes to the mirror.
async fn takes(case: &Case, table: &str, id: u64) -> Duration {
    let began = Instant::now();
    case.sql(&format!("INSERT INTO {table} VALUES ({id}, '{id}')")).await;
    let sql = format!("SELECT count(*) FROM {table} WHERE id = {id}");
    until(20, "a row of another table arrives", || async {
        // The mirror may not have made the table yet.
        case.here.query_one(&sql, &[]).await.is_ok_and(|row| row.get::<_, i64>(0) == 1)
    })
    .await;
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_fifty_tables_the_one_that_was_altered_waits_and_forty_nine_go_on() {
    const TABLES: usize = 50;
    let mut case = Case::new("gate-fifty", TABLES, "").await;
    case.daemon.start(&["run"], None);
    capturing(&case.daemon).await;
    let writers = Writers::start(&case.source, TABLES, 2).await;
    writers.more(300).await;
    let mut before = Vec::new();
    for i in 0..10 {
        before.push(takes(&case, "t8", 500 + i).await);
    }
    case.sql("ALTER TABLE t7 ALTER v TYPE text").await;
    until(30, "the table is held", || {
        let held = case.held();
        async move { held.len() == 1 && held[0]["events"].as_u64().unwrap() > 0 }
    })
    .await;
    let mut during = Vec::new();
    for i in 0..20 {
        during.push(takes(&case, "t8", 600 + i).await);
    }
    writers.more(500).await;
    let held = case.held();
    assert_eq!(held[0]["table"], "public.t7", "{held:?}");
    assert!(held[0]["events"].as_u64().unwrap() > 20, "{held:?}");
    let violation = held[0]["shapes"][0]["violations"][0].as_str().unwrap().to_owned();
    assert!(violation.contains("column \"v\" (was integer, is text)"), "{violation}");
    // No row under the new shape has come through.
    let before_approval = landed(&local(&case.lake), "shop.public.t7").await;
    assert!(case.daemon.tail("shop", &["--table", "public.t7"]).len() >= before_approval.len());
    let (code, out, _) = case.daemon.run(&["status"]);
    assert!(
        code == 0 && out.contains("HELD BACK: public.t7") && out.contains("schemas approve shop public.t7"),
        "{out}"
    );
    let (code, out, _) = case.daemon.run(&["schemas", "list", "--json"]);
    assert!(code == 0 && out.contains("\"held\":{"), "{out}");
    let (code, out, err) = case.daemon.run(&["schemas", "diff", "shop", "public.t7"]);
    assert!(code == 0 && out.contains("v integer") && out.contains("v text") && out.contains(&violation), "{out}{err}");
    let (code, out, err) = case.daemon.run(&["check"]);
    assert!(code == 3 && out.contains("public.t7 is held back"), "{out}{err}");
    // The level has not changed: it does not go.
    let (code, out, err) = case.daemon.run(&["schemas", "approve", "shop", "public.t7"]);
    assert!(code == 1 && err.contains(&violation) && err.contains("--as-new-version"), "{out}{err}");
    let out = case.approve("public.t7", &["--as-new-version"]);
    assert!(out.contains("goes on"), "{out}");
    assert!(case.held().is_empty());
    let mut after = Vec::new();
    for i in 0..10 {
        after.push(takes(&case, "t8", 700 + i).await);
    }
    writers.more(200).await;
    let transactions = writers.stop().await;
    case.daemon.signal("TERM");
    assert_eq!(case.daemon.wait(Duration::from_secs(10)).code, Some(0));
    case.daemon.catch_up();
    case.all_equal(TABLES).await;
    [&mut before, &mut during, &mut after].into_iter().for_each(|all| all.sort());
    println!(
        "transactions: {transactions}; a row of another table took {:?} before, {:?} while one was held, {:?} after (median; most {:?}, {:?}, {:?}); {} events waited",
        before[5], during[10], after[5], before[9], during[19], after[9], held[0]["events"]
    );
    assert!(during[10] < before[5] * 3 + Duration::from_millis(500), "{before:?} {during:?}");
    let (code, out, err) = case.daemon.run(&["log", "check"]);
    assert_eq!(code, 0, "{out}{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_alterations_wait_in_one_table_and_all_ways_out_end_equal() {
    let mut case = Case::new("gate-ways", 2, "").await;
    case.daemon.catch_up();
    // One incompatible change after another, rows under each; a compatible one in the other table.
    case.sql("ALTER TABLE t0 ALTER v TYPE text; INSERT INTO t0 VALUES (100, 'a hundred'); UPDATE t0 SET v = 'x' WHERE id = 1").await;
    case.sql("ALTER TABLE t1 ADD COLUMN w int; INSERT INTO t1 VALUES (100, 100, 7)").await;
    let stderr = case.catch_up_but_held();
    assert!(stderr.contains("public.t0"), "{stderr}");
    let held = case.held();
    assert!(held.len() == 1 && held[0]["table"] == "public.t0", "of a stopped daemon too: {held:?}");
    case.sql("ALTER TABLE t0 ADD COLUMN w int; INSERT INTO t0 VALUES (101, 'b', 8); DELETE FROM t0 WHERE id = 2").await;
    case.catch_up_but_held();
    let held = case.held();
    assert_eq!(held[0]["shapes"].as_array().unwrap().len(), 2, "{held:?}");
    let (code, _, err) = case.daemon.run(&["schemas", "approve", "shop", "public.t0"]);
    assert!(code == 1 && err.contains("incompatible at BACKWARD"), "{err}");
    case.approve("public.t0", &["--as-new-version"]);
    case.daemon.catch_up();
    case.all_equal(2).await;

    // Back again, which is as incompatible; what waits is given up.
    case.sql("ALTER TABLE t0 ALTER v TYPE int USING 5; INSERT INTO t0 VALUES (102, 102, 9)").await;
    case.catch_up_but_held();
    case.approve("public.t0", &["--reset-table"]);
    case.daemon.catch_up();
    same(&case.client, &case.here, "t0").await;
    assert!(case.held().is_empty());

    // The same with the daemon running (and a shape that was not approved
    // before: those go on at once), and a table that is read again while it is held.
    case.daemon.start(&["run"], None);
    capturing(&case.daemon).await;
    case.sql("ALTER TABLE t0 ALTER v TYPE text, ADD COLUMN x int; INSERT INTO t0 VALUES (103, 'c', 1)").await;
    let waits = |events: u64| {
        let held = case.held();
        held.first().is_some_and(|held| held["events"].as_u64().unwrap() >= events)
    };
    until(30, "it is held, and read again as its rows were rewritten", || {
        let waits = waits(23);
        async move { waits }
    })
    .await;
    let (code, out, err) = case.daemon.run(&["snapshot", "shop", "public.t0"]);
    assert_eq!(code, 0, "{out}{err}");
    until(30, "another reading waits too", || {
        let waits = waits(46);
        async move { waits }
    })
    .await;
    // Somebody lowers the level: then it goes at the level.
    let answer = ask(case.registry, "PUT", "/config/shop.public.t0.Value", r#"{"compatibility": "NONE"}"#).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    case.approve("public.t0", &[]);
    let answer = ask(case.registry, "PUT", "/config/shop.public.t0.Value", r#"{"compatibility": "BACKWARD"}"#).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    case.sql("ALTER TABLE t0 ALTER v TYPE int USING 6, ADD COLUMN y int; INSERT INTO t0 VALUES (104, 104, 9)").await;
    until(30, "it is held once more", || {
        let held = case.held();
        async move { held.len() == 1 }
    })
    .await;
    case.approve("public.t0", &["--reset-table"]);
    until(30, "it is read anew and held no more", || {
        let held = case.held();
        async move { held.is_empty() }
    })
    .await;
    case.sql("UPDATE t0 SET v = 7 WHERE id = 104").await;
    case.daemon.signal("TERM");
    assert_eq!(case.daemon.wait(Duration::from_secs(10)).code, Some(0));
    case.daemon.catch_up();
    for table in ["t0", "t1"] {
        same(&case.client, &case.here, table).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shape_that_was_taken_back_is_told_and_goes_where_no_row_came_under_it() {
    let mut case = Case::new("gate-back", 1, "").await;
    case.daemon.catch_up();
    case.sql("BEGIN; ALTER TABLE t0 ALTER v TYPE text; ALTER TABLE t0 ALTER v TYPE int USING v::int; COMMIT; INSERT INTO t0 VALUES (100, 100)").await;
    case.daemon.catch_up();
    case.all_equal(1).await;
    // With a row under it, all waits; the level cannot take that row.
    case.sql("ALTER TABLE t0 ALTER v TYPE text; INSERT INTO t0 VALUES (101, 'x'); ALTER TABLE t0 ALTER v TYPE int USING 1; INSERT INTO t0 VALUES (102, 102)").await;
    case.catch_up_but_held();
    let held = case.held();
    assert_eq!(held[0]["compatible_again"], true, "{held:?}");
    let (_, out, _) = case.daemon.run(&["schemas", "diff", "shop", "public.t0"]);
    assert!(out.contains("by now its shape is a compatible one"), "{out}");
    case.approve("public.t0", &["--reset-table"]);
    case.daemon.catch_up();
    same(&case.client, &case.here, "t0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn evolve_goes_on_and_halt_says_all_and_ends_with_1() {
    let policy = "on_incompatible = \"halt\"\n[sources.shop.table.\"public.t1\"]\non_incompatible = \"evolve\"";
    let mut case = Case::new("gate-policies", 2, policy).await;
    case.daemon.catch_up();
    case.sql("ALTER TABLE t1 ALTER v TYPE text; INSERT INTO t1 VALUES (100, 'x')").await;
    case.daemon.start(&["run", "--until-caught-up"], None);
    let ended = case.daemon.wait(Duration::from_secs(60));
    assert!(ended.code == Some(0) && ended.stderr.contains("on_incompatible = \"evolve\""), "{}", ended.stderr);
    case.all_equal(2).await;
    case.sql("ALTER TABLE t0 ALTER v TYPE text; INSERT INTO t0 VALUES (100, 'x'); INSERT INTO t1 VALUES (101, 'y')")
        .await;
    case.daemon.start(&["run"], None);
    let ended = case.daemon.wait(Duration::from_secs(60));
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    for said in ["public.t0", "BACKWARD", "was integer, is text", "schemas approve shop public.t0"] {
        assert!(ended.stderr.contains(said), "{said}: {}", ended.stderr);
    }
    assert!(case.held().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_tells_what_an_alter_would_do_and_does_nothing() {
    let mut case = Case::new("gate-plan", 3, "").await;
    case.daemon.catch_up();
    let folder = case.daemon.folder.clone();
    let plan = |sql: &str, more: &[&str]| {
        std::fs::write(folder.join("alter.sql"), sql).unwrap();
        case.daemon.run(&[&["schemas", "plan", "shop", "--sql", "alter.sql"], more].concat())
    };
    let (code, _, err) = plan("ALTER TABLE t0 ADD COLUMN w int", &[]);
    assert!(code == 1 && err.contains("--url"), "the source's role may not alter: {err}");
    let owner = format!("postgres://postgres@127.0.0.1:{}/{}", case.source.server.port, case.source.database);
    let as_owner = ["--url", owner.as_str()];
    let (code, out, err) =
        plan("ALTER TABLE t0 ADD COLUMN w int; ALTER TABLE t2 ADD COLUMN d int DEFAULT 7;", &as_owner);
    assert_eq!(code, 0, "{out}{err}");
    assert!(
        out.contains("column \"w\" of type integer was added") && out.contains("it would not be read again"),
        "{out}"
    );
    assert!(out.contains("all of it would be read again: rows that are there get the default"), "{out}");
    assert!(out.contains("sink warehouse") && out.contains("sink lake"), "{out}");
    let (code, out, err) = plan("ALTER TABLE t0 ALTER v TYPE text", &as_owner);
    assert_eq!(code, 3, "{out}{err}");
    assert!(out.contains("would be held back") && out.contains("was integer, is text"), "{out}");
    let (code, out, err) = plan("ALTER TABLE t0 ALTER v TYPE text; COMMIT", &as_owner);
    assert!(code == 1 && err.contains("rolled back"), "{out}{err}");
    let (code, out, err) = plan("SELECT 1", &as_owner);
    assert!(code == 0 && out.contains("no captured table would change"), "{out}{err}");
    let now: i64 = case
        .client
        .query_one("SELECT count(*) FROM information_schema.columns WHERE table_name IN ('t0', 't2')", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(now, 4, "nothing was done");
    // Beside a running daemon the same.
    case.daemon.start(&["run"], None);
    capturing(&case.daemon).await;
    std::fs::write(folder.join("alter.sql"), "ALTER TABLE t0 ALTER v TYPE text").unwrap();
    let words = [&["schemas", "plan", "shop", "--sql", "alter.sql", "--json"][..], &as_owner].concat();
    let (code, out, err) = case.daemon.run(&words);
    assert!(code == 3 && out.contains("\"compatible\":false"), "{out}{err}");
    case.daemon.signal("TERM");
    assert_eq!(case.daemon.wait(Duration::from_secs(10)).code, Some(0));
}
