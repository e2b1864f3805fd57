//! W8: a table read by the daemon into its durable log while 2,000 transactions
//! a second change it; against COPY BINARY to nowhere on two connections
//! meanwhile. What the log holds must come to the table.

use std::collections::HashMap;
use std::process::Stdio;

use connector::{Batch, Op, Reader};
use storage::Kind;
use storage::outside::LogFiles;

use crate::baselines::copy;
use crate::daemon::{Daemon, field, time_of};
use crate::machine::{Calm, measure};
use crate::report::Figure;
use crate::workload::Workload;
use crate::{Bench, Result};

const SCRIPT: &str = "\\set i random(1, :base)\n\\set n :n + 1\n\
    INSERT INTO orders SELECT * FROM order_row(100000000 + (:client_id + 1) * 1000000 + :n);\n\
    UPDATE orders SET qty = qty + 1, paid = NOT paid WHERE id = :i;\n";

/// The figure, over the table that W1 has filled.
pub(crate) fn busy(bench: &mut Bench, backlog: &Workload) -> Result<Figure> {
    let database = backlog.database;
    let base = backlog.truth.inserts;
    eprintln!("reading {base} rows while 2,000 transactions a second change them");
    let script = bench.folder.join("busy.sql");
    std::fs::write(&script, SCRIPT)?;
    let mut rounds = Vec::new();
    let (mut verified, mut ours, mut limit) = (true, f64::INFINITY, f64::INFINITY);
    for round in 0..bench.rounds.min(3) {
        let calm = Calm::look(round);
        bench.server.sql(database, "DELETE FROM orders WHERE id > 100000000")?;
        let mut pgbench = bench.server.client("pgbench");
        pgbench.args(["-n", "-M", "prepared", "-j", "1", "-c", "8", "-R", "2000", "-T", "300"]);
        pgbench.args(["-D", "n=0", "-D", &format!("base={base}"), "-f"]).arg(&script).arg(database);
        let mut writers = pgbench.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let (_, copied) = copy::copy(bench.server.port, database, "orders", 2)?;
        let daemon = Daemon::new(&bench.folder.join("busy"), &bench.server, database, "busy", "initial")?;
        let measured = measure(&mut daemon.command(&[], "info,storage=trace")?, |child| {
            daemon
                .until(child, "the table was read", |status| status["sources"][0]["tables"][0]["finished"] == true)?;
            writers.kill()?;
            writers.wait()?;
            daemon.until_durable(child, bench.server.lsn(database)?)?;
            Daemon::stop(child)?;
            Ok(None)
        });
        let _ = writers.kill();
        let _ = writers.wait();
        let (usage, status) = measured?;
        let said = daemon.said();
        if !status.success() {
            return Err(format!("the daemon ended with {status}: {said}").into());
        }
        bench.peak("snapshot under writes", usage.peak);
        bench.server.drop_slot(database, "busy")?;
        let table = bench.server.sql(database, "SELECT count(*), sum(id)::bigint, sum(qty)::bigint FROM orders")?;
        let held = replayed(&daemon)?;
        if held != table {
            eprintln!("  the log comes to {held}, the table has {table}");
        }
        verified &= held == table;
        let begun = said.lines().find(|line| line.contains(" reading ")).and_then(time_of);
        let durable = |line: &&str| line.contains(" durable ") && field(line, "offset").is_some_and(|o| o > base);
        let ended = said.lines().find(durable).and_then(time_of);
        let (Some(begun), Some(ended)) = (begun, ended) else { return Err(format!("no snapshot in {said}").into()) };
        let (took, fastest) = ((ended - begun) as f64 / 1e6, copied.as_secs_f64());
        let rate = |seconds: f64| base as f64 / seconds / 1e3;
        eprintln!("    highwater {:.0} k rows/s; COPY {:.0} k rows/s", rate(took), rate(fastest));
        (ours, limit) = (ours.min(took), limit.min(fastest));
        rounds.push((calm, fastest / took));
    }
    let rate = |seconds: f64| base as f64 / seconds / 1e3;
    Ok(Figure::of("W8", "snapshot under 2,000 tx/s, against COPY BINARY to nowhere", "x", (">=", 0.5), &rounds)
        .verified(verified)
        .note(format!("at best {:.0} k rows/s against {:.0} k", rate(ours), rate(limit))))
}

/// Rows, and the sums of their ids and quantities, as the log's events come to.
fn replayed(daemon: &Daemon) -> Result<String> {
    let files = LogFiles::open(daemon.folder.join("data/sources/shop"))?;
    let mut cursor = files.read(files.start()?.ok_or("no log")?)?;
    let mut rows: HashMap<i64, i64> = HashMap::new();
    while let Some(frame) = cursor.next()? {
        if frame.kind != Kind::Data {
            continue;
        }
        for run in Batch::new(frame).runs() {
            for change in run?.changes() {
                let change = change?;
                let mut reader = Reader::new(change.value);
                let id = reader.long()?;
                match change.op {
                    Op::Delete => drop(rows.remove(&id)),
                    Op::Message => {}
                    _ => drop(rows.insert(id, quantity(&mut reader)?)),
                }
            }
        }
    }
    let (ids, quantities) = rows.iter().fold((0i64, 0i64), |(ids, all), (id, quantity)| (ids + id, all + quantity));
    Ok(format!("{}|{ids}|{quantities}", rows.len()))
}

/// Behind the id: customer, sku, note, amount, currency, then the quantity.
fn quantity(reader: &mut Reader<'_>) -> Result<i64> {
    let mut last = 0;
    for column in 0..6 {
        if reader.long()? == 0 {
            continue;
        }
        if matches!(column, 0 | 5) {
            last = reader.long()?;
        } else {
            reader.bytes()?;
        }
    }
    Ok(last)
}
