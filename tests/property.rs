//! Whatever is done to a database, and however often the daemon dies meanwhile:
//! the log replayed equals the tables, and its history equals what a second
//! slot's test_decoding shows. By a seed, which is printed:
//! `HIGHWATER_PROPERTY_SEED` repeats one, `HIGHWATER_PROPERTY_SECONDS` goes on
//! for longer, with a database after another.

use std::time::{Duration, Instant};

use highwater_tests::{Daemon, Postgres, Truth, compare, final_state, folder, landed};
use tokio_postgres::Client;

use crate::spine::{capturing, local, to_folder};

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }

    fn one<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }
}

/// Types, and for a value of each an expression of `$`, a number.
const TYPES: [(&str, &str); 7] = [
    ("int", "($ * 7919 % 1000)::int"),
    ("bigint", "$ * 1000003"),
    ("text", "'text ' || $"),
    ("text", "CASE WHEN $ % 3 > 0 THEN repeat(md5($::text), 90) END"),
    ("boolean", "$ % 2 = 0"),
    ("numeric(12,2)", "($ % 100000)::numeric / 4"),
    ("timestamptz", "timestamptz '2024-02-29 12:00:00+00' + $ * interval '1 second'"),
];

/// A table as the writers know it. After an ALTER that was rolled back they know
/// a column that is not there: the statement that names it fails, as in life.
struct Table {
    name: String,
    columns: Vec<(String, usize)>,
    made: u64,
}

impl Table {
    fn random(random: &mut Random, number: usize) -> (Self, String) {
        let mut table = Self { name: format!("p{number}"), columns: Vec::new(), made: 0 };
        let mut sql = format!("CREATE TABLE {} (id bigint PRIMARY KEY", table.name);
        for _ in 0..=random.below(5) {
            sql += &format!(", {}", table.add(random));
        }
        sql += ");";
        for (name, ty) in &table.columns {
            if *ty == 3 && random.below(2) == 0 {
                sql += &format!("ALTER TABLE {} ALTER {name} SET STORAGE EXTERNAL;", table.name);
            }
        }
        if random.below(3) == 0 {
            sql += &format!("ALTER TABLE {} REPLICA IDENTITY FULL;", table.name);
        }
        (table, sql)
    }

    fn add(&mut self, random: &mut Random) -> String {
        let ty = random.below(TYPES.len() as u64) as usize;
        let name = format!("c{}", self.made);
        self.made += 1;
        self.columns.push((name.clone(), ty));
        format!("{name} {}", TYPES[ty].0)
    }

    fn insert(&self, from: u64, rows: u64) -> String {
        let names: String = self.columns.iter().map(|(name, _)| format!(", {name}")).collect();
        let values: String =
            self.columns.iter().map(|(_, ty)| format!(", {}", TYPES[*ty].1.replace('$', "i"))).collect();
        let name = &self.name;
        format!(
            "INSERT INTO {name} (id{names}) SELECT i{values} FROM generate_series({from}::bigint, {}) i",
            from + rows - 1
        )
    }

    /// A statement that an application may have. Without `ddl` within savepoints:
    /// a server that decodes an ALTER rolled back to one may lose sight of the
    /// table ("could not map filenode"), and a backend of 18.4 that ran
    /// test_decoding over such ones, which are the truth here, has crashed.
    fn statement(&mut self, random: &mut Random, next: &mut u64, ddl: bool) -> String {
        let name = self.name.clone();
        let low = random.below(*next);
        let rows = *random.one(&[1, 3, 20, 40, 300, 1500]);
        match random.below(20) {
            0..8 => {
                *next += rows;
                self.insert(*next - rows, rows)
            }
            8..12 if !self.columns.is_empty() => {
                let (column, ty) = random.one(&self.columns);
                let value = TYPES[*ty].1.replace('$', &format!("(id + {rows})"));
                format!("UPDATE {name} SET {column} = {value} WHERE id BETWEEN {low} AND {}", low + rows)
            }
            12..14 => {
                *next += 10;
                format!(
                    "UPDATE {name} SET id = {} WHERE id = (SELECT max(id) FROM {name} WHERE id <= {low})",
                    *next - 5
                )
            }
            14..16 => format!("DELETE FROM {name} WHERE id BETWEEN {low} AND {}", low + rows / 2),
            16 if random.below(3) == 0 => format!("TRUNCATE {name}"),
            17 if ddl => format!("ALTER TABLE {name} ADD COLUMN {}", self.add(random)),
            18 if ddl && self.columns.len() > 1 => {
                let gone = random.below(self.columns.len() as u64) as usize;
                format!("ALTER TABLE {name} DROP COLUMN {}", self.columns.remove(gone).0)
            }
            19 if ddl && random.below(2) == 0 => match self.columns.iter_mut().find(|(_, ty)| *ty == 0) {
                Some((column, ty)) => {
                    *ty = 1;
                    format!("ALTER TABLE {name} ALTER {column} TYPE bigint")
                }
                None => "SELECT 1".into(),
            },
            _ => format!("SELECT pg_logical_emit_message({}, 'app', 'about {name}')", random.below(2) == 0),
        }
    }

    /// What the table is, after statements that may have been rolled back.
    async fn look(&mut self, client: &Client) {
        let sql = "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute
                    WHERE attrelid = $1::text::regclass AND attnum > 1 AND NOT attisdropped ORDER BY attnum";
        let rows = client.query(sql, &[&self.name]).await.unwrap();
        let known = |row: &tokio_postgres::Row| {
            let ty: String = row.get(1);
            let ty = if ty == "integer" {
                "int"
            } else {
                ty.strip_suffix(" with time zone").map_or(&*ty, |_| "timestamptz")
            };
            (row.get(0), TYPES.iter().position(|(name, _)| *name == ty).unwrap())
        };
        self.columns = rows.iter().map(known).collect();
    }
}

async fn world(seed: u64, seconds: u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let version = *random.one(&[14, 15, 16, 17, 18]);
    println!("seed {seed}: PostgreSQL {version}, {seconds} s; HIGHWATER_PROPERTY_SEED={seed} repeats it");
    let postgres = Postgres::new(version).await;
    let watcher = postgres.client().await;
    let mut tables = Vec::new();
    for number in 0..1 + random.below(4) as usize {
        let (table, sql) = Table::random(&mut random, number);
        watcher.batch_execute(&sql).await.unwrap();
        tables.push(table);
    }
    let mut next = 1 + random.below(2_000);
    for table in &tables {
        watcher.batch_execute(&table.insert(1, next)).await.unwrap();
    }
    next += 1;
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    postgres.publish("highwater_shop", &names.join(", ")).await;
    let memory = *random.one(&["64kB", "64kB", "256kB", "64MB"]);
    watcher
        .batch_execute(&format!("ALTER DATABASE {} SET logical_decoding_work_mem = '{memory}'", postgres.database))
        .await
        .unwrap();
    Truth::watch(&postgres).await;
    let home = folder(&format!("property-{seed}"));
    let lake = home.join("lake");
    let config = to_folder(&postgres, &lake, "150ms").replace("[log]", "on_incompatible = \"evolve\"\n[log]");
    let mut daemon = Daemon::new(&home, &config);
    daemon.start(&["run"], None);
    capturing(&daemon).await;

    let clients = [postgres.client().await, postgres.client().await];
    for client in &clients {
        client.batch_execute("SET lock_timeout = '50ms'").await.unwrap();
    }
    // Of each connection: savepoints open; None: no transaction.
    let mut open: [Option<u64>; 2] = [None, None];
    let (began, mut statements, mut transactions, mut kills) = (Instant::now(), 0, 0, 0);
    while began.elapsed() < Duration::from_secs(seconds) {
        let who = random.below(2) as usize;
        let (client, at) = (&clients[who], &mut open[who]);
        let sql = match (*at, random.below(12)) {
            (None, _) => {
                *at = Some(0);
                "BEGIN".into()
            }
            (Some(n), 0) => {
                *at = Some(n + 1);
                format!("SAVEPOINT s{n}")
            }
            (Some(n @ 1..), 1) => format!("ROLLBACK TO s{}", random.below(n)),
            (Some(n @ 1..), 2) => {
                *at = Some(n - 1);
                format!("RELEASE s{}", n - 1)
            }
            (Some(_), 3) => {
                *at = None;
                transactions += 1;
                if random.below(5) == 0 { "ROLLBACK" } else { "COMMIT" }.into()
            }
            _ => {
                statements += 1;
                let table = random.below(tables.len() as u64) as usize;
                tables[table].statement(&mut random, &mut next, *at == Some(0))
            }
        };
        let ended = sql == "ROLLBACK" || sql.starts_with("ROLLBACK TO");
        if client.batch_execute(&sql).await.is_err() {
            // A lock that the other holds, a column that went: the transaction is over.
            client.batch_execute("ROLLBACK").await.unwrap();
            *at = None;
            for table in &mut tables {
                table.look(client).await;
            }
        } else if ended {
            for table in &mut tables {
                table.look(&watcher).await;
            }
        }
        if random.below(60) == 0 || !daemon.is_running() {
            if daemon.is_running() {
                daemon.kill();
            } else {
                let ended = daemon.wait(Duration::from_secs(5));
                assert!(ended.stderr.contains("fault point hit"), "{}", ended.stderr);
            }
            kills += 1;
            let fault = match random.below(4) {
                0 => Some(format!("spool-chunk:{}", 1 + random.below(20))),
                1 => Some(format!("spool-commit:{}", 1 + random.below(3))),
                _ => None,
            };
            daemon.start(&["run"], fault.as_deref());
        }
    }
    for (client, at) in clients.iter().zip(open) {
        if at.is_some() {
            client.batch_execute("COMMIT").await.unwrap();
        }
    }
    if daemon.is_running() {
        daemon.kill();
    } else {
        daemon.wait(Duration::from_secs(5));
    }
    daemon.catch_up();
    let mut total = 0;
    for table in &tables {
        let events = landed(&local(&lake), &format!("shop.public.{}", table.name)).await;
        compare(&table.name, &Truth::of(&postgres, &format!("public.{}", table.name)).await, &events);
        final_state(&watcher, &table.name, &events).await;
        total += events.len();
    }
    let streamed: Option<i64> = watcher
        .query_one("SELECT sum(stream_txns)::bigint FROM pg_stat_replication_slots WHERE slot_name = 'hw_' || current_database()", &[])
        .await
        .unwrap()
        .get(0);
    println!(
        "seed {seed}: {statements} statements, {transactions} transactions, {} streamed, {kills} kills, {total} events: all there, once and in order",
        streamed.unwrap_or(0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_the_database_whatever_is_done_to_both() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 % 1_000_000;
    let (seed, seconds) = (number("HIGHWATER_PROPERTY_SEED"), number("HIGHWATER_PROPERTY_SECONDS").unwrap_or(20));
    let began = Instant::now();
    let mut turn = 0;
    while turn == 0 || began.elapsed() < Duration::from_secs(seconds) {
        world(seed.unwrap_or(now) + turn, seconds.min(20)).await;
        turn += 1;
    }
}
