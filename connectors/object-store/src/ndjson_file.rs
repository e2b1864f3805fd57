//! An NDJSON file: a row a line.

use std::io::Write;
use std::sync::Arc;

use connector::{Change, Malformed, Mark, Op, Reader, Run, Shape};
use flate2::Compression;
use flate2::write::GzEncoder;
use storage::Offset;

use crate::format::{Codec, Form, OURS};
use crate::json_text::{put_integer, put_text, put_timestamp, put_value};
use crate::meta::has_before;
use crate::out::{Out, Place};
use crate::press::{Packer, Press, Pressed};
use crate::writer::{Failed, FileWriter};

/// Lines that go to the compressor at a time: a table that has less by the end
/// of a step needs none until then.
const LINES: usize = 128 << 10;

/// Rows as lines.
pub(crate) struct NdjsonFile {
    shape: Arc<Shape>,
    before: bool,
    in_key: Vec<bool>,
    /// `"name":` of each column.
    names: Vec<Vec<u8>>,
    ours: Ours,
    /// Position, transaction and time as they are printed, of this run.
    run: Option<u64>,
    of_run: Vec<u8>,
    lines: Vec<u8>,
    packed: Pressed<Lines>,
}

/// The file itself.
struct Lines {
    place: Place,
    codec: Codec,
    out: Option<Packing>,
}

/// `"name":` of our own columns.
struct Ours {
    op: Vec<u8>,
    offset: Vec<u8>,
    ordinal: Vec<u8>,
    position: Vec<u8>,
    tx: Vec<u8>,
    commit_time: Vec<u8>,
    absent: Vec<u8>,
    old_key: Vec<u8>,
    before: Vec<u8>,
}

enum Packing {
    None(Out),
    Gzip(Box<GzEncoder<Out>>),
    Zstd(Box<zstd::stream::write::Encoder<'static, Out>>),
}

impl NdjsonFile {
    pub(crate) fn new(shape: Arc<Shape>, place: Place, form: &Form, press: &Press) -> Self {
        let label = |name: &str| {
            let mut label = Vec::new();
            put_text(&mut label, name);
            label.push(b':');
            label
        };
        let [op, offset, ordinal, position, tx, commit_time, absent, old_key, before] =
            OURS.map(|name| label(&format!("{}{name}", form.meta_prefix)));
        let table = &shape.table;
        Self {
            before: has_before(table, form.before),
            in_key: (0..table.columns.len()).map(|i| table.in_key(i)).collect(),
            names: table.columns.iter().map(|column| label(&column.name)).collect(),
            ours: Ours { op, offset, ordinal, position, tx, commit_time, absent, old_key, before },
            run: None,
            of_run: Vec::new(),
            lines: Vec::new(),
            packed: press.file(Lines { place, codec: form.codec(), out: None }),
            shape,
        }
    }

    /// `{` and the columns that are known, each with a comma behind.
    #[inline]
    fn columns(&mut self, change: &Change<'_>) -> Result<(), Malformed> {
        self.lines.push(b'{');
        if change.op == Op::Truncate {
            return Ok(());
        }
        let mut reader = Reader::new(change.value);
        for (i, column) in self.shape.table.columns.iter().enumerate() {
            let start = self.lines.len();
            self.lines.extend_from_slice(&self.names[i]);
            put_value(&mut self.lines, &mut reader, column, self.in_key[i])?;
            self.lines.push(b',');
            if change.is_absent(i) {
                self.lines.truncate(start);
            }
        }
        Ok(())
    }

    fn line_done(&mut self) -> Result<(), Failed> {
        self.lines.extend_from_slice(b"}\n");
        if self.lines.len() >= LINES { self.pack() } else { Ok(()) }
    }

    fn pack(&mut self) -> Result<(), Failed> {
        if !self.lines.is_empty() {
            self.lines = self.packed.push(std::mem::take(&mut self.lines))?;
        }
        Ok(())
    }
}

impl Packer for Lines {
    type Piece = Vec<u8>;

    fn pack(&mut self, lines: &mut Vec<u8>) -> Result<(), Failed> {
        if self.out.is_none() {
            let file = self.place.create()?;
            self.out = Some(match self.codec {
                Codec::Gzip | Codec::Deflate => Packing::Gzip(Box::new(GzEncoder::new(file, Compression::new(2)))),
                Codec::Zstd => Packing::Zstd(Box::new(zstd::stream::write::Encoder::new(file, 1)?)),
                Codec::None => Packing::None(file),
            });
        }
        match self.out.as_mut().expect("made above") {
            Packing::None(file) => file.write_all(lines)?,
            Packing::Gzip(encoder) => encoder.write_all(lines)?,
            Packing::Zstd(encoder) => encoder.write_all(lines)?,
        }
        lines.clear();
        Ok(())
    }

    fn memory(&self) -> usize {
        match &self.out {
            None => 0,
            Some(Packing::None(file)) => file.memory(),
            Some(Packing::Gzip(encoder)) => encoder.get_ref().memory(),
            Some(Packing::Zstd(encoder)) => encoder.get_ref().memory(),
        }
    }

    fn flush(&mut self) -> Result<(), Failed> {
        let file = match &mut self.out {
            None => return Ok(()),
            Some(Packing::None(file)) => file,
            Some(Packing::Gzip(encoder)) => encoder.get_mut(),
            Some(Packing::Zstd(encoder)) => encoder.get_mut(),
        };
        Ok(file.spill()?)
    }

    fn close(&mut self) -> Result<(), Failed> {
        let Some(out) = self.out.take() else { return Ok(()) };
        let file = match out {
            Packing::None(file) => file,
            Packing::Gzip(encoder) => encoder.finish()?,
            Packing::Zstd(encoder) => encoder.finish()?,
        };
        Ok(file.finish()?)
    }
}

impl FileWriter for NdjsonFile {
    #[inline]
    fn change(&mut self, change: &Change<'_>, run: &Run<'_>, position: &str) -> Result<(), Failed> {
        if self.run != Some(run.first_offset.0) {
            self.run = Some(run.first_offset.0);
            self.of_run.clear();
            of_run(&mut self.of_run, &self.ours, position, run.transaction.tx, run.transaction.commit_time.0);
        }
        self.columns(change)?;
        let (lines, ours, table) = (&mut self.lines, &self.ours, &self.shape.table);
        lines.extend_from_slice(&ours.op);
        put_text(lines, change.op.name());
        put_place(lines, ours, change.offset, change.ordinal);
        lines.extend_from_slice(&self.of_run);
        lines.extend_from_slice(&ours.absent);
        if change.has_absent() {
            lines.push(b'[');
            for (_, column) in table.columns.iter().enumerate().filter(|(i, _)| change.is_absent(*i)) {
                put_text(lines, &column.name);
                lines.push(b',');
            }
            match lines.last_mut() {
                Some(last) if *last == b',' => *last = b']',
                _ => lines.push(b']'),
            }
        } else {
            lines.extend_from_slice(b"null");
        }
        if !table.key.is_empty() {
            lines.push(b',');
            lines.extend_from_slice(&ours.old_key);
            match change.old_key {
                Some(body) => {
                    put_object(lines, &self.names, self.shape.as_ref(), table.key.iter().copied(), |_| true, body)?;
                }
                None => lines.extend_from_slice(b"null"),
            }
        }
        if self.before {
            lines.push(b',');
            lines.extend_from_slice(&ours.before);
            match change.before {
                Some(body) => {
                    let all = 0..table.columns.len();
                    put_object(lines, &self.names, self.shape.as_ref(), all, |i| self.in_key[i], body)?;
                }
                None => lines.extend_from_slice(b"null"),
            }
        }
        self.line_done()
    }

    fn mark(&mut self, mark: &Mark, position: &str, offset: Offset) -> Result<(), Failed> {
        let (lines, ours) = (&mut self.lines, &self.ours);
        lines.push(b'{');
        lines.extend_from_slice(&ours.op);
        put_text(lines, &mark.op);
        put_place(lines, ours, offset, mark.ordinal);
        of_run(lines, ours, position, "", mark.commit_time);
        lines.extend_from_slice(&ours.absent);
        lines.extend_from_slice(b"null");
        for (has, name) in [(!self.shape.table.key.is_empty(), &ours.old_key), (self.before, &ours.before)] {
            if has {
                lines.push(b',');
                lines.extend_from_slice(name);
                lines.extend_from_slice(b"null");
            }
        }
        self.line_done()
    }

    fn memory(&self) -> usize {
        self.lines.capacity() + self.packed.memory()
    }

    fn flush(&mut self) -> Result<(), Failed> {
        self.pack()?;
        self.lines = Vec::new();
        self.packed.flush()
    }

    fn close(&mut self) -> Result<(), Failed> {
        self.pack()?;
        self.lines = Vec::new();
        self.packed.close()
    }
}

/// Offset and ordinal, with commas before and behind.
#[inline]
fn put_place(lines: &mut Vec<u8>, ours: &Ours, offset: Offset, ordinal: u64) {
    lines.push(b',');
    lines.extend_from_slice(&ours.offset);
    put_integer(lines, offset.0 as i64);
    lines.push(b',');
    lines.extend_from_slice(&ours.ordinal);
    put_integer(lines, ordinal as i64);
    lines.push(b',');
}

/// What all rows of a run have, with a comma behind.
fn of_run(out: &mut Vec<u8>, ours: &Ours, position: &str, tx: &str, commit_time: i64) {
    out.extend_from_slice(&ours.position);
    put_text(out, position);
    out.push(b',');
    out.extend_from_slice(&ours.tx);
    match tx {
        "" => out.extend_from_slice(b"null"),
        tx => put_text(out, tx),
    }
    out.push(b',');
    out.extend_from_slice(&ours.commit_time);
    put_timestamp(out, commit_time, true);
    out.push(b',');
}

fn put_object(
    lines: &mut Vec<u8>,
    names: &[Vec<u8>],
    shape: &Shape,
    columns: impl Iterator<Item = usize>,
    required: impl Fn(usize) -> bool,
    body: &[u8],
) -> Result<(), Malformed> {
    let mut reader = Reader::new(body);
    let mut open = b'{';
    for i in columns {
        lines.push(open);
        open = b',';
        lines.extend_from_slice(&names[i]);
        put_value(lines, &mut reader, &shape.table.columns[i], required(i))?;
    }
    lines.push(b'}');
    Ok(())
}
