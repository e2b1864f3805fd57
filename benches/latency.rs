//! T9: single-row transactions at a fixed rate, whether or not the last was
//! answered; from the commit's own time stamp, which PostgreSQL takes before it
//! syncs its WAL, to the daemon's `durable` line, written as fdatasync returns.
//! Beside it the disk: 4 KiB appended and synced, before and after.

use std::process::Stdio;
use std::time::Duration;

use crate::daemon::{Daemon, field, time_of};
use crate::machine::{Calm, fdatasync, measure, quantile};
use crate::report::Figure;
use crate::{Bench, Result, server, workload};

const RATE: u64 = 1000;
const CLIENTS: u64 = 16;
const SCRIPT: &str = "\\set n :n + 1\nINSERT INTO orders SELECT * FROM order_row((:client_id + 1) * 1000000 + :n);\n";
const DATABASE: &str = "latency";

/// Two figures, and the idle half of T13.
pub(crate) fn latency(bench: &mut Bench) -> Result<Vec<Figure>> {
    let seconds = if bench.quick { 8 } else { 30 };
    eprintln!("latency: {RATE} transactions a second for {seconds} s");
    workload::database(&bench.server, DATABASE)?;
    for slot in [&workload::base(DATABASE), "latency"] {
        bench.server.sql(DATABASE, &format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"))?;
    }
    let script = bench.folder.join("latency.sql");
    std::fs::write(&script, SCRIPT)?;
    let daemon = Daemon::new(&bench.folder.join(DATABASE), &bench.server, DATABASE, "latency", "never")?;
    let mut calms = vec![Calm::look(0)];
    let mut synced = Vec::new();
    let mut idle = (0.0, 0.0);
    let (usage, status) = measure(&mut daemon.command(&[], "info,storage=trace")?, |child| {
        daemon.until(child, "it streamed", |status| status["sources"][0]["health"] == "running")?;
        std::thread::sleep(Duration::from_secs(3));
        idle = Daemon::memory(child);
        synced.extend(fdatasync(&bench.folder, 400)?);
        let mut pgbench = bench.server.client("pgbench");
        let each = (RATE * seconds / CLIENTS).to_string();
        pgbench.args(["-n", "-M", "prepared", "-j", "2", "-D", "n=0", "-c", &CLIENTS.to_string(), "-t", &each]);
        pgbench.args(["-R", &RATE.to_string(), "-f"]).arg(&script).arg(DATABASE);
        server::must(pgbench.stdin(Stdio::null()))?;
        synced.extend(fdatasync(&bench.folder, 400)?);
        daemon.until_durable(child, bench.server.lsn(DATABASE)?)?;
        Daemon::stop(child)?;
        Ok(None)
    })?;
    if !status.success() {
        return Err(format!("the daemon ended with {status}: {}", daemon.said()).into());
    }
    calms.push(Calm::look(1));
    bench.server.drop_slot(DATABASE, "latency")?;
    bench.idle(idle.0.max(idle.1));
    bench.peak("1,000 transactions a second", usage.peak);

    let said = daemon.said();
    let durable: Vec<(i64, u64)> = said
        .lines()
        .filter(|line| line.contains(" durable "))
        .filter_map(|line| Some((time_of(line)?, field(line, "offset")?)))
        .collect();
    let mut commits = Vec::new();
    let moved = daemon.log(|time, end| commits.push((time, end)))?;
    let truth = workload::truth(&bench.server, DATABASE)?.truth;
    bench.server.drop_slot(DATABASE, &workload::base(DATABASE))?;
    let verified =
        moved == truth && truth.inserts == RATE * seconds / CLIENTS * CLIENTS && truth.rows() == truth.inserts;
    // The first fifth is warm-up.
    let from = commits.first().map_or(0, |(time, _)| time + seconds as i64 * 200_000);
    let mut took = Vec::new();
    let mut next = 0;
    for (time, end) in &commits {
        while durable.get(next).is_some_and(|(_, offset)| offset < end) {
            next += 1;
        }
        let (instant, _) = durable.get(next).ok_or("a transaction has no durable line")?;
        if *time >= from {
            took.push((instant - time) as f64 / 1e3);
        }
    }
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| quantile(&mut took, share));
    let [sync50, sync99] = [0.5, 0.99].map(|share| quantile(&mut synced, share));
    let note = format!(
        "{} commits, p99.9 {p999:.1} ms, {} syncs of the log; fdatasync p50 {sync50:.2} p99 {sync99:.2} ms",
        took.len(),
        durable.len()
    );
    let figure = |id, what, value, target| {
        let rounds: Vec<_> = calms.iter().map(|calm| (*calm, value)).collect();
        let mut figure = Figure::of(id, what, "ms", ("<=", target), &rounds).verified(verified);
        figure.note = note.clone();
        figure
    };
    Ok(vec![
        figure("T9", "commit to durable, 1,000 tx/s: p50 (fdatasync + 1.5)", p50, sync50 + 1.5),
        figure("T9b", "commit to durable, 1,000 tx/s: p99 (fdatasync + 5)", p99, sync99 + 5.0),
    ])
}
