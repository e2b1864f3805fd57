//! What a comparison says: results to stdout, how far it is to stderr.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use compare::{Finding, Found, Outcome, Progress};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::out;

const LINE: Duration = Duration::from_secs(5);

/// A table with what it came to.
pub(crate) struct Compared {
    pub(crate) stream: String,
    /// As `schema.table`.
    pub(crate) table: String,
    pub(crate) outcome: Outcome,
}

fn word(found: Found) -> &'static str {
    match found {
        Found::Missing => "missing",
        Found::Extra => "extra",
        Found::Different => "different",
    }
}

/// A table, as soon as it is known.
pub(crate) fn table(compared: &Compared, as_json: bool) {
    let Compared { stream, table, outcome } = compared;
    let (missing, extra, different) = (outcome.missing, outcome.extra, outcome.different);
    if as_json {
        for finding in &outcome.findings {
            out::line(finding_json(stream, table, finding));
        }
        let verdict = match &outcome.skipped {
            Some(_) => "skipped",
            None if outcome.is_equal() => "equal",
            None => "not_equal",
        };
        out::line(json!({
            "type": "table", "stream": stream, "table": table, "verdict": verdict, "why": outcome.skipped,
            "source_rows": outcome.source_rows, "sink_rows": outcome.sink_rows,
            "missing": missing, "extra": extra, "different": different, "named": outcome.findings.len(),
        }));
        return;
    }
    if let Some(why) = &outcome.skipped {
        out::line(format_args!("{table}: not compared: {why}"));
        return;
    }
    if outcome.is_equal() {
        out::line(format_args!("{table}: equal, {} rows", outcome.source_rows));
        return;
    }
    out::line(format_args!(
        "{table}: not equal: {missing} missing, {extra} too many, {different} different; {} rows at the source, {} at the destination",
        outcome.source_rows, outcome.sink_rows
    ));
    for finding in &outcome.findings {
        out::line(format_args!("  {}", finding_text(finding)));
    }
    let rest = (missing + extra + different).saturating_sub(outcome.findings.iter().map(|f| f.times).sum());
    if rest > 0 {
        out::line(format_args!("  and {rest} more"));
    }
}

fn finding_json(stream: &str, table: &str, finding: &Finding) -> Value {
    let key: Map<String, Value> = finding.key.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let columns: Vec<Value> = finding
        .columns
        .iter()
        .map(|(name, values)| match values {
            Some([source, sink]) => json!({"column": name, "source": source, "sink": sink}),
            None => json!({"column": name}),
        })
        .collect();
    let key = if key.is_empty() { Value::Null } else { Value::Object(key) };
    json!({
        "type": "finding", "stream": stream, "table": table, "found": word(finding.found), "key": key,
        "times": finding.times, "columns": columns,
    })
}

fn finding_text(finding: &Finding) -> String {
    let shown = |value: &Option<String>| value.as_ref().map_or("NULL".to_owned(), |value| format!("{value:?}"));
    let key: Vec<String> = finding.key.iter().map(|(name, value)| format!("{name} = {value:?}")).collect();
    let mut text = format!("{:<9}  {}", word(finding.found), key.join(", "));
    if finding.times > 1 || finding.key.is_empty() {
        text.push_str(&format!("a row, {} times", finding.times));
    }
    let columns: Vec<String> = finding
        .columns
        .iter()
        .map(|(name, values)| match values {
            Some([source, sink]) => {
                format!("{name}: {} at the source, {} at the destination", shown(source), shown(sink))
            }
            None => name.clone(),
        })
        .collect();
    if !columns.is_empty() {
        text.push_str(&format!(": {}", columns.join("; ")));
    }
    text
}

/// All of it.
pub(crate) struct Summary<'a> {
    pub(crate) source: &'a str,
    pub(crate) sink: &'a str,
    pub(crate) position: &'a str,
    pub(crate) checkpoint: u64,
    pub(crate) took: Duration,
    pub(crate) after_repair: bool,
}

/// The last line; whether everything is equal.
pub(crate) fn summary(summary: &Summary<'_>, tables: &[Compared], as_json: bool) -> bool {
    let skipped = tables.iter().filter(|table| table.outcome.skipped.is_some()).count();
    let unequal = tables.iter().filter(|table| table.outcome.skipped.is_none() && !table.outcome.is_equal()).count();
    let equal = skipped + unequal == 0;
    let rows: u64 = tables.iter().map(|table| table.outcome.source_rows).sum();
    let Summary { source, sink, position, checkpoint, took, after_repair } = summary;
    if as_json {
        let sum = |of: fn(&Outcome) -> u64| tables.iter().map(|table| of(&table.outcome)).sum::<u64>();
        out::line(json!({
            "type": "summary", "source": source, "sink": sink, "position": position, "checkpoint": checkpoint,
            "equal": equal, "tables": tables.len(), "not_equal": unequal, "not_compared": skipped,
            "source_rows": rows, "sink_rows": sum(|o| o.sink_rows), "missing": sum(|o| o.missing),
            "extra": sum(|o| o.extra), "different": sum(|o| o.different),
            "seconds": took.as_secs_f64(), "after_repair": after_repair,
        }));
        return equal;
    }
    let verdict = match (unequal, skipped) {
        (0, 0) => "equal".to_owned(),
        (0, skipped) => format!("not proven: {skipped} of {} tables were not compared", tables.len()),
        (unequal, 0) => format!("not equal: {unequal} of {} tables", tables.len()),
        (unequal, skipped) => {
            format!("not equal: {unequal} of {} tables, and {skipped} were not compared", tables.len())
        }
    };
    out::line(format_args!(
        "{source} and {sink}{}: {verdict}; {} tables, {rows} rows, at position {position}, checkpoint {checkpoint}, {:.1} s",
        if *after_repair { " after the repair" } else { "" },
        tables.len(),
        took.as_secs_f64()
    ));
    equal
}

/// Shows progress until it is dropped.
pub(crate) struct Shown(tokio::task::JoinHandle<()>);

impl Drop for Shown {
    fn drop(&mut self) {
        self.0.abort();
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }
}

pub(crate) fn show(progress: Arc<Progress>, what: String) -> Shown {
    Shown(tokio::spawn(async move {
        let begun = Instant::now();
        let mut said = Instant::now();
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix} {bar:30} {percent}%, {msg}, {eta} left");
            ProgressBar::new(1).with_style(style.unwrap_or(ProgressStyle::default_bar())).with_prefix(what.clone())
        });
        loop {
            tokio::time::sleep(Duration::from_millis(250)).await;
            let (done, total, rows) = progress.now();
            let seconds = begun.elapsed().as_secs_f64().max(0.001);
            let rate = rows as f64 / seconds;
            match &bar {
                Some(bar) => {
                    bar.set_length(total.max(1));
                    bar.set_position(done);
                    bar.set_message(format!("{rows} rows, {rate:.0} rows/s"));
                }
                None if said.elapsed() >= LINE => {
                    said = Instant::now();
                    let left = (total - done) as f64 * seconds / (done as f64).max(1.0);
                    let percent = done * 100 / total.max(1);
                    eprintln!("{what}: {percent} %, {rows} rows, {rate:.0} rows/s, {left:.0} s left");
                }
                None => {}
            }
        }
    }))
}
