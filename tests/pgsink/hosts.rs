//! A warehouse of several servers, of which one takes writes.

use std::sync::Arc;

use highwater_tests::{Daemon, Postgres, Server, folder, until};

use super::{number, same, warehouse};
use crate::spine::capturing;
use crate::verify::verify_of;

const PATIENCE: u64 = 60;

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_takes_over_gets_what_it_lacks_and_each_change_once() {
    let source = Postgres::new(17).await;
    let client = source.client().await;
    client
        .batch_execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'x' FROM generate_series(1, 300) i",
        )
        .await
        .unwrap();
    source.publish("highwater_shop", "t").await;
    let primary = Arc::new(blocking(|| Server::start(17, "")).await);
    let admin = primary.connect("postgres").await;
    admin.batch_execute("SELECT pg_create_physical_replication_slot('standby', true)").await.unwrap();
    drop(admin);
    let warehouse = warehouse(Some(primary.clone()), 17).await;
    warehouse.client().await.batch_execute("CREATE SCHEMA changes AUTHORIZATION loader").await.unwrap();
    let copied = primary.clone();
    let standby = Arc::new(blocking(move || copied.standby()).await);
    let heir = Postgres { server: standby.clone(), database: warehouse.database.clone() };
    let url = format!(
        "postgres://loader@127.0.0.1:{},127.0.0.1:{}/{}?target_session_attrs=read-write",
        primary.port, standby.port, warehouse.database
    );
    let sink = |name: &str, more: &str| {
        format!("[sinks.{name}]\ntype = \"postgres\"\nfrom = [\"shop\"]\nurl = \"{url}\"\n{more}\n")
    };
    let config = format!(
        "[sources.shop]\ntype = \"postgres\"\nurl = \"{}\"\nslot = \"hw_{}\"\n{}{}",
        source.url(),
        source.database,
        sink("warehouse", ""),
        sink("changes", "mode = \"history\"\nschema = \"changes\"")
    );
    let mut daemon = Daemon::new(&folder("pgsink-hosts"), &config);
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    let rows = |place: Postgres, expected: i64| async move {
        let here = place.client().await;
        until(PATIENCE, "all rows are there", || async {
            let there = number(&here, "SELECT count(*) FROM pg_tables WHERE tablename = 't'").await == 2;
            there
                && number(&here, "SELECT least((SELECT count(*) FROM t), (SELECT count(*) FROM changes.t))").await
                    == expected
        })
        .await;
    };
    let at = |server: &Arc<Server>| Postgres { server: server.clone(), database: warehouse.database.clone() };
    rows(at(&primary), 300).await;
    for name in ["warehouse", "changes"] {
        verify_of(&daemon, name, &[]).is_equal();
    }
    // Committed at the primary, and never at the standby.
    let away = standby.clone();
    blocking(move || away.down("fast")).await;
    client.batch_execute("INSERT INTO t SELECT i, 'lost' FROM generate_series(1001, 1100) i").await.unwrap();
    rows(at(&primary), 400).await;
    let (old, new) = (primary.clone(), standby.clone());
    blocking(move || {
        old.down("immediate");
        new.up();
    })
    .await;
    client.batch_execute("INSERT INTO t SELECT i, 'meanwhile' FROM generate_series(2001, 2100) i").await.unwrap();
    let new = standby.clone();
    blocking(move || new.promote()).await;
    rows(at(&standby), 500).await;
    let here = heir.client().await;
    assert_eq!(same(&client, &here, "t").await, 500);
    assert_eq!(number(&here, "SELECT count(DISTINCT _hw_offset) FROM changes.t").await, 500);
    assert_eq!(number(&here, "SELECT count(DISTINCT id) FROM changes.t").await, 500);
    // The old one comes back, takes writes, and stands first: verify looks at the sink's.
    let old = primary.clone();
    blocking(move || old.up()).await;
    assert_eq!(number(&warehouse.client().await, "SELECT count(*) FROM t").await, 400);
    for name in ["warehouse", "changes"] {
        let verified = verify_of(&daemon, name, &[]);
        verified.is_equal();
        assert_eq!(verified.verdict("public.t")["sink_rows"], 500);
    }
    here.batch_execute("UPDATE t SET v = 'planted' WHERE id = 7").await.unwrap();
    let found = verify_of(&daemon, "warehouse", &["--repair"]);
    assert_eq!((found.code, found.of("public.t").len()), (0, 1), "{:?} {}", found.lines, found.stderr);
    assert_eq!(same(&client, &here, "t").await, 500);
}
