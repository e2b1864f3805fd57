//! An NDJSON file, line by line.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::sync::Arc;

use bytes::Bytes;
use connector::Table;
use flate2::bufread::MultiGzDecoder;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::json_value::{hash, text};
use crate::event::{Act, Event, Unread, places};
use crate::format::OURS;
use crate::values;

/// Of a line.
const LONGEST: u64 = 1 << 30;

/// How a file is packed.
pub(crate) enum Packing {
    None,
    Gzip,
    Zstd,
}

/// The events of its lines.
pub(crate) struct Lines {
    from: Box<dyn BufRead + Send>,
    line: Vec<u8>,
    table: Arc<Table>,
    prefix: String,
    columns: HashMap<String, usize>,
}

impl Lines {
    pub(crate) fn open(body: Bytes, packing: Packing, table: Arc<Table>, prefix: &str) -> Result<Self, Unread> {
        let body = Cursor::new(body);
        let from: Box<dyn BufRead + Send> = match packing {
            Packing::None => Box::new(body),
            Packing::Gzip => Box::new(BufReader::new(MultiGzDecoder::new(body))),
            Packing::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(body).map_err(Unread::broken)?;
                Box::new(BufReader::new(decoder))
            }
        };
        let columns = table.columns.iter().enumerate().map(|(i, column)| (column.name.clone(), i)).collect();
        Ok(Self { from, line: Vec::new(), table, prefix: prefix.into(), columns })
    }

    fn event(&self) -> Result<Event, Unread> {
        let table = &*self.table;
        let Object(pairs) = serde_json::from_slice(&self.line).map_err(Unread::broken)?;
        let mut own: HashMap<&str, &RawValue> = HashMap::new();
        let mut columns: Vec<Option<&RawValue>> = vec![None; table.columns.len()];
        let mut strange = false;
        for (Name(name), value) in &pairs {
            match self.columns.get(&**name) {
                Some(&i) => columns[i] = Some(*value),
                None => match name.strip_prefix(&self.prefix) {
                    Some(name) => drop(own.insert(name, *value)),
                    None => strange = true,
                },
            }
        }
        let lacks = |name: &str| Unread::lacks(&self.prefix, name);
        let [op, at, .., absent, old_key, before] = OURS;
        let name: Name<'_> = of(own.get(op).ok_or_else(|| lacks(op))?)?;
        let act = Act::named(&name.0).ok_or_else(|| Unread::Broken(format!("an event of it is a {:?}", name.0)))?;
        let offset = own.get(at).and_then(|offset| offset.get().parse().ok());
        let there = |name: &str| own.get(name).copied().filter(|value| value.get() != "null");
        let absent: Vec<Name<'_>> = there(absent).map(of).transpose()?.unwrap_or_default();
        let absent = places(table, absent.iter().map(|name| &*name.0));
        if strange && act.has_row() && (0..columns.len()).any(|i| columns[i].is_none() && !absent.contains(&i)) {
            return Err(Unread::renamed());
        }
        let key = |columns: &[Option<&RawValue>]| -> Box<[String]> {
            let value = |&k: &usize| columns[k].and_then(|value| text(value, &table.columns[k].ty));
            table.key.iter().map(|k| value(k).unwrap_or_default()).collect()
        };
        let hashes = |columns: &[Option<&RawValue>]| -> Box<[u64]> {
            let of = |(i, value): (usize, &Option<&RawValue>)| {
                value.map_or_else(values::null, |value| hash(value, &table.columns[i].ty))
            };
            columns.iter().enumerate().map(of).collect()
        };
        Ok(Event {
            act,
            offset: offset.ok_or_else(|| lacks(at))?,
            key: key(&columns),
            hashes: hashes(&columns),
            absent,
            old_key: there(old_key).map(|old| Ok(key(&self.structure(old)?))).transpose()?,
            before: there(before).map(|before| Ok(hashes(&self.structure(before)?))).transpose()?,
        })
    }

    /// The columns of an object within the line.
    fn structure<'a>(&self, value: &'a RawValue) -> Result<Vec<Option<&'a RawValue>>, Unread> {
        let Object(pairs) = of(value)?;
        let mut columns = vec![None; self.table.columns.len()];
        for (Name(name), value) in pairs {
            if let Some(&i) = self.columns.get(&*name) {
                columns[i] = Some(value);
            }
        }
        Ok(columns)
    }
}

impl Iterator for Lines {
    type Item = Result<Event, Unread>;

    fn next(&mut self) -> Option<Self::Item> {
        self.line.clear();
        match (&mut self.from).take(LONGEST).read_until(b'\n', &mut self.line) {
            Ok(0) => None,
            // A file that was cut short may end in the midst of a number.
            Ok(_) if self.line.last() != Some(&b'\n') => Some(Err(Unread::broken("its last line has no end"))),
            Ok(_) => Some(self.event()),
            Err(error) => Some(Err(Unread::broken(error))),
        }
    }
}

fn of<'a, T: Deserialize<'a>>(value: &'a RawValue) -> Result<T, Unread> {
    serde_json::from_str(value.get()).map_err(Unread::broken)
}

/// A name, borrowed where it has no escapes.
#[derive(Deserialize)]
pub(super) struct Name<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// An object's values as they stand there, in their order.
pub(super) struct Object<'a>(pub(super) Vec<(Name<'a>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Vec<(Name<'de>, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(pairs)
            }
        }
        deserializer.deserialize_map(Pairs).map(Object)
    }
}
