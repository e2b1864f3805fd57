//! T11: a full log to Parquet files in a folder by the daemon, from the line in
//! which it says that it delivers to its last full step; against a bare
//! ArrowWriter that has the same rows ready in memory. What is left behind the
//! last full step waits for the source to say that it is caught up, so it is
//! checked and not timed.

use std::path::{Path, PathBuf};

use crate::baselines::parquet;
use crate::checksum::{Checksum, add_batch};
use crate::daemon::{Daemon, field, time_of};
use crate::machine::{Calm, measure};
use crate::report::Figure;
use crate::workload::Workload;
use crate::{Bench, Result};

/// Full steps timed. A step ends with a frame, so a little beyond its size:
/// they are made a tenth smaller than what is there, or the last would not be full.
const STEPS: u64 = 3;

/// The figure. `daemon` is one that has drained the workload and was stopped.
pub(crate) fn land(bench: &mut Bench, backlog: &Workload, daemon: &Daemon) -> Result<Figure> {
    let lake = bench.folder.join("lake");
    let rows = backlog.truth.rows();
    eprintln!("landing {rows} rows");
    // The source is to have nothing to do meanwhile.
    let (_, status) = measure(&mut daemon.command(&["--until-caught-up"], "info")?, |_| Ok(None))?;
    if !status.success() {
        return Err(format!("the daemon ended with {status}: {}", daemon.said()).into());
    }
    let mut rounds = Vec::new();
    let mut ready = Vec::new();
    let mut verified = true;
    let (mut ours, mut bare) = (0.0f64, 0.0f64);
    let mut cpu = 0.0;
    for round in 0..bench.rounds.min(4) {
        let calm = Calm::look(round);
        daemon.with_sink(&lake, backlog.bodies * 9 / 10 / STEPS)?;
        let mut command = daemon.command(&["--until-caught-up"], "info,connector_runtime=debug")?;
        let (usage, status) = measure(&mut command, |_| Ok(None))?;
        let said = daemon.said();
        if !status.success() {
            return Err(format!("the daemon ended with {status}: {said}").into());
        }
        bench.peak("log to Parquet", usage.peak);
        let begun = said.lines().find(|line| line.contains(" delivering ")).and_then(time_of);
        let steps = said.lines().filter(|line| line.contains(" step committed "));
        let mut steps: Vec<_> = steps.filter_map(|line| Some((time_of(line)?, field(line, "events")?))).collect();
        steps.truncate(STEPS as usize);
        let delivered: u64 = steps.iter().map(|(_, events)| events).sum();
        let took = match (begun, steps.last()) {
            (Some(begun), Some((ended, _))) if steps.len() as u64 == STEPS => (ended - begun) as f64 / 1e6,
            _ => return Err(format!("no {STEPS} steps were delivered: {said}").into()),
        };
        let rate = delivered as f64 / took / 1e3;
        let files = files(&lake.join("shop.public.orders"))?;
        let mut landed = Checksum::default();
        let read = parquet::batches(&files)?;
        for batch in &read {
            add_batch(&mut landed, batch)?;
        }
        if landed != backlog.truth {
            eprintln!("  the files hold {landed:?}, the truth is {:?}", backlog.truth);
        }
        verified &= landed == backlog.truth;
        if ready.is_empty() {
            ready = read;
        }
        let written = parquet::write(&ready, &bench.folder.join("bare.parquet"))?.as_secs_f64();
        eprintln!(
            "    highwater {:.0} k rows/s ({:.2} us/row of CPU in all), bare writer {:.0} k rows/s",
            rate,
            usage.cpu * 1e6 / rows as f64,
            rows as f64 / written / 1e3,
        );
        let limit = rows as f64 / written / 1e3;
        (ours, bare, cpu) = (ours.max(rate), bare.max(limit), usage.cpu);
        rounds.push((calm, rate / limit));
    }
    let size: u64 =
        files(&lake.join("shop.public.orders"))?.iter().filter_map(|file| file.metadata().ok()).map(|m| m.len()).sum();
    Ok(Figure::of("T11", "log to Parquet in a folder, against a bare ArrowWriter", "x", (">=", 0.7), &rounds)
        .verified(verified)
        .note(format!(
            "at best {ours:.0} k rows/s against {bare:.0} k; {:.2} CPU-s/M; {:.1} B a row",
            cpu * 1e6 / rows as f64,
            size as f64 / rows as f64
        )))
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "parquet"));
    files.sort();
    Ok(files)
}
