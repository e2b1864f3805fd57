//! Writers that do what applications do, all at once: by a seed, until told to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::postgres::Postgres;

/// Running writers.
pub struct Workload {
    stop: Arc<AtomicBool>,
    pub committed: Arc<AtomicU64>,
    writers: JoinSet<()>,
}

/// Their tables: name for SQL, name as test_decoding has it, stream's last part.
const TABLES: [(&str, &str, &str); 4] = [
    ("orders", "public.orders", "public.orders"),
    ("notes", "public.notes", "public.notes"),
    ("\"Odd \"\"Näme\".\"tab.le\"", "\"Odd \"\"Näme\".\"tab.le\"", "Odd%20%22N%C3%A4me.tab%2Ele"),
    ("nokey", "public.nokey", "public.nokey"),
];

/// Behind so many transactions, some 180 events each, writers go slower: what
/// they do is compared in memory in the end, however fast the machine is.
const MANY: u64 = 12_000;
const PACE: Duration = Duration::from_millis(100);

impl Workload {
    /// Tables, with rows in them.
    pub async fn prepare(postgres: &Postgres, rows: u64) {
        let client = postgres.client().await;
        client
            .batch_execute(&format!(
                "CREATE TABLE orders (id bigint PRIMARY KEY, status text NOT NULL, amount numeric(12,2), paid boolean, at timestamptz);
                 CREATE TABLE notes (id bigint PRIMARY KEY, title text, body text);
                 ALTER TABLE notes ALTER body SET STORAGE EXTERNAL;
                 CREATE SCHEMA \"Odd \"\"Näme\";
                 CREATE TABLE \"Odd \"\"Näme\".\"tab.le\" (id bigint PRIMARY KEY, \"quoted \"\"column\" text, \"emoji 🐘\" int);
                 CREATE TABLE nokey (id bigint, what text);
                 ALTER TABLE nokey REPLICA IDENTITY FULL;
                 GRANT USAGE ON SCHEMA \"Odd \"\"Näme\" TO highwater;
                 GRANT SELECT ON ALL TABLES IN SCHEMA \"Odd \"\"Näme\", public TO highwater;
                 INSERT INTO orders SELECT i, 'new', i * 1.25, i % 2 = 0, now() FROM generate_series(1, {rows}) i;
                 INSERT INTO notes SELECT i, 'note ' || i, repeat(md5(i::text), 200) FROM generate_series(1, {rows} / 20) i;
                 INSERT INTO nokey SELECT i, 'thing ' || i FROM generate_series(1, {rows} / 20) i;"
            ))
            .await
            .unwrap();
        postgres.publish("highwater_shop", "orders, notes, \"Odd \"\"Näme\".\"tab.le\", nokey").await;
    }

    /// Tables of the workload.
    pub fn tables() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
        TABLES.into_iter()
    }

    /// Starts writers.
    pub async fn start(postgres: &Postgres, writers: u64, seed: u64) -> Self {
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let next = Arc::new(AtomicI64::new(1_000_000));
        let mut set = JoinSet::new();
        for writer in 0..writers {
            let client = postgres.client().await;
            let (stop, committed, next) = (stop.clone(), committed.clone(), next.clone());
            set.spawn(async move {
                let mut random = Random(seed * 1000 + writer + 1);
                while !stop.load(Ordering::Relaxed) {
                    if transaction(&client, &mut random, &next).await
                        && committed.fetch_add(1, Ordering::Relaxed) > MANY
                    {
                        tokio::time::sleep(PACE).await;
                    }
                }
            });
        }
        Self { stop, committed, writers: set }
    }

    /// Stops them; transactions that are under way end.
    pub async fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        while self.writers.join_next().await.is_some() {}
        self.committed.load(Ordering::Relaxed)
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// One transaction; whether it was committed. Conflicts between writers roll
/// some back, as they do in life.
async fn transaction(client: &Client, random: &mut Random, next: &AtomicI64) -> bool {
    if random.below(150) == 0 {
        return copy(client, next.fetch_add(10_000, Ordering::Relaxed)).await.is_ok();
    }
    let mut sql = String::from("BEGIN;");
    for _ in 0..=random.below(6) {
        let new = next.fetch_add(10_000, Ordering::Relaxed);
        let (some, other) = (1 + random.below(2_000), 1 + random.below(100));
        let statement = match random.below(100) {
            0..20 => format!("INSERT INTO orders VALUES ({new}, 'made', {some}.5, true, now())"),
            20..30 => format!(
                "INSERT INTO orders SELECT {new} + i, 'many', i, NULL, clock_timestamp() FROM generate_series(1, 20) i"
            ),
            30..50 => format!("UPDATE orders SET status = 'paid', paid = NOT paid WHERE id = {some}"),
            50..56 => format!("UPDATE orders SET id = {new} WHERE id = {some}"),
            56..62 => format!("DELETE FROM orders WHERE id = {some}"),
            62..70 => format!("UPDATE notes SET title = 'seen {new}' WHERE id = {other}"),
            70..74 => format!("UPDATE notes SET id = {new} WHERE id = {other}"),
            74..77 => format!("INSERT INTO notes VALUES ({new}, NULL, repeat('x{new}', 2500))"),
            77..83 => format!(
                "INSERT INTO nokey VALUES ({other}, 'thing'); UPDATE nokey SET what = what || '!' WHERE id = {other}"
            ),
            83..86 => format!("DELETE FROM nokey WHERE id = {other}"),
            86..93 => format!(
                "INSERT INTO \"Odd \"\"Näme\".\"tab.le\" VALUES ({new}, 'it''s \\ \"quoted\"', {some}); \
                 SAVEPOINT a; DELETE FROM orders WHERE id < {some}; ROLLBACK TO a; \
                 UPDATE \"Odd \"\"Näme\".\"tab.le\" SET \"quoted \"\"column\" = NULL WHERE id = {new}"
            ),
            93 => "TRUNCATE \"Odd \"\"Näme\".\"tab.le\"".to_owned(),
            94 => format!(
                "INSERT INTO orders SELECT {new} + i, 'big', i, false, clock_timestamp() FROM generate_series(1, 500) i"
            ),
            _ => format!("SAVEPOINT b; INSERT INTO orders VALUES ({new}, 'no', 0, false, now()); ROLLBACK TO b"),
        };
        sql.push_str(&statement);
        sql.push(';');
    }
    let kept = random.below(10) > 0;
    sql.push_str(if kept { "COMMIT" } else { "ROLLBACK" });
    let done = client.batch_execute(&sql).await.is_ok();
    if !done {
        // A deadlock or a taken key: the transaction is over.
        let _ = client.batch_execute("ROLLBACK").await;
    }
    done && kept
}

/// Many rows under one LSN.
async fn copy(client: &Client, new: i64) -> Result<(), tokio_postgres::Error> {
    let rows: String =
        (0..8_000).map(|i| format!("{}\tcopied\t{i}.25\tt\t2024-02-29 12:00:00+00\n", new + i)).collect();
    let sink = client.copy_in("COPY orders FROM STDIN").await?;
    let mut sink = std::pin::pin!(sink);
    futures_util::SinkExt::send(&mut sink, bytes::Bytes::from(rows)).await?;
    sink.finish().await.map(drop)
}
