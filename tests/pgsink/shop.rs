//! A shop of thirty tables, written at a steady rate while the daemon and the
//! warehouse are killed: the mirror shows only what the shop was.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use highwater_tests::{Daemon, Postgres, Server, folder, until};
use tokio_postgres::Client;

use super::kills::{Looks, look};
use super::{config, number, warehouse};
use crate::spine::capturing;
use crate::verify::verify_of;

/// Transactions a second, of all writers together.
const RATE: u64 = 1_000;
const WRITERS: u64 = 8;
/// Orders of a writer that are there at a time.
const STANDING: u64 = 200;
/// Rows of a table that is only referred to, or changed.
const FIXED: u64 = 64;
/// What is in the accounts and the tills together.
const MONEY: u64 = 2 * FIXED * 1_000;

/// Each table with those that it refers to; of what is written when something
/// is bought, in that order.
const FIXTURES: [(&str, &[&str]); 17] = [
    ("regions", &[]),
    ("countries", &["regions"]),
    ("cities", &["countries"]),
    ("customers", &["cities"]),
    ("addresses", &["customers", "cities"]),
    ("accounts", &["customers"]),
    ("suppliers", &["countries"]),
    ("brands", &["suppliers"]),
    ("categories", &[]),
    ("products", &["brands", "categories"]),
    ("prices", &["products"]),
    ("warehouses", &["cities"]),
    ("stock", &["products", "warehouses"]),
    ("carriers", &["countries"]),
    ("staff", &["warehouses"]),
    ("tills", &["warehouses"]),
    ("coupons", &["categories"]),
];
const BOUGHT: [(&str, &[&str]); 13] = [
    ("carts", &["customers"]),
    ("cart_lines", &["carts", "products"]),
    ("orders", &["customers", "addresses", "carts"]),
    ("order_lines", &["orders", "products", "prices"]),
    ("redemptions", &["orders", "coupons"]),
    ("payments", &["orders", "accounts", "tills"]),
    ("invoices", &["orders", "payments"]),
    ("shipments", &["orders", "warehouses", "staff"]),
    ("parcels", &["shipments", "carriers"]),
    ("scans", &["parcels", "cities"]),
    ("reviews", &["order_lines", "customers"]),
    ("claims", &["parcels"]),
    ("refunds", &["payments", "claims"]),
];

fn tables() -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
    FIXTURES.into_iter().chain(BOUGHT)
}

fn is_bought(table: &str) -> bool {
    BOUGHT.iter().any(|(name, _)| *name == table)
}

async fn build(client: &Client) {
    let mut sql = String::new();
    for (table, parents) in tables() {
        write!(sql, "CREATE TABLE {table} (id bigint PRIMARY KEY, amount bigint NOT NULL, note text").unwrap();
        for parent in parents {
            write!(sql, ", {parent}_id bigint NOT NULL REFERENCES {parent}").unwrap();
        }
        sql.push_str(");");
        if is_bought(table) {
            // What is deleted is looked for by those that refer to it.
            for parent in parents.iter().filter(|parent| is_bought(parent)) {
                write!(sql, "CREATE INDEX ON {table} ({parent}_id);").unwrap();
            }
        } else {
            let refers = ", i".repeat(parents.len());
            write!(
                sql,
                "INSERT INTO {table} SELECT i, 1000, md5(i::text){refers} FROM generate_series(0, {FIXED} - 1) i;"
            )
            .unwrap();
        }
    }
    client.batch_execute(&sql).await.unwrap();
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

/// What happens in the shop next: one transaction, which moves money between
/// an account and a till and so keeps the sum of both.
fn happens(random: &mut Random, writer: u64, bought: &mut u64, gone: &mut u64) -> String {
    let (account, till, amount) = (random.below(FIXED), random.below(FIXED), 1 + random.below(90));
    let mut sql = String::from("BEGIN;");
    let id = |n: u64| n * WRITERS + writer;
    let (mut more, mut less) = (String::from("tills"), String::from("accounts"));
    match random.below(10) {
        // Somebody buys, and everything of it is there at once.
        0..3 => {
            let new = id(*bought);
            *bought += 1;
            for (table, parents) in BOUGHT {
                // Some of it comes later, or never.
                if matches!(table, "reviews" | "claims" | "refunds") {
                    break;
                }
                write!(sql, "INSERT INTO {table} VALUES ({new}, {amount}, 'n{new}'").unwrap();
                for parent in parents {
                    let of = if is_bought(parent) { new } else { random.below(FIXED) };
                    write!(sql, ", {of}").unwrap();
                }
                sql.push_str(");");
            }
        }
        3 if *bought > *gone => {
            // Given back, once.
            let some = id(*gone + random.below(*bought - *gone));
            write!(
                sql,
                "INSERT INTO reviews VALUES ({some}, 1, 'no', {some}, {account}) ON CONFLICT DO NOTHING;
                 INSERT INTO claims VALUES ({some}, {amount}, 'broken', {some}) ON CONFLICT DO NOTHING;
                 INSERT INTO refunds VALUES ({some}, {amount}, NULL, {some}, {some}) ON CONFLICT DO NOTHING;"
            )
            .unwrap();
            (more, less) = (less, more);
        }
        4..7 if *bought > *gone => {
            let some = id(*gone + random.below(*bought - *gone));
            let table = ["orders", "shipments", "parcels", "invoices"][random.below(4) as usize];
            write!(sql, "UPDATE {table} SET note = 'seen ' || {amount}, amount = amount + 1 WHERE id = {some};")
                .unwrap();
        }
        _ => {
            let table = ["stock", "prices", "customers", "products"][random.below(4) as usize];
            write!(sql, "UPDATE {table} SET amount = amount + 1 WHERE id = {};", random.below(FIXED)).unwrap();
        }
    }
    if *bought - *gone > STANDING {
        // The oldest is forgotten, from the leaves to the root.
        let old = id(*gone);
        *gone += 1;
        for (table, _) in BOUGHT.iter().rev() {
            write!(sql, "DELETE FROM {table} WHERE id = {old};").unwrap();
        }
    }
    write!(
        sql,
        "UPDATE {less} SET amount = amount - {amount} WHERE id = {account};
         UPDATE {more} SET amount = amount + {amount} WHERE id = {till}; COMMIT"
    )
    .unwrap();
    sql
}

/// Writes at its share of the rate until told to stop; transactions, and those
/// that the server rolled back.
async fn write(client: Client, writer: u64, stop: Arc<AtomicBool>) -> (u64, u64) {
    let mut random = Random(writer * 7919 + 17);
    let (mut bought, mut gone, mut done, mut refused) = (0, 0, 0, 0);
    let mut ticks = tokio::time::interval(Duration::from_micros(1_000_000 * WRITERS / RATE));
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let (before, sql) = ((bought, gone), happens(&mut random, writer, &mut bought, &mut gone));
        match client.batch_execute(&sql).await {
            Ok(()) => done += 1,
            // Two took the same rows in another order.
            Err(_) => {
                client.batch_execute("ROLLBACK").await.unwrap();
                ((bought, gone), refused) = (before, refused + 1);
            }
        }
    }
    (done, refused)
}

/// Whether all is kept: the money, and every reference.
fn whole() -> String {
    let mut sql = format!(
        "SELECT (SELECT sum(amount) FROM accounts) + (SELECT sum(amount) FROM tills) = {MONEY}
                AND (SELECT count(*) FROM accounts) = {FIXED} AND (SELECT count(*) FROM tills) = {FIXED}"
    );
    for (table, parents) in tables() {
        for parent in parents {
            write!(
                sql,
                " AND NOT EXISTS (SELECT FROM {table} t WHERE NOT EXISTS (SELECT FROM {parent} WHERE id = t.{parent}_id))"
            )
            .unwrap();
        }
    }
    sql.push_str(", (SELECT sum(amount)::text FROM tills)");
    sql
}

/// Only the money, which is quicker to look at.
fn money() -> String {
    format!(
        "SELECT (SELECT sum(amount) FROM accounts) + (SELECT sum(amount) FROM tills) = {MONEY},
                (SELECT sum(amount)::text FROM tills)"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shop_is_true_at_every_look_and_equal_in_the_end() {
    let long = std::env::var("HIGHWATER_SHOP_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let (seconds, kills, crashes) = long.map_or((20, 5, 1), |seconds: u64| (seconds, 20, 3));
    let source = Postgres::new(17).await;
    let server = tokio::task::spawn_blocking(|| Server::start(17, "")).await.unwrap();
    let warehouse = Arc::new(warehouse(Some(Arc::new(server)), 17).await);
    let client = source.client().await;
    build(&client).await;
    let names: Vec<&str> = tables().map(|(name, _)| name).collect();
    assert_eq!(names.len(), 30);
    source.publish("highwater_shop", &names.join(", ")).await;
    let folder = folder("pgsink-shop");
    let mut daemon = Daemon::new(&folder, &config(&source, &warehouse, ""));
    daemon.catch_up();

    let stop = Arc::new(AtomicBool::new(false));
    let looking = [money(), whole()].map(|sql| tokio::spawn(look(warehouse.clone(), sql, stop.clone())));
    let written = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(write(source.client().await, writer, written.clone()));
    }
    daemon.start(&["run"], None);
    // Kills and crashes at moments that are spread over the time, no two runs' alike in the step.
    let accidents = kills + crashes;
    let (mut random, mut crashed) = (Random(88_172_645_463_325_252), 0);
    for accident in 1..=accidents {
        let share = Duration::from_secs(seconds) / (accidents + 1);
        let at = share * accident + share.mul_f64(random.below(100) as f64 / 200.0);
        tokio::time::sleep(at.saturating_sub(began.elapsed())).await;
        if accident * crashes / accidents > crashed {
            crashed += 1;
            let server = warehouse.server.clone();
            tokio::task::spawn_blocking(move || {
                server.down("immediate");
                server.up();
            })
            .await
            .unwrap();
            assert!(daemon.is_running(), "the daemon waits for its warehouse");
        } else {
            daemon.kill();
            daemon.start(&["run"], None);
        }
    }
    tokio::time::sleep(Duration::from_secs(seconds).saturating_sub(began.elapsed())).await;
    written.store(true, Ordering::Relaxed);
    let (mut transactions, mut refused) = (0, 0);
    while let Some(done) = writers.join_next().await {
        let (done, rolled_back) = done.unwrap();
        (transactions, refused) = (transactions + done, refused + rolled_back);
    }
    let took = began.elapsed();
    capturing(&daemon).await;
    // Looked at until the last of it is there.
    let there = number(&client, "SELECT sum(amount)::int8 FROM tills").await;
    let here = Arc::new(warehouse.client().await);
    until(300 + 2 * seconds, "all of it is in the mirror", || {
        let here = here.clone();
        async move { number(&here, "SELECT sum(amount)::int8 FROM tills").await == there }
    })
    .await;
    let verified = verify_of(&daemon, "warehouse", &[]);
    stop.store(true, Ordering::Relaxed);
    let (mut looks, mut wrong, mut states) = (Vec::new(), Vec::new(), 0);
    for looking in looking {
        let Looks { looks: of, wrong: not, states: seen } = looking.await.unwrap();
        looks.push(of);
        wrong.extend(not);
        states += seen;
    }
    println!(
        "{transactions} transactions in {took:?}, {refused} rolled back; {kills} kills, {crashed} crashes of the warehouse; \
         looks: {looks:?}, at {states} states, wrong: {}; verify: exit {}, {}",
        wrong.len(),
        verified.code,
        verified.summary()
    );
    assert!(wrong.is_empty(), "{:?}", &wrong[..wrong.len().min(5)]);
    verified.is_equal();
    assert_eq!(verified.summary()["tables"], 30);
    assert!(looks.iter().all(|looks| *looks > 5) && states > 5, "{looks:?} looks at {states} states");
    assert!(transactions > 500 && crashed == crashes, "{transactions} transactions");
}
