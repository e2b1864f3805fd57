//! Folders within a stream's, as Hive has them: `<name>=<value>`.

use std::hash::Hasher;

use connector::{Change, Column, Malformed, Mark, Op, Reader, Run, Table, Type, ValueJson, stream_part};

use crate::format::{Form, Partition};
use crate::json_text::{put_date, put_value};

/// How Hive and all that read like it call NULL.
const NULL: &str = "__HIVE_DEFAULT_PARTITION__";
/// A longer value is cut: names of objects and of files have an end.
const LONGEST: usize = 128;
const DAY: i64 = 86_400_000_000;

/// Places a table's rows.
pub(crate) struct Places {
    /// `<name>=`.
    name: String,
    by: By,
    scratch: Vec<u8>,
}

enum By {
    CommitDate,
    Column(usize),
}

impl Places {
    /// None: they all lie in the stream's own folder.
    pub(crate) fn of(table: &Table, form: &Form) -> Option<Self> {
        let (name, by) = match form.partition.as_ref()? {
            Partition::CommitDate => (format!("{}commit_date", form.meta_prefix), By::CommitDate),
            Partition::Column(name) => {
                let at = table.columns.iter().position(|column| column.name == *name)?;
                (name.clone(), By::Column(at))
            }
        };
        Some(Self { name: format!("{}=", stream_part(&name)), by, scratch: Vec::new() })
    }

    /// Bytes of the shortest folder: a column's value may be empty.
    pub(crate) fn shortest(&self) -> usize {
        let day = if let By::CommitDate = self.by { "2000-01-01" } else { "" };
        self.name.len() + day.len()
    }

    /// A change's folder, appended.
    pub(crate) fn change(
        &mut self,
        out: &mut String,
        table: &Table,
        run: &Run<'_>,
        change: &Change<'_>,
    ) -> Result<(), Malformed> {
        out.push_str(&self.name);
        self.scratch.clear();
        match self.by {
            By::CommitDate => self.day(run.transaction.commit_time.0),
            By::Column(at) => {
                if change.op == Op::Truncate || change.is_absent(at) || !self.value(table, at, change.value)? {
                    out.push_str(NULL);
                    return Ok(());
                }
            }
        }
        put_encoded(out, &self.scratch);
        Ok(())
    }

    /// A mark's folder, appended.
    pub(crate) fn mark(&mut self, out: &mut String, mark: &Mark) {
        out.push_str(&self.name);
        match self.by {
            By::CommitDate => {
                self.scratch.clear();
                self.day(mark.commit_time);
                put_encoded(out, &self.scratch);
            }
            By::Column(_) => out.push_str(NULL),
        }
    }

    fn day(&mut self, micros: i64) {
        let bc = put_date(&mut self.scratch, micros.div_euclid(DAY));
        self.scratch.extend_from_slice(bc);
    }

    /// False: NULL.
    fn value(&mut self, table: &Table, at: usize, body: &[u8]) -> Result<bool, Malformed> {
        let mut reader = Reader::new(body);
        for (i, column) in table.columns[..at].iter().enumerate() {
            skip(&mut reader, column, table.in_key(i))?;
        }
        let column = &table.columns[at];
        if !table.in_key(at) && !reader.present()? {
            return Ok(false);
        }
        match &column.ty {
            Type::String | Type::Json | Type::Uuid => self.scratch.extend_from_slice(reader.bytes()?),
            _ => {
                put_value(&mut self.scratch, &mut reader, column, true)?;
                if self.scratch.len() > 1 && self.scratch[0] == b'"' {
                    self.scratch.remove(0);
                    self.scratch.pop();
                }
            }
        }
        Ok(true)
    }
}

fn skip(reader: &mut Reader<'_>, column: &Column, required: bool) -> Result<(), Malformed> {
    if !required && !reader.present()? {
        return Ok(());
    }
    match &column.ty {
        Type::Boolean => reader.boolean().map(drop),
        Type::Int | Type::Long | Type::Date | Type::Time | Type::LocalTimestamp | Type::Timestamp => {
            reader.long().map(drop)
        }
        Type::Float => reader.float().map(drop),
        Type::Double => reader.double().map(drop),
        Type::String | Type::Bytes | Type::Uuid | Type::Json | Type::Decimal { .. } => reader.bytes().map(drop),
        Type::Array(_) | Type::Map | Type::Record(_) => ValueJson::read(reader, column, true).map(drop),
    }
}

/// Letters, digits, `_`, `-` and `.` stay; all else is percent-encoded. What is
/// longer than it may be ends with `~` and a hash of the whole.
fn put_encoded(out: &mut String, value: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let start = out.len();
    // Alone, `.` and `..` are folders of another kind, and NULL's own name is taken.
    let plain = value != b"." && value != b".." && value != NULL.as_bytes();
    for (i, &byte) in value.iter().enumerate() {
        if byte.is_ascii_alphanumeric() || (matches!(byte, b'_' | b'-' | b'.') && (plain || i > 0)) {
            out.push(byte as char);
        } else {
            out.push('%');
            out.push(HEX[usize::from(byte >> 4)] as char);
            out.push(HEX[usize::from(byte & 15)] as char);
        }
        if out.len() - start > LONGEST {
            let kept = out[start..].char_indices().rev().find(|(at, c)| *c == '%' && at + 3 > LONGEST);
            let mut keep = kept.map_or(LONGEST, |(at, _)| at.min(LONGEST));
            // A letter of several bytes goes as a whole.
            while ["%8", "%9", "%A", "%B"].iter().any(|byte| out[start + keep..].starts_with(byte)) {
                keep -= 3;
            }
            out.truncate(start + keep);
            let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
            hash.write(value);
            out.push_str(&format!("~{:016x}", hash.finish()));
            return;
        }
    }
}

/// FNV-1a: the same in every version, as an announced step must be.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(value: &str) -> String {
        let mut out = String::from("c=");
        put_encoded(&mut out, value.as_bytes());
        out.split_off(2)
    }

    #[test]
    fn a_hostile_value_is_one_folder() {
        for (value, expected) in [
            ("DE", "DE"),
            ("", ""),
            ("2024-02-29", "2024-02-29"),
            ("a/b", "a%2Fb"),
            ("..", "%2E."),
            (".", "%2E"),
            ("a=b", "a%3Db"),
            ("~", "%7E"),
            ("é", "%C3%A9"),
            ("a\0#1", "a%00%231"),
            (NULL, "%5F_HIVE_DEFAULT_PARTITION__"),
        ] {
            assert_eq!(encoded(value), expected, "{value:?}");
        }
        let (long, longer) = (encoded(&"é".repeat(500)), encoded(&"é".repeat(501)));
        assert!(long.len() <= LONGEST + 17 && long != longer, "{long}");
        assert!(long.split('~').next().unwrap().len().is_multiple_of(6), "no letter is cut: {long}");
        assert_eq!(encoded(&"x".repeat(LONGEST)).len(), LONGEST);
    }
}
