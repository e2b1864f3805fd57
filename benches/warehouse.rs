//! T12: a full log into a PostgreSQL warehouse by the daemon, from the line in
//! which it says that it delivers to its last step; against the same rows by
//! hand, as fast as we know: one binary COPY into an unlogged table and one
//! MERGE, or, for a history, a plain binary COPY into a table of the same form.
//! T15: from commit at the source to commit in the mirror, at a fixed rate.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use crate::daemon::{Daemon, time_of};
use crate::machine::{Calm, measure, quantile};
use crate::report::Figure;
use crate::workload::Workload;
use crate::{Bench, Result, server, workload};

const WAREHOUSE: &str = "warehouse";
/// Everything of a table in one number, in no order.
const SUM: &str = "SELECT count(*) || ' ' || coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM";
const COLUMNS: &str = "id, customer_id, sku, note, amount, currency, qty, paid, created_at, updated_at, uid, attrs";

/// What a sink's tables are to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Mirror,
    History,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::Mirror => "mirror",
            Mode::History => "history",
        }
    }
}

/// The figure. `daemon` is one that has drained the workload and was stopped.
pub(crate) fn merge(
    bench: &mut Bench,
    id: &'static str,
    backlog: &Workload,
    daemon: &Daemon,
    mode: Mode,
) -> Result<Figure> {
    let changes = backlog.truth.rows();
    eprintln!("{changes} changes of {} into a {}", backlog.database, mode.name());
    // The source is to have nothing to do meanwhile.
    let (_, status) = measure(&mut daemon.command(&["--until-caught-up"], "info")?, |_| Ok(None))?;
    if !status.success() {
        return Err(format!("the daemon ended with {status}: {}", daemon.said()).into());
    }
    let file = bench.folder.join("by-hand.copy");
    let truth = bench.server.sql(backlog.database, &format!("{SUM} (SELECT {COLUMNS} FROM orders) t"))?;
    if mode == Mode::Mirror {
        copy_out(bench, backlog.database, &format!("SELECT {COLUMNS} FROM orders"), &file)?;
    }
    let mut rounds = Vec::new();
    let mut verified = true;
    let (mut ours, mut limit) = (0.0f64, 0.0f64);
    let mut cpu = 0.0;
    for round in 0..bench.rounds.min(3) {
        let calm = Calm::look(round);
        anew(bench)?;
        daemon.with_warehouse(bench.server.port, WAREHOUSE, mode.name())?;
        let mut command = daemon.command(&["--until-caught-up"], "info,connector_runtime=debug")?;
        let (usage, status) = measure(&mut command, |_| Ok(None))?;
        let said = daemon.said();
        daemon.without_sinks()?;
        if !status.success() {
            return Err(format!("the daemon ended with {status}: {said}").into());
        }
        bench.peak(&format!("log to a {}", mode.name()), usage.peak);
        let begun = said.lines().find(|line| line.contains(" delivering ")).and_then(time_of);
        let ended = said.lines().rfind(|line| line.contains(" step committed ")).and_then(time_of);
        let took = match (begun, ended) {
            (Some(begun), Some(ended)) => (ended - begun) as f64 / 1e6,
            _ => return Err(format!("nothing was delivered: {said}").into()),
        };
        let landed = match mode {
            Mode::Mirror => bench.server.sql(WAREHOUSE, &format!("{SUM} (SELECT {COLUMNS} FROM orders) t"))?,
            Mode::History => {
                copy_out(bench, WAREHOUSE, "SELECT * FROM orders", &file)?;
                let current = format!("{SUM} (SELECT {COLUMNS} FROM orders_current) t");
                let rows = bench.server.sql(WAREHOUSE, "SELECT count(*) FROM orders")?;
                verified &= rows == changes.to_string();
                bench.server.sql(WAREHOUSE, &current)?
            }
        };
        if landed != truth {
            eprintln!("  the warehouse holds {landed}, the truth is {truth}");
        }
        verified &= landed == truth;
        let by_hand = by_hand(bench, &file, mode)?;
        eprintln!(
            "    highwater {:.0} k changes/s ({:.2} us each of CPU in all), by hand {:.0} k/s",
            changes as f64 / took / 1e3,
            usage.cpu * 1e6 / changes as f64,
            changes as f64 / by_hand / 1e3,
        );
        (ours, limit) = (ours.max(changes as f64 / took / 1e3), limit.max(changes as f64 / by_hand / 1e3));
        cpu = usage.cpu;
        rounds.push((calm, by_hand / took));
    }
    let what = match mode {
        Mode::Mirror => format!("{} into a mirror, against COPY and one MERGE", backlog.database),
        Mode::History => format!("{} into a history, against one COPY", backlog.database),
    };
    Ok(Figure::of(id, what, "x", (">=", 0.8), &rounds)
        .verified(verified)
        .note(format!("at best {ours:.0} k changes/s against {limit:.0} k; {:.2} CPU-s/M", cpu * 1e6 / changes as f64)))
}

/// An empty warehouse.
fn anew(bench: &Bench) -> Result<()> {
    bench.server.sql("postgres", &format!("DROP DATABASE IF EXISTS {WAREHOUSE} WITH (FORCE)"))?;
    bench.server.sql("postgres", &format!("CREATE DATABASE {WAREHOUSE}"))?;
    bench.server.sql("postgres", "CHECKPOINT").map(drop)
}

fn copy_out(bench: &Bench, database: &str, query: &str, file: &Path) -> Result<()> {
    let mut psql = bench.server.client("psql");
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database, "-c"]);
    psql.arg(format!("COPY ({query}) TO STDOUT (FORMAT binary)"));
    server::must(psql.stdin(Stdio::null()).arg("-o").arg(file)).map(drop)
}

/// The same rows into a table of the same form; in seconds.
fn by_hand(bench: &Bench, file: &Path, mode: Mode) -> Result<f64> {
    let table = "CREATE TABLE hand (LIKE orders INCLUDING ALL)";
    bench.server.sql(WAREHOUSE, table)?;
    bench.server.sql("postgres", "CHECKPOINT")?;
    let sets: Vec<String> = COLUMNS.split(", ").skip(1).map(|name| format!("{name} = s.{name}")).collect();
    let values: Vec<String> = COLUMNS.split(", ").map(|name| format!("s.{name}")).collect();
    let script = match mode {
        Mode::Mirror => format!(
            "BEGIN;\nCREATE UNLOGGED TABLE staging AS SELECT {COLUMNS} FROM orders WITH NO DATA;\n\
             \\copy staging FROM '{file}' (FORMAT binary)\n\
             MERGE INTO hand t USING staging s ON t.id = s.id WHEN MATCHED THEN UPDATE SET {} \
             WHEN NOT MATCHED THEN INSERT ({COLUMNS}) VALUES ({});\nDROP TABLE staging;\nCOMMIT;\n",
            sets.join(", "),
            values.join(", "),
            file = file.display()
        ),
        Mode::History => format!("\\copy hand FROM '{}' (FORMAT binary)\n", file.display()),
    };
    let path: PathBuf = bench.folder.join("by-hand.sql");
    std::fs::write(&path, script)?;
    let mut psql = bench.server.client("psql");
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", WAREHOUSE, "-f"]).arg(path);
    let started = Instant::now();
    server::must(psql.stdin(Stdio::null()))?;
    Ok(started.elapsed().as_secs_f64())
}

const RATE: u64 = 1000;
const CLIENTS: u64 = 16;
const SCRIPT: &str = "\\set n :n + 1\nINSERT INTO orders SELECT * FROM order_row((:client_id + 1) * 1000000 + :n);\n";
const DATABASE: &str = "visible";

/// Two figures: both commit times are the server's own, of one clock.
pub(crate) fn visible(bench: &mut Bench) -> Result<Vec<Figure>> {
    let seconds = if bench.quick { 8 } else { 30 };
    eprintln!("commit to mirror: {RATE} transactions a second for {seconds} s");
    workload::database(&bench.server, DATABASE)?;
    bench.server.sql(DATABASE, &format!("SELECT pg_create_logical_replication_slot('{DATABASE}', 'pgoutput')"))?;
    anew(bench)?;
    let script = bench.folder.join("visible.sql");
    std::fs::write(&script, SCRIPT)?;
    let daemon = Daemon::new(&bench.folder.join(DATABASE), &bench.server, DATABASE, DATABASE, "never")?;
    daemon.with_warehouse(bench.server.port, WAREHOUSE, "mirror")?;
    let mut calms = vec![Calm::look(0)];
    let (usage, status) = measure(&mut daemon.command(&[], "info")?, |child| {
        daemon.until(child, "it streamed", |status| status["sources"][0]["health"] == "running")?;
        let mut pgbench = bench.server.client("pgbench");
        let each = (RATE * seconds / CLIENTS).to_string();
        pgbench.args(["-n", "-M", "prepared", "-j", "2", "-D", "n=0", "-c", &CLIENTS.to_string(), "-t", &each]);
        pgbench.args(["-R", &RATE.to_string(), "-f"]).arg(&script).arg(DATABASE);
        server::must(pgbench.stdin(Stdio::null()))?;
        let there = bench.server.sql(DATABASE, "SELECT count(*) FROM orders")?;
        let deadline = Instant::now() + std::time::Duration::from_secs(60);
        while bench.server.sql(WAREHOUSE, "SELECT count(*) FROM orders")? != there {
            if Instant::now() > deadline {
                return Err("the mirror did not get there within 60 s".into());
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Daemon::stop(child)?;
        Ok(None)
    })?;
    if !status.success() {
        return Err(format!("the daemon ended with {status}: {}", daemon.said()).into());
    }
    calms.push(Calm::look(1));
    bench.server.drop_slot(DATABASE, DATABASE)?;
    bench.peak("1,000 transactions a second into a mirror", usage.peak);
    let times = "SELECT id || ' ' || (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::bigint FROM orders ORDER BY id";
    let (source, mirror) = (bench.server.sql(DATABASE, times)?, bench.server.sql(WAREHOUSE, times)?);
    let parse = |line: &str| -> Option<(i64, i64)> {
        let (id, time) = line.split_once(' ')?;
        Some((id.parse().ok()?, time.parse().ok()?))
    };
    let (source, mirror): (Vec<_>, Vec<_>) =
        (source.lines().filter_map(parse).collect(), mirror.lines().filter_map(parse).collect());
    let same = source.len() == mirror.len() && source.iter().zip(&mirror).all(|(a, b)| a.0 == b.0);
    let verified = same && source.len() as u64 == RATE * seconds / CLIENTS * CLIENTS;
    // The first fifth is warm-up.
    let from = source.iter().map(|(_, time)| *time).min().unwrap_or(0) + seconds as i64 * 200_000;
    let pairs = source.iter().zip(&mirror).filter(|((_, time), _)| *time >= from);
    let mut took: Vec<f64> = pairs.map(|((_, there), (_, here))| (here - there) as f64 / 1e3).collect();
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| quantile(&mut took, share));
    let note = format!("{} commits, p99.9 {p999:.1} ms", took.len());
    let figure = |id, what, value, target| {
        let rounds: Vec<_> = calms.iter().map(|calm| (*calm, value)).collect();
        let mut figure = Figure::of(id, what, "ms", ("<=", target), &rounds).verified(verified);
        figure.note = note.clone();
        figure
    };
    Ok(vec![
        figure("T15", "commit to commit in the mirror, 1,000 tx/s: p50", p50, 50.0),
        figure("T15b", "commit to commit in the mirror, 1,000 tx/s: p99", p99, 500.0),
    ])
}
