//! A history's versions: each row with the time that it was there.

use highwater_tests::{Daemon, Postgres, Workload, folder};
use tokio_postgres::Client;

use super::{columns, config, number, rows, warehouse};

/// The server's own clock, between transactions.
async fn now(client: &Client) -> String {
    client.query_one("SELECT clock_timestamp()::text", &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_tells_what_its_rows_were_at_any_time() {
    let source = Postgres::new(17).await;
    let warehouse = warehouse(None, 17).await;
    let client = source.client().await;
    client
        .batch_execute(
            "CREATE TABLE t (id int PRIMARY KEY, n int, memo text); ALTER TABLE t ALTER memo SET STORAGE EXTERNAL;
             INSERT INTO t SELECT i, 0, repeat(md5(i::text), 100) FROM generate_series(1, 5) i",
        )
        .await
        .unwrap();
    Workload::prepare(&source, 500).await;
    client.batch_execute("ALTER PUBLICATION highwater_shop ADD TABLE t").await.unwrap();
    let admin = warehouse.client().await;
    admin.batch_execute("CREATE SCHEMA \"Odd \"\"Näme\" AUTHORIZATION loader").await.unwrap();
    let folder = folder("pgsink-versions");
    let mut daemon = Daemon::new(&folder, &config(&source, &warehouse, "mode = \"history\""));
    daemon.catch_up();
    let of = columns(&client, "t").await;
    let mut then = Vec::new();
    // Each leaves its mark on what was there before: what an update did not
    // send, rows that change places, one that comes back, emptied, read again.
    for (n, change) in [
        "SELECT 1",
        "UPDATE t SET n = 1 WHERE id <= 2; DELETE FROM t WHERE id = 5",
        "UPDATE t SET id = 50 WHERE id = 1; UPDATE t SET id = 1, n = 7 WHERE id = 2; INSERT INTO t VALUES (5, 9, 'again')",
        "UPDATE t SET id = 2, n = 8 WHERE id = 50",
        "TRUNCATE t; INSERT INTO t VALUES (1, 100, 'after')",
        "INSERT INTO t SELECT i, i, 'many' FROM generate_series(10, 20) i",
    ]
    .into_iter()
    .enumerate()
    {
        client.batch_execute(change).await.unwrap();
        then.push((now(&client).await, rows(&client, "t", &of).await));
        if n == 3 {
            daemon.catch_up();
        }
    }
    daemon.catch_up();
    // A row that went while nobody looked ends when the reading that missed it ends.
    client
        .batch_execute(
            "ALTER PUBLICATION highwater_shop DROP TABLE t; DELETE FROM t WHERE id = 20; INSERT INTO t VALUES (21, 0, 'unseen');
             ALTER PUBLICATION highwater_shop ADD TABLE t",
        )
        .await
        .unwrap();
    daemon.catch_up();
    then.push((now(&client).await, rows(&client, "t", &of).await));
    let workload = Workload::start(&source, 2, 3).await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    workload.stop().await;
    let middle = now(&client).await;
    let mut whole = Vec::new();
    let tables: Vec<_> = Workload::tables().map(|(sql, _, _)| sql).filter(|sql| *sql != "nokey").collect();
    for table in &tables {
        whole.push(rows(&client, table, &columns(&client, table).await).await);
    }
    let workload = Workload::start(&source, 2, 4).await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    workload.stop().await;
    daemon.catch_up();
    let here = warehouse.client().await;
    // As docs/postgres-sink.md says for long histories.
    here.batch_execute("CREATE INDEX ON notes (id, _hw_offset DESC); ANALYZE").await.unwrap();
    let at = |view: &str, time: &str| {
        format!(
            "(SELECT * FROM {view} WHERE _hw_valid_from <= '{time}' AND (_hw_valid_to > '{time}' OR _hw_valid_to IS NULL)) v"
        )
    };
    for (n, (time, expected)) in then.iter().enumerate() {
        // The first look was before anything was read: its rows begin with the reading.
        if n > 0 {
            assert_eq!(&rows(&here, &at("t_versions", time), &of).await, expected, "after change {n}, at {time}");
        }
    }
    let inverted = "SELECT count(*) FROM t_versions WHERE _hw_valid_to < _hw_valid_from";
    assert_eq!(number(&here, inverted).await, 0);
    let view = |table: &str, suffix: &str| match table.strip_suffix('"') {
        Some(quoted) => format!("{quoted}{suffix}\""),
        None => format!("{table}{suffix}"),
    };
    let mut versions = 0;
    for (table, expected) in tables.iter().zip(&whole) {
        let of = columns(&client, table).await;
        let view = view(table, "_versions");
        assert_eq!(&rows(&here, &at(&view, &middle), &of).await, expected, "{table} at {middle}");
        let now = format!("(SELECT * FROM {view} WHERE _hw_valid_to IS NULL) v");
        assert_eq!(rows(&here, &now, &of).await, rows(&client, table, &of).await, "{table} now");
        versions += number(&here, &format!("SELECT count(*) FROM {view}")).await;
    }
    println!(
        "{versions} versions of {} tables are what the source had, at {} moments",
        tables.len() + 1,
        then.len() + 2
    );
}
