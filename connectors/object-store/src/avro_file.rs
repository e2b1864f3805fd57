//! An Avro object container file: bodies of the log as they are, each with our
//! own columns behind it.
//!
//! A truncate and a mark have no values, and the key's columns may not be null
//! in a body of the log. Such rows stand in a *blank* file of their own, whose
//! schema lets every column be null.

use std::io::Write;

use connector::{Change, Error, Mark, Op, Run, Shape, put_bytes, put_long};
use flate2::{Compress, Compression, FlushCompress, Status};
use storage::Offset;

use crate::avro_schema::event_schema;
use crate::format::{Codec, Form};
use crate::meta::has_before;
use crate::out::{Out, Place};
use crate::press::{Packer, Press, Pressed};
use crate::writer::{Failed, FileWriter};

/// A block ends at so many bytes.
const BLOCK: usize = 128 << 10;

/// Rows in blocks.
pub(crate) struct AvroFile {
    blank: bool,
    columns: usize,
    old_key: bool,
    before: bool,
    /// The open one.
    block: Block,
    /// Position, transaction and time as they are encoded, of this run.
    run: Option<u64>,
    of_run: Vec<u8>,
    names: Vec<String>,
    blocks: Pressed<Blocks>,
}

/// Rows that are packed together.
#[derive(Default)]
struct Block {
    rows: usize,
    bytes: Vec<u8>,
}

/// The file itself.
struct Blocks {
    place: Place,
    header: Vec<u8>,
    sync: [u8; 16],
    codec: Packing,
    packed: Vec<u8>,
    out: Option<Out>,
}

enum Packing {
    None,
    Zstd(Option<zstd::bulk::Compressor<'static>>),
    Deflate(Box<Compress>),
}

impl AvroFile {
    pub(crate) fn new(
        shape: &Shape,
        blank: bool,
        place: Place,
        form: &Form,
        sync: [u8; 16],
        press: &Press,
    ) -> Result<Self, Error> {
        let schema = event_schema(shape, &form.meta_prefix, form.before, blank).map_err(|error| {
            Error::halt(format!("the Avro schema of {} in the log cannot be read", shape.table.stream()))
                .because(error)
                .hint("run `highwater log check`")
                .of_stream(&shape.table.stream())
        })?;
        let (name, codec) = match form.codec() {
            Codec::None => ("null", Packing::None),
            Codec::Deflate | Codec::Gzip => {
                ("deflate", Packing::Deflate(Box::new(Compress::new(Compression::new(4), false))))
            }
            Codec::Zstd => ("zstandard", Packing::Zstd(None)),
        };
        let mut header = b"Obj\x01".to_vec();
        let entries =
            [("avro.schema", schema.as_str()), ("avro.codec", name), ("highwater.version", env!("CARGO_PKG_VERSION"))];
        put_long(&mut header, entries.len() as i64);
        for (key, value) in entries {
            put_bytes(&mut header, key.as_bytes());
            put_bytes(&mut header, value.as_bytes());
        }
        header.push(0);
        header.extend_from_slice(&sync);
        let blocks = Blocks { place, header, sync, codec, packed: Vec::new(), out: None };
        Ok(Self {
            blank,
            columns: shape.table.columns.len(),
            old_key: !shape.table.key.is_empty(),
            before: has_before(&shape.table, form.before),
            block: Block::default(),
            run: None,
            of_run: Vec::new(),
            names: shape.table.columns.iter().map(|column| column.name.clone()).collect(),
            blocks: press.file(blocks),
        })
    }

    fn nulls(&mut self) {
        self.block.bytes.resize(self.block.bytes.len() + self.columns, 0);
    }

    #[inline]
    fn row_done(&mut self) -> Result<(), Failed> {
        self.block.rows += 1;
        if self.block.bytes.len() >= BLOCK { self.end_block() } else { Ok(()) }
    }

    fn end_block(&mut self) -> Result<(), Failed> {
        if self.block.rows > 0 {
            self.block = self.blocks.push(std::mem::take(&mut self.block))?;
        }
        Ok(())
    }
}

impl Packer for Blocks {
    type Piece = Block;

    fn pack(&mut self, block: &mut Block) -> Result<(), Failed> {
        if self.out.is_none() {
            let mut file = self.place.create()?;
            file.write_all(&self.header)?;
            self.out = Some(file);
        }
        let out = self.out.as_mut().expect("made above");
        let data = match &mut self.codec {
            Packing::None => &block.bytes,
            Packing::Zstd(compressor) => {
                if compressor.is_none() {
                    *compressor = Some(zstd::bulk::Compressor::new(1)?);
                }
                self.packed.clear();
                self.packed.reserve(zstd::zstd_safe::compress_bound(block.bytes.len()));
                compressor.as_mut().expect("made above").compress_to_buffer(&block.bytes, &mut self.packed)?;
                &self.packed
            }
            Packing::Deflate(compress) => {
                deflate(compress, &block.bytes, &mut self.packed)?;
                &self.packed
            }
        };
        let mut head = Vec::with_capacity(20);
        put_long(&mut head, block.rows as i64);
        put_long(&mut head, data.len() as i64);
        out.write_all(&head)?;
        out.write_all(data)?;
        out.write_all(&self.sync)?;
        block.rows = 0;
        block.bytes.clear();
        Ok(())
    }

    fn memory(&self) -> usize {
        self.packed.capacity() + self.out.as_ref().map_or(0, Out::memory)
    }

    fn flush(&mut self) -> Result<(), Failed> {
        self.packed = Vec::new();
        Ok(self.out.as_mut().map_or(Ok(()), Out::spill)?)
    }

    fn close(&mut self) -> Result<(), Failed> {
        Ok(self.out.take().map_or(Ok(()), Out::finish)?)
    }
}

impl FileWriter for AvroFile {
    #[inline]
    fn change(&mut self, change: &Change<'_>, run: &Run<'_>, position: &str) -> Result<(), Failed> {
        if change.op == Op::Truncate {
            self.nulls();
        } else {
            self.block.bytes.extend_from_slice(change.value);
        }
        if self.run != Some(run.first_offset.0) {
            self.run = Some(run.first_offset.0);
            self.of_run.clear();
            put_bytes(&mut self.of_run, position.as_bytes());
            match run.transaction.tx {
                "" => self.of_run.push(0),
                tx => {
                    self.of_run.push(2);
                    put_bytes(&mut self.of_run, tx.as_bytes());
                }
            }
            put_long(&mut self.of_run, run.transaction.commit_time.0);
        }
        let block = &mut self.block.bytes;
        put_bytes(block, change.op.name().as_bytes());
        put_long(block, change.offset.0 as i64);
        put_long(block, change.ordinal as i64);
        block.extend_from_slice(&self.of_run);
        if change.has_absent() {
            let absent = (0..self.names.len()).filter(|i| change.is_absent(*i));
            block.push(2);
            put_long(block, absent.clone().count() as i64);
            let mut any = false;
            for i in absent {
                any = true;
                put_bytes(block, self.names[i].as_bytes());
            }
            if any {
                block.push(0);
            }
        } else {
            block.push(0);
        }
        for (has, body) in [(self.old_key, change.old_key), (self.before, change.before)] {
            match body {
                _ if !has => {}
                Some(body) => {
                    block.push(2);
                    block.extend_from_slice(body);
                }
                None => block.push(0),
            }
        }
        self.row_done()
    }

    fn mark(&mut self, mark: &Mark, position: &str, offset: Offset) -> Result<(), Failed> {
        debug_assert!(self.blank || !self.old_key, "a mark has no key");
        self.nulls();
        let block = &mut self.block.bytes;
        put_bytes(block, mark.op.as_bytes());
        put_long(block, offset.0 as i64);
        put_long(block, mark.ordinal as i64);
        put_bytes(block, position.as_bytes());
        block.push(0);
        put_long(block, mark.commit_time);
        block.push(0);
        for has in [self.old_key, self.before] {
            if has {
                block.push(0);
            }
        }
        self.row_done()
    }

    fn memory(&self) -> usize {
        self.block.bytes.capacity() + self.blocks.memory()
    }

    fn flush(&mut self) -> Result<(), Failed> {
        self.end_block()?;
        self.block = Block::default();
        self.blocks.flush()
    }

    fn close(&mut self) -> Result<(), Failed> {
        self.end_block()?;
        self.block = Block::default();
        self.blocks.close()
    }
}

fn deflate(compress: &mut Compress, from: &[u8], to: &mut Vec<u8>) -> Result<(), Failed> {
    compress.reset();
    to.clear();
    to.reserve(from.len() / 2 + 1024);
    loop {
        let done = compress.total_in() as usize;
        let status = compress.compress_vec(&from[done..], to, FlushCompress::Finish);
        match status.map_err(|error| Failed::File(error.into()))? {
            Status::StreamEnd => return Ok(()),
            Status::Ok | Status::BufError => to.reserve(from.len() / 4 + 1024),
        }
    }
}
