//! Events of a source, read from its log's files.

use std::collections::VecDeque;
use std::io::Write;

use config::{Config, Patterns};
use connector::{Batch, Error, EventJson, Mark, Result, Shapes, days_from_civil};
use connector_postgres::Lsn;
use storage::outside::{Cursor, LogFiles};
use storage::{Frame, Kind, Micros, Offset};

use crate::args::Tail;
use crate::exit::{Exit, failure, log_error};
use crate::layout;

/// A position as its source prints it.
pub(crate) fn position_text(bytes: &[u8]) -> String {
    Lsn::from_bytes(bytes).map_or_else(|| bytes.escape_ascii().to_string(), |lsn| lsn.to_string())
}

pub(crate) fn run(config: &Config, args: &Tail) -> Exit {
    if !config.sources.contains_key(&args.source) {
        let known: Vec<&str> = config.sources.keys().map(String::as_str).collect();
        eprintln!("there is no source {:?}; there is: {}", args.source, known.join(", "));
        return Exit::Usage;
    }
    let tables = if args.table.is_empty() { vec!["*".to_owned()] } else { args.table.clone() };
    let tables = match Patterns::new(tables) {
        Ok(tables) => tables,
        Err((pattern, why)) => {
            eprintln!("{pattern:?} is no pattern: {why}");
            return Exit::Usage;
        }
    };
    let from = match args.from.as_deref().map(Place::parse) {
        None => None,
        Some(Some(from)) => Some(from),
        Some(None) => {
            let given = args.from.as_deref().unwrap_or_default();
            eprintln!("{given:?} is neither `beginning`, an offset, nor a time like 2026-11-22T10:00:00Z");
            return Exit::Usage;
        }
    };
    let folder = layout::log(config, &args.source);
    let files =
        layout::has_log(&folder).and_then(|()| LogFiles::open(&folder).map_err(|error| log_error(&folder, error)));
    let printed = files.and_then(|files| {
        let begin = begin(&files, args, from).map_err(|error| log_error(&folder, error))?;
        let mut tail = Printer { source: &args.source, args, tables, shapes: Shapes::default(), last: VecDeque::new() };
        tail.print(&files, begin, &folder)
    });
    match printed {
        Ok(()) => Exit::Done,
        Err(error) => {
            failure("tail", &error);
            Exit::Halted
        }
    }
}

/// The last few, if nothing else is asked for.
const LAST: usize = 10;

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Beginning,
    Offset(u64),
    Time(Micros),
}

impl Place {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "beginning" => Some(Self::Beginning),
            _ => text.parse().map(Self::Offset).ok().or_else(|| time(text).map(Self::Time)),
        }
    }
}

fn begin(files: &LogFiles, args: &Tail, from: Option<Place>) -> storage::Result<Offset> {
    let start = files.start()?.unwrap_or_default();
    match from {
        Some(Place::Beginning) => Ok(start),
        Some(Place::Offset(offset)) => Ok(Offset(offset)),
        Some(Place::Time(time)) => files.offset_at(time),
        None => {
            // Far enough back for the last few, unless others' events fill the end.
            let end = files.standing()?.map_or(start, |standing| standing.end);
            let back = if args.table.is_empty() { args.count.unwrap_or(LAST) as u64 + 16 } else { u64::MAX };
            Ok(Offset(end.0.saturating_sub(back).max(start.0)))
        }
    }
}

/// `2026-11-22T10:00:00[.ffffff]Z`.
pub(crate) fn time(text: &str) -> Option<Micros> {
    let text = text.strip_suffix('Z')?;
    let (date, clock) = text.split_once(['T', ' '])?;
    let numbers = |text: &str, by: char| text.split(by).map(|n| n.parse::<i64>().ok()).collect::<Option<Vec<_>>>();
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let (date, clock) = (numbers(date, '-')?, numbers(clock, ':')?);
    let (&[year, month, day], &[hours, minutes, seconds]) = (date.as_slice(), clock.as_slice()) else { return None };
    let fits = (0..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !fits || !(0..24).contains(&hours) || !(0..60).contains(&minutes) || !(0..=60).contains(&seconds) {
        return None;
    }
    let micros: i64 = if fraction.is_empty() { 0 } else { format!("{fraction:0<6}").get(..6)?.parse().ok()? };
    let days = days_from_civil(year, month as u32, day as u32);
    Some(Micros((((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1_000_000 + micros))
}

struct Printer<'a> {
    source: &'a str,
    args: &'a Tail,
    tables: Patterns,
    shapes: Shapes,
    last: VecDeque<String>,
}

impl Printer<'_> {
    fn print(&mut self, files: &LogFiles, begin: Offset, folder: &std::path::Path) -> Result<()> {
        if files.start().map_err(|error| log_error(folder, error))?.is_none() {
            return Err(
                Error::halt(format!("there is no log in {}", folder.display())).hint("`highwater run` makes it")
            );
        }
        let last = self.args.count.unwrap_or(LAST);
        // With a place to begin, that many and no more.
        let mut left = self.args.from.as_ref().and(self.args.count).unwrap_or(usize::MAX);
        if left == 0 {
            return Ok(());
        }
        let mut cursor = files.read(begin).map_err(|error| log_error(folder, error))?;
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        // All that there is from a place on; else only the last few.
        let mut direct = self.args.from.is_some();
        loop {
            let frame = match cursor.next() {
                Ok(frame) => frame,
                Err(error) => {
                    self.flush(&mut out)?;
                    return Err(log_error(folder, error));
                }
            };
            match frame {
                Some(frame) => {
                    for line in self.lines(frame, begin, &cursor)? {
                        if direct {
                            left = left.saturating_sub(1);
                            if writeln!(out, "{line}").is_err() || left == 0 {
                                let _ = out.flush();
                                return Ok(());
                            }
                        } else {
                            self.last.push_back(line);
                            if self.last.len() > last {
                                self.last.pop_front();
                            }
                        }
                    }
                }
                None => {
                    self.flush(&mut out)?;
                    direct = true;
                    if !self.args.follow {
                        return Ok(());
                    }
                    std::thread::sleep(Cursor::<storage::files::Disk>::PAUSE);
                }
            }
        }
    }

    fn flush(&mut self, out: &mut impl Write) -> Result<()> {
        for line in self.last.drain(..) {
            // A reader that has seen enough closes the pipe.
            let _ = writeln!(out, "{line}");
        }
        let _ = out.flush();
        Ok(())
    }

    fn lines(&mut self, frame: Frame, begin: Offset, cursor: &Cursor) -> Result<Vec<String>> {
        let broken =
            |error: connector::Malformed| Error::halt("the log holds a batch that cannot be read").because(error);
        let mut lines = Vec::new();
        match frame.kind {
            Kind::Data => {
                let batch = Batch::new(frame);
                for run in batch.runs() {
                    let run = run.map_err(broken)?;
                    if self.shapes.get(run.schema).is_none() {
                        self.shapes = Shapes::from_state(cursor.state().iter()).map_err(|error| {
                            Error::halt("the schemas in the log's state cannot be read").because(error)
                        })?;
                    }
                    let shape = self.shapes.get(run.schema).cloned();
                    let shape =
                        shape.ok_or_else(|| Error::halt(format!("the log does not know its schema {}", run.schema)))?;
                    if !self.tables.matches(&format!("{}.{}", shape.table.schema, shape.table.name)) {
                        continue;
                    }
                    let position = position_text(run.transaction.position);
                    for change in run.changes() {
                        let change = change.map_err(broken)?;
                        if change.offset < begin {
                            continue;
                        }
                        let event = EventJson::Change {
                            shape: &shape,
                            transaction: run.transaction,
                            change,
                            position: &position,
                        };
                        lines.push(serde_json::to_string(&event).map_err(|error| {
                            Error::halt(format!("the event at offset {} cannot be read", change.offset)).because(error)
                        })?);
                    }
                }
            }
            Kind::Control if self.args.control => {
                if let Some(mark) = Mark::from_payload(&frame.payload) {
                    let position = position_text(&mark.position);
                    let offset = frame.offsets.start.0;
                    let event = EventJson::Mark { source: self.source, mark: &mark, offset, position: &position };
                    lines.push(event.to_string());
                }
            }
            _ => {}
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_to_the_microsecond() {
        assert_eq!(time("1970-01-02T00:00:01.5Z"), Some(Micros(86_401_500_000)));
        assert_eq!(time("yesterday"), None);
        assert_eq!(time("99999999999999-01-02T00:00:01Z"), None);
        assert_eq!(time("2026-13-01T00:00:00Z"), None);
        assert_eq!(Place::parse("0"), Some(Place::Offset(0)));
        assert_eq!(Place::parse("-1"), None);
    }
}
