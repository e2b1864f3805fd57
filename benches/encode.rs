//! T10: one message of the stream to one Avro row, by the compiled plan and by
//! the encoder written by hand. Messages are those of W1. Time is noisy, so
//! where valgrind is there the instructions are counted too.

use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use connector::{Column, Table, TableKind, Type};
use connector_postgres::bench::Encoder;

use crate::baselines::encoder;
use crate::machine::Calm;
use crate::report::Figure;
use crate::workload::Workload;
use crate::{Bench, Result};

/// The orders table as the daemon has it.
fn orders() -> Table {
    let column = |(i, (name, ty)): (usize, (&str, Type))| Column {
        name: name.into(),
        ty,
        db_type: String::new(),
        nullable: true,
        id: i as i32 + 1,
    };
    let columns = [
        ("id", Type::Long),
        ("customer_id", Type::Int),
        ("sku", Type::String),
        ("note", Type::String),
        ("amount", Type::Decimal { precision: 12, scale: 2 }),
        ("currency", Type::String),
        ("qty", Type::Int),
        ("paid", Type::Boolean),
        ("created_at", Type::Timestamp),
        ("updated_at", Type::Timestamp),
        ("uid", Type::Uuid),
        ("attrs", Type::Json),
    ];
    Table {
        source: "shop".into(),
        schema: "public".into(),
        name: "orders".into(),
        kind: TableKind::Table,
        columns: columns.into_iter().enumerate().map(column).collect(),
        key: vec![0],
        full_identity: false,
    }
}

/// All messages once.
fn by_hand(messages: &[Vec<u8>], out: &mut Vec<u8>) {
    out.clear();
    messages.iter().for_each(|message| encoder::encode(black_box(message), out));
}

/// All messages once.
fn by_plan(plan: &mut Encoder, messages: &[Vec<u8>], out: &mut Vec<u8>) -> bool {
    out.clear();
    messages.iter().all(|message| plan.encode(black_box(message), out))
}

/// The figures.
pub(crate) fn encode(bench: &Bench, workload: &Workload) -> Result<Vec<Figure>> {
    let messages = &workload.messages;
    eprintln!("encoding {} messages", messages.len());
    let mut plan = Encoder::new(orders()).ok_or("no plan")?;
    let (mut hand_out, mut plan_out) = (Vec::new(), Vec::new());
    by_hand(messages, &mut hand_out);
    let verified = by_plan(&mut plan, messages, &mut plan_out) && hand_out == plan_out;
    let mut rounds = Vec::new();
    let each = |taken: f64| taken * 1e9 / messages.len() as f64;
    let (mut best_hand, mut best_plan) = (f64::INFINITY, f64::INFINITY);
    for round in 0..bench.rounds {
        let calm = Calm::look(round);
        let (mut hand, mut generic) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..20 {
            let started = Instant::now();
            by_hand(messages, black_box(&mut hand_out));
            hand = hand.min(started.elapsed().as_secs_f64());
            let started = Instant::now();
            by_plan(&mut plan, messages, black_box(&mut plan_out));
            generic = generic.min(started.elapsed().as_secs_f64());
        }
        (best_hand, best_plan) = (best_hand.min(hand), best_plan.min(generic));
        rounds.push((calm, hand / generic));
    }
    let mut figures = vec![
        Figure::of("T10", "encoding: the generic plan against code written by hand", "x", (">=", 0.7), &rounds)
            .verified(verified)
            .note(format!("{:.0} ns an event against {:.0} by hand", each(best_plan), each(best_hand))),
    ];
    let file = bench.folder.join("messages");
    write_messages(messages, &file)?;
    let count = |who| Some(instructions(who, &file, 3)? - instructions(who, &file, 1)?);
    if let (Some(hand), Some(generic)) = (count("hand"), count("plan")) {
        let each = |total: f64| total / 2.0 / messages.len() as f64;
        let calm = rounds[0].0;
        let mut figure =
            Figure::of("T10i", "the same in instructions, by callgrind", "x", (">=", 0.7), &[(calm, hand / generic)])
                .verified(verified);
        figure.note = format!("{:.0} instructions an event against {:.0} by hand", each(generic), each(hand));
        figures.push(figure);
    } else {
        eprintln!("  no valgrind here: instructions are not counted");
    }
    Ok(figures)
}

fn write_messages(messages: &[Vec<u8>], file: &Path) -> Result<()> {
    let mut bytes = Vec::new();
    for message in messages {
        bytes.extend_from_slice(&(message.len() as u32).to_le_bytes());
        bytes.extend_from_slice(message);
    }
    Ok(std::fs::write(file, bytes)?)
}

/// None where there is no valgrind.
fn instructions(who: &str, file: &Path, times: u32) -> Option<f64> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(std::env::current_exe().ok()?);
    let output = command.args(["encode", who]).arg(file).arg(times.to_string()).output().ok()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let (_, count) = said.split_once("Collected : ")?;
    count.split_whitespace().next()?.parse().ok()
}

/// Encodes a file's messages so many times: what callgrind runs.
pub(crate) fn run(who: &str, file: &Path, times: u32) -> Result<()> {
    let bytes = std::fs::read(file)?;
    let mut rest = &bytes[..];
    let mut messages = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let (message, behind) = behind.split_at(u32::from_le_bytes(*length) as usize);
        messages.push(message.to_vec());
        rest = behind;
    }
    let mut plan = Encoder::new(orders()).ok_or("no plan")?;
    let mut out = Vec::with_capacity(bytes.len() * 2);
    for _ in 0..times {
        match who {
            "hand" => by_hand(&messages, &mut out),
            _ => drop(by_plan(&mut plan, &messages, &mut out)),
        }
        black_box(&out);
    }
    Ok(())
}
