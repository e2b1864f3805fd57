//! Constraints that somebody added to a mirror.

use highwater_tests::{Daemon, Postgres, folder};

use super::{config, number, same, warehouse};

#[tokio::test(flavor = "multi_thread")]
async fn few_changes_keep_the_order_that_constraints_of_the_mirror_need() {
    let source = Postgres::new(17).await;
    let warehouse = warehouse(None, 17).await;
    let client = source.client().await;
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, tag text, parent int); INSERT INTO t VALUES (1, 'first')")
        .await
        .unwrap();
    source.publish("highwater_shop", "t").await;
    let folder = folder("pgsink-order");
    let mut daemon = Daemon::new(&folder, &config(&source, &warehouse, ""));
    daemon.catch_up();
    let here = warehouse.client().await;
    let constraints = "CREATE UNIQUE INDEX ON t (tag); ALTER TABLE t ADD FOREIGN KEY (parent) REFERENCES t";
    here.batch_execute(constraints).await.unwrap();
    for transaction in [
        // A new row takes the value that an old one gave up.
        "UPDATE t SET tag = 'later' WHERE id = 1; INSERT INTO t VALUES (2, 'first')",
        // An old row refers to a new one.
        "INSERT INTO t VALUES (3, 'third'); UPDATE t SET parent = 3 WHERE id = 1",
        // And with one between that nobody hears of.
        "UPDATE t SET tag = 'second' WHERE id = 2; INSERT INTO t VALUES (4, 'first', 2); DELETE FROM t WHERE id = 4;
         INSERT INTO t VALUES (5, 'first', 3); UPDATE t SET parent = 5 WHERE id = 3",
    ] {
        client.batch_execute(transaction).await.unwrap();
        daemon.catch_up();
        same(&client, &here, "t").await;
        let behind = "SELECT count(*) FROM _highwater.tables WHERE behind_since IS NOT NULL";
        assert_eq!(number(&here, behind).await, 0, "{transaction}");
    }
}
