//! Figures: what was measured, what was wanted, whether it holds.

use serde_json::{Value, json};

use crate::Result;
use crate::machine::{Calm, quantile};

/// A round whose fixed piece of work took this much longer than the best is not counted.
const DISTURBED: f64 = 1.5;

/// One figure.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    pub(crate) id: &'static str,
    pub(crate) what: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// `>=` or `<=`, and what.
    pub(crate) target: (&'static str, f64),
    /// Counts and checksums were right in every round.
    pub(crate) verified: bool,
    /// Least and greatest of the rounds.
    pub(crate) range: (f64, f64),
    /// Greatest load, and spin of the slowest round against the best.
    pub(crate) load: f64,
    pub(crate) spin: f64,
    pub(crate) note: String,
}

impl Figure {
    /// The median over the rounds that were not disturbed.
    pub(crate) fn of(
        id: &'static str,
        what: impl Into<String>,
        unit: &'static str,
        target: (&'static str, f64),
        rounds: &[(Calm, f64)],
    ) -> Self {
        let best = rounds.iter().map(|(calm, _)| calm.spin).fold(f64::INFINITY, f64::min);
        let mut counted: Vec<f64> =
            rounds.iter().filter(|(calm, _)| calm.spin <= best * DISTURBED).map(|(_, value)| *value).collect();
        let left_out = rounds.len() - counted.len();
        Self {
            id,
            what: what.into(),
            value: quantile(&mut counted, 0.5),
            unit,
            target,
            verified: false,
            range: (quantile(&mut counted, 0.0), quantile(&mut counted, 1.0)),
            load: rounds.iter().map(|(calm, _)| calm.load).fold(0.0, f64::max),
            spin: rounds.iter().map(|(calm, _)| calm.spin).fold(0.0, f64::max) / best,
            note: match left_out {
                0 => format!("median of {} rounds", rounds.len()),
                n => format!("median of {} rounds, {n} more were disturbed", rounds.len() - n),
            },
        }
    }

    /// Whether the moved data was right in every round.
    pub(crate) fn verified(mut self, verified: bool) -> Self {
        self.verified = verified;
        self
    }

    /// Adds to the note.
    pub(crate) fn note(mut self, note: impl std::fmt::Display) -> Self {
        self.note += &format!("; {note}");
        self
    }

    /// A figure that was not verified does not hold.
    pub(crate) fn holds(&self) -> bool {
        let (direction, wanted) = self.target;
        self.verified && if direction == ">=" { self.value >= wanted } else { self.value <= wanted }
    }

    fn json(&self) -> Value {
        json!({
            "id": self.id,
            "what": self.what,
            "value": round(self.value),
            "unit": self.unit,
            "target": format!("{} {}", self.target.0, round(self.target.1)),
            "holds": self.holds(),
            "verified": self.verified,
            "load": round(self.load),
            "spin": round(self.spin),
            "min": round(self.range.0),
            "max": round(self.range.1),
            "note": self.note,
        })
    }
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Prints the table, and writes the report.
pub(crate) fn publish(figures: &[Figure], file: &std::path::Path) -> Result<()> {
    println!(
        "{:<5} {:<58} {:>9} {:<8} {:>10} {:<7} {:>17} {:>5} {:>5}",
        "", "", "value", "", "target", "", "min..max", "load", "spin"
    );
    for figure in figures {
        let holds = match (figure.verified, figure.holds()) {
            (false, _) => "UNSURE",
            (true, true) => "holds",
            (true, false) => "MISSED",
        };
        println!(
            "{:<5} {:<58} {:>9.3} {:<8} {:>10} {holds:<7} {:>17} {:>5.2} {:>5.2}",
            figure.id,
            figure.what,
            figure.value,
            figure.unit,
            format!("{} {:.2}", figure.target.0, figure.target.1),
            format!("{:.2}..{:.2}", figure.range.0, figure.range.1),
            figure.load,
            figure.spin,
        );
        println!("      {}", figure.note);
    }
    let all: Vec<Value> = figures.iter().map(Figure::json).collect();
    std::fs::write(file, serde_json::to_string_pretty(&all)? + "\n")?;
    println!("{}", file.display());
    Ok(())
}
