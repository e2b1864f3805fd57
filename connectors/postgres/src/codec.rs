//! A column's values: the database's text, or its binary form, to Avro.
//!
//! One decoder serves snapshot and stream: what has a binary form here gives
//! byte for byte what the text gives, everything else comes as text both ways.

use connector::{Field, Type, decimal_from_text, put_bytes, put_decimal, put_double, put_float, put_long};

use crate::datetime::{TOO_LATE, date, time_of_day, timestamp};
use crate::nested::{parse_array, parse_composite, parse_hstore};
use crate::numeric::Numeric;
use crate::replication::EPOCH_2000;

/// Why a value cannot be carried.
pub(crate) type Why = &'static str;

/// How a type's values are read. With a tag of its own, which is asked for each value.
#[derive(Clone, Debug, PartialEq)]
#[repr(u8)]
pub(crate) enum Codec {
    Bool,
    Int,
    Long,
    Float,
    Double,
    Text,
    Bytes,
    Uuid,
    Json,
    Jsonb,
    Decimal {
        precision: u32,
        scale: u32,
    },
    Money,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Array {
        element: Box<Codec>,
        dimensions: u32,
        delimiter: u8,
    },
    Hstore,
    Composite(Vec<(String, String, Codec)>),
    /// pgvector's `[1,2,3]`.
    Vector,
}

impl Codec {
    /// How the log carries it.
    pub(crate) fn carried(&self) -> Type {
        match self {
            Codec::Bool => Type::Boolean,
            Codec::Int => Type::Int,
            Codec::Long => Type::Long,
            Codec::Float => Type::Float,
            Codec::Double => Type::Double,
            Codec::Text | Codec::Money => Type::String,
            Codec::Bytes => Type::Bytes,
            Codec::Uuid => Type::Uuid,
            Codec::Json | Codec::Jsonb => Type::Json,
            Codec::Decimal { precision, scale } => Type::Decimal { precision: *precision, scale: *scale },
            Codec::Date => Type::Date,
            Codec::Time => Type::Time,
            Codec::Timestamp => Type::LocalTimestamp,
            Codec::Timestamptz => Type::Timestamp,
            Codec::Array { element, dimensions, .. } => {
                (0..*dimensions).fold(element.carried(), |ty, _| Type::Array(Box::new(ty)))
            }
            Codec::Hstore => Type::Map,
            Codec::Composite(fields) => Type::Record(
                fields
                    .iter()
                    .map(|(name, db_type, codec)| Field {
                        name: name.clone(),
                        ty: codec.carried(),
                        db_type: db_type.clone(),
                    })
                    .collect(),
            ),
            Codec::Vector => Type::Array(Box::new(Type::Float)),
        }
    }

    /// Appends a value given as the database's text. After an error what was
    /// appended is of no use.
    #[inline]
    pub(crate) fn text(&self, text: &[u8], out: &mut Vec<u8>) -> Result<(), Why> {
        match self {
            Codec::Bool => match text {
                b"t" => out.push(1),
                b"f" => out.push(0),
                _ => return Err("not a boolean"),
            },
            Codec::Int => {
                let value = integer(text)?;
                i32::try_from(value).map_err(|_| "not a 32-bit integer")?;
                put_long(out, value);
            }
            Codec::Long => put_long(out, integer(text)?),
            Codec::Float => put_float(out, number(text)?),
            Codec::Double => put_double(out, number(text)?),
            Codec::Text | Codec::Uuid | Codec::Json | Codec::Jsonb => {
                // Nearly all text is ASCII, which is told faster.
                if !text.is_ascii() {
                    std::str::from_utf8(text).map_err(|_| "not UTF-8")?;
                }
                put_bytes(out, text);
            }
            Codec::Bytes => {
                let digits = text.strip_prefix(b"\\x").ok_or("bytea_output is not hex")?;
                let (pairs, rest) = digits.as_chunks::<2>();
                if !rest.is_empty() {
                    return Err("odd number of hex digits");
                }
                put_long(out, pairs.len() as i64);
                out.reserve(pairs.len());
                for &[high, low] in pairs {
                    out.push(hex(high)? << 4 | hex(low)?);
                }
            }
            Codec::Decimal { precision, scale } => {
                if text.len() > *precision as usize + 2 {
                    return Err("more digits than the type declares");
                }
                decimal_from_text(out, text, *scale).map_err(|_| "not a finite number of the declared scale")?;
            }
            Codec::Money => {
                let plain: Vec<u8> =
                    text.iter().copied().filter(|c| c.is_ascii_digit() || matches!(c, b'-' | b'.')).collect();
                put_bytes(out, &plain);
            }
            Codec::Date => put_long(out, date(text)?.into()),
            Codec::Time => put_long(out, time_of_day(text)?),
            Codec::Timestamp | Codec::Timestamptz => put_long(out, timestamp(text)?),
            Codec::Array { element, dimensions, delimiter } => {
                parse_array(text, element, *dimensions, *delimiter, out)?;
            }
            Codec::Hstore => parse_hstore(text, out)?,
            Codec::Composite(fields) => parse_composite(text, fields, out)?,
            Codec::Vector => {
                let inside = text.strip_prefix(b"[").and_then(|t| t.strip_suffix(b"]")).ok_or("not a vector")?;
                let count = if inside.is_empty() { 0 } else { inside.split(|&c| c == b',').count() };
                if count > 0 {
                    put_long(out, count as i64);
                    for item in inside.split(|&c| c == b',') {
                        out.push(2);
                        put_float(out, number(item)?);
                    }
                }
                out.push(0);
            }
        }
        Ok(())
    }

    /// Whether `binary` reads it; else its text is asked for.
    pub(crate) fn has_binary(&self) -> bool {
        !matches!(self, Codec::Money | Codec::Array { .. } | Codec::Hstore | Codec::Composite(_) | Codec::Vector)
    }

    /// Appends a value given in the type's binary form.
    #[inline]
    pub(crate) fn binary(&self, value: &[u8], out: &mut Vec<u8>) -> Result<(), Why> {
        match self {
            Codec::Bool => out.push(u8::from(*value.first().ok_or("empty boolean")? != 0)),
            Codec::Int => put_long(out, binary_integer(value)?),
            // Of four bytes only oid is carried as a long, and it has no sign.
            Codec::Long => match value.try_into() {
                Ok(bytes) => put_long(out, u32::from_be_bytes(bytes).into()),
                Err(_) => put_long(out, binary_integer(value)?),
            },
            Codec::Float => {
                let value = f32::from_be_bytes(value.try_into().map_err(|_| "not 4 bytes")?);
                put_float(out, if value.is_nan() { f32::NAN } else { value });
            }
            Codec::Double => {
                let value = f64::from_be_bytes(value.try_into().map_err(|_| "not 8 bytes")?);
                put_double(out, if value.is_nan() { f64::NAN } else { value });
            }
            Codec::Text | Codec::Json => self.text(value, out)?,
            Codec::Jsonb => match value.split_first() {
                Some((1, text)) => self.text(text, out)?,
                _ => return Err("unknown version of jsonb"),
            },
            Codec::Bytes => put_bytes(out, value),
            Codec::Uuid => {
                let bytes: [u8; 16] = value.try_into().map_err(|_| "not 16 bytes")?;
                put_bytes(out, &uuid_text(bytes));
            }
            Codec::Date => match binary_integer(value)? {
                days if days == i64::from(i32::MAX) => put_long(out, i32::MAX.into()),
                days if days == i64::from(i32::MIN) => put_long(out, (-i32::MAX).into()),
                days => put_long(out, days + EPOCH_2000 / 86_400_000_000),
            },
            Codec::Time => put_long(out, binary_integer(value)?),
            Codec::Timestamp | Codec::Timestamptz => match binary_integer(value)? {
                i64::MAX => put_long(out, i64::MAX),
                i64::MIN => put_long(out, -i64::MAX),
                micros => put_long(out, micros.checked_add(EPOCH_2000).filter(|m| *m < i64::MAX).ok_or(TOO_LATE)?),
            },
            Codec::Decimal { precision, scale } => {
                let value = Numeric::parse(value).ok_or("not a numeric")?;
                match value.unscaled(*scale) {
                    Some(unscaled) => put_decimal(out, unscaled),
                    // The first digits may be zeros.
                    None if value.length() > *precision as usize + 8 => {
                        return Err("more digits than the type declares");
                    }
                    None => self.text(&value.print(), out)?,
                }
            }
            _ => self.text(value, out)?,
        }
        Ok(())
    }
}

fn hex(digit: u8) -> Result<u8, Why> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err("not a hex digit"),
    }
}

fn uuid_text(bytes: [u8; 16]) -> [u8; 36] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = [b'-'; 36];
    let mut at = 0;
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            at += 1;
        }
        out[at] = DIGITS[usize::from(byte >> 4)];
        out[at + 1] = DIGITS[usize::from(byte & 15)];
        at += 2;
    }
    out
}

fn binary_integer(value: &[u8]) -> Result<i64, Why> {
    if let Ok(bytes) = value.try_into() {
        return Ok(i64::from_be_bytes(bytes));
    }
    if let Ok(bytes) = value.try_into() {
        return Ok(i32::from_be_bytes(bytes).into());
    }
    value.try_into().map(|bytes| i16::from_be_bytes(bytes).into()).map_err(|_| "not an integer of 2, 4 or 8 bytes")
}

#[inline]
fn integer(text: &[u8]) -> Result<i64, Why> {
    const NOT: Why = "not an integer";
    let (negative, digits) = match text.split_first() {
        Some((b'-', digits)) => (true, digits),
        _ => (false, text),
    };
    if digits.is_empty() || digits.len() > 19 {
        return Err(NOT);
    }
    let mut value = 0u64;
    for &c in digits {
        let digit = c.wrapping_sub(b'0');
        if digit > 9 {
            return Err(NOT);
        }
        value = value * 10 + u64::from(digit);
    }
    let signed = if negative {
        (value as i64).checked_neg().or((value == 1 << 63).then_some(i64::MIN))
    } else {
        i64::try_from(value).ok()
    };
    match signed {
        Some(signed) if value <= 1 << 63 => Ok(signed),
        _ => Err(NOT),
    }
}

fn number<N: std::str::FromStr + From<f32>>(text: &[u8]) -> Result<N, Why> {
    match text {
        b"NaN" => Ok(f32::NAN.into()),
        b"Infinity" => Ok(f32::INFINITY.into()),
        b"-Infinity" => Ok(f32::NEG_INFINITY.into()),
        _ => std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or("not a number"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use connector::{Column, Reader, ValueJson};

    pub(crate) fn json(codec: &Codec, text: &str) -> Result<String, Why> {
        let mut out = Vec::new();
        codec.text(text.as_bytes(), &mut out)?;
        let column = Column { name: "c".into(), ty: codec.carried(), db_type: "t".into(), nullable: true, id: 1 };
        let mut reader = Reader::new(&out);
        let value = ValueJson::read(&mut reader, &column, true).unwrap();
        assert!(reader.is_empty(), "{text}: all is read");
        Ok(serde_json::to_string(&value).unwrap())
    }

    #[test]
    fn values_are_carried_as_the_contract_says() {
        let array = |element, dimensions| Codec::Array { element: Box::new(element), dimensions, delimiter: b',' };
        let pair = Codec::Composite(vec![
            ("a".into(), "integer".into(), Codec::Int),
            ("b".into(), "text".into(), Codec::Text),
            ("c".into(), "text".into(), Codec::Text),
        ]);
        for (codec, text, expected) in [
            (Codec::Bool, "t", "true"),
            (Codec::Int, "-2147483648", "-2147483648"),
            (Codec::Long, "-9223372036854775808", "-9223372036854775808"),
            (Codec::Long, "9223372036854775807", "9223372036854775807"),
            (Codec::Double, "NaN", "\"NaN\""),
            (Codec::Double, "1e+308", "1e+308"),
            (Codec::Double, "0.1", "0.1"),
            (Codec::Float, "-Infinity", "\"-Infinity\""),
            (Codec::Float, "3.4028235e+38", "3.4028235e+38"),
            (Codec::Bytes, "\\x00ff", "\"AP8=\""),
            (Codec::Decimal { precision: 12, scale: 2 }, "-1234567890.12", "\"-1234567890.12\""),
            (Codec::Money, "-$1,234,567.89", "\"-1234567.89\""),
            (Codec::Date, "infinity", "\"infinity\""),
            (Codec::Date, "0044-03-15 BC", "\"0044-03-15 BC\""),
            (Codec::Date, "5874897-12-31", "\"5874897-12-31\""),
            (Codec::Time, "24:00:00", "\"24:00:00\""),
            (Codec::Time, "12:34:56.7", "\"12:34:56.7\""),
            (Codec::Timestamp, "2024-02-29 12:00:00.5", "\"2024-02-29T12:00:00.5\""),
            (Codec::Timestamptz, "4714-11-24 23:59:59.5+00 BC", "\"4714-11-24T23:59:59.5Z BC\""),
            (Codec::Timestamptz, "2024-02-29 12:00:00+05:30", "\"2024-02-29T06:30:00Z\""),
            (array(Codec::Int, 1), "{1,NULL,3}", "[1,null,3]"),
            (array(Codec::Int, 1), "{}", "[]"),
            (array(Codec::Int, 2), "{}", "[]"),
            (array(Codec::Int, 2), "{{1,2},{3,NULL}}", "[[1,2],[3,null]]"),
            (array(Codec::Text, 1), r#"{a,"b c","NULL","x\"y\\z","","{}"}"#, r#"["a","b c","NULL","x\"y\\z","","{}"]"#),
            (Codec::Hstore, r#""a"=>"1", "b\"c"=>NULL"#, r#"{"a":"1","b\"c":null}"#),
            (Codec::Hstore, "", "{}"),
            (pair.clone(), r#"(1,"x ""y"" \\z",)"#, r#"{"a":1,"b":"x \"y\" \\z","c":null}"#),
            (array(pair, 1), r#"{"(1,\"a b\",)"}"#, r#"[{"a":1,"b":"a b","c":null}]"#),
            (Codec::Vector, "[1,2.5,-3]", "[1.0,2.5,-3.0]"),
        ] {
            assert_eq!(json(&codec, text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_a_type_cannot_hold_is_refused() {
        let array = |dimensions| Codec::Array { element: Box::new(Codec::Int), dimensions, delimiter: b',' };
        for (codec, text) in [
            (Codec::Decimal { precision: 12, scale: 2 }, "NaN"),
            (Codec::Decimal { precision: 12, scale: 2 }, "Infinity"),
            (array(1), "[0:1]={1,2}"),
            (array(1), "{{1},{2}}"),
            (array(2), "{1,2}"),
            (Codec::Timestamp, "294276-12-31 23:59:59.999999"),
            (Codec::Int, "2147483648"),
            (Codec::Long, "9223372036854775808"),
            (Codec::Long, "99999999999999999999"),
            (Codec::Date, "2024-13-01"),
        ] {
            assert!(json(&codec, text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_binary_form_gives_the_same_bytes() {
        let decimal = || Codec::Decimal { precision: 30, scale: 2 };
        let numeric = |words: &[u16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
        let cases: [(Codec, &str, Vec<u8>); 14] = [
            (Codec::Bool, "t", vec![1]),
            (Codec::Int, "-5", (-5i16).to_be_bytes().to_vec()),
            (Codec::Int, "70000", 70_000i32.to_be_bytes().to_vec()),
            (Codec::Long, "-5", (-5i64).to_be_bytes().to_vec()),
            (Codec::Long, "4294967295", u32::MAX.to_be_bytes().to_vec()),
            (Codec::Double, "NaN", vec![0xff, 0xf8, 0, 0, 0, 0, 0, 1]),
            (decimal(), "-12345.67", numeric(&[3, 1, 0x4000, 2, 1, 2345, 6700])),
            (decimal(), "10000000000000000000000.01", numeric(&[7, 5, 0, 2, 100, 0, 0, 0, 0, 0, 100])),
            (Codec::Date, "2000-01-02", 1i32.to_be_bytes().to_vec()),
            (Codec::Date, "-infinity", i32::MIN.to_be_bytes().to_vec()),
            (Codec::Timestamptz, "2000-01-01 00:00:00.000001+00", 1i64.to_be_bytes().to_vec()),
            (Codec::Timestamp, "-infinity", i64::MIN.to_be_bytes().to_vec()),
            (Codec::Uuid, "00010203-0405-0607-0809-0a0b0c0d0e0f", (0..16).collect()),
            (Codec::Jsonb, "{\"a\": 1}", b"\x01{\"a\": 1}".to_vec()),
        ];
        for (codec, text, binary) in cases {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            codec.text(text.as_bytes(), &mut a).unwrap();
            codec.binary(&binary, &mut b).unwrap();
            assert_eq!(a, b, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn hostile_text_never_panics(text: Vec<u8>, punctuation in "[{}(),\"\\\\0-9=>NUL:. +BC-]{0,40}") {
            let int = || Box::new(Codec::Int);
            let codecs = [
                Codec::Int, Codec::Long, Codec::Double, Codec::Bytes, Codec::Date, Codec::Time, Codec::Timestamptz,
                Codec::Decimal { precision: 40, scale: 3 }, Codec::Hstore, Codec::Vector, Codec::Money,
                Codec::Array { element: int(), dimensions: 1, delimiter: b',' },
                Codec::Array { element: Box::new(Codec::Text), dimensions: 3, delimiter: b',' },
                Codec::Composite(vec![("a".into(), "t".into(), Codec::Text), ("b".into(), "t".into(), Codec::Int)]),
            ];
            for codec in codecs {
                let _ = codec.text(&text, &mut Vec::new());
                let _ = codec.text(punctuation.as_bytes(), &mut Vec::new());
                let _ = codec.binary(&text, &mut Vec::new());
            }
        }
    }
}
