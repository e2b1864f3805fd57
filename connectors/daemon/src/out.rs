//! Results, on stdout.

use std::fmt::Display;
use std::io::Write;

/// A line. A reader that has seen enough closes the pipe, which is no failure.
pub(crate) fn line(text: impl Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
