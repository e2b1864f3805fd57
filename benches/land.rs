//! T11: a full log to files in a folder by the daemon, from the line in which it
//! says that it delivers to its last full step. Parquet against a bare
//! ArrowWriter that has the same rows ready in memory; Avro against our Parquet;
//! NDJSON against a bare writer that has the same lines ready in memory and
//! compresses them the same way. What is left behind the last full step waits
//! for the source to say that it is caught up, so it is checked and not timed.

use std::path::{Path, PathBuf};

use crate::baselines::{lines, parquet};
use crate::checksum::{Checksum, add_batch};
use crate::daemon::{Daemon, field, time_of};
use crate::machine::{Calm, Usage, measure};
use crate::report::Figure;
use crate::workload::Workload;
use crate::{Bench, Result};

/// Full steps timed. A step ends with a frame, so a little beyond its size:
/// they are made a tenth smaller than what is there, or the last would not be full.
const STEPS: u64 = 3;

/// The figures. `daemon` is one that has drained the workload and was stopped.
pub(crate) fn land(bench: &mut Bench, backlog: &Workload, daemon: &Daemon) -> Result<Vec<Figure>> {
    let lake = bench.folder.join("lake");
    let rows = backlog.truth.rows();
    eprintln!("landing {rows} rows");
    // The source is to have nothing to do meanwhile.
    let (_, status) = measure(&mut daemon.command(&["--until-caught-up"], "info")?, |_| Ok(None))?;
    if !status.success() {
        return Err(format!("the daemon ended with {status}: {}", daemon.said()).into());
    }
    let mut ready = Vec::new();
    let mut figures = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    let mut verified = [true; 4];
    let mut best = [0.0f64; 6];
    let mut notes = [(0.0, 0u64); 4];
    for round in 0..bench.rounds.min(4) {
        let calm = Calm::look(round);
        let (ours, usage) = deliver(bench, backlog, daemon, &lake, "parquet", None)?;
        let files = files(&lake.join(STREAM))?;
        let mut landed = Checksum::default();
        let read = parquet::batches(&files)?;
        for batch in &read {
            add_batch(&mut landed, batch)?;
        }
        if landed != backlog.truth {
            eprintln!("  the files hold {landed:?}, the truth is {:?}", backlog.truth);
        }
        verified[0] &= landed == backlog.truth;
        notes[0] = (usage.cpu, size(&files));
        if ready.is_empty() {
            ready = read;
        }
        let written = parquet::write(&ready, &bench.folder.join("bare.parquet"))?.as_secs_f64();
        let bare = rows as f64 / written / 1e3;

        let mut avro = [0.0; 2];
        for (at, (rate, compression)) in [1, 3].into_iter().zip(avro.iter_mut().zip(["none", "zstd"])) {
            let (delivered, usage) = deliver(bench, backlog, daemon, &lake, "avro", Some(compression))?;
            let files = self::files(&lake.join(STREAM))?;
            verified[at] &= lines::avro(&files)? == backlog.truth;
            (*rate, notes[at]) = (delivered, (usage.cpu, size(&files)));
        }
        let [avro, packed] = avro;

        let (ndjson, usage) = deliver(bench, backlog, daemon, &lake, "ndjson", None)?;
        let files = self::files(&lake.join(STREAM))?;
        notes[2] = (usage.cpu, size(&files));
        let lines = lines::read(&files)?;
        let (count, ids) = lines::counted(&lines)?;
        verified[2] &= (count, ids) == (backlog.truth.inserts, backlog.truth.ids);
        let written = lines::write(&lines, &bench.folder.join("bare.ndjson.gz"))?.as_secs_f64();
        let bare_lines = rows as f64 / written / 1e3;
        eprintln!(
            "    Parquet {ours:.0} k rows/s, bare {bare:.0}; Avro {avro:.0}, with zstd {packed:.0}; \
             NDJSON {ndjson:.0}, bare {bare_lines:.0}"
        );
        for (best, now) in best.iter_mut().zip([ours, bare, avro, ndjson, bare_lines, packed]) {
            *best = best.max(now);
        }
        for (figure, ratio) in figures.iter_mut().zip([ours / bare, avro / ours, ndjson / bare_lines, packed / ours]) {
            figure.push((calm, ratio));
        }
    }
    let note = |at: usize, text: String| {
        let (cpu, size) = notes[at];
        format!("at best {text}; {:.2} CPU-s/M; {:.1} B a row", cpu * 1e6 / rows as f64, size as f64 / rows as f64)
    };
    let [a, b, c, d, e, f] = best;
    let figure = |id, what, target, at: usize, text: String| {
        let figure = Figure::of(id, what, "x", (">=", target), &figures[at]);
        figure.verified(verified[at]).note(note(at, text))
    };
    Ok(vec![
        figure(
            "T11",
            "log to Parquet in a folder, against a bare ArrowWriter",
            0.7,
            0,
            format!("{a:.0} k rows/s against {b:.0} k"),
        ),
        figure(
            "T11a",
            "the same to Avro without compression, against our Parquet",
            3.0,
            1,
            format!("{c:.0} k rows/s against {a:.0} k"),
        ),
        figure("T11z", "the same to Avro with zstd", 1.0, 3, format!("{f:.0} k rows/s against {a:.0} k")),
        figure(
            "T11j",
            "the same to NDJSON, against a bare writer of the same lines",
            0.7,
            2,
            format!("{d:.0} k rows/s against {e:.0} k"),
        ),
    ])
}

const STREAM: &str = "shop.public.orders";

/// Delivers it all anew: thousand rows a second, and what the daemon used.
fn deliver(
    bench: &mut Bench,
    backlog: &Workload,
    daemon: &Daemon,
    lake: &Path,
    format: &str,
    compression: Option<&str>,
) -> Result<(f64, Usage)> {
    daemon.with_sink(lake, format, compression, backlog.bodies * 9 / 10 / STEPS)?;
    let mut command = daemon.command(&["--until-caught-up"], "info,connector_runtime=debug")?;
    let (usage, status) = measure(&mut command, |_| Ok(None))?;
    let said = daemon.said();
    if !status.success() {
        return Err(format!("the daemon ended with {status}: {said}").into());
    }
    bench.peak(&format!("log to {format}"), usage.peak);
    let begun = said.lines().find(|line| line.contains(" delivering ")).and_then(time_of);
    let steps = said.lines().filter(|line| line.contains(" step committed "));
    let mut steps: Vec<_> = steps.filter_map(|line| Some((time_of(line)?, field(line, "events")?))).collect();
    steps.truncate(STEPS as usize);
    let delivered: u64 = steps.iter().map(|(_, events)| events).sum();
    match (begun, steps.last()) {
        (Some(begun), Some((ended, _))) if steps.len() as u64 == STEPS => {
            Ok((delivered as f64 / ((ended - begun) as f64 / 1e6) / 1e3, usage))
        }
        _ => Err(format!("no {STEPS} steps were delivered: {said}").into()),
    }
}

fn size(files: &[PathBuf]) -> u64 {
    files.iter().filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum()
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.retain(|path| path.is_file());
    files.sort();
    Ok(files)
}
