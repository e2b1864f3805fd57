//! Accidents, a line each: what happened, and how it ended.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use highwater_tests::{Daemon, Postgres, Server, folder, free_port, must, until};

use super::{Case, STOPS_WITHIN, line};
use crate::spine::{capturing, to_folder};

const TABLES: &str =
    "CREATE TABLE a (id bigint PRIMARY KEY, v text); INSERT INTO a SELECT i, 'x' FROM generate_series(1, 100) i;
     CREATE TABLE b (id bigint PRIMARY KEY, v text); INSERT INTO b VALUES (1, 'x')";
/// What nobody will tell of, if the accident is one.
const UNSEEN: &str = "DELETE FROM a WHERE id % 10 = 0; UPDATE a SET v = v || '!' WHERE id % 10 = 1;
                      INSERT INTO b SELECT max(id) + 1, 'unseen' FROM b";
const REPAIR: &str = "highwater repair shop";

/// From where on the slot keeps WAL.
async fn kept_from(case: &Case, sql: &str) -> i64 {
    case.client.query_one(sql, &[]).await.unwrap().get(0)
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

async fn own(version: u32, settings: &'static str) -> Postgres {
    let server = tokio::task::spawn_blocking(move || Server::start(version, settings)).await.unwrap();
    Postgres::on(Arc::new(server)).await
}

impl Case {
    fn slot(&self) -> String {
        format!("hw_{}", self.postgres.database)
    }

    /// As superuser, who is nobody's friend.
    pub(super) async fn admin(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    async fn set(&mut self, setting: &str) {
        self.admin(&format!("ALTER SYSTEM {setting}")).await;
        self.postgres.server.down("fast");
        self.postgres.server.up();
        self.client = self.postgres.client().await;
    }

    async fn went_on(&mut self, accident: &str) {
        self.is_exact(&["a", "b"]).await;
        line(accident, "goes on exactly");
    }

    /// Stops with the words, and the repair that they name makes all equal.
    async fn stops_and_is_repaired(&mut self, accident: &str, words: &[&str]) {
        self.starts();
        self.has_stopped_and_is_repaired(accident, words).await;
    }

    async fn has_stopped_and_is_repaired(&mut self, accident: &str, words: &[&str]) {
        let said = self.has_halted(&[words, &["what to do", REPAIR]].concat());
        let (code, out, err) = self.daemon.run(&["repair", "shop", "--yes"]);
        assert!(code == 0 && out.contains("done"), "{accident}: {out}{err}");
        self.is_exact(&["a", "b"]).await;
        let (_, out, err) = self.daemon.run(&["repair", "shop"]);
        assert!(out.contains("nothing to repair"), "{accident}: {out}{err}");
        line(accident, &format!("stopped, repaired: {said}"));
    }

    /// Stops with the words; then what they say is done.
    async fn stops_until(&mut self, accident: &str, words: &[&str], mends: &str) {
        self.starts();
        let said = self.has_halted(words);
        self.admin(mends).await;
        self.is_exact(&["a", "b"]).await;
        line(accident, &format!("stopped until mended: {said}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_not_what_it_was() {
    let mut case = Case::new("slot-table", TABLES).await;
    case.daemon.catch_up();
    let slot = case.slot();
    let drop = format!("SELECT pg_drop_replication_slot('{slot}')");
    let make = |plugin: &str| format!("SELECT pg_create_logical_replication_slot('{slot}', '{plugin}')");

    case.admin(&drop).await;
    case.run(UNSEEN).await;
    case.stops_and_is_repaired("the slot is dropped", &["is gone", "the log ends at"]).await;

    case.admin(&drop).await;
    case.run(UNSEEN).await;
    case.admin(&make("pgoutput")).await;
    let words = ["changes from", "are missing", "made anew"];
    case.stops_and_is_repaired("the slot is dropped, and made anew later", &words).await;

    case.run(UNSEEN).await;
    case.admin(&format!("SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())")).await;
    let words = ["changes from", "are missing", "moved on"];
    case.stops_and_is_repaired("the slot is moved on by somebody else", &words).await;

    case.daemon.start(&["run"], None);
    capturing(&case.daemon).await;
    // Again and again: the daemon takes it back where it is faster.
    let seized = format!(
        "DO $$ BEGIN LOOP BEGIN
             PERFORM pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE slot_name = '{slot}' AND active;
             PERFORM pg_drop_replication_slot('{slot}'); EXIT;
         EXCEPTION WHEN object_in_use THEN END; END LOOP; END $$"
    );
    case.admin(&seized).await;
    case.since = Instant::now();
    case.run(UNSEEN).await;
    case.has_stopped_and_is_repaired("the slot is dropped while it is read", &["is gone"]).await;

    case.admin(&drop).await;
    case.admin(&make("test_decoding")).await;
    case.run(UNSEEN).await;
    case.halts(&["is of plugin \"test_decoding\"", "set `slot`"]).await;
    let (code, _, err) = case.daemon.run(&["repair", "shop", "--yes"]);
    assert!(code == 1 && err.contains("set `slot`"), "what is somebody else's is not dropped: {err}");
    case.admin(&drop).await;
    case.stops_and_is_repaired("a slot of another plugin had its name", &["is gone"]).await;
}

async fn publication(version: u32) {
    let mut case = Case::on(Postgres::new(version).await, &format!("publication-{version}"), TABLES).await;
    case.daemon.catch_up();
    case.run("DROP PUBLICATION highwater_shop").await;
    case.went_on(&format!("the publication is dropped, nothing is written ({version})")).await;

    case.run("DROP PUBLICATION highwater_shop").await;
    case.run(UNSEEN).await;
    let accident = format!("the publication is dropped, tables are written ({version})");
    if version < 18 {
        case.stops_and_is_repaired(&accident, &["publication \"highwater_shop\" does not exist"]).await;
    } else {
        // This server passes over what it does not find: the tables are read again.
        case.went_on(&accident).await;
    }

    case.run("ALTER PUBLICATION highwater_shop SET (publish = 'insert')").await;
    case.run(UNSEEN).await;
    case.run("ALTER PUBLICATION highwater_shop SET (publish = 'insert, update, delete, truncate')").await;
    case.run("INSERT INTO b SELECT max(id) + 1, 'seen' FROM b").await;
    case.went_on(&format!("the publication publishes less for a while ({version})")).await;

    case.run("ALTER PUBLICATION highwater_shop SET (publish = 'insert, update')").await;
    case.run(UNSEEN).await;
    case.went_on(&format!("the publication publishes less from now on ({version})")).await;

    case.daemon.start(&["run"], None);
    capturing(&case.daemon).await;
    case.run("ALTER PUBLICATION highwater_shop DROP TABLE a").await;
    case.run(UNSEEN).await;
    case.run("ALTER PUBLICATION highwater_shop ADD TABLE a").await;
    case.run(UNSEEN).await;
    case.stop().await;
    case.went_on(&format!("a table is taken out and put back while it runs ({version})")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_is_not_what_it_was_on_17() {
    publication(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_is_not_what_it_was_on_18() {
    publication(18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_the_role_may_not_mend() {
    let mut case = Case::new("foreign-publication", TABLES).await;
    case.admin("ALTER TABLE a OWNER TO postgres; ALTER TABLE b OWNER TO postgres; GRANT SELECT ON a, b TO highwater")
        .await;
    let create = "CREATE PUBLICATION highwater_shop FOR TABLE a, b WITH (publish_via_partition_root = true)";
    let words = ["highwater_shop", "run as the owner", "CREATE PUBLICATION"];
    case.stops_until("there is no publication, and the role may make none", &words, create).await;
    case.admin("ALTER PUBLICATION highwater_shop SET (publish = 'insert')").await;
    case.admin(UNSEEN).await;
    let mends = "ALTER PUBLICATION \"highwater_shop\" SET (publish = 'insert, update, delete, truncate')";
    let accident = "the publication publishes less, the role may not mend it";
    case.stops_until(accident, &["run as the owner", mends], mends).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_or_a_server_that_is_not_what_it_was() {
    let mut case = Case::on(own(17, "").await, "role-table", TABLES).await;
    case.daemon.catch_up();
    case.daemon.start(&["run"], None);
    capturing(&case.daemon).await;
    case.admin("ALTER ROLE highwater NOREPLICATION").await;
    case.admin("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'highwater'").await;
    case.since = Instant::now();
    let said = case.has_halted(&["what to do", "ALTER ROLE \"highwater\" REPLICATION"]);
    case.run(UNSEEN).await;
    case.admin("ALTER ROLE highwater REPLICATION").await;
    case.is_exact(&["a", "b"]).await;
    line("the role loses REPLICATION while it runs", &format!("stopped until mended: {said}"));

    case.daemon.start(&["run"], None);
    capturing(&case.daemon).await;
    case.admin("ALTER TABLE b OWNER TO postgres; REVOKE ALL ON b FROM highwater").await;
    until(30, "status tells of it", || {
        let told = case.daemon.status()["sources"][0]["not_captured"].to_string().contains("GRANT SELECT");
        async move { told }
    })
    .await;
    case.admin(UNSEEN).await;
    case.admin("GRANT SELECT ON b TO highwater; ALTER TABLE b OWNER TO highwater").await;
    case.stop().await;
    case.went_on("the role loses SELECT on a table while it runs, for a while").await;

    case.daemon.start(&["run"], None);
    capturing(&case.daemon).await;
    case.run("ALTER TABLE b REPLICA IDENTITY NOTHING; INSERT INTO b SELECT max(id) + 1, 'insert' FROM b").await;
    case.run("ALTER TABLE b REPLICA IDENTITY DEFAULT").await;
    case.run(UNSEEN).await;
    case.stop().await;
    case.went_on("a table's replica identity is NOTHING for a while").await;

    case.run(UNSEEN).await;
    case.admin(&format!("SELECT pg_drop_replication_slot('{}')", case.slot())).await;
    case.set("SET wal_level = 'replica'").await;
    case.starts();
    let said = case.has_halted(&["wal_level = replica", "ALTER SYSTEM SET wal_level = 'logical'"]);
    line("the slot is dropped and wal_level lowered", &format!("stopped: {said}"));
    case.set("RESET wal_level").await;
    case.stops_and_is_repaired("… and wal_level raised again", &["is gone"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_the_server_has_invalidated() {
    let limits = "max_slot_wal_keep_size = '1MB'\nmin_wal_size = '32MB'\nmax_wal_size = '32MB'\n";
    let mut case = Case::on(own(17, limits).await, "wal-removed", TABLES).await;
    case.daemon.catch_up();
    case.run(UNSEEN).await;
    for _ in 0..4 {
        case.admin("SELECT pg_logical_emit_message(false, 'somebody', 'x')").await;
        case.admin("SELECT pg_switch_wal()").await;
    }
    case.admin("CHECKPOINT").await;
    let words = ["was invalidated", "max_slot_wal_keep_size", "changes from"];
    case.stops_and_is_repaired("the server has removed WAL that the slot needed", &words).await;

    let mut case = Case::on(own(18, "idle_replication_slot_timeout = '1s'\n").await, "idle-timeout", TABLES).await;
    case.daemon.catch_up();
    case.run(UNSEEN).await;
    let client = Arc::new(case.postgres.client().await);
    until(60, "the slot is given up", || {
        let client = client.clone();
        async move {
            client.batch_execute("CHECKPOINT").await.unwrap();
            let sql = "SELECT count(*) FROM pg_replication_slots WHERE invalidation_reason = 'idle_timeout'";
            client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1
        }
    })
    .await;
    let words = ["was invalidated", "idle_replication_slot_timeout"];
    case.stops_and_is_repaired("the server has given an idle slot up (18)", &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_another_or_an_older_one() {
    let mut case = Case::on(own(17, "").await, "older", TABLES).await;
    case.daemon.catch_up();
    let data = case.postgres.server.data.clone();
    let backup = folder("older-backup");
    let copy = |from: &Path, to: &Path| must(Command::new("cp").arg("-a").arg(from.join(".")).arg(to));
    case.postgres.server.down("fast");
    copy(&data, &backup);
    case.postgres.server.up();
    case.client = case.postgres.client().await;
    case.run(UNSEEN).await;
    case.daemon.catch_up();
    case.postgres.server.down("fast");
    must(Command::new("find").arg(&data).args(["-mindepth", "1", "-delete"]));
    copy(&backup, &data);
    case.postgres.server.up();
    case.client = case.postgres.client().await;
    let words = ["an older backup was restored", "the log holds changes up to"];
    case.stops_and_is_repaired("an older backup of the server is restored", &words).await;

    // The same, and by now it has written past all that the log holds: only the slot tells.
    let slot =
        format!("SELECT (restart_lsn - '0/0')::bigint FROM pg_replication_slots WHERE slot_name = '{}'", case.slot());
    let in_backup = kept_from(&case, &slot).await;
    case.postgres.server.down("fast");
    must(Command::new("find").arg(&backup).args(["-mindepth", "1", "-delete"]));
    copy(&data, &backup);
    case.postgres.server.up();
    case.client = case.postgres.client().await;
    case.daemon.start(&["run"], None);
    capturing(&case.daemon).await;
    until(30, "the log knows that the slot has moved on", || async {
        case.client.batch_execute("SELECT pg_log_standby_snapshot()").await.unwrap();
        let noted = |file: PathBuf| {
            let bytes = std::fs::read(file).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let places =
                text.split("\"kept_from\":").skip(1).map(|rest| rest.split('}').next().unwrap().parse::<i64>());
            places.flatten().any(|place| place > in_backup)
        };
        files(&case.daemon.folder.join("highwater-data")).into_iter().any(noted)
    })
    .await;
    case.run(UNSEEN).await;
    case.stop().await;
    let end = "SELECT (pg_current_wal_lsn() - '0/0')::bigint";
    let written: i64 = case.client.query_one(end, &[]).await.unwrap().get(0);
    case.postgres.server.down("fast");
    must(Command::new("find").arg(&data).args(["-mindepth", "1", "-delete"]));
    copy(&backup, &data);
    case.postgres.server.up();
    case.client = case.postgres.client().await;
    while case.client.query_one(end, &[]).await.unwrap().get::<_, i64>(0) <= written {
        case.run(UNSEEN).await;
        case.admin("SELECT pg_logical_emit_message(true, 'somebody', repeat('x', 10000))").await;
    }
    let words = ["a slot never goes back", "an older backup was restored"];
    case.stops_and_is_repaired("an older backup is restored and has written on past the log", &words).await;

    let heir = Case::on(own(17, "").await, "swapped", &TABLES.replace("100", "50")).await;
    // The slot keeps its name, as it would where a name of the network moves.
    let config = to_folder(&case.postgres, &case.lake, "200ms").replace(&case.postgres.url(), &heir.postgres.url());
    let daemon = Daemon::new(&case.daemon.folder, &config);
    let lake = case.lake.clone();
    let mut case = Case { daemon, lake, postgres: heir.postgres, client: heir.client, since: Instant::now() };
    let words = ["this is another server", "system identifier"];
    case.stops_and_is_repaired("the server is swapped for another", &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_in_between_is_named() {
    let pgbouncer = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].into_iter().find(|path| Path::new(path).exists());
    let Some(pgbouncer) = pgbouncer else {
        println!("accident | pgbouncer is not installed: not tested");
        return;
    };
    let mut case = Case::new("pooler", TABLES).await;
    case.daemon.catch_up();
    let home = folder("pgbouncer");
    let (port, server) = (free_port(), case.postgres.server.port);
    let ini = format!(
        "[databases]\n* = host=127.0.0.1 port={server}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
         unix_socket_dir =\nauth_type = trust\nauth_file = users.txt\npool_mode = session\n"
    );
    std::fs::write(home.join("pgbouncer.ini"), ini).unwrap();
    std::fs::write(home.join("users.txt"), "\"highwater\" \"\"\n").unwrap();
    let mut pooler = Command::new(pgbouncer);
    pooler.current_dir(&home).arg("pgbouncer.ini");
    if must(Command::new("id").arg("-u")).trim() == "0" {
        pooler.args(["-u", "postgres"]);
        must(Command::new("chown").args(["-R", "postgres"]).arg(&home));
    }
    let log = std::fs::File::create(home.join("log")).unwrap();
    let mut pooler = pooler.stderr(log).spawn().unwrap();
    until(30, "pgbouncer listens", || async { std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() }).await;
    let config = to_folder(&case.postgres, &case.lake, "200ms");
    let mut through = Daemon::new(&case.daemon.folder, &config.replace(&format!(":{server}/"), &format!(":{port}/")));
    through.start(&["run"], None);
    let ended = through.wait(STOPS_WITHIN);
    let (code, out, _) = through.run(&["check"]);
    let _ = pooler.kill();
    let _ = pooler.wait();
    let words = "a pooler (pgbouncer) does not carry replication";
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains(words), "{}", ended.stderr);
    assert!(code == 3 && out.contains(words), "{out}");
    line("pgbouncer in between", &format!("stopped: {words}"));
    case.daemon = Daemon::new(&case.daemon.folder, &config);
    case.run(UNSEEN).await;
    case.went_on("… and taken away again").await;
}
