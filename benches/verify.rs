//! V1: a mirror compared with its source by `highwater verify`, from its start to
//! its end, while the daemon runs; against the query that one would write by hand,
//! on the side where it is slower: rows counted, and the hashes of their texts
//! summed, by one process of the server, as verify has one work for it.

use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use crate::daemon::Daemon;
use crate::machine::Calm;
use crate::report::Figure;
use crate::{Bench, Result};

const HAND: &str = "SET max_parallel_workers_per_gather = 0; SET jit = off;
    SELECT count(*) || ' ' || sum(hashtextextended(t::text, 0)) FROM orders t";

/// The figure.
pub(crate) fn verify(bench: &mut Bench) -> Result<Figure> {
    let rows: u64 = if bench.quick { 500_000 } else { 5_000_000 };
    eprintln!("V1: a mirror of {rows} rows");
    let server = &bench.server;
    for database in ["verified", "mirror"] {
        server.sql("postgres", &format!("CREATE DATABASE {database}"))?;
    }
    server.sql(
        "verified",
        "CREATE TABLE orders (id bigint PRIMARY KEY, customer int NOT NULL, status text NOT NULL, amount numeric(12,2), paid boolean, at timestamptz, note text)",
    )?;
    server.sql(
        "verified",
        &format!(
            "INSERT INTO orders SELECT i, i % 9973, 'status ' || i % 7, i * 1.25, i % 2 = 0, timestamptz '2024-01-01' + i * interval '1 second',
                    md5(i::text) FROM generate_series(1, {rows}) i"
        ),
    )?;
    server.sql("verified", "CREATE PUBLICATION bench FOR TABLE orders")?;
    let daemon = Daemon::new(&bench.folder.join("verify"), server, "verified", "verified", "initial")?;
    let file = daemon.folder.join("highwater.toml");
    let sink = format!(
        "[sinks.warehouse]\ntype = \"postgres\"\nfrom = [\"shop\"]\nurl = \"postgres://postgres@127.0.0.1:{}/mirror\"\n",
        server.port
    );
    std::fs::write(&file, std::fs::read_to_string(&file)? + &sink)?;
    let mut child = daemon.command(&[], "info")?.spawn()?;
    let measured = measured(bench, &daemon, &mut child, rows);
    let _ = Daemon::stop(&child);
    let _ = child.wait();
    bench.server.drop_slot("verified", "verified")?;
    measured
}

fn measured(bench: &Bench, daemon: &Daemon, child: &mut std::process::Child, rows: u64) -> Result<Figure> {
    let server = &bench.server;
    daemon.until(child, "the mirror was filled", |status| {
        let finished = status["sources"][0]["tables"][0]["finished"] == true;
        finished && status["sinks"][0]["checkpoint"].as_u64().is_some_and(|at| at > rows)
    })?;
    for database in ["verified", "mirror"] {
        server.sql(database, "VACUUM (FREEZE, ANALYZE) orders")?;
    }
    server.sql("verified", "CHECKPOINT")?;
    let (mut rounds, mut verified) = (Vec::new(), true);
    let (mut ours, mut hand) = (f64::INFINITY, f64::INFINITY);
    for round in 0..bench.rounds.min(4) {
        let calm = Calm::look(round);
        let mut slower = 0.0f64;
        let mut sums = Vec::new();
        for database in ["verified", "mirror"] {
            let begun = Instant::now();
            sums.push(server.sql(database, HAND)?);
            slower = slower.max(begun.elapsed().as_secs_f64());
        }
        verified &= sums[0] == sums[1];
        let begun = Instant::now();
        let (code, last) = compared(daemon)?;
        let took = begun.elapsed().as_secs_f64();
        verified &= code == Some(0) && last["equal"] == true && last["source_rows"] == rows;
        eprintln!("    verify {took:.2} s, by hand {slower:.2} s on the slower side");
        (ours, hand) = (ours.min(took), hand.min(slower));
        rounds.push((calm, slower / took));
    }
    // What is fast and finds nothing is of no use.
    server.sql("mirror", &format!("UPDATE orders SET note = note || ' ' WHERE id = {}", rows / 2))?;
    let (code, last) = compared(daemon)?;
    verified &= code == Some(3) && last["different"] == 1;
    Ok(Figure::of("V1", "a mirror verified, against the hash query by hand", "x", (">=", 0.7), &rounds)
        .verified(verified)
        .note(format!("{rows} rows; at best {ours:.2} s against {hand:.2} s")))
}

fn compared(daemon: &Daemon) -> Result<(Option<i32>, Value)> {
    let mut command = Command::new(std::env::current_exe()?.with_file_name("highwater"));
    command.args(["verify", "shop", "warehouse", "--json"]).current_dir(&daemon.folder).env_remove("HIGHWATER_CONFIG");
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().map(serde_json::from_str).transpose()?.unwrap_or_default();
    Ok((output.status.code(), last))
}
