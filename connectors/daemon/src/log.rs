//! `log inspect` and `log check`.

use std::io::{IsTerminal, Write};

use config::Config;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use storage::outside::LogFiles;

use crate::args::Log;
use crate::exit::{Exit, failure, log_error};
use crate::{layout, out};

pub(crate) fn run(config: &Config, command: &Log, json: bool) -> Exit {
    let (Log::Inspect { source } | Log::Check { source }) = command;
    let mut worst = Exit::Done;
    for name in config.sources.keys().filter(|name| source.as_ref().is_none_or(|wanted| wanted == *name)) {
        let folder = layout::log(config, name);
        if let Err(error) = layout::has_log(&folder) {
            failure(&format!("log of source {name:?}"), &error);
            worst = Exit::Halted;
            continue;
        }
        let done = LogFiles::open(&folder).and_then(|log| match command {
            Log::Inspect { .. } => inspect(name, &log, json),
            Log::Check { .. } => check(name, &log, json),
        });
        if let Err(error) = done {
            failure(&format!("log of source {name:?}"), &log_error(&folder, error));
            worst = Exit::Halted;
        }
    }
    if let Some(name) = source.as_ref().filter(|name| !config.sources.contains_key(*name)) {
        let known: Vec<&str> = config.sources.keys().map(String::as_str).collect();
        eprintln!("there is no source {name:?}; there is: {}", known.join(", "));
        return Exit::Usage;
    }
    worst
}

fn inspect(source: &str, log: &LogFiles, as_json: bool) -> storage::Result<()> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    log.frames(|frame| {
        let h = &frame.header;
        let segment = frame.segment.file_name().unwrap_or_default().to_string_lossy();
        let position = h.position.as_ref().map(|p| crate::tail::position_text(p.as_bytes()));
        // A reader that has seen enough closes the pipe.
        let _ = if as_json {
            writeln!(
                out,
                "{}",
                json!({
                    "source": source, "segment": segment, "at": frame.at, "kind": h.kind.name(),
                    "ends_transaction": h.ends_transaction, "epoch": h.epoch, "sequence": h.sequence,
                    "offset": h.base, "records": h.records, "position": position, "event_time": h.event_time,
                    "synced": h.synced, "payload_bytes": h.payload_length,
                })
            )
        } else {
            writeln!(
                out,
                "{segment} @{:<10} #{:<8} {:<8}{} offset {:<10} records {:<7} {:>9} B  epoch {} synced #{} {}",
                frame.at,
                h.sequence,
                h.kind.name(),
                if h.ends_transaction { "." } else { " " },
                h.base,
                h.records,
                h.payload_length,
                h.epoch.0,
                h.synced,
                position.unwrap_or_default(),
            )
        };
    })
}

fn check(source: &str, log: &LogFiles, as_json: bool) -> storage::Result<()> {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    bar.set_style(
        ProgressStyle::with_template("{spinner} {bytes} {bytes_per_sec}").unwrap_or(ProgressStyle::default_spinner()),
    );
    let report = log.check(|bytes| bar.set_position(bytes));
    bar.finish_and_clear();
    let report = report?;
    if as_json {
        out::line(json!({"source": source, "whole": true, "report": report}));
    } else {
        out::line(format_args!(
            "{source}: whole; {} segments, {} frames, {} records, {} bytes, offsets {} to {}{}",
            report.segments,
            report.frames,
            report.records,
            report.bytes,
            report.start,
            report.end,
            if report.torn_bytes > 0 {
                format!("; {} bytes of a torn tail, which the next start cuts", report.torn_bytes)
            } else {
                String::new()
            }
        ));
    }
    Ok(())
}
