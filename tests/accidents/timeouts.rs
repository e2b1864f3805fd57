//! Timeouts that a role has, and each of which would end what we do.

use highwater_tests::{Postgres, until};
use tokio_postgres::NoTls;

use super::Case;
use crate::spine::capturing;

/// Each with the version that it came with.
const TIMEOUTS: [(&str, u32); 5] = [
    ("statement_timeout", 13),
    ("lock_timeout", 13),
    ("idle_in_transaction_session_timeout", 13),
    ("idle_session_timeout", 14),
    ("transaction_timeout", 17),
];

async fn timeouts(version: u32) {
    // A chunk that takes two seconds: one statement, in one transaction, while
    // the slot's own session rests in another.
    let rows = 20_000;
    let sql = format!(
        "CREATE TABLE a (id bigint PRIMARY KEY, v text); INSERT INTO a SELECT i, repeat('x', 200) FROM generate_series(1, {rows}) i;
         CREATE TABLE b (id bigint PRIMARY KEY, v text)"
    );
    let mut case = Case::on(Postgres::new(version).await, &format!("timeouts-{version}"), &sql).await;
    let file = case.daemon.folder.join("highwater.toml");
    let config = std::fs::read_to_string(&file).unwrap();
    std::fs::write(file, config.replace("[log]", "snapshot = { rows_per_second = 10000 }\n[log]")).unwrap();
    let database = case.postgres.database.clone();
    for (name, _) in TIMEOUTS.iter().filter(|(_, since)| version >= *since) {
        case.admin(&format!("ALTER ROLE highwater IN DATABASE {database} SET {name} = '20ms'")).await;
    }
    let url = format!("host=127.0.0.1 port={} user=highwater dbname={database}", case.postgres.server.port);
    let (another, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    let ended = another.batch_execute("SELECT pg_sleep(60)").await;
    assert!(ended.is_err(), "they end what others do");

    // What waits for a lock waits longer: here the slot's making, for a transaction.
    case.client.batch_execute("BEGIN; LOCK TABLE a IN ACCESS EXCLUSIVE MODE").await.unwrap();
    case.daemon.start(&["run"], None);
    let looker = case.postgres.client().await;
    until(30, "it waits for a lock", || async {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'highwater' AND datname = current_database()
                    AND wait_event_type = 'Lock' AND clock_timestamp() - query_start > interval '300 ms'";
        looker.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) > 0
    })
    .await;
    case.client.batch_execute("COMMIT").await.unwrap();
    capturing(&case.daemon).await;
    case.has("a", rows).await;
    // Sessions that rest between two heartbeats, and a stream between two changes.
    case.run("CREATE TABLE c (id bigint PRIMARY KEY, v text); INSERT INTO c VALUES (1, 'x')").await;
    case.has("c", 1).await;
    for change in 1..=3 {
        case.run(&format!("INSERT INTO b VALUES ({change}, 'x'); UPDATE a SET v = 'y' WHERE id = {change}")).await;
        case.has("b", change).await;
    }
    case.stop().await;
    case.is_exact(&["a", "b", "c"]).await;
    for run in 1..=2 {
        let said = std::fs::read_to_string(case.daemon.folder.join(format!("stderr.{run}"))).unwrap();
        assert!(!said.contains("timeout"), "it was ended by none:\n{said}");
    }
    super::line(&format!("the role has timeouts of 20 ms, of every kind ({version})"), "goes on exactly");
}

#[tokio::test(flavor = "multi_thread")]
async fn timeouts_of_the_role_end_nothing_of_ours_on_17() {
    timeouts(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn timeouts_of_the_role_end_nothing_of_ours_on_14() {
    timeouts(14).await;
}
