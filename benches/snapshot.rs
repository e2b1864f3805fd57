//! T7: a table read by the daemon into its durable log, from the line in which
//! it says that it reads to the last row's `durable`; against COPY BINARY to
//! nowhere on one and two connections, whichever is faster.

use crate::baselines::copy;
use crate::daemon::{Daemon, field, time_of};
use crate::machine::{Calm, measure};
use crate::report::Figure;
use crate::workload::Workload;
use crate::{Bench, Result};

/// The figure, over the table that W1 has filled.
pub(crate) fn snapshot(bench: &mut Bench, workload: &Workload) -> Result<Figure> {
    let (database, truth) = (workload.database, workload.truth);
    eprintln!("reading {} rows", truth.inserts);
    bench.server.sql(database, "VACUUM (FREEZE, ANALYZE) orders")?;
    bench.server.sql(database, "CHECKPOINT")?;
    let mut rounds = Vec::new();
    let mut verified = true;
    let (mut ours, mut limit) = (f64::INFINITY, f64::INFINITY);
    for round in 0..bench.rounds.min(4) {
        let calm = Calm::look(round);
        let mut fastest = f64::INFINITY;
        for connections in [1, 2] {
            let (rows, took) = copy::copy(bench.server.port, database, "orders", connections)?;
            verified &= rows == truth.inserts;
            fastest = fastest.min(took.as_secs_f64());
        }
        let daemon = Daemon::new(&bench.folder.join("snapshot"), &bench.server, database, "snapshot", "initial")?;
        let mut command = daemon.command(&["--until-caught-up"], "info,storage=trace")?;
        let (usage, status) = measure(&mut command, |_| Ok(None))?;
        let said = daemon.said();
        if !status.success() {
            return Err(format!("the daemon ended with {status}: {said}").into());
        }
        bench.peak("snapshot", usage.peak);
        bench.server.drop_slot(database, "snapshot")?;
        let moved = daemon.log(|_, _| {})?;
        verified &= (moved.reads, moved.rows(), moved.ids, moved.unordered)
            == (truth.inserts, truth.inserts, truth.ids, truth.unordered);
        let begun = said.lines().find(|line| line.contains(" reading ")).and_then(time_of);
        // A mark stands before the rows.
        let durable =
            |line: &&str| line.contains(" durable ") && field(line, "offset").is_some_and(|o| o > truth.inserts);
        let ended = said.lines().find(durable).and_then(time_of);
        let took = match (begun, ended) {
            (Some(begun), Some(ended)) => (ended - begun) as f64 / 1e6,
            _ => return Err(format!("no snapshot in {said}").into()),
        };
        let rate = |seconds: f64| truth.inserts as f64 / seconds / 1e3;
        eprintln!(
            "    highwater {:.0} k rows/s ({:.2} us/row), {:.2} s as a whole; COPY {:.0} k rows/s",
            rate(took),
            usage.cpu * 1e6 / truth.inserts as f64,
            usage.wall.as_secs_f64(),
            rate(fastest)
        );
        (ours, limit) = (ours.min(took), limit.min(fastest));
        rounds.push((calm, fastest / took));
    }
    let rate = |seconds: f64| truth.inserts as f64 / seconds / 1e3;
    Ok(Figure::of("T7", "snapshot into the durable log, against COPY BINARY to nowhere", "x", (">=", 0.75), &rounds)
        .verified(verified)
        .note(format!("at best {:.0} k rows/s against {:.0} k", rate(ours), rate(limit))))
}
