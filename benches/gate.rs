//! T1g, T4g: what the gate costs. W1's rows, drained while the gate holds back a
//! table whose new shape its subject's level forbids, so that it looks at every
//! batch; against the same WAL with that table let through (`evolve`), where it
//! is one branch a batch.

use crate::daemon::Daemon;
use crate::drain::highwater;
use crate::machine::{Calm, Usage};
use crate::report::Figure;
use crate::{Bench, Result, workload};

const DATABASE: &str = "gated";
const SLOT: &str = "gated";

/// A row under one shape, a row under another that text does not become, then W1.
const CHANGES: &str = "CREATE PROCEDURE gated(n bigint) LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO held VALUES (1, 'one');
  COMMIT;
  ALTER TABLE held ALTER v TYPE int USING 1;
  INSERT INTO held VALUES (2, 2);
  COMMIT;
  CALL bulk(n);
END $$";

/// The figures.
pub(crate) fn gate(bench: &mut Bench, rows: u64) -> Result<[Figure; 2]> {
    eprintln!("draining {rows} rows while a table is held back");
    let base = workload::base(DATABASE);
    workload::database(&bench.server, DATABASE)?;
    let held = "CREATE TABLE held (id int PRIMARY KEY, v text); ALTER PUBLICATION bench ADD TABLE held";
    bench.server.sql(DATABASE, held)?;
    bench.server.sql(DATABASE, CHANGES)?;
    bench.server.sql(DATABASE, &format!("SELECT pg_create_logical_replication_slot('{base}', 'pgoutput')"))?;
    bench.server.sql(DATABASE, &format!("CALL gated({rows})"))?;
    let end = bench.server.lsn(DATABASE)?;
    // Something behind it, so that it is passed.
    bench.server.sql(DATABASE, "SELECT pg_logical_emit_message(false, 'bench', '')")?;
    bench.server.sql("postgres", "CHECKPOINT")?;
    let (mut wall, mut cpu, mut right) = (Vec::new(), Vec::new(), true);
    // Twice as many as others have: what is looked for is smaller than what rounds differ by.
    for round in 0..2 * bench.rounds {
        let calm = Calm::look(round);
        let mut usages = [Usage::default(); 2];
        for turn in 0..2 {
            let who = (turn + round) % 2;
            let (policy, comes) = [("park", 1), ("evolve", 2)][who];
            let daemon = Daemon::new(&bench.folder.join(DATABASE), &bench.server, DATABASE, SLOT, "never")?;
            daemon.with_source_setting(&format!("on_incompatible = \"{policy}\""))?;
            bench.server.copy_slot(DATABASE, &base, SLOT)?;
            usages[who] = highwater(&daemon, end)?;
            bench.server.drop_slot(DATABASE, SLOT)?;
            let moved = daemon.log(|_, _| {})?.rows();
            if moved != rows + comes {
                eprintln!("  with {policy} the log holds {moved} rows, not {}", rows + comes);
            }
            right &= moved == rows + comes;
        }
        let [parked, evolved] = usages;
        let rate = |usage: &Usage| rows as f64 / usage.wall.as_secs_f64() / 1e3;
        eprintln!(
            "    held {:.0} k rows/s, {:.2} us/row; not {:.0} k rows/s, {:.2} us/row",
            rate(&parked),
            parked.cpu * 1e6 / rows as f64,
            rate(&evolved),
            evolved.cpu * 1e6 / rows as f64
        );
        wall.push((calm, evolved.wall.as_secs_f64() / parked.wall.as_secs_f64()));
        cpu.push((calm, parked.cpu / evolved.cpu));
    }
    bench.server.drop_slot(DATABASE, &base)?;
    let what = "bulk to the durable log while a table is held back, against none held";
    let rate = Figure::of("T1g", what, "x", (">=", 0.95), &wall).verified(right);
    let cpu = Figure::of("T4g", "CPU of the daemon, the same", "x", ("<=", 1.05), &cpu).verified(right);
    Ok([rate, cpu])
}
