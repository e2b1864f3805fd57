//! T14: what exactly once costs a warehouse. Steps as the sink writes them, with
//! the checkpoint locked before the rows and moved on after them in the same
//! transaction; against the same steps without those two statements. By hand on
//! both sides: the sink has no switch for it. One pgbench session, durable
//! commits, one after the other in turn.

use std::process::Stdio;
use std::time::Instant;

use crate::machine::Calm;
use crate::report::Figure;
use crate::{Bench, Result, server, workload};

const DATABASE: &str = "exactly";
/// As `postgres-sink/src/ledger.rs` has it.
const LEDGER: &str = "
CREATE SCHEMA _highwater;
CREATE TABLE _highwater.checkpoints (
    sink text, source text, lane text NOT NULL DEFAULT '',
    log_id text NOT NULL, epoch bigint NOT NULL, writer text NOT NULL,
    next_offset bigint, position text, event_time timestamptz, committed_at timestamptz,
    pid int, backend_start timestamptz,
    PRIMARY KEY (sink, source, lane));
INSERT INTO _highwater.checkpoints (sink, source, log_id, epoch, writer, next_offset)
     VALUES ('warehouse', 'shop', md5('log'), 1, md5('writer'), 0);";
const LOCK: &str = "
SELECT log_id, epoch, writer, next_offset FROM _highwater.checkpoints
 WHERE sink = 'warehouse' AND source = 'shop' AND lane = '' FOR UPDATE;";
const ADVANCE: &str = "
UPDATE _highwater.checkpoints
   SET next_offset = next_offset + :rows, position = coalesce('0/1A2B3C8', position), committed_at = now(),
       event_time = greatest(event_time, timestamptz 'epoch' + 1764000000000000 * interval '1 microsecond')
 WHERE sink = 'warehouse' AND source = 'shop' AND lane = '';";
const COLUMNS: [&str; 11] =
    ["customer_id", "sku", "note", "amount", "currency", "qty", "paid", "created_at", "updated_at", "uid", "attrs"];

/// Two figures: small steps, as a steady thousand changes a second make them,
/// and those of a backlog, which are at least so large.
pub(crate) fn exactly_once(bench: &mut Bench) -> Result<Vec<Figure>> {
    workload::database(&bench.server, DATABASE)?;
    bench.server.sql(DATABASE, LEDGER)?;
    let steps = if bench.quick { 4 } else { 1 };
    Ok(vec![figure(bench, "T14", 20, 2_000 / steps)?, figure(bench, "T14b", 1_000, 200 / steps)?])
}

fn figure(bench: &Bench, id: &'static str, rows: u64, steps: u64) -> Result<Figure> {
    eprintln!("{steps} steps of {rows} rows, with a checkpoint and without");
    let mut rounds = Vec::new();
    let mut verified = true;
    let mut best = (0.0f64, 0.0f64);
    for round in 0..bench.rounds {
        let calm = Calm::look(round);
        // Who goes first has the disk as the other left it.
        let mut took = [0.0, 0.0];
        for exactly in [round % 2 == 0, round % 2 != 0] {
            took[usize::from(exactly)] = write(bench, rows, steps, exactly)?;
            let count = "SELECT count(*) FROM orders";
            verified &= bench.server.sql(DATABASE, count)? == (rows * steps).to_string();
        }
        let next = bench.server.sql(DATABASE, "SELECT next_offset FROM _highwater.checkpoints")?;
        verified &= next == (rows * steps * (round as u64 + 1)).to_string();
        let [without, with] = took.map(|seconds| (rows * steps) as f64 / seconds / 1e3);
        eprintln!("    {with:.1} k rows/s with, {without:.1} without");
        best = (best.0.max(with), best.1.max(without));
        rounds.push((calm, with / without));
    }
    bench.server.sql(DATABASE, "UPDATE _highwater.checkpoints SET next_offset = 0")?;
    let what = format!("exactly once into a mirror, {rows} rows a step, against the same without a checkpoint");
    let figure = Figure::of(id, what, "x", (">=", 0.9), &rounds).verified(verified);
    Ok(figure.note(format!("at best {:.1} k rows/s against {:.1} k", best.0, best.1)))
}

/// In seconds.
fn write(bench: &Bench, rows: u64, steps: u64, exactly: bool) -> Result<f64> {
    bench.server.sql(DATABASE, "TRUNCATE orders")?;
    bench.server.sql(DATABASE, "CHECKPOINT")?;
    let sets = COLUMNS.map(|name| format!("{name} = excluded.{name}")).join(", ");
    // Each in one trip with its neighbour, as the sink sends them.
    let together = |statements: [&str; 2]| format!("\\startpipeline\n{}\n\\endpipeline", statements.concat());
    let (begin, commit) = match exactly {
        true => (together(["BEGIN;", LOCK]), together([ADVANCE, "\nCOMMIT;"])),
        false => ("BEGIN;".to_owned(), "COMMIT;".to_owned()),
    };
    // A statement a line, as pgbench reads them.
    let script = format!(
        "\\set n :n + 1\n{begin}\nINSERT INTO orders SELECT r.* FROM generate_series(:n::bigint * :rows + 1, (:n::bigint + 1) * :rows) i, order_row(i) r ON CONFLICT (id) DO UPDATE SET {sets};\n{commit}\n"
    );
    let path = bench.folder.join("exactly.sql");
    std::fs::write(&path, script)?;
    let mut pgbench = bench.server.client("pgbench");
    pgbench.args(["-n", "-M", "prepared", "-c", "1", "-D", "n=0", "-D", &format!("rows={rows}")]);
    pgbench.args(["-t", &steps.to_string(), "-f"]).arg(&path).arg(DATABASE);
    let started = Instant::now();
    server::must(pgbench.stdin(Stdio::null()))?;
    Ok(started.elapsed().as_secs_f64())
}
