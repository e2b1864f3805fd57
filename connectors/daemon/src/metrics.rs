//! `/metrics`: what `status` tells, as numbers.

use std::path::Path;

use serde_json::Value;

use crate::exposition::{Family, Kind};

/// A metric of each of some parts of the status: how it is called, how it
/// moves, what it says, and where it is found (a JSON pointer).
type Read = (&'static str, Kind, &'static str, &'static str);

use Kind::{Counter, Gauge};

const OF_A_SOURCE: &[Read] = &[
    ("highwater_source_lag_bytes", Gauge, "WAL that the server has and the log does not.", "/lag_bytes"),
    (
        "highwater_source_lag_seconds",
        Gauge,
        "Age of the newest commit in the log, while there is a lag.",
        "/lag_seconds",
    ),
    ("highwater_source_silent_seconds", Gauge, "For so long the server has said nothing.", "/silent_seconds"),
    ("highwater_source_retries_total", Counter, "Tries after a failure.", "/retries"),
    ("highwater_slot_retained_bytes", Gauge, "WAL that the server keeps for the slot.", "/slot_bytes"),
    (
        "highwater_slot_safe_bytes",
        Gauge,
        "WAL that may still be written before the slot is in danger.",
        "/slot_safe_bytes",
    ),
    ("highwater_spool_bytes", Gauge, "Of transactions in progress that wait on disk.", "/spool_bytes"),
    ("highwater_log_bytes", Gauge, "Size of the source's log.", "/log/stats/bytes"),
    ("highwater_log_segments", Gauge, "Files of the source's log.", "/log/stats/segments"),
    ("highwater_log_syncs_total", Counter, "Syncs of the log to disk.", "/log/stats/syncs"),
    ("highwater_log_start_offset", Gauge, "First offset that the log holds.", "/log/start"),
    ("highwater_log_end_offset", Gauge, "The high-water mark.", "/log/end"),
    ("highwater_quarantine_rows", Gauge, "Rows that wait for a person.", "/quarantine/rows"),
    ("highwater_quarantine_keys", Gauge, "Keys that are fenced.", "/quarantine/keys"),
    ("highwater_quarantine_bytes", Gauge, "Size of the rows that wait.", "/quarantine/bytes"),
    ("highwater_quarantine_max_bytes", Gauge, "What there is room for.", "/quarantine/max_bytes"),
    ("highwater_quarantine_discarded_rows_total", Counter, "Rows that were given up, ever.", "/quarantine/discarded"),
];

const OF_A_SINK: &[Read] = &[
    (
        "highwater_sink_lag_seconds",
        Gauge,
        "Age of the newest commit that is there, while there is a backlog.",
        "/lag_seconds",
    ),
    ("highwater_sink_backlog_events", Gauge, "Offsets between the checkpoint and the log's end.", "/backlog_events"),
    ("highwater_sink_backlog_bytes", Gauge, "Of the log from the checkpoint on, to the MiB.", "/backlog_bytes"),
    ("highwater_sink_checkpoint_offset", Gauge, "First offset that is not at the destination.", "/checkpoint"),
    ("highwater_sink_events_total", Counter, "Events delivered by this process.", "/events"),
    ("highwater_sink_steps_total", Counter, "Steps committed by this process.", "/steps"),
    ("highwater_sink_retries_total", Counter, "Tries after a failure.", "/retries"),
];

const OF_THE_REGISTRY: &[Read] = &[
    ("highwater_registry_subjects", Gauge, "Subjects; of an external registry those of our sources.", "/subjects"),
    ("highwater_registry_schemas", Gauge, "Schemas.", "/schemas"),
    ("highwater_registry_versions", Gauge, "Versions of all subjects.", "/versions"),
];

/// The states that something can be in.
const STATES: &[&str] = &["starting", "running", "retrying", "halted", "paused", "detached", "stopped"];
const WAL: &[&str] = &["reserved", "extended", "unreserved", "lost"];

/// All of it; `now` in microseconds since 1970.
pub(crate) fn render(status: &Value, folder: &Path, now: i64) -> String {
    let mut out = String::new();
    let version = status["version"].as_str().unwrap_or_default();
    let mut build = Family::new("highwater_build_info", Gauge, "Which version this is.");
    build.put(&[("version", version)], Some(1.0));
    build.write(&mut out);
    for (name, help, value) in [
        ("highwater_process_memory_bytes", "Resident memory.", memory()),
        ("highwater_disk_free_bytes", "Free on the disk of `data_dir`.", free(folder)),
    ] {
        let mut family = Family::new(name, Gauge, help);
        family.put(&[], value);
        family.write(&mut out);
    }
    sources(&mut out, status, now);
    sinks(&mut out, status, now);
    registry(&mut out, &status["registry"], now);
    out
}

fn parts<'a>(status: &'a Value, of: &str) -> impl Iterator<Item = &'a Value> {
    status[of].as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

fn number(value: &Value) -> Option<f64> {
    value.as_f64().or(value.as_bool().map(|is| f64::from(u8::from(is))))
}

/// Since a time in microseconds; none is no time at all.
fn seconds_since(time: &Value, now: i64) -> f64 {
    time.as_i64().map_or(0.0, |time| now.saturating_sub(time).max(0) as f64 / 1e6)
}

/// A family over some parts.
fn family<'a>(
    out: &mut String,
    (name, kind, help): (&'static str, Kind, &'static str),
    of: impl Iterator<Item = &'a Value>,
    mut put: impl FnMut(&mut Family, &'a Value),
) {
    let mut family = Family::new(name, kind, help);
    of.for_each(|part| put(&mut family, part));
    family.write(out);
}

fn sources(out: &mut String, status: &Value, now: i64) {
    let all = || parts(status, "sources");
    for &(metric, kind, help, at) in OF_A_SOURCE {
        family(out, (metric, kind, help), all(), |family, source| {
            family.put(&[("source", text(source, "name"))], source.pointer(at).and_then(number));
        });
    }
    let states = ("highwater_source_state", Gauge, "1 of the state that the source is in.");
    family(out, states, all(), |family, source| {
        for state in STATES {
            let is = f64::from(u8::from(text(source, "health") == *state));
            family.put(&[("source", text(source, "name")), ("state", state)], Some(is));
        }
    });
    let failing = ("highwater_source_failing_seconds", Gauge, "For so long it has failed; 0: it works.");
    family(out, failing, all(), |family, source| {
        let failing = seconds_since(&source["problem"]["since"], now);
        family.put(&[("source", text(source, "name"))], Some(failing));
    });
    let wal = ("highwater_slot_wal_status", Gauge, "1 of the status of the slot's WAL at the server.");
    family(out, wal, all().filter(|source| source["slot_wal_status"].is_string()), |family, source| {
        for status in WAL {
            let is = f64::from(u8::from(text(source, "slot_wal_status") == *status));
            family.put(&[("source", text(source, "name")), ("status", status)], Some(is));
        }
    });
    let events = ("highwater_source_events_total", Counter, "Changes captured by this process.");
    family(out, events, all(), |family, source| {
        for (op, count) in source["events_by_op"].as_object().into_iter().flatten() {
            family.put(&[("source", text(source, "name")), ("op", op)], number(count));
        }
    });
    let full = ("highwater_log_disk_full", Gauge, "1 while the log has no room to write.");
    family(out, full, all(), |family, source| {
        let full = source.pointer("/log/stats/disk_full").and_then(number);
        family.put(&[("source", text(source, "name"))], full);
    });
    let oldest =
        ("highwater_log_oldest_segment_seconds", Gauge, "Age of the oldest segment's last commit; 0: there is one.");
    family(out, oldest, all(), |family, source| {
        let age = seconds_since(source.pointer("/log/stats/oldest").unwrap_or(&Value::Null), now);
        family.put(&[("source", text(source, "name"))], Some(age));
    });
    let held = ("highwater_held_tables", Gauge, "Tables that are held back until somebody approves.");
    family(out, held, all(), |family, source| {
        family.put(&[("source", text(source, "name"))], source["held"].as_array().map(|held| held.len() as f64));
    });
    for (metric, help, of) in [
        ("highwater_held_events", "Events that wait for an approval.", "events"),
        ("highwater_held_bytes", "Their size.", "bytes"),
    ] {
        family(out, (metric, Gauge, help), all(), |family, source| {
            for held in parts(source, "held") {
                family.put(&[("source", text(source, "name")), ("stream", text(held, "stream"))], number(&held[of]));
            }
        });
    }
    let left_out = ("highwater_tables_not_captured", Gauge, "Tables that match and are not captured.");
    family(out, left_out, all(), |family, source| {
        let count = source["not_captured"].as_array().map(|tables| tables.len() as f64);
        family.put(&[("source", text(source, "name"))], count);
    });
    snapshot(out, status);
}

/// Of each table only while it is read: a source may have thousands.
fn snapshot(out: &mut String, status: &Value) {
    let all = || parts(status, "sources");
    let tables = ("highwater_snapshot_tables", Gauge, "Tables by how far their reading is.");
    family(out, tables, all().filter(|source| source["tables"].is_array()), |family, source| {
        let read = parts(source, "tables").filter(|table| table["finished"] == true).count();
        let all = parts(source, "tables").count();
        for (state, count) in [("read", read), ("reading", all - read)] {
            family.put(&[("source", text(source, "name")), ("state", state)], Some(count as f64));
        }
    });
    for (metric, help, of) in [
        ("highwater_snapshot_chunks_read", "Chunks read of a table that is being read.", "chunks"),
        ("highwater_snapshot_chunks_expected", "Its chunks in all; 0: not counted yet.", "total"),
        ("highwater_snapshot_rows_read", "Its rows read.", "rows"),
    ] {
        family(out, (metric, Gauge, help), all(), |family, source| {
            for table in parts(source, "tables").filter(|table| table["finished"] == false) {
                family.put(&[("source", text(source, "name")), ("stream", text(table, "stream"))], number(&table[of]));
            }
        });
    }
}

fn sinks(out: &mut String, status: &Value, now: i64) {
    let all = || parts(status, "sinks");
    let labels =
        |sink: &'_ Value| [("sink", text(sink, "name").to_owned()), ("source", text(sink, "source").to_owned())];
    let put = |family: &mut Family, sink: &Value, more: &[(&str, &str)], value: Option<f64>| {
        let of = labels(sink);
        let mut labels: Vec<(&str, &str)> = of.iter().map(|(name, value)| (*name, value.as_str())).collect();
        labels.extend_from_slice(more);
        family.put(&labels, value);
    };
    for &(metric, kind, help, at) in OF_A_SINK {
        family(out, (metric, kind, help), all(), |family, sink| {
            put(family, sink, &[], sink.pointer(at).and_then(number));
        });
    }
    family(out, ("highwater_sink_state", Gauge, "1 of the state that the sink is in."), all(), |family, sink| {
        for state in STATES {
            let is = f64::from(u8::from(text(sink, "health") == *state));
            put(family, sink, &[("state", state)], Some(is));
        }
    });
    let failing = ("highwater_sink_failing_seconds", Gauge, "For so long it has failed; 0: it works.");
    family(out, failing, all(), |family, sink| {
        put(family, sink, &[], Some(seconds_since(&sink["problem"]["since"], now)));
    });
    let last = ("highwater_sink_last_commit_timestamp_seconds", Gauge, "When this process last committed a step.");
    family(out, last, all(), |family, sink| {
        put(family, sink, &[], sink["committed"].as_i64().map(|time| time as f64 / 1e6));
    });
    let behind = ("highwater_sink_tables_behind", Gauge, "Tables that wait apart from the others.");
    family(out, behind, all(), |family, sink| {
        put(family, sink, &[], sink["tables_behind"].as_array().map(|tables| tables.len() as f64));
    });
}

fn registry(out: &mut String, registry: &Value, now: i64) {
    let one = || std::iter::once(registry);
    for &(metric, kind, help, at) in OF_THE_REGISTRY {
        family(out, (metric, kind, help), one(), |family, registry| {
            family.put(&[], registry.pointer(at).and_then(number));
        });
    }
    let requests = ("highwater_registry_requests_total", Counter, "Requests answered, by status.");
    family(out, requests, one(), |family, registry| {
        for (code, count) in registry["requests"].as_object().into_iter().flatten() {
            family.put(&[("code", code)], number(count));
        }
    });
    let failing = ("highwater_registry_failing_seconds", Gauge, "For so long an external registry has failed.");
    family(out, failing, one().filter(|registry| registry["kind"] == "external"), |family, registry| {
        family.put(&[], Some(seconds_since(&registry["problem"]["since"], now)));
    });
}

fn memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kilobytes * 1024.0)
}

fn free(folder: &Path) -> Option<f64> {
    let disk = nix::sys::statvfs::statvfs(folder).ok()?;
    Some(disk.blocks_available() as f64 * disk.fragment_size() as f64)
}
