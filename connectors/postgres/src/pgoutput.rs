//! pgoutput's messages, read in place.
//! <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>

use crate::lsn::Lsn;
use crate::replication::EPOCH_2000;

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed pgoutput message: {what} at byte {at}")]
pub(crate) struct Malformed {
    /// What was expected.
    pub(crate) what: &'static str,
    /// Where.
    pub(crate) at: usize,
}

type Result<T, E = Malformed> = std::result::Result<T, E>;

/// A message.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Message<'a> {
    /// A transaction begins; these are its commit's.
    Begin {
        /// Where its commit record begins.
        commit: Lsn,
        /// Microseconds since 1970.
        time: i64,
        /// Its xid.
        xid: u32,
    },
    /// It ends.
    Commit {
        /// One behind its commit record: the transaction's position.
        end: Lsn,
    },
    /// Describes a table, before its first row and after each change of it.
    Relation(Relation),
    /// A row came.
    Insert {
        /// The table.
        relation: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row changed.
    Update {
        /// The table.
        relation: u32,
        /// The old key, or whole old row.
        old: Option<OldTuple<'a>>,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row went.
    Delete {
        /// The table.
        relation: u32,
        /// Its key, or the whole row.
        old: OldTuple<'a>,
    },
    /// Tables were emptied.
    Truncate {
        /// Which.
        relations: Vec<u32>,
    },
    /// A logical message.
    Logical {
        /// Part of a transaction.
        transactional: bool,
        /// Its own.
        lsn: Lsn,
        /// Whose.
        prefix: &'a str,
        /// What.
        content: &'a [u8],
    },
    /// A chunk of a transaction in progress begins.
    StreamStart {
        /// The top-level transaction.
        xid: u32,
        /// It is the transaction's first.
        first: bool,
    },
    /// The chunk ends.
    StreamStop,
    /// A streamed transaction was committed.
    StreamCommit {
        /// Which.
        xid: u32,
        /// Where its commit record begins.
        commit: Lsn,
        /// One behind it: the transaction's position.
        end: Lsn,
        /// Microseconds since 1970.
        time: i64,
    },
    /// A streamed transaction, or a subtransaction of one, was rolled back.
    StreamAbort {
        /// The top-level transaction.
        xid: u32,
        /// What was rolled back: the same, or a part of it.
        sub: u32,
    },
    /// Where a transaction came from, or a type's name: not needed here.
    Ignored,
    /// Of a feature that we did not ask for.
    Refused(&'static str),
}

/// A table as the stream describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Relation {
    /// Its oid.
    pub(crate) id: u32,
    /// Its schema.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// `d`, `n`, `f`, `i`.
    pub(crate) identity: u8,
    /// Those that are published.
    pub(crate) columns: Vec<RelationColumn>,
}

/// A column of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RelationColumn {
    /// Part of the replica identity.
    pub(crate) key: bool,
    /// Its name.
    pub(crate) name: String,
    /// Its type's oid.
    pub(crate) type_oid: u32,
    /// Its type's modifier.
    pub(crate) typmod: i32,
}

/// A row: columns in the relation's order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tuple<'a> {
    count: usize,
    body: &'a [u8],
}

/// What is told of the old row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct OldTuple<'a> {
    /// The whole row; else only the columns of the replica identity are meant.
    pub(crate) whole: bool,
    /// The columns.
    pub(crate) tuple: Tuple<'a>,
}

/// A column's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cell<'a> {
    /// NULL.
    Null,
    /// An unchanged TOAST value, not sent.
    Unchanged,
    /// Text.
    Text(&'a [u8]),
}

impl<'a> Tuple<'a> {
    /// Of so many columns, in the form that the stream has.
    pub(crate) fn over(count: usize, body: &'a [u8]) -> Self {
        Self { count, body }
    }

    /// Its size in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.body.len()
    }

    /// Columns in it.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The columns in order. The tuple was walked once: it is well-formed.
    #[inline]
    pub(crate) fn cells(&self) -> Cells<'a> {
        Cells { rest: self.body }
    }
}

/// Walks a tuple.
#[derive(Clone, Debug)]
pub(crate) struct Cells<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Cells<'a> {
    type Item = Cell<'a>;

    #[inline]
    fn next(&mut self) -> Option<Cell<'a>> {
        if let [b't', a, b, c, d, rest @ ..] = self.rest {
            let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            let (value, rest) = rest.split_at_checked(length)?;
            self.rest = rest;
            return Some(Cell::Text(value));
        }
        let (&kind, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(if kind == b'u' { Cell::Unchanged } else { Cell::Null })
    }
}

struct Bytes<'a> {
    all: &'a [u8],
    at: usize,
}

impl<'a> Bytes<'a> {
    fn bad(&self, what: &'static str) -> Malformed {
        Malformed { what, at: self.at }
    }

    #[inline]
    fn fixed<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N]> {
        let found = self.all.get(self.at..).and_then(|rest| rest.first_chunk::<N>());
        let bytes = *found.ok_or_else(|| self.bad(what))?;
        self.at += N;
        Ok(bytes)
    }

    fn u8(&mut self, what: &'static str) -> Result<u8> {
        self.fixed::<1>(what).map(|[byte]| byte)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32> {
        self.fixed(what).map(u32::from_be_bytes)
    }

    fn lsn(&mut self, what: &'static str) -> Result<Lsn> {
        self.fixed(what).map(|bytes| Lsn(u64::from_be_bytes(bytes)))
    }

    fn time(&mut self) -> Result<i64> {
        self.fixed("time").map(|bytes| i64::from_be_bytes(bytes).saturating_add(EPOCH_2000))
    }

    fn text(&mut self, what: &'static str) -> Result<&'a str> {
        let rest = self.all.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|&b| b == 0).ok_or_else(|| self.bad(what))?;
        let text = std::str::from_utf8(&rest[..length]).map_err(|_| self.bad(what))?;
        self.at += length + 1;
        Ok(text)
    }

    #[inline]
    fn take(&mut self, length: usize, what: &'static str) -> Result<&'a [u8]> {
        let end = self.at.checked_add(length).ok_or_else(|| self.bad(what))?;
        let taken = self.all.get(self.at..end).ok_or_else(|| self.bad(what))?;
        self.at = end;
        Ok(taken)
    }

    #[inline]
    fn tuple(&mut self) -> Result<Tuple<'a>> {
        let count = u16::from_be_bytes(self.fixed("column count")?) as usize;
        let start = self.at;
        let mut rest = &self.all[start..];
        for _ in 0..count {
            rest = match rest {
                [b't', a, b, c, d, behind @ ..] => {
                    let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
                    behind.get(length..).ok_or_else(|| self.bad("column"))?
                }
                [b'n' | b'u', behind @ ..] => behind,
                _ => return Err(self.bad("column kind")),
            };
        }
        self.at = self.all.len() - rest.len();
        Ok(Tuple { count, body: &self.all[start..self.at] })
    }

    fn old(&mut self, kind: u8) -> Result<OldTuple<'a>> {
        Ok(OldTuple { whole: kind == b'O', tuple: self.tuple()? })
    }
}

/// Reads a message.
#[inline]
pub(crate) fn decode(message: &[u8]) -> Result<Message<'_>> {
    let mut bytes = Bytes { all: message, at: 0 };
    let kind = bytes.u8("message type")?;
    body(kind, &mut bytes)
}

/// Reads a message of a chunk, which tells the (sub)transaction that it belongs to.
#[inline]
pub(crate) fn decode_streamed(message: &[u8]) -> Result<(u32, Message<'_>)> {
    let mut bytes = Bytes { all: message, at: 0 };
    let kind = bytes.u8("message type")?;
    let xid = bytes.u32("xid")?;
    Ok((xid, body(kind, &mut bytes)?))
}

#[inline]
fn body<'a>(kind: u8, bytes: &mut Bytes<'a>) -> Result<Message<'a>> {
    Ok(match kind {
        b'B' => Message::Begin { commit: bytes.lsn("commit position")?, time: bytes.time()?, xid: bytes.u32("xid")? },
        b'C' => {
            bytes.u8("flags")?;
            bytes.lsn("commit position")?;
            Message::Commit { end: bytes.lsn("end position")? }
        }
        b'R' => Message::Relation(relation(bytes)?),
        b'I' => {
            let relation = bytes.u32("relation")?;
            match bytes.u8("tuple kind")? {
                b'N' => Message::Insert { relation, new: bytes.tuple()? },
                _ => return Err(bytes.bad("new tuple")),
            }
        }
        b'U' => {
            let relation = bytes.u32("relation")?;
            let mut kind = bytes.u8("tuple kind")?;
            let mut old = None;
            if matches!(kind, b'K' | b'O') {
                old = Some(bytes.old(kind)?);
                kind = bytes.u8("tuple kind")?;
            }
            if kind != b'N' {
                return Err(bytes.bad("new tuple"));
            }
            Message::Update { relation, old, new: bytes.tuple()? }
        }
        b'D' => {
            let relation = bytes.u32("relation")?;
            let kind = bytes.u8("tuple kind")?;
            if !matches!(kind, b'K' | b'O') {
                return Err(bytes.bad("old tuple"));
            }
            Message::Delete { relation, old: bytes.old(kind)? }
        }
        b'T' => {
            let count = bytes.u32("relation count")? as usize;
            bytes.u8("flags")?;
            let ids = bytes.take(count.saturating_mul(4), "relations")?;
            let relations = ids.as_chunks::<4>().0.iter().map(|id| u32::from_be_bytes(*id)).collect();
            Message::Truncate { relations }
        }
        b'M' => {
            let transactional = bytes.u8("flags")? & 1 != 0;
            let lsn = bytes.lsn("position")?;
            let prefix = bytes.text("prefix")?;
            let length = bytes.u32("content length")? as usize;
            Message::Logical { transactional, lsn, prefix, content: bytes.take(length, "content")? }
        }
        b'O' | b'Y' => Message::Ignored,
        b'S' => {
            let xid = bytes.u32("xid")?;
            Message::StreamStart { xid, first: bytes.u8("first chunk")? != 0 }
        }
        b'E' => Message::StreamStop,
        b'c' => {
            let xid = bytes.u32("xid")?;
            bytes.u8("flags")?;
            let (commit, end) = (bytes.lsn("commit position")?, bytes.lsn("end position")?);
            Message::StreamCommit { xid, commit, end, time: bytes.time()? }
        }
        // What may follow is for streaming = parallel.
        b'A' => Message::StreamAbort { xid: bytes.u32("xid")?, sub: bytes.u32("subtransaction")? },
        b'b' | b'P' | b'K' | b'r' | b'p' => Message::Refused("two-phase commit"),
        _ => return Err(Malformed { what: "message type", at: 0 }),
    })
}

fn relation(bytes: &mut Bytes<'_>) -> Result<Relation> {
    let id = bytes.u32("relation")?;
    let namespace = bytes.text("schema")?;
    // The catalog's schema is sent as the empty text.
    let namespace = if namespace.is_empty() { "pg_catalog" } else { namespace }.to_owned();
    let name = bytes.text("table")?.to_owned();
    let identity = bytes.u8("replica identity")?;
    let count = u16::from_be_bytes(bytes.fixed("column count")?);
    let mut columns = Vec::new();
    for _ in 0..count {
        columns.push(RelationColumn {
            key: bytes.u8("column flags")? & 1 != 0,
            name: bytes.text("column name")?.to_owned(),
            type_oid: bytes.u32("column type")?,
            typmod: i32::from_be_bytes(bytes.fixed("type modifier")?),
        });
    }
    Ok(Relation { id, namespace, name, identity, columns })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update() -> Vec<u8> {
        let mut m = b"U\0\0\x40\x01K\0\x02t\0\0\0\x017nN\0\x03t\0\0\0\x0242un".to_vec();
        m.shrink_to_fit();
        m
    }

    #[test]
    fn an_update_with_its_old_key_is_read() {
        let bytes = update();
        let Message::Update { relation, old: Some(old), new } = decode(&bytes).unwrap() else { panic!() };
        assert_eq!((relation, old.whole), (0x4001, false));
        assert_eq!(old.tuple.cells().collect::<Vec<_>>(), [Cell::Text(b"7"), Cell::Null]);
        assert_eq!(new.cells().collect::<Vec<_>>(), [Cell::Text(b"42"), Cell::Unchanged, Cell::Null]);
    }

    #[test]
    fn a_message_that_ends_early_is_malformed_at_every_byte() {
        let messages: [Vec<u8>; 8] = [
            update(),
            b"B\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\x03".to_vec(),
            b"R\0\0\x40\x01public\0t\0d\0\x01\x01id\0\0\0\0\x14\xff\xff\xff\xff".to_vec(),
            b"T\0\0\0\x01\0\0\0\x40\x01".to_vec(),
            b"M\x01\0\0\0\0\0\0\0\x09app\0\0\0\0\x02hi".to_vec(),
            b"S\0\0\0\x03\x01".to_vec(),
            b"c\0\0\0\x03\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x02".to_vec(),
            b"A\0\0\0\x03\0\0\0\x04".to_vec(),
        ];
        for message in messages {
            assert!(decode(&message).is_ok());
            for end in 0..message.len() {
                assert!(decode(&message[..end]).is_err(), "{:?} cut at {end}", message[0] as char);
            }
        }
    }

    #[test]
    fn what_was_not_asked_for_is_refused_by_name() {
        assert_eq!(decode(b"P"), Ok(Message::Refused("two-phase commit")));
        assert!(decode(b"?").is_err());
    }

    proptest::proptest! {
        #[test]
        fn hostile_bytes_never_panic(mut bytes: Vec<u8>, tag in "[BCRIUDTMOYSEcA]") {
            if let Some(first) = bytes.first_mut() {
                *first = tag.as_bytes()[0];
            }
            if let Ok(Message::Insert { new, .. }) = decode(&bytes) {
                proptest::prop_assert_eq!(new.cells().count(), new.len());
            }
        }
    }
}
