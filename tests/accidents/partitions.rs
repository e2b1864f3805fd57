//! Partitions that are captured each as a table of its own, and over to it and back.

use highwater_tests::{Postgres, landed, until};

use super::Case;
use crate::spine::{capturing, local};

const TREE: &str = "CREATE TABLE p (id bigint PRIMARY KEY, v text) PARTITION BY RANGE (id);
     CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (1000);
     CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (1000) TO (3000) PARTITION BY RANGE (id);
     CREATE TABLE p2a PARTITION OF p2 FOR VALUES FROM (1000) TO (2000);
     CREATE TABLE p2b PARTITION OF p2 FOR VALUES FROM (2000) TO (3000);
     CREATE TABLE plain (id bigint PRIMARY KEY, v text);
     INSERT INTO p SELECT i, 'x' FROM generate_series(1, 2500) i; INSERT INTO plain VALUES (1, 'x')";
/// The n-th time. A row moves from one partition to another, too: it leaves the
/// one and comes to the other.
fn changes(n: u32) -> String {
    format!(
        "INSERT INTO p VALUES ({}, 'new'); UPDATE p SET v = v || '!' WHERE id % 100 = 7; DELETE FROM p WHERE id % 100 = 10 + {n};
         UPDATE plain SET v = v || '!'; UPDATE p SET id = {} WHERE id = {}",
        2600 + n,
        2900 + n,
        20 + n
    )
}

impl Case {
    /// Other settings of the source, for the next start.
    fn partitions(&self, setting: &str, tables: &str) {
        let file = self.daemon.folder.join("highwater.toml");
        let config = std::fs::read_to_string(&file).unwrap();
        let ours = |line: &&str| !line.starts_with("partitions = ") && !line.starts_with("tables = ");
        let config: Vec<&str> = config.lines().filter(ours).collect();
        let with = format!("partitions = \"{setting}\"\ntables = [{tables}]\n[log]");
        std::fs::write(file, config.join("\n").replace("[log]", &with) + "\n").unwrap();
    }

    /// The streams that are followed.
    fn followed(&self) -> Vec<String> {
        let status = self.daemon.status();
        let tables = status["sources"][0]["tables"].as_array().unwrap().iter();
        let mut streams: Vec<String> = tables.map(|table| table["stream"].as_str().unwrap().to_owned()).collect();
        streams.sort();
        streams.iter().map(|stream| stream.trim_start_matches("shop.public.").to_owned()).collect()
    }

    async fn follows(&self, tables: &[&str]) {
        until(30, &format!("{tables:?} are followed and read"), || {
            let read =
                self.daemon.status()["sources"][0]["tables"].as_array().unwrap().iter().all(|t| t["finished"] == true);
            let there = self.followed() == tables && read;
            async move { there }
        })
        .await;
    }

    async fn begun(&self, table: &str) -> usize {
        let events = landed(&local(&self.lake), &format!("shop.public.{table}")).await;
        events.iter().filter(|event| event.op == "snapshot_begin").count()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_partition_is_a_table_of_its_own_where_that_is_asked_for() {
    let mut case = Case::new("leaf", TREE).await;
    case.partitions("leaf", "\"public.*\", \"!public.old*\"");
    case.daemon.start(&["run"], None);
    capturing(&case.daemon).await;
    case.follows(&["p1", "p2a", "p2b", "plain"]).await;
    case.run(&changes(1)).await;
    // One is made with the daemon looking on; a table with rows is attached, which is followed as it was.
    case.run("CREATE TABLE q (id bigint PRIMARY KEY, v text); INSERT INTO q SELECT i, 'q' FROM generate_series(4000, 4099) i").await;
    case.run("CREATE TABLE p3 PARTITION OF p FOR VALUES FROM (3000) TO (4000); INSERT INTO p SELECT i, 'y' FROM generate_series(3000, 3099) i").await;
    case.follows(&["p1", "p2a", "p2b", "p3", "plain", "q"]).await;
    case.run("ALTER TABLE p ATTACH PARTITION q FOR VALUES FROM (4000) TO (5000); INSERT INTO p VALUES (4500, 'in q')")
        .await;
    case.run("UPDATE p SET v = 'z' WHERE id BETWEEN 1990 AND 2010; TRUNCATE p1; INSERT INTO p VALUES (5, 'again')")
        .await;
    case.stop().await;
    case.is_exact(&["p1", "p2a", "p2b", "p3", "plain", "q"]).await;
    for table in ["p1", "p2a", "p2b", "p3", "plain", "q"] {
        assert_eq!(case.begun(table).await, 0, "{table} was read once");
    }
    assert!(!case.lake.join("shop.public.p").exists() && !case.lake.join("shop.public.p2").exists());
    case.daemon.start(&["run"], None);
    capturing(&case.daemon).await;
    let (code, out, err) = case.daemon.run(&["verify", "shop", "lake"]);
    assert!(code == 0 && out.contains("public.p2a"), "{out}{err}");
    // A detached one is a table like any other: it goes on by its name, or leaves by it.
    case.run("ALTER TABLE p DETACH PARTITION q; INSERT INTO q VALUES (1, 'alone')").await;
    case.run("ALTER TABLE p DETACH PARTITION p1; ALTER TABLE p1 RENAME TO old_p1; DROP TABLE p2a; INSERT INTO old_p1 VALUES (600, 'unseen')").await;
    case.follows(&["p2b", "p3", "plain", "q"]).await;
    case.run("INSERT INTO p VALUES (2501, 'seen')").await;
    case.stop().await;
    case.is_exact(&["p2b", "p3", "plain", "q"]).await;
    let left = landed(&local(&case.lake), "shop.public.p1").await;
    assert!(left.iter().all(|event| event.row["v"].as_deref() != Some("unseen")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_goes_over_from_roots_to_partitions_and_back() {
    let mut case = Case::new("leaf-and-root", TREE).await;
    let leaves = ["p1", "p2a", "p2b", "plain"];
    case.is_exact(&["p", "plain"]).await;
    for n in [1, 4] {
        // Written under the one setting, and read first under the other.
        case.run(&changes(n)).await;
        case.partitions("leaf", "\"public.*\"");
        case.is_exact(&leaves).await;
        case.run(&changes(n + 1)).await;
        case.is_exact(&leaves).await;
        case.run(&changes(n + 2)).await;
        case.partitions("root", "\"public.*\"");
        case.is_exact(&["p", "plain"]).await;
    }
}

/// The owner has published the root; the role may read, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_of_a_root_that_its_owner_publishes_come_and_go() {
    let postgres = Postgres::new(15).await;
    let mut case = Case::on(postgres, "leaf-owner", "SELECT 1").await;
    case.admin(TREE).await;
    let refused = [
        ("\"public.p\"", "", "public.p cannot be captured: it is partitioned"),
        ("\"public.*\"", "[sources.shop.table.\"public.p\"]\ncolumns = [\"*\", \"!v\"]\n", "is a partitioned table"),
    ];
    for (tables, more, words) in refused {
        case.partitions("leaf", tables);
        let file = case.daemon.folder.join("highwater.toml");
        let config = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, format!("{config}{more}")).unwrap();
        case.halts(&[words]).await;
        std::fs::write(&file, config).unwrap();
    }
    case.partitions("leaf", "\"public.*\"");
    case.halts(&["publish_via_partition_root = false"]).await;
    let (code, out, _) = case.daemon.run(&["check", "--sql"]);
    assert!(code == 3 && out.contains("publish_via_partition_root = false"), "{out}");
    case.admin("CREATE PUBLICATION highwater_shop FOR TABLE p, plain WITH (publish_via_partition_root = false)").await;
    case.daemon.start(&["run"], None);
    capturing(&case.daemon).await;
    case.follows(&["p1", "p2a", "p2b", "plain"]).await;
    case.admin(&changes(1)).await;
    case.admin("CREATE TABLE q (id bigint PRIMARY KEY, v text); INSERT INTO q VALUES (4000, 'q')").await;
    case.admin("ALTER TABLE p ATTACH PARTITION q FOR VALUES FROM (4000) TO (5000); INSERT INTO p VALUES (4001, 'q')")
        .await;
    case.follows(&["p1", "p2a", "p2b", "plain", "q"]).await;
    case.admin("UPDATE p SET v = 'Q' WHERE id = 4000; ALTER TABLE p2 DETACH PARTITION p2a").await;
    // It is published no more, and not ours to publish: that is said.
    until(30, "status tells of it", || {
        let told = case.daemon.status()["sources"][0]["not_captured"].to_string().contains("public.p2a");
        async move { told }
    })
    .await;
    case.follows(&["p1", "p2b", "plain", "q"]).await;
    // The root is taken out for a while: what nobody told is read.
    case.stop().await;
    case.admin("ALTER PUBLICATION highwater_shop DROP TABLE p").await;
    case.admin(&changes(2)).await;
    case.admin("ALTER PUBLICATION highwater_shop ADD TABLE p").await;
    case.is_exact(&["p1", "p2b", "plain", "q"]).await;
    assert_eq!((case.begun("p1").await, case.begun("plain").await), (1, 0));
}
