//! The machine: how loaded it is, how fast its disk syncs, what a process uses.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::Result;

/// Ticks a second in /proc, on every Linux there is.
const TICKS: f64 = 100.0;

/// How the machine was while a round ran.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Calm {
    /// A fixed piece of work, in milliseconds: the same each time when nobody disturbs.
    pub(crate) spin: f64,
    /// Of the last minute.
    pub(crate) load: f64,
}

impl Calm {
    /// Looks now; prints it.
    pub(crate) fn look(round: usize) -> Self {
        let started = Instant::now();
        let mut x = 1u64;
        for i in 0..60_000_000u64 {
            x = std::hint::black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(i));
        }
        let spin = started.elapsed().as_secs_f64() * 1e3;
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN);
        eprintln!("  round {round}: spin {spin:.0} ms, load {load:.2}");
        Self { spin, load }
    }
}

/// What a process took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// From its start to what was waited for.
    pub(crate) wall: Duration,
    /// User and system, all threads.
    pub(crate) cpu: f64,
    /// Memory at its highest, in MiB.
    pub(crate) peak: f64,
}

/// User and system seconds in /proc/PID/stat from a field on.
fn stat(pid: &str, field: usize) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let behind = text.rsplit_once(')').map_or("", |(_, behind)| behind);
    behind.split_whitespace().skip(field - 3).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS
}

/// CPU of all processes that `pid` has waited for.
pub(crate) fn reaped(pid: &str) -> f64 {
    stat(pid, 16)
}

/// A line of /proc/PID/status, in MiB.
pub(crate) fn memory(pid: u32, what: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// Runs a command to its end and measures it. `until` runs beside it, and may
/// say when what was wanted was there.
pub(crate) fn measure(
    command: &mut Command,
    until: impl FnOnce(&mut Child) -> Result<Option<Instant>>,
) -> Result<(Usage, ExitStatus)> {
    let before = reaped("self");
    let started = Instant::now();
    let mut child = command.spawn().map_err(|error| format!("could not start {command:?}: {error}"))?;
    let pid = child.id();
    let (ended, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    let (status, there) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                peak.fetch_max((memory(pid, "VmHWM") * 1024.0) as u64, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let there = until(&mut child);
        if there.is_err() {
            // Nothing is waited for any more.
            let _ = child.kill();
        }
        let status = child.wait();
        ended.store(true, Ordering::Relaxed);
        (status, there)
    });
    let ended = Instant::now();
    let usage = Usage {
        wall: there?.unwrap_or(ended) - started,
        cpu: reaped("self") - before,
        peak: peak.into_inner() as f64 / 1024.0,
    };
    Ok((usage, status?))
}

/// 4 KiB appended and synced, over and over: each time in milliseconds.
pub(crate) fn fdatasync(folder: &Path, times: usize) -> Result<Vec<f64>> {
    let path = folder.join("fdatasync");
    let file = File::create(&path)?;
    let page = [7; 4096];
    let mut took = Vec::new();
    for i in 0..times {
        file.write_all_at(&page, i as u64 * 4096)?;
        let started = Instant::now();
        file.sync_data()?;
        took.push(started.elapsed().as_secs_f64() * 1e3);
    }
    std::fs::remove_file(path)?;
    Ok(took)
}

/// The value that a share of all lie below.
pub(crate) fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n => values[((n - 1) as f64 * share).round() as usize],
    }
}
