//! T3 live: the daemon runs while the transactions do. One that is rolled back,
//! one that is committed, then one of 1 GiB with a row of 64 MiB.

use std::time::Duration;

use crate::daemon::{Daemon, field, time_of};
use crate::machine::{Calm, measure};
use crate::report::Figure;
use crate::{Bench, Result, workload};

const DATABASE: &str = "live";
/// 64 KiB each.
const LARGE_ROWS: u64 = 16 << 10;

/// T3b, T3m, T3r, T3g.
pub(crate) fn live(bench: &mut Bench, rows: u64) -> Result<Vec<Figure>> {
    workload::database(&bench.server, DATABASE)?;
    bench.server.sql(DATABASE, "SELECT pg_create_logical_replication_slot('live', 'pgoutput')")?;
    let daemon = Daemon::new(&bench.folder.join(DATABASE), &bench.server, DATABASE, "live", "never")?;
    let mut calms = vec![Calm::look(0)];
    let insert = workload::all_rows(rows);
    let (mut peaks, mut left, mut spooled) = ((0.0, 0.0), 0, 0);
    let (usage, status) = measure(&mut daemon.command(&[], "info,storage=trace")?, |child| {
        daemon.until(child, "it streamed", |status| status["sources"][0]["health"] == "running")?;
        bench.server.sql(DATABASE, &format!("BEGIN; {insert}; ROLLBACK"))?;
        bench.server.sql(DATABASE, "SELECT pg_logical_emit_message(false, 'highwater.bench', '')")?;
        daemon.until_durable(child, bench.server.lsn(DATABASE)?)?;
        let status = daemon.status().ok_or("no status")?;
        left = status["sources"][0]["log"]["end"].as_u64().unwrap_or(u64::MAX)
            + std::fs::read_dir(daemon.folder.join("data/spool/shop"))?.count() as u64;
        bench.server.sql(DATABASE, &insert)?;
        spooled = daemon.status().ok_or("no status")?["sources"][0]["spool_bytes"].as_u64().unwrap_or(0);
        daemon.until_durable(child, bench.server.lsn(DATABASE)?)?;
        peaks.0 = Daemon::memory(child).1;
        let columns = "sku, amount, currency, qty, paid, created_at, updated_at, uid, attrs";
        let large = |from: u64, count: u64, bytes: u64| {
            let last = from + count - 1;
            format!(
                "INSERT INTO orders (id, customer_id, note, {columns}) SELECT i, 1, repeat(md5(i::text), {}), {columns}
                   FROM generate_series({from}, {last}) i, (SELECT * FROM orders WHERE id = 1) o",
                bytes / 32
            )
        };
        let (first, row) = (large(10_000_000, LARGE_ROWS, 64 << 10), large(20_000_000, 1, (64 << 20) - 8192));
        bench.server.sql(DATABASE, &format!("BEGIN; {first}; {row}; COMMIT"))?;
        daemon.until_durable(child, bench.server.lsn(DATABASE)?)?;
        std::thread::sleep(Duration::from_millis(20));
        peaks.1 = Daemon::memory(child).1;
        Daemon::stop(child)?;
        Ok(None)
    })?;
    if !status.success() {
        return Err(format!("the daemon ended with {status}: {}", daemon.said()).into());
    }
    calms.push(Calm::look(1));
    bench.server.drop_slot(DATABASE, "live")?;
    bench.peak("transactions of 1 GiB", usage.peak);

    let said = daemon.said();
    let mut commit = 0;
    let moved = daemon.log(|time, end| {
        if end <= rows {
            commit = time;
        }
    })?;
    let durable =
        |line: &&str| line.contains(" durable ") && field(line, "offset").is_some_and(|offset| offset >= rows);
    let durable = said.lines().find(durable).and_then(time_of).ok_or("the transaction was never durable")?;
    let verified = moved.inserts == rows + LARGE_ROWS + 1 && moved.rows() == moved.inserts;
    let figure = |id, what, unit, target, value: f64| {
        let rounds: Vec<_> = calms.iter().map(|calm| (*calm, value)).collect();
        Figure::of(id, what, unit, ("<=", target), &rounds).verified(verified)
    };
    let waited = format!("{} MB waited in the spool at its commit", spooled / 1_000_000);
    Ok(vec![
        figure(
            "T3b",
            "one transaction, from its commit to all of it readable",
            "s",
            1.0,
            (durable - commit) as f64 / 1e6,
        )
        .note(&waited),
        figure("T3m", "memory of the daemon meanwhile", "MiB", 128.0, peaks.0),
        figure("T3r", "offsets and files that a transaction rolled back leaves", "", 0.0, left as f64),
        figure("T3g", "memory, a transaction of 1 GiB with a row of 64 MiB", "MiB", 256.0, peaks.1),
    ])
}
