//! The encoder that somebody would write by hand for the orders table and
//! nothing else: pgoutput's text tuple to the log's Avro row. The columns, their
//! types and their order are in the code; digits are believed to be digits, and
//! text to be UTF-8. What the generic plan does is this and checking.

use super::wire::u32_at;

/// Appends the row of an insert, update or delete.
#[inline]
pub(crate) fn encode(message: &[u8], out: &mut Vec<u8>) {
    let (mut at, key_only) = match (message[0], message[5]) {
        (b'D', _) => (6, true),
        (_, b'N') => (6, false),
        // An update with its old key: the new row stands behind it.
        _ => (behind(message, 6) + 1, false),
    };
    at += 2;
    let mut cells = Cells { bytes: message, at };
    out.reserve(message.len() + 32);
    long(out, integer(cells.next().unwrap_or_default()));
    if key_only {
        out.extend_from_slice(&[0; 11]);
        return;
    }
    nullable(out, cells.next(), |out, text| long(out, integer(text)));
    nullable(out, cells.next(), bytes);
    nullable(out, cells.next(), bytes);
    nullable(out, cells.next(), decimal);
    nullable(out, cells.next(), bytes);
    nullable(out, cells.next(), |out, text| long(out, integer(text)));
    nullable(out, cells.next(), |out, text| out.push(u8::from(text[0] == b't')));
    nullable(out, cells.next(), |out, text| long(out, timestamp(text)));
    nullable(out, cells.next(), |out, text| long(out, timestamp(text)));
    nullable(out, cells.next(), bytes);
    nullable(out, cells.next(), bytes);
}

struct Cells<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cells<'a> {
    #[inline(always)]
    fn next(&mut self) -> Option<&'a [u8]> {
        let at = self.at;
        if self.bytes[at] == b't' {
            let end = at + 5 + u32_at(self.bytes, at + 1);
            self.at = end;
            Some(&self.bytes[at + 5..end])
        } else {
            self.at = at + 1;
            None
        }
    }
}

/// Where a tuple ends.
fn behind(bytes: &[u8], at: usize) -> usize {
    let count = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let mut cells = Cells { bytes, at: at + 2 };
    for _ in 0..count {
        let _ = cells.next();
    }
    cells.at
}

#[inline(always)]
fn nullable(out: &mut Vec<u8>, cell: Option<&[u8]>, put: impl Fn(&mut Vec<u8>, &[u8])) {
    match cell {
        Some(text) => {
            out.push(2);
            put(out, text);
        }
        None => out.push(0),
    }
}

#[inline(always)]
fn long(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    if rest < 0x80 {
        out.push(rest as u8);
        return;
    }
    let mut bytes = [0; 10];
    let mut length = 0;
    while rest >= 0x80 {
        bytes[length] = rest as u8 | 0x80;
        rest >>= 7;
        length += 1;
    }
    bytes[length] = rest as u8;
    out.extend_from_slice(&bytes[..=length]);
}

#[inline(always)]
fn bytes(out: &mut Vec<u8>, text: &[u8]) {
    long(out, text.len() as i64);
    out.extend_from_slice(text);
}

#[inline(always)]
fn integer(text: &[u8]) -> i64 {
    let (negative, digits) = match text.split_first() {
        Some((b'-', digits)) => (true, digits),
        _ => (false, text),
    };
    let value = digits.iter().fold(0i64, |value, c| value * 10 + i64::from(c - b'0'));
    if negative { -value } else { value }
}

/// `numeric(12,2)`: two digits behind the point, always.
#[inline(always)]
fn decimal(out: &mut Vec<u8>, text: &[u8]) {
    let (whole, cents) = text.split_at(text.len() - 3);
    let negative = whole[0] == b'-';
    let cents = i64::from(cents[1] - b'0') * 10 + i64::from(cents[2] - b'0');
    let magnitude = integer(if negative { &whole[1..] } else { whole }) * 100 + cents;
    let value = if negative { -magnitude } else { magnitude };
    let spare = (if value < 0 { !value } else { value }).leading_zeros().saturating_sub(1) / 8;
    bytes(out, &value.to_be_bytes()[spare.min(7) as usize..]);
}

#[inline(always)]
fn two(text: &[u8], at: usize) -> i64 {
    i64::from(text[at] - b'0') * 10 + i64::from(text[at + 1] - b'0')
}

/// `2025-01-01 00:00:00.001237+00`: a year of four digits, in UTC.
#[inline(always)]
fn timestamp(text: &[u8]) -> i64 {
    let (year, month, day) = (two(text, 0) * 100 + two(text, 2), two(text, 5), two(text, 8));
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    let seconds = days * 86_400 + two(text, 11) * 3600 + two(text, 14) * 60 + two(text, 17);
    let mut micros = seconds * 1_000_000;
    if text[19] == b'.' {
        let mut unit = 100_000;
        for c in &text[20..] {
            if !c.is_ascii_digit() {
                break;
            }
            micros += i64::from(c - b'0') * unit;
            unit /= 10;
        }
    }
    micros
}
