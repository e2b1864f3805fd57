//! Values as JSON text, as `tail` prints them, from Avro bodies straight into a
//! line: without a tree, and for what rows are mostly made of without an
//! allocation.

use std::io::Write;

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use connector::{Column, Malformed, Reader, Type, ValueJson, civil_from_days, decimal_to_i128, decimal_to_text};

const DAY: i64 = 86_400_000_000;
const WRITES: &str = "a Vec takes all that is written to it";

/// The next value of a column; `required`: it is a `T`, else a `["null", T]`.
#[inline]
pub(crate) fn put_value(
    out: &mut Vec<u8>,
    reader: &mut Reader<'_>,
    column: &Column,
    required: bool,
) -> Result<(), Malformed> {
    if !required && !reader.present()? {
        out.extend_from_slice(b"null");
        return Ok(());
    }
    match &column.ty {
        Type::Boolean => out.extend_from_slice(if reader.boolean()? { b"true" } else { b"false" }),
        Type::Int => put_integer(out, reader.int()?.into()),
        Type::Long => put_integer(out, reader.long()?),
        Type::Float => {
            let value = reader.float()?;
            match value.is_finite() {
                true => serde_json::to_writer(out, &value).expect(WRITES),
                false => put_not_finite(out, value.into()),
            }
        }
        Type::Double => {
            let value = reader.double()?;
            match value.is_finite() {
                true => serde_json::to_writer(out, &value).expect(WRITES),
                false => put_not_finite(out, value),
            }
        }
        Type::String | Type::Json | Type::Uuid => put_text(out, reader.string()?),
        Type::Bytes => write!(out, "\"{}\"", Base64Display::new(reader.bytes()?, &STANDARD)).expect(WRITES),
        Type::Decimal { scale, .. } => {
            out.push(b'"');
            put_decimal(out, reader.bytes()?, *scale);
            out.push(b'"');
        }
        Type::Date => {
            out.push(b'"');
            match reader.int()? {
                i32::MAX => out.extend_from_slice(b"infinity"),
                days if days == -i32::MAX => out.extend_from_slice(b"-infinity"),
                days => {
                    let bc = put_date(out, days.into());
                    out.extend_from_slice(bc);
                }
            }
            out.push(b'"');
        }
        Type::Time => {
            out.push(b'"');
            put_time(out, reader.long()?);
            out.push(b'"');
        }
        Type::LocalTimestamp => put_timestamp(out, reader.long()?, false),
        Type::Timestamp => put_timestamp(out, reader.long()?, true),
        Type::Array(_) | Type::Map | Type::Record(_) => {
            let value = ValueJson::read(reader, column, true)?;
            serde_json::to_writer(out, &value).expect(WRITES);
        }
    }
    Ok(())
}

/// A text in quotes.
#[inline]
pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect(WRITES);
}

#[inline]
pub(crate) fn put_integer(out: &mut Vec<u8>, value: i64) {
    serde_json::to_writer(out, &value).expect(WRITES);
}

fn put_not_finite(out: &mut Vec<u8>, value: f64) {
    out.extend_from_slice(match value {
        v if v.is_nan() => b"\"NaN\"",
        v if v > 0.0 => b"\"Infinity\"",
        _ => b"\"-Infinity\"",
    });
}

/// In quotes.
#[inline]
pub(crate) fn put_timestamp(out: &mut Vec<u8>, micros: i64, utc: bool) {
    out.push(b'"');
    match micros {
        i64::MAX => out.extend_from_slice(b"infinity"),
        _ if micros == -i64::MAX => out.extend_from_slice(b"-infinity"),
        _ => {
            let bc = put_date(out, micros.div_euclid(DAY));
            out.push(b'T');
            put_time(out, micros.rem_euclid(DAY));
            if utc {
                out.push(b'Z');
            }
            out.extend_from_slice(bc);
        }
    }
    out.push(b'"');
}

/// ` BC` where it belongs.
pub(crate) fn put_date(out: &mut Vec<u8>, days: i64) -> &'static [u8] {
    let (year, month, day) = civil_from_days(days);
    let (year, bc): (_, &[u8]) = if year <= 0 { (1 - year, b" BC") } else { (year, b"") };
    match u32::try_from(year) {
        Ok(year @ 0..10_000) => {
            put_two(out, year / 100);
            put_two(out, year % 100);
        }
        _ => put_integer(out, year),
    }
    out.push(b'-');
    put_two(out, month);
    out.push(b'-');
    put_two(out, day);
    bc
}

fn put_time(out: &mut Vec<u8>, micros: i64) {
    let (seconds, mut fraction) = (micros / 1_000_000, micros % 1_000_000);
    put_two(out, (seconds / 3600) as u32);
    out.push(b':');
    put_two(out, (seconds / 60 % 60) as u32);
    out.push(b':');
    put_two(out, (seconds % 60) as u32);
    if fraction != 0 {
        out.push(b'.');
        let mut unit = 100_000;
        while fraction != 0 {
            out.push(b'0' + (fraction / unit % 10) as u8);
            fraction %= unit;
            unit /= 10;
        }
    }
}

#[inline]
fn put_two(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&[b'0' + (value / 10 % 10) as u8, b'0' + (value % 10) as u8]);
}

fn put_decimal(out: &mut Vec<u8>, be: &[u8], scale: u32) {
    let small = decimal_to_i128(be).and_then(|value| i64::try_from(value).ok());
    let Some(value) = small else {
        out.extend_from_slice(decimal_to_text(be, scale).as_bytes());
        return;
    };
    if value < 0 {
        out.push(b'-');
    }
    let start = out.len();
    serde_json::to_writer(&mut *out, &value.unsigned_abs()).expect(WRITES);
    let scale = scale as usize;
    if scale > 0 {
        let digits = out.len() - start;
        if digits <= scale {
            out.splice(start..start, std::iter::repeat_n(b'0', scale + 1 - digits));
        }
        let point = out.len() - scale;
        out.insert(point, b'.');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use connector::{put_bytes, put_double, put_long};

    /// The same as `tail` prints, or it is another thing.
    fn check(ty: &Type, body: &[u8]) {
        let ty = ty.clone();
        let column = Column { name: "c".into(), ty, db_type: "t".into(), nullable: true, id: 1 };
        let mut out = Vec::new();
        put_value(&mut out, &mut Reader::new(body), &column, true).unwrap();
        let other = ValueJson::read(&mut Reader::new(body), &column, true).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), serde_json::to_string(&other).unwrap(), "{:?}", column.ty);
    }

    fn long(value: i64) -> Vec<u8> {
        let mut body = Vec::new();
        put_long(&mut body, value);
        body
    }

    #[test]
    fn the_ends_of_every_range_are_printed_as_tail_prints_them() {
        for micros in [0, 1, 500_000, i64::MAX, -i64::MAX, i64::MAX - 1, i64::MIN, -1, -210_866_803_200_000_000] {
            check(&Type::Timestamp, &long(micros));
            check(&Type::LocalTimestamp, &long(micros));
        }
        for days in [0, i32::MAX, -i32::MAX, i32::MIN, i32::MAX - 1, -735_160, -719_528, 2_932_897] {
            check(&Type::Date, &long(days.into()));
        }
        for time in [0, 1, DAY - 1, DAY, 100] {
            check(&Type::Time, &long(time));
        }
        for value in [0.0, -0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300, 0.1] {
            let mut body = Vec::new();
            put_double(&mut body, value);
            check(&Type::Double, &body);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_value_is_printed_as_tail_prints_it(number: i64, bytes: Vec<u8>, text: String, scale in 0u32..20) {
            check(&Type::Long, &long(number));
            check(&Type::Timestamp, &long(number));
            check(&Type::Date, &long((number as i32).into()));
            check(&Type::Time, &long(number.rem_euclid(DAY + 1)));
            let mut body = Vec::new();
            put_bytes(&mut body, &bytes);
            check(&Type::Bytes, &body);
            check(&Type::Decimal { precision: 40, scale }, &body);
            let mut body = Vec::new();
            put_bytes(&mut body, text.as_bytes());
            check(&Type::String, &body);
            let mut body = Vec::new();
            put_bytes(&mut body, &number.to_be_bytes());
            check(&Type::Decimal { precision: 40, scale }, &body);
        }
    }
}
