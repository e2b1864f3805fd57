//! Types that the warehouse lacks, and columns that somebody made there.

use highwater_tests::{Daemon, Postgres, folder, until};

use super::{config, number, same, warehouse};
use crate::spine::capturing;

const SOURCE: &str = "
CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE TYPE size AS ENUM ('S', 'L');
CREATE DOMAIN positive AS int CHECK (VALUE > 0); CREATE DOMAIN short AS varchar(5);
CREATE TYPE pair AS (n int, m mood);
CREATE TABLE t (id int PRIMARY KEY, n numeric(12,4), v varchar(5), m mood, s size, ms mood[], p positive, w short, c pair);
INSERT INTO t VALUES (1, 1.2345, 'v', 'sad', 'S', '{sad,glad}', 7, 'w', '(1,glad)');
INSERT INTO t (id) VALUES (2);";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_column_does_to_the_values_is_told_and_none_changes_them() {
    let (source, warehouse) = (Postgres::new(17).await, warehouse(None, 18).await);
    let (client, here) = (source.client().await, warehouse.client().await);
    client.batch_execute(SOURCE).await.unwrap();
    source.publish("highwater_shop", "t").await;
    // `numeric(12,2)` would round without a word.
    here.batch_execute(
        "CREATE TYPE mood AS ENUM ('sad', 'glad');
         CREATE TABLE t (id bigint, n numeric(12,2), v text); ALTER TABLE t OWNER TO loader",
    )
    .await
    .unwrap();
    let folder = folder("pgsink-types");
    let mut daemon = Daemon::new(&folder, &config(&source, &warehouse, ""));
    daemon.start(&["run"], None);
    capturing(&daemon).await;
    let waits = || daemon.status()["sinks"][0]["tables_behind"].as_array().is_some_and(|tables| !tables.is_empty());
    until(60, "the table waits apart", || std::future::ready(waits())).await;
    let (_, status, _) = daemon.run(&["status"]);
    let mend = "ALTER TABLE \"public\".\"t\" ALTER COLUMN \"n\" TYPE numeric(12,4)";
    assert!(status.contains("could change values of numeric(12,4)") && status.contains(mend), "{status}");
    here.batch_execute(mend).await.unwrap();
    let resumed = |expected: i64| {
        let (daemon, here, waits) = (&daemon, &here, &waits);
        async move {
            let resume = || daemon.run(&["resume", "warehouse", "--table", "public.t"]).0 == 0;
            until(60, "the order is taken", || std::future::ready(resume())).await;
            until(60, "the table joins the others", || std::future::ready(!waits())).await;
            until(60, "its rows are there", || async {
                let there = "SELECT to_regclass('t') IS NOT NULL AND EXISTS (SELECT 1 FROM _highwater.checkpoints WHERE next_offset > 0)";
                here.query_one(there, &[]).await.unwrap().get(0)
                    && number(here, "SELECT count(*) FROM t").await == expected
            })
            .await;
            let apart =
                "SELECT count(*) FROM _highwater.tables WHERE behind_since IS NOT NULL OR behind_why IS NOT NULL";
            assert_eq!(number(here, apart).await, 0);
            assert_eq!(number(here, "SELECT count(*) FROM _highwater.checkpoints").await, 1, "none of its own");
        }
    };
    resumed(2).await;
    same(&client, &here, "t").await;
    let sql = "SELECT string_agg(c->>'name' || ' ' || (c->>'type') || ' ' || (c->>'fit'), ', ' ORDER BY i)
                 FROM _highwater.tables, jsonb_array_elements(columns::jsonb) WITH ORDINALITY AS a (c, i)";
    let fits: String = here.query_one(sql, &[]).await.unwrap().get(0);
    let expected = "id bigint widened, n numeric(12,4) exact, v text widened, m mood exact, s text widened, \
                    ms mood[] exact, p integer widened, w text widened, c text widened";
    assert_eq!(fits, expected);
    // A label that the warehouse's enum lacks: the table waits, and goes on once it is there.
    client
        .batch_execute("ALTER TYPE mood ADD VALUE 'calm' BEFORE 'glad'; ALTER TYPE size ADD VALUE 'M'")
        .await
        .unwrap();
    client.batch_execute("INSERT INTO t (id, s) VALUES (3, 'M')").await.unwrap();
    client.batch_execute("INSERT INTO t (id, m, ms, c) VALUES (4, 'calm', '{calm}', '(1,calm)')").await.unwrap();
    until(60, "the table waits apart", || std::future::ready(waits())).await;
    here.batch_execute("ALTER TYPE mood ADD VALUE 'calm' BEFORE 'glad'").await.unwrap();
    resumed(4).await;
    assert_eq!(same(&client, &here, "t").await, 4);
}
