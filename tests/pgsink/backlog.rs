//! A backlog of small transactions into a mirror: it is taken in large steps, of
//! which what is new goes ahead.

use std::time::Duration;

use highwater_tests::{Daemon, Postgres, folder};
use tokio_postgres::Client;

use super::{number, same, warehouse};
use crate::delivery::{hall, source};

/// Rows that come and go, some that are changed all the time without what is
/// beside them, keys that move; a value that another row has to give up first;
/// and each type that COPY takes as it comes.
const TABLES: &str = "
CREATE TABLE orders (id int PRIMARY KEY, n int NOT NULL, body text NOT NULL);
ALTER TABLE orders ALTER body SET STORAGE EXTERNAL;
CREATE TABLE owners (id int PRIMARY KEY, tag text NOT NULL);
CREATE TABLE plain (id int2 PRIMARY KEY, a int4, b int8, c bool, d float4, e float8, f text, g varchar(9), h bytea, i uuid,
                    j json, k jsonb, l numeric(12,2), m numeric, n date, o time, p timestamp(3), q timestamptz, r oid)";

const FIRST: &str = "
INSERT INTO orders SELECT i, 0, repeat(md5(i::text), 90) FROM generate_series(1, 60) i;
INSERT INTO owners SELECT -i, repeat(i || '-', 40) FROM generate_series(0, 499) i;
INSERT INTO plain (id) VALUES (0)";

const BACKLOG: &str = "
DO $$ BEGIN
  FOR i IN 1 .. 4000 LOOP
    INSERT INTO orders VALUES (1000 + i, i, repeat(md5(i::text), 90));
    UPDATE orders SET n = n + 1 WHERE id = i % 60 + 1;
    IF i % 5 = 0 THEN DELETE FROM orders WHERE id = 1000 + i - (i % 7) * 100; END IF;
    IF i % 6 = 0 THEN UPDATE orders SET id = id + i * 10000, n = -n WHERE id = 1000 + i - (i % 11) * 90; END IF;
    IF i % 9 = 0 THEN INSERT INTO orders SELECT 1000 + i - (i % 11) * 90, 0, 'in its place' ON CONFLICT DO NOTHING; END IF;
    IF i % 400 = 0 THEN UPDATE orders SET id = -id WHERE id <= 3; UPDATE orders SET id = -id WHERE id < 0; END IF;
    DELETE FROM owners WHERE tag = repeat(i % 500 || '-', 40);
    INSERT INTO owners VALUES (i, repeat(i % 500 || '-', 40));
    COMMIT;
  END LOOP;
END $$";

const PLAIN: &str = "
INSERT INTO plain SELECT i, -i, i::int8 << 40, i % 2 = 0, i / 3.0, i / 7.0, 'text ' || i, 'v' || i, decode(md5(i::text), 'hex'), md5(i::text)::uuid,
       json_build_object('i', i), jsonb_build_object('i', i), i / 100.0, -i / 7.0, date '2000-01-01' - i, time '23:59:59.123456' - i * interval '1 s',
       timestamp '1999-12-31 23:59:59.5' + i * interval '1 ms', timestamptz '2030-01-01 00:00+00' - i * interval '1 h', i
  FROM generate_series(1, 300) i";

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_taken_in_large_steps_and_comes_to_the_source_whatever_dies() {
    let postgres = Postgres::new(17).await;
    let large = warehouse(None, 17).await;
    let small = warehouse(Some(large.server.clone()), 17).await;
    let client = postgres.client().await;
    client.batch_execute(TABLES).await.unwrap();
    client.batch_execute(FIRST).await.unwrap();
    postgres.publish("highwater_shop", "orders, owners, plain").await;
    let folder = folder("pgsink-backlog");
    let alone = source(&postgres);
    let to_large = alone.clone() + &hall("large", &large, "");
    let to_small = alone.clone() + &hall("small", &small, "cut = { bytes = \"128KiB\" }");
    Daemon::new(&folder, &to_large).catch_up();
    Daemon::new(&folder, &to_small).catch_up();
    let (large, small) = (large.client().await, small.client().await);
    for here in [&large, &small] {
        // What waits must not be overtaken by what needs it to go; and a row that
        // nobody told of stands where a new one comes.
        let sql = "CREATE UNIQUE INDEX ON owners (tag); INSERT INTO orders VALUES (4999, 0, 'nobody told of it')";
        here.batch_execute(sql).await.unwrap();
    }
    client.batch_execute(BACKLOG).await.unwrap();
    client.batch_execute(PLAIN).await.unwrap();
    // It captures all of it, and nothing takes it.
    Daemon::new(&folder, &alone).catch_up();
    let is_source = async |here: &Client| {
        for table in ["orders", "owners", "plain"] {
            same(&client, here, table).await;
        }
        assert_eq!(number(here, "SELECT count(*) FROM orders WHERE id <= 60 AND length(body) = 2880").await, 60);
        assert_eq!(number(here, "SELECT count(*) FROM _highwater.tables WHERE behind_since IS NOT NULL").await, 0);
    };

    let mut daemon = Daemon::new(&folder, &to_large);
    daemon.environment.push(("HIGHWATER_LOG".into(), "info,connector_runtime=debug".into()));
    daemon.start(&["run", "--until-caught-up"], None);
    let ended = daemon.wait(Duration::from_secs(60));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let steps: Vec<u64> = ended.stderr.lines().filter_map(events_of).collect();
    println!("steps: {steps:?}");
    assert!(steps[0] > steps.iter().sum::<u64>() / 2, "what is there when a step begins is taken: {steps:?}");
    is_source(&large).await;

    let mut daemon = Daemon::new(&folder, &to_small);
    for point in ["half-merged:2", "half-merged:9", "pre-commit:1", "half-merged:25", "post-commit:2", "pre-commit:9"] {
        daemon.start(&["run", "--until-caught-up"], Some(point));
        let ended = daemon.wait(Duration::from_secs(60));
        assert!(ended.stderr.contains("fault point hit"), "{point}: {}", ended.stderr);
    }
    daemon.catch_up();
    is_source(&small).await;
}

/// Of a line that tells of a step.
fn events_of(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("step committed")?.1.split_once("events=")?;
    rest.split(' ').next()?.parse().ok()
}
