//! Prometheus' text format, version 0.0.4: families of samples.
//!
//! By hand: what is shown is read off `status` at each scrape, so there is
//! nothing to register and to count in, which is what a library is for.
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>

use std::fmt::Write as _;

/// What a scraper is told that it gets.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How a family's values move.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// Up, and to nothing when the process begins.
    Counter,
    /// Up and down.
    Gauge,
}

/// One metric's samples.
pub(crate) struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    samples: String,
}

impl Family {
    pub(crate) fn new(name: &'static str, kind: Kind, help: &'static str) -> Self {
        Self { name, kind, help, samples: String::new() }
    }

    /// Adds a sample; a value that is not known is none.
    pub(crate) fn put(&mut self, labels: &[(&str, &str)], value: Option<f64>) {
        let Some(value) = value else { return };
        self.samples.push_str(self.name);
        for (i, (name, value)) in labels.iter().enumerate() {
            self.samples.push_str(if i == 0 { "{" } else { "," });
            self.samples.push_str(name);
            self.samples.push_str("=\"");
            escape(&mut self.samples, value);
            self.samples.push('"');
        }
        if !labels.is_empty() {
            self.samples.push('}');
        }
        // Writing into a String cannot fail.
        let _ = writeln!(self.samples, " {value}");
    }

    /// With its help and type; nothing of a family without samples.
    pub(crate) fn write(&self, out: &mut String) {
        if self.samples.is_empty() {
            return;
        }
        let kind = match self.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        let _ = writeln!(out, "# HELP {} {}\n# TYPE {0} {kind}", self.name, self.help);
        out.push_str(&self.samples);
    }
}

fn escape(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_its_help_its_type_and_its_samples() {
        let mut family = Family::new("a_bytes", Kind::Gauge, "What it is.");
        let mut out = String::new();
        family.put(&[], None);
        family.write(&mut out);
        assert_eq!(out, "", "nothing is known");
        family.put(&[], Some(1.0));
        family.put(&[("a", "x\\\"\ny"), ("b", "ü")], Some(0.25));
        family.put(&[("big", "")], Some(u64::MAX as f64));
        family.write(&mut out);
        assert_eq!(
            out,
            "# HELP a_bytes What it is.\n# TYPE a_bytes gauge\na_bytes 1\n\
             a_bytes{a=\"x\\\\\\\"\\ny\",b=\"ü\"} 0.25\na_bytes{big=\"\"} 18446744073709552000\n"
        );
    }
}
