//! T1, T2, T4: a backlog drained from copies of one slot, by pg_recvlogical, by
//! our own null client, and by the daemon into its durable log. All over TCP,
//! all measured as whole processes from their start.

use std::process::Stdio;
use std::time::Duration;

use crate::daemon::Daemon;
use crate::machine::{Calm, Usage, measure};
use crate::report::Figure;
use crate::server::print_lsn;
use crate::workload::Workload;
use crate::{Bench, Result, workload};

/// What the rounds came to.
#[derive(Default)]
pub(crate) struct Drains {
    rounds: Vec<(Calm, [Usage; 3])>,
    verified: bool,
    rows: f64,
    walsender: [f64; 3],
}

const NAMES: [&str; 3] = ["pg_recvlogical", "null drain", "highwater"];

/// Drains a workload in rounds. The last round's daemon and its slot stay.
pub(crate) fn drain(bench: &mut Bench, backlog: &Workload) -> Result<(Drains, Daemon)> {
    let Workload { database, end, truth, .. } = backlog;
    eprintln!("draining {database}: {} rows, {} MB as the stream sends them", truth.rows(), backlog.bytes / 1_000_000);
    let mut drains = Drains { verified: true, rows: truth.rows() as f64, ..Drains::default() };
    let daemon = Daemon::new(&bench.folder.join(database), &bench.server, database, "drain_2", "never")?;
    for round in 0..bench.rounds {
        let calm = Calm::look(round);
        let mut usages = [Usage::default(); 3];
        for turn in 0..3 {
            // Another one first in each round.
            let who = (turn + round) % 3;
            let slot = format!("drain_{who}");
            bench.server.copy_slot(database, &workload::base(database), &slot)?;
            let before = bench.server.ended_backends();
            let (usage, verified) = match who {
                0 => (recvlogical(bench, database, &slot, *end)?, true),
                1 => null(bench, backlog, &slot)?,
                _ => {
                    let data = daemon.folder.join("data");
                    if data.exists() {
                        std::fs::remove_dir_all(data)?;
                    }
                    let usage = highwater(&daemon, *end)?;
                    bench.peak(&format!("draining {database}"), usage.peak);
                    let moved = daemon.log(|_, _| {})?;
                    if moved != *truth {
                        eprintln!("  the log holds {moved:?}, the truth is {truth:?}");
                    }
                    (usage, moved == *truth)
                }
            };
            drains.verified &= verified;
            usages[who] = usage;
            if who != 2 || round + 1 < bench.rounds {
                bench.server.drop_slot(database, &slot)?;
                let walsender = bench.server.ended_backends() - before;
                drains.walsender[who] = walsender;
            }
            eprintln!(
                "    {:<15} {:>7.0} k rows/s  {:.2} us/row of its CPU, {:.2} of the server's  {:>4.0} MiB",
                NAMES[who],
                drains.rows / usage.wall.as_secs_f64() / 1e3,
                usage.cpu * 1e6 / drains.rows,
                drains.walsender[who] * 1e6 / drains.rows,
                usage.peak
            );
        }
        drains.rounds.push((calm, usages));
    }
    Ok((drains, daemon))
}

impl Drains {
    /// Throughput of the daemon against another contender.
    pub(crate) fn ratio(&self, id: &'static str, what: &str, against: usize, target: f64) -> Figure {
        let ratio = |usages: &[Usage; 3]| usages[against].wall.as_secs_f64() / usages[2].wall.as_secs_f64();
        let rounds: Vec<_> = self.rounds.iter().map(|(calm, usages)| (*calm, ratio(usages))).collect();
        let rate = |who: usize| {
            let mut rates: Vec<f64> =
                self.rounds.iter().map(|(_, u)| self.rows / u[who].wall.as_secs_f64() / 1e3).collect();
            crate::machine::quantile(&mut rates, 0.5)
        };
        Figure::of(id, what, "x", (">=", target), &rounds).verified(self.verified).note(format!(
            "{:.0} k rows/s against {:.0} k of {}",
            rate(2),
            rate(against),
            NAMES[against]
        ))
    }

    /// The daemon's CPU for a million events.
    pub(crate) fn cpu(&self, id: &'static str, what: &str, target: f64) -> Figure {
        let each = |who: usize| -> Vec<(Calm, f64)> {
            self.rounds.iter().map(|(calm, usages)| (*calm, usages[who].cpu * 1e6 / self.rows)).collect()
        };
        let others = [0, 1].map(|who| Figure::of(id, "", "", ("<=", 0.0), &each(who)).value);
        Figure::of(id, what, "s/M", ("<=", target), &each(2))
            .verified(self.verified)
            .note(format!("pg_recvlogical {:.2}, null drain {:.2}", others[0], others[1]))
    }
}

fn recvlogical(bench: &Bench, database: &str, slot: &str, end: u64) -> Result<Usage> {
    let mut command = bench.server.client("pg_recvlogical");
    command.args(["-d", database, "--slot", slot, "--start", "--endpos", &print_lsn(end), "--file=/dev/null"]);
    command.args(["--no-loop", "-o", "proto_version=1", "-o", "publication_names=bench"]);
    let (usage, status) = measure(&mut command, |_| Ok(None))?;
    if !status.success() {
        return Err(format!("pg_recvlogical ended with {status}").into());
    }
    Ok(usage)
}

fn null(bench: &Bench, backlog: &Workload, slot: &str) -> Result<(Usage, bool)> {
    let out = bench.folder.join("null-drain");
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.args(["null-drain", &bench.server.port.to_string(), backlog.database, slot, &backlog.end.to_string()]);
    command.stdin(Stdio::null()).stdout(std::fs::File::create(&out)?);
    let (usage, status) = measure(&mut command, |_| Ok(None))?;
    let moved = format!("{} {}\n", backlog.truth.rows(), backlog.bytes);
    Ok((usage, status.success() && std::fs::read_to_string(out)? == moved))
}

/// From its start until a place of the WAL is durable in its log.
pub(crate) fn highwater(daemon: &Daemon, end: u64) -> Result<Usage> {
    let (usage, status) = measure(&mut daemon.command(&[], "warn")?, |child| {
        let durable = daemon.until_durable(child, end)?;
        // The sampler sees the peak before the end.
        std::thread::sleep(Duration::from_millis(20));
        Daemon::stop(child)?;
        Ok(Some(durable))
    })?;
    if !status.success() {
        return Err(format!("the daemon ended with {status}: {}", daemon.said()).into());
    }
    Ok(usage)
}
