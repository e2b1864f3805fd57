//! What is moved: rows that are a function of their number, the same in every
//! run. Each workload has a database and, before its first change, a slot that
//! nobody reads: contenders get copies of it, so all drain the same backlog.

use crate::Result;
use crate::baselines::{encoder, null_drain};
use crate::checksum::{Checksum, op};
use crate::server::Server;

const TABLE: &str = "
CREATE TABLE orders (
  id          bigint PRIMARY KEY,
  customer_id int NOT NULL,
  sku         text NOT NULL,
  note        text,
  amount      numeric(12,2) NOT NULL,
  currency    text NOT NULL,
  qty         int NOT NULL,
  paid        boolean NOT NULL,
  created_at  timestamptz NOT NULL,
  updated_at  timestamptz,
  uid         uuid NOT NULL,
  attrs       jsonb NOT NULL
);
CREATE FUNCTION order_row(i bigint) RETURNS SETOF orders LANGUAGE sql STABLE AS $$
  SELECT i, (i * 7919 % 100000)::int, 'SKU-' || lpad((i * 104729 % 1000000)::text, 8, '0'),
         CASE WHEN i % 10 = 0 THEN NULL ELSE 'customer note ' || i || ' please leave at the door ' || (i % 977) END,
         ((i * 31 % 1000000) / 100.0)::numeric(12,2), (array['USD','EUR','GBP','JPY'])[1 + i % 4], 1 + (i % 9)::int, i % 3 <> 0,
         timestamptz '2025-01-01 00:00:00+00' + i * interval '1237 microseconds',
         CASE WHEN i % 4 = 0 THEN NULL ELSE timestamptz '2025-06-01 00:00:00+00' + i * interval '977 microseconds' END,
         md5(i::text)::uuid,
         jsonb_build_object('channel', (array['web','app','store','partner'])[1 + i % 4], 'discount', (i % 50) / 100.0,
                            'tags', jsonb_build_array('t' || (i % 7), 't' || (i % 13)), 'gift', i % 5 = 0)
$$;
CREATE PUBLICATION bench FOR TABLE orders;
-- W1: inserts, 1,000 a transaction.
CREATE PROCEDURE bulk(n bigint) LANGUAGE plpgsql AS $$
BEGIN
  FOR k IN 0 .. (n - 1) / 1000 LOOP
    INSERT INTO orders SELECT r.* FROM generate_series(k * 1000 + 1, least((k + 1) * 1000, n)) i, order_row(i) r;
    COMMIT;
  END LOOP;
END $$;
-- W2: an insert and an update a transaction, a delete in 18 of 100.
CREATE PROCEDURE small(n bigint, base bigint) LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN 1 .. n LOOP
    INSERT INTO orders SELECT * FROM order_row(10000000 + i);
    UPDATE orders SET qty = qty + 1, paid = NOT paid WHERE id = i * 7919 % base + 1;
    IF i > 1000 AND i % 50 < 9 THEN
      DELETE FROM orders WHERE id = 10000000 + i - 1000;
    END IF;
    COMMIT;
  END LOOP;
END $$;
-- W4, W5: each row's number of pieces once a pass, 1,000 rows a transaction.
CREATE PROCEDURE passes(n bigint, times int) LANGUAGE plpgsql AS $$
BEGIN
  FOR pass IN 1 .. times LOOP
    FOR k IN 0 .. (n - 1) / 1000 LOOP
      UPDATE orders SET qty = qty + 1 WHERE id BETWEEN k * 1000 + 1 AND least((k + 1) * 1000, n);
      COMMIT;
    END LOOP;
  END LOOP;
END $$;
-- W6: 50 rows a transaction, each of another table than the one before.
CREATE PROCEDURE many(tables int, n bigint) LANGUAGE plpgsql AS $$
BEGIN
  FOR k IN 0 .. (n - 1) / 50 LOOP
    FOR t IN 1 .. tables LOOP
      EXECUTE format('INSERT INTO many_%s SELECT r.* FROM generate_series(%s, %s) i, order_row(i) r',
                     t, k * 50 + 1, least((k + 1) * 50, n));
      COMMIT;
    END LOOP;
  END LOOP;
END $$;
";

/// Rows there before W2 begins.
const BASE: u64 = 20_000;

/// A backlog, and the truth about it.
pub(crate) struct Workload {
    pub(crate) database: &'static str,
    /// End of its last commit.
    pub(crate) end: u64,
    pub(crate) truth: Checksum,
    /// As the stream sends them.
    pub(crate) bytes: u64,
    /// Its rows as the log carries them.
    pub(crate) bodies: u64,
    /// Some of its messages, for what measures only the encoder.
    pub(crate) messages: Vec<Vec<u8>>,
}

/// Messages kept.
const KEPT: usize = 20_000;

/// A database's base slot: names are the whole server's.
pub(crate) fn base(database: &str) -> String {
    format!("base_{database}")
}

/// An empty database with the table and a base slot.
pub(crate) fn database(server: &Server, name: &str) -> Result<()> {
    server.sql("postgres", &format!("CREATE DATABASE {name}"))?;
    server.sql(name, TABLE).map(drop)
}

/// W1: bulk inserts.
pub(crate) fn bulk(server: &Server, rows: u64) -> Result<Workload> {
    database(server, "bulk")?;
    let truth = Expected { inserts: rows, updates: 0, deletes: 0, ids: Some(sum(1, rows)) };
    fill(server, "bulk", &format!("CALL bulk({rows})"), truth)
}

/// W2: small transactions.
pub(crate) fn small(server: &Server, transactions: u64) -> Result<Workload> {
    database(server, "small")?;
    server.sql("small", &format!("INSERT INTO orders SELECT r.* FROM generate_series(1, {BASE}) i, order_row(i) r"))?;
    let deleted = |i: &u64| *i > 1000 && i % 50 < 9;
    let deletes = (1..=transactions).filter(deleted).count() as u64;
    let inserted: i64 = sum(10_000_001, 10_000_000 + transactions);
    let updated: i64 = (1..=transactions).map(|i| (i * 7919 % BASE + 1) as i64).sum();
    let gone: i64 = (1..=transactions).filter(deleted).map(|i| (10_000_000 + i - 1000) as i64).sum();
    let truth =
        Expected { inserts: transactions, updates: transactions, deletes, ids: Some(inserted + updated + gone) };
    fill(server, "small", &format!("CALL small({transactions}, {BASE})"), truth)
}

/// W3: all rows in one transaction.
pub(crate) fn huge(server: &Server, rows: u64) -> Result<Workload> {
    database(server, "huge")?;
    let truth = Expected { inserts: rows, updates: 0, deletes: 0, ids: Some(sum(1, rows)) };
    fill(server, "huge", &all_rows(rows), truth)
}

/// The statement that inserts so many rows.
pub(crate) fn all_rows(rows: u64) -> String {
    format!("INSERT INTO orders SELECT r.* FROM generate_series(1, {rows}) i, order_row(i) r")
}

/// W4: updates under REPLICA IDENTITY FULL.
pub(crate) fn full(server: &Server, rows: u64) -> Result<Workload> {
    database(server, "whole")?;
    server.sql("whole", &all_rows(rows))?;
    server.sql("whole", "ALTER TABLE orders REPLICA IDENTITY FULL")?;
    let truth = Expected { inserts: 0, updates: rows, deletes: 0, ids: Some(sum(1, rows)) };
    fill(server, "whole", &format!("CALL passes({rows}, 1)"), truth)
}

/// W5: updates of rows with 20 kB beside the row that they do not touch.
pub(crate) fn toast(server: &Server, updates: u64) -> Result<Workload> {
    database(server, "toast")?;
    let rows = updates / 10;
    server.sql("toast", &all_rows(rows))?;
    let blob = "(SELECT string_agg(md5(id || ':' || k), '') FROM generate_series(1, 625) k)";
    server.sql("toast", "ALTER TABLE orders ALTER attrs SET STORAGE EXTERNAL")?;
    server.sql("toast", &format!("UPDATE orders SET attrs = jsonb_build_object('blob', {blob})"))?;
    let truth = Expected { inserts: 0, updates: rows * 10, deletes: 0, ids: Some(sum(1, rows) * 10) };
    fill(server, "toast", &format!("CALL passes({rows}, 10)"), truth)
}

/// W6: so many tables in turn.
pub(crate) fn many(server: &Server, tables: u64, rows: u64) -> Result<Workload> {
    database(server, "many")?;
    for table in 1..=tables {
        server.sql(
            "many",
            &format!(
                "CREATE TABLE many_{table} (LIKE orders INCLUDING ALL); ALTER PUBLICATION bench ADD TABLE many_{table}"
            ),
        )?;
    }
    let truth = Expected { inserts: tables * rows, updates: 0, deletes: 0, ids: Some(sum(1, rows) * tables as i64) };
    fill(server, "many", &format!("CALL many({tables}, {rows})"), truth)
}

fn sum(first: u64, last: u64) -> i64 {
    ((first + last) * (last - first + 1) / 2) as i64
}

/// What the generator's arithmetic says.
struct Expected {
    inserts: u64,
    updates: u64,
    deletes: u64,
    ids: Option<i64>,
}

fn fill(server: &Server, database: &'static str, call: &str, expected: Expected) -> Result<Workload> {
    server.sql(database, &format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", base(database)))?;
    let mut psql = server.client("psql");
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", "SET synchronous_commit = off", "-c", call]);
    crate::server::must(&mut psql)?;
    let workload = truth(server, database)?;
    let found = &workload.truth;
    let counted = (found.inserts, found.updates, found.deletes);
    let arithmetic = (expected.inserts, expected.updates, expected.deletes);
    if counted != arithmetic || expected.ids.is_some_and(|ids| ids != found.ids) {
        return Err(format!("{database}: the stream has {found:?}, the generator made {arithmetic:?}").into());
    }
    Ok(workload)
}

/// What lies between a base slot and now, by the null drain and the hand-written encoder.
pub(crate) fn truth(server: &Server, database: &'static str) -> Result<Workload> {
    // Something behind the last commit, so that the end is passed.
    server.sql(database, "SELECT pg_logical_emit_message(false, 'bench', '')")?;
    let until = server.lsn(database)?;
    server.sql("postgres", "CHECKPOINT")?;
    server.copy_slot(database, &base(database), "truth")?;
    let mut truth = Checksum::default();
    let mut messages = Vec::new();
    let (mut body, mut bodies) = (Vec::new(), 0);
    let drained = null_drain::drain(server.port, database, "truth", until, |message| {
        body.clear();
        encoder::encode(message, &mut body);
        truth.row(op(message), &body);
        bodies += body.len() as u64;
        if messages.len() < KEPT {
            messages.push(message.to_vec());
        }
        Ok(())
    })?;
    server.drop_slot(database, "truth")?;
    Ok(Workload { database, end: drained.last, truth, bytes: drained.bytes, bodies, messages })
}
