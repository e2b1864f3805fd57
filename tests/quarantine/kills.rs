//! Rows come to wait, and are let go, by a process that is killed.

use std::time::Duration;

use highwater_tests::{Daemon, Postgres, Truth, Workload, final_state, folder, landed};

use crate::pgsink::{same, warehouse};
use crate::quarantine::{act, all_but_those_that_wait, both, each_once_and_in_order_by_key, waiting};
use crate::spine::{capturing, local};

const STRICT: &str = "[sources.shop.table.\"public.orders\"]\n\
    contract = { range = { amount = { max = 500 } }, required = [\"amount\"] }\n\
    [sources.shop.table.\"public.notes\"]\ncontract = { required = [\"title\"] }\n\
    [sources.shop.table.\"public.nokey\"]\ncontract = { pattern = { what = \"^[a-z0-9 ]+!{0,3}$\" } }";

#[tokio::test(flavor = "multi_thread")]
async fn whatever_instant_it_is_killed_at_what_waited_goes_on_once_and_in_order() {
    let (source, warehouse) = (Postgres::new(17).await, warehouse(None, 17).await);
    let grant = format!("GRANT CREATE ON DATABASE {} TO loader", warehouse.database);
    warehouse.client().await.batch_execute(&grant).await.unwrap();
    Workload::prepare(&source, 2_000).await;
    Truth::watch(&source).await;
    let folder = folder("quarantine-kills");
    let lake = folder.join("lake");
    let strict = both(&source, &warehouse, &lake, STRICT);
    let mut daemon = Daemon::new(&folder, &strict);
    // A reading that begins later would give up what waits by then.
    all_but_those_that_wait(&mut daemon);
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    let workload = Workload::start(&source, 3, 11).await;
    daemon.kill();
    for round in 1..=3 {
        daemon.start(&["run"], Some(&format!("quarantine-held:{}", round * 2)));
        let ended = daemon.wait(Duration::from_secs(60));
        assert!(ended.stderr.contains("fault point hit: quarantine-held"), "{}", ended.stderr);
    }
    // What breaks the rules still stays, and what broke them by another's
    // doing goes on, while others write.
    let some = STRICT.replace("max = 500", "max = 1000");
    for round in 1..=3 {
        let mut daemon = Daemon::new(&folder, &both(&source, &warehouse, &lake, &some));
        daemon.start(&["run"], Some(&format!("quarantine-release:{round}")));
        capturing(&daemon).await;
        for _ in 0..10 {
            daemon.run(&["--json", "quarantine", "redrive", "shop"]);
            if !daemon.is_running() {
                break;
            }
        }
        let ended = daemon.wait(Duration::from_secs(30));
        assert!(ended.stderr.contains("fault point hit: quarantine-release"), "{}", ended.stderr);
    }
    let transactions = workload.stop().await;
    let mut daemon = Daemon::new(&folder, &both(&source, &warehouse, &lake, &some));
    all_but_those_that_wait(&mut daemon);
    let left = waiting(&daemon, &[]).len();
    assert!(left > 0);
    let mut daemon = Daemon::new(&folder, &both(&source, &warehouse, &lake, ""));
    let done = act(&daemon, &["redrive", "shop"]);
    assert_eq!(done["released"], left, "{done}");
    daemon.catch_up();
    let (client, here, store) = (source.client().await, warehouse.client().await, local(&lake));
    let mut events = 0;
    for (sql, name, part) in Workload::tables() {
        let stream = format!("shop.{part}");
        let landed = landed(&store, &stream).await;
        events += landed.len();
        each_once_and_in_order_by_key(&stream, &Truth::of(&source, name).await, &landed);
        if sql != "nokey" {
            final_state(&client, sql, &landed).await;
        }
        same(&client, &here, sql).await;
    }
    println!("transactions: {transactions}; rows that waited to the end: {left}; events: {events}");
}
