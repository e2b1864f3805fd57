//! Real messages, recorded from servers, broken in every way: any bytes give a
//! value or an error that says where, no panic, and no more memory than the
//! input justifies. `HIGHWATER_FUZZ_CASES` asks for more cases,
//! `HIGHWATER_FUZZ_SEED` for others.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;

use connector::{Column, Table, TableKind};

use crate::codec::Codec;
use crate::connection::Connection;
use crate::pgoutput::{Message, OldTuple, Tuple, decode, decode_streamed};
use crate::plan::{Plan, PlanColumn};
use crate::replication::{Event, Replication};

/// The messages that `pg_logical_slot_peek_binary_changes` gave on a server, of a
/// protocol; a line each.
const PROTOCOL_1: &str = include_str!("../../../tests/fixtures/pgoutput/15-protocol-1.hex");
const PROTOCOL_3: &str = include_str!("../../../tests/fixtures/pgoutput/15-protocol-3.hex");
const PROTOCOL_4: &str = include_str!("../../../tests/fixtures/pgoutput/18-protocol-4.hex");
/// `COPY … (FORMAT binary)` of a table with a column of each type.
const COPY: &str = include_str!("../../../tests/fixtures/pgoutput/copy.hex");

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |c: u8| (c as char).to_digit(16).expect("a fixture is hex") as u8;
    hex.as_bytes().chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

static MESSAGES: LazyLock<Vec<Vec<u8>>> =
    LazyLock::new(|| [PROTOCOL_1, PROTOCOL_3, PROTOCOL_4].into_iter().flat_map(str::lines).map(bytes).collect());

struct Random(u64);

impl Random {
    fn new() -> Self {
        let seed = std::env::var("HIGHWATER_FUZZ_SEED").ok().and_then(|seed| seed.parse().ok());
        Self(seed.unwrap_or(0x9e37_79b9_7f4a_7c15))
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }

    fn one<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

fn cases(default: usize) -> usize {
    std::env::var("HIGHWATER_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(default)
}

/// Breaks bytes a little.
fn mutate(random: &mut Random, input: &mut Vec<u8>, others: &[Vec<u8>]) {
    for _ in 0..=random.below(3) {
        let at = random.below(input.len());
        match random.below(8) {
            _ if input.is_empty() => input.push(random.below(256) as u8),
            0 => input[at] ^= 1 << random.below(8),
            1 => input[at] = *random.one(&[0, 0x7f, 0x80, 0xff, b't', b'n', b'u', b'{', b'"', b'\\']),
            2 => input.truncate(at),
            3 => drop(input.remove(at)),
            4 => input.insert(at, random.below(256) as u8),
            5 => {
                // A length, or a count, that is a lie.
                let lie = *random.one(&[0u32, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0x3fff_ffff]);
                let end = (at + 4).min(input.len());
                input[at..end].copy_from_slice(&lie.to_be_bytes()[..end - at]);
            }
            6 => {
                let other = random.one(others);
                let from = random.below(other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => {
                let again = input[at..].to_vec();
                input.extend_from_slice(&again[..again.len().min(64)]);
            }
        }
    }
}

/// Tells what was read when a test failed.
struct Told<'a>(&'a [u8]);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let hex: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
            eprintln!("these bytes: {hex}");
        }
    }
}

fn codecs() -> Vec<Codec> {
    let array = |element, dimensions| Codec::Array { element: Box::new(element), dimensions, delimiter: b',' };
    vec![
        Codec::Long,
        Codec::Bool,
        Codec::Int,
        Codec::Float,
        Codec::Double,
        Codec::Text,
        Codec::Bytes,
        Codec::Uuid,
        Codec::Json,
        Codec::Jsonb,
        Codec::Decimal { precision: 12, scale: 2 },
        Codec::Money,
        Codec::Date,
        Codec::Time,
        Codec::Timestamp,
        Codec::Timestamptz,
        array(Codec::Int, 1),
        array(Codec::Text, 2),
        array(array(Codec::Double, 1), 6),
        Codec::Hstore,
        Codec::Composite(vec![("a".into(), "int".into(), Codec::Int), ("b".into(), "text".into(), Codec::Text)]),
        Codec::Vector,
    ]
}

/// A table of so many columns: all codecs in turn, from `first` on.
fn plan(first: usize, width: usize, key: Vec<usize>) -> Plan {
    let all = codecs();
    let plans: Vec<PlanColumn> =
        (0..width).map(|i| PlanColumn { codec: all[(first + i) % all.len()].clone(), output: None }).collect();
    let columns = plans.iter().enumerate().map(|(i, plan)| Column {
        name: format!("c{i}"),
        ty: plan.codec.carried(),
        db_type: "t".into(),
        nullable: true,
        id: i as i32 + 1,
    });
    let table = Table {
        source: "s".into(),
        schema: "public".into(),
        name: "t".into(),
        kind: TableKind::Table,
        columns: columns.collect(),
        key,
        full_identity: false,
    };
    let names: Vec<String> = (0..width).map(|i| format!("c{i}")).collect();
    Plan::new(table, plans, names.iter().map(String::as_str))
}

/// A value takes no more than its text justifies.
fn bounded(out: &[u8], input: usize, width: usize) {
    assert!(out.len() <= 16 * input + 32 * width, "{} bytes of {input}", out.len());
}

fn rows(random: &mut Random, new: Tuple<'_>, old: Option<OldTuple<'_>>, input: usize) {
    let width = new.len();
    assert_eq!(new.cells().count(), width);
    if width > 4_000 {
        return;
    }
    let key = if width == 0 || random.below(2) == 0 { Vec::new() } else { vec![random.below(width)] };
    let plan = plan(random.below(22), width, key);
    let (mut out, mut absent) = (Vec::new(), Vec::new());
    for attempt in 0..3 {
        out.clear();
        let done = match attempt {
            0 => plan.value(new, old, &mut out, &mut absent),
            1 => plan.key_only(new, &mut out, &mut absent),
            _ => plan.key(new, &mut out),
        };
        match done {
            Ok(_) => bounded(&out, input, width),
            Err(error) => assert!(error.column < width, "{error}"),
        }
    }
    plan.key_texts(new);
}

#[test]
fn recorded_messages_are_read() {
    let mut kinds = std::collections::BTreeMap::new();
    for (protocol, messages) in [(1, PROTOCOL_1), (3, PROTOCOL_3), (4, PROTOCOL_4)] {
        let mut inside = false;
        for line in messages.lines() {
            let message = bytes(line);
            let _told = Told(&message);
            let decoded = if inside && !matches!(message[0], b'E' | b'O') {
                decode_streamed(&message).unwrap().1
            } else {
                decode(&message).unwrap()
            };
            inside = match decoded {
                Message::StreamStart { .. } => true,
                Message::StreamStop => false,
                Message::Refused(what) => panic!("{what}"),
                _ => inside,
            };
            *kinds.entry((protocol, message[0])).or_insert(0) += 1;
        }
    }
    for kind in "BCIUDRTMOY".bytes() {
        assert!(kinds.contains_key(&(1, kind)), "no {:?} of protocol 1", char::from(kind));
    }
    for (protocol, kind) in
        [3, 4].into_iter().flat_map(|protocol| "SEcAIURMD".bytes().map(move |kind| (protocol, kind)))
    {
        assert!(kinds.contains_key(&(protocol, kind)), "no {:?} of protocol {protocol}", char::from(kind));
    }
}

#[test]
fn any_bytes_are_a_message_or_an_error_that_says_where() {
    let mut random = Random::new();
    let mut read = 0;
    for _ in 0..cases(30_000) {
        let mut message = random.one(&MESSAGES).clone();
        mutate(&mut random, &mut message, &MESSAGES);
        let _told = Told(&message);
        let streamed = random.below(2) == 0;
        let decoded = match streamed {
            true => decode_streamed(&message).map(|(_, message)| message),
            false => decode(&message),
        };
        match decoded {
            Err(error) => assert!(error.at <= message.len(), "{error}"),
            Ok(Message::Insert { new, .. }) => rows(&mut random, new, None, message.len()),
            Ok(Message::Update { old, new, .. }) => rows(&mut random, new, old, message.len()),
            Ok(Message::Delete { old, .. }) => rows(&mut random, old.tuple, None, message.len()),
            Ok(Message::Truncate { relations }) => assert!(relations.len() <= message.len() / 4),
            Ok(Message::Relation(relation)) => assert!(relation.columns.len() <= message.len() / 10),
            Ok(_) => {}
        }
        read += usize::from(decode(&message).is_ok());
    }
    assert!(read > 0, "some are still messages");
}

#[test]
fn any_bytes_of_copy_are_a_row_or_an_error_that_says_where() {
    let mut random = Random::new();
    let file = bytes(COPY.trim());
    // Behind the signature, flags, and the length of an extension.
    let row = &file[19..];
    let width = usize::from(u16::from_be_bytes([row[0], row[1]]));
    let all = [row.to_vec()];
    for _ in 0..cases(10_000) {
        let mut input = row.to_vec();
        mutate(&mut random, &mut input, &all);
        let _told = Told(&input);
        let plan = plan(random.below(22), width, if random.below(2) == 0 { vec![0] } else { Vec::new() });
        let mut out = Vec::new();
        match plan.copied(&input, &mut out) {
            Ok(()) => bounded(&out, input.len(), width),
            Err(error) => assert!(error.column < width, "{error}"),
        }
    }
}

/// What a type's text may look like, and does not.
#[test]
fn any_text_is_a_value_or_an_error_for_each_type() {
    let mut random = Random::new();
    let mut texts: Vec<Vec<u8>> = Vec::new();
    for message in MESSAGES.iter() {
        if let Ok(Message::Insert { new, .. }) = decode(message) {
            texts.extend(new.cells().filter_map(|cell| match cell {
                crate::pgoutput::Cell::Text(text) => Some(text.to_vec()),
                _ => None,
            }));
        }
    }
    texts
        .extend(["\"a\"=>NULL, \"b\"=>\"\"", "[1,2.5]", "{{{{{{1}}}}}}", "(1,)", "-infinity", "NaN"].map(|t| t.into()));
    let codecs = codecs();
    for _ in 0..cases(30_000) {
        let mut text = random.one(&texts).clone();
        mutate(&mut random, &mut text, &texts);
        let _told = Told(&text);
        for codec in &codecs {
            let mut out = Vec::new();
            if codec.text(&text, &mut out).is_ok() {
                bounded(&out, text.len(), 1);
            }
            out.clear();
            if codec.binary(&text, &mut out).is_ok() {
                bounded(&out, text.len(), 1);
            }
        }
    }
}

#[test]
fn any_bytes_of_a_replication_line_are_events_or_an_error() {
    let mut random = Random::new();
    let frame = |random: &mut Random| {
        let mut body = vec![b'w'];
        body.extend_from_slice(&[7; 24]);
        body.extend_from_slice(random.one::<Vec<u8>>(&MESSAGES));
        if random.below(4) == 0 {
            body = [&b"k"[..], &[7; 17]].concat();
        }
        let mut frame = vec![b'd'];
        frame.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        frame.extend_from_slice(&body);
        frame
    };
    for _ in 0..cases(10_000) / 20 {
        let frames: Vec<Vec<u8>> = (0..8).map(|_| frame(&mut random)).collect();
        let mut input = frames.concat();
        if random.below(8) > 0 {
            mutate(&mut random, &mut input, &frames);
        }
        let _told = Told(&input);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut replication = Replication::over(Connection::over(ours).unwrap());
        theirs.write_all(&input).unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        let mut events = 0;
        loop {
            match replication.poll() {
                Ok(Event::Idle) => {}
                Ok(Event::Data { message, .. }) => {
                    assert!(message.len() <= input.len());
                    events += 1;
                }
                Ok(Event::Keepalive { .. }) => events += 1,
                Err(_) => break,
            }
        }
        assert!(events <= input.len());
        assert!(replication.room() <= 1 << 20, "what is only announced takes no memory");
    }
}
