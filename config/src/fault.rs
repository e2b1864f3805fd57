//! What is wrong with a configuration.

use std::fmt;
use std::path::PathBuf;

/// One fault: where, what, what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `file:line`, or a variable's name.
    pub place: String,
    /// `sources.shop.url`.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub suggestion: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, " ({suggestion})"),
            None => Ok(()),
        }
    }
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Faults {
    /// The file.
    pub file: PathBuf,
    /// At least one, in the order of the file.
    pub faults: Vec<Fault>,
}

/// The nearest of the known words, if it is near enough to be meant.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |other: &str| -> usize {
        let other: Vec<char> = other.chars().collect();
        let mut row: Vec<usize> = (0..=other.len()).collect();
        for (i, a) in word.chars().enumerate() {
            let mut before = row[0];
            row[0] = i + 1;
            for (j, b) in other.iter().enumerate() {
                let cost = before + usize::from(a != *b);
                before = row[j + 1];
                row[j + 1] = cost.min(row[j] + 1).min(before + 1);
            }
        }
        row[other.len()]
    };
    let (best, at) = known.into_iter().map(|other| (distance(other), other)).min_by_key(|(d, _)| *d)?;
    (best <= 1 + word.len() / 4).then_some(at)
}
