//! Figures of speed and memory. `benches/run` builds this and starts it.

mod baselines;
mod busy;
mod checksum;
mod daemon;
mod drain;
mod encode;
mod gate;
mod http;
mod huge;
mod land;
mod latency;
mod ledger;
mod machine;
mod registry;
mod report;
mod server;
mod snapshot;
mod verify;
mod warehouse;
mod workload;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::machine::Calm;
use crate::report::Figure;
use crate::server::Server;
use crate::warehouse::Mode;

/// A benchmark that cannot go on says why, and ends.
pub(crate) type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// What every figure needs.
pub(crate) struct Bench {
    pub(crate) server: Server,
    pub(crate) folder: PathBuf,
    pub(crate) quick: bool,
    pub(crate) rounds: usize,
    idle: Option<(Calm, f64)>,
    peaks: Vec<(String, f64)>,
}

impl Bench {
    /// The daemon's memory while it had nothing to do, in MiB.
    pub(crate) fn idle(&mut self, memory: f64) {
        self.idle = Some((Calm::look(0), memory));
    }

    /// The daemon's memory at its highest, in MiB.
    pub(crate) fn peak(&mut self, during: &str, memory: f64) {
        match self.peaks.iter_mut().find(|(what, _)| what == during) {
            Some((_, peak)) => *peak = peak.max(memory),
            None => self.peaks.push((during.into(), memory)),
        }
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["all", programs, ref rest @ ..] => all(Path::new(programs), rest),
        ["null-drain", port, database, slot, until] => null_drain(port, database, slot, until),
        ["bare-route", port, file] => bare_route(port, file),
        ["bare-sync", port, file] => bare_sync(port, file),
        ["encode", who, file, times] => encode_file(who, file, times),
        _ => Err("usage: benches/run [--quick] [FIGURE…]".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn null_drain(port: &str, database: &str, slot: &str, until: &str) -> Result<()> {
    let drained = baselines::null_drain::drain(port.parse()?, database, slot, until.parse()?, |_| Ok(()))?;
    eprintln!("      {} reads", drained.reads);
    println!("{} {}", drained.rows, drained.bytes);
    Ok(())
}

fn bare_route(port: &str, file: &str) -> Result<()> {
    baselines::bare_route::serve(port.parse()?, std::fs::read(file)?)
}

fn bare_sync(port: &str, file: &str) -> Result<()> {
    baselines::bare_sync::serve(port.parse()?, Path::new(file))
}

fn encode_file(who: &str, file: &str, times: &str) -> Result<()> {
    encode::run(who, Path::new(file), times.parse()?)
}

fn all(programs: &Path, words: &[&str]) -> Result<()> {
    let quick = words.contains(&"--quick");
    let wanted: Vec<&str> = words.iter().copied().filter(|word| !word.starts_with("--")).collect();
    let wants = |ids: &[&str]| wanted.is_empty() || ids.iter().any(|id| wanted.contains(id));
    let output = std::env::current_exe()?.ancestors().nth(2).ok_or("no target folder")?.join("bench");
    // Of this run alone: several may be on one machine.
    let folder = output.join(format!("run-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let server = Server::start(programs, &folder)?;
    let rounds = if quick { 3 } else { 5 };
    let mut bench = Bench { server, folder: folder.clone(), quick, rounds, idle: None, peaks: Vec::new() };
    let figures = measure(&mut bench, &wants);
    drop(bench);
    let _ = std::fs::remove_dir_all(&folder);
    report::publish(&figures?, &output.join("report.json"))
}

/// A workload drained in rounds, and nothing left of it.
fn drained(bench: &mut Bench, backlog: &workload::Workload, figure: (&'static str, &str, f64)) -> Result<Figure> {
    let (drains, _) = drain::drain(bench, backlog)?;
    bench.server.drop_slot(backlog.database, "drain_2")?;
    bench.server.drop_slot(backlog.database, &workload::base(backlog.database))?;
    let (id, what, target) = figure;
    Ok(drains.ratio(id, what, 0, target))
}

fn measure(bench: &mut Bench, wants: &impl Fn(&[&str]) -> bool) -> Result<Vec<Figure>> {
    let (rows, transactions) = if bench.quick { (200_000, 20_000) } else { (1_500_000, 200_000) };
    let mut figures = Vec::new();
    // The load of the others is not to lie in the WAL between a backlog and its end.
    if wants(&["T9", "T9b", "T13"]) {
        figures.extend(latency::latency(bench)?);
    }
    if wants(&["T15", "T15b"]) {
        figures.extend(warehouse::visible(bench)?);
    }
    if wants(&["T14", "T14b"]) {
        figures.extend(ledger::exactly_once(bench)?);
    }
    if wants(&["T2", "T12b", "T13"]) {
        eprintln!("W2: {transactions} small transactions");
        let small = workload::small(&bench.server, transactions)?;
        let (drains, daemon) = drain::drain(bench, &small)?;
        if wants(&["T12b"]) {
            figures.push(warehouse::merge(bench, "T12b", &small, &daemon, Mode::Mirror)?);
        }
        bench.server.drop_slot("small", "drain_2")?;
        bench.server.drop_slot("small", &workload::base("small"))?;
        figures.push(drains.ratio("T2", "small transactions to the durable log, against pg_recvlogical", 0, 1.2));
    }
    if wants(&["T1g", "T4g"]) {
        figures.extend(gate::gate(bench, rows)?);
    }
    let (huge, updates, tables) = if bench.quick { (200_000, 30_000, 20) } else { (1_000_000, 300_000, 200) };
    if wants(&["T3", "T3b", "T3m", "T3r", "T3g", "T13"]) {
        eprintln!("W3: {huge} rows in one transaction");
        if wants(&["T3", "T13"]) {
            let backlog = workload::huge(&bench.server, huge)?;
            figures.push(drained(
                bench,
                &backlog,
                ("T3", "one transaction to the durable log, against pg_recvlogical", 1.4),
            )?);
        }
        figures.extend(huge::live(bench, huge)?);
    }
    if wants(&["W4", "T13"]) {
        eprintln!("W4: {updates} updates under REPLICA IDENTITY FULL");
        let backlog = workload::full(&bench.server, updates)?;
        figures.push(drained(bench, &backlog, ("W4", "updates with the whole old row, against pg_recvlogical", 1.0))?);
    }
    if wants(&["W5", "T13"]) {
        eprintln!("W5: {} updates beside TOASTed columns", updates / 3);
        let backlog = workload::toast(&bench.server, updates / 3)?;
        figures.push(drained(
            bench,
            &backlog,
            ("W5", "updates that do not touch a TOASTed column, against pg_recvlogical", 1.0),
        )?);
    }
    if wants(&["W6", "T13"]) {
        eprintln!("W6: {tables} tables in turn");
        let backlog = workload::many(&bench.server, tables, 5_000)?;
        figures.push(drained(bench, &backlog, ("W6", "many tables in turn, against pg_recvlogical", 1.0))?);
    }
    if wants(&["T1", "T1'", "T4", "T7", "T10", "T10i", "T11", "T11a", "T11z", "T11j", "T12", "T12h", "T13", "W8"]) {
        eprintln!("W1: {rows} rows, 1,000 a transaction");
        let bulk = workload::bulk(&bench.server, rows)?;
        if wants(&["T10", "T10i"]) {
            figures.extend(encode::encode(bench, &bulk)?);
        }
        if wants(&["T1", "T1'", "T4", "T11", "T11a", "T11z", "T11j", "T12", "T12h", "T13"]) {
            let (drains, daemon) = drain::drain(bench, &bulk)?;
            figures.push(drains.ratio("T1", "bulk to the durable log over TCP, against pg_recvlogical", 0, 1.15));
            figures.push(drains.ratio("T1'", "the same, against our own null drain", 1, 0.92));
            figures.push(drains.cpu("T4", "CPU of the daemon, bulk, no sinks", 1.3));
            if wants(&["T11", "T11a", "T11z", "T11j", "T13"]) {
                figures.extend(land::land(bench, &bulk, &daemon)?);
            }
            for (id, mode) in [("T12", Mode::Mirror), ("T12h", Mode::History)] {
                if wants(&[id]) {
                    figures.push(warehouse::merge(bench, id, &bulk, &daemon, mode)?);
                }
            }
            bench.server.drop_slot("bulk", "drain_2")?;
        }
        if wants(&["T7", "T13"]) {
            figures.push(snapshot::snapshot(bench, &bulk)?);
        }
        if wants(&["W8", "T13"]) {
            figures.push(busy::busy(bench, &bulk)?);
        }
    }
    if wants(&["V1"]) {
        figures.push(verify::verify(bench)?);
    }
    if wants(&["R1", "R2", "R2s", "R3", "R3b", "R4"]) {
        figures.extend(registry::registry(bench, wants)?);
    }
    if let Some((calm, idle)) = bench.idle {
        let mut figure =
            Figure::of("T13", "memory of the daemon, idle", "MiB", ("<=", 64.0), &[(calm, idle)]).verified(true);
        figure.note = "one source, no sinks, 3 s after its start".into();
        figures.push(figure);
    }
    if let Some((during, peak)) = bench.peaks.iter().max_by(|a, b| a.1.total_cmp(&b.1)) {
        let calm = Calm::look(0);
        let mut figure =
            Figure::of("T13b", "memory of the daemon at its highest", "MiB", ("<=", 256.0), &[(calm, *peak)])
                .verified(true);
        let each: Vec<String> = bench.peaks.iter().map(|(during, peak)| format!("{during} {peak:.0}")).collect();
        figure.note = format!("{during}; {}", each.join(", "));
        figures.push(figure);
    }
    figures.sort_by_key(|figure| {
        let digits: String = figure.id.chars().filter(char::is_ascii_digit).collect();
        (figure.id.chars().next(), digits.parse().unwrap_or(0), figure.id)
    });
    Ok(figures)
}
