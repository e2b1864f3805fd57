//! Values as PostgreSQL's text, for what has no binary form here: arrays,
//! composites, hstore, and everything within them.

use std::fmt::Write;

use connector::{Malformed, Reader, Type, civil_from_days, decimal_to_text};

const DAY: i64 = 86_400_000_000;

/// Appends a value's text, as the type's own input function takes it.
pub(crate) fn put(out: &mut String, reader: &mut Reader<'_>, ty: &Type, db_type: &str) -> Result<(), Malformed> {
    value(out, reader, ty, db_type, 0)
}

fn value(out: &mut String, reader: &mut Reader<'_>, ty: &Type, db_type: &str, depth: u32) -> Result<(), Malformed> {
    if depth > 64 {
        return Err(Malformed("nested too deep"));
    }
    match ty {
        Type::Boolean => out.push(if reader.boolean()? { 't' } else { 'f' }),
        Type::Int => shown(out, reader.int()?),
        Type::Long => shown(out, reader.long()?),
        Type::Float => {
            let value = reader.float()?;
            number(out, value.into(), &format!("{value:e}"), 6);
        }
        Type::Double => {
            let value = reader.double()?;
            number(out, value, &format!("{value:e}"), 15);
        }
        Type::String | Type::Uuid | Type::Json => out.push_str(reader.string()?),
        Type::Bytes => {
            out.push_str("\\x");
            reader.bytes()?.iter().for_each(|byte| shown(out, format_args!("{byte:02x}")));
        }
        Type::Decimal { scale, .. } => out.push_str(&decimal_to_text(reader.bytes()?, *scale)),
        Type::Date => match reader.int()? {
            i32::MAX => out.push_str("infinity"),
            days if days == -i32::MAX => out.push_str("-infinity"),
            days => {
                let era = date(out, days.into());
                out.push_str(era);
            }
        },
        Type::Time => time(out, reader.long()?),
        Type::LocalTimestamp => timestamp(out, reader.long()?, ""),
        Type::Timestamp => timestamp(out, reader.long()?, "+00"),
        Type::Array(element) => {
            if db_type.ends_with("[]") {
                let inner = db_type.trim_end_matches("[]");
                let delimiter = if inner == "box" { ';' } else { ',' };
                array(out, reader, element, inner, delimiter, depth)?;
            } else {
                // pgvector prints without braces.
                list(out, reader, element, db_type, depth)?;
            }
        }
        Type::Map => map(out, reader)?,
        Type::Record(fields) => {
            out.push('(');
            for (i, field) in fields.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                if reader.present()? {
                    let mut text = String::new();
                    value(&mut text, reader, &field.ty, &field.db_type, depth + 1)?;
                    field_text(out, &text);
                }
            }
            out.push(')');
        }
    }
    Ok(())
}

fn shown(out: &mut String, value: impl std::fmt::Display) {
    // Writing into a String cannot fail.
    let _ = write!(out, "{value}");
}

/// As `float4out` and `float8out` print it; `shortest` is `d.ddde-n`.
fn number(out: &mut String, value: f64, shortest: &str, plain_below: i32) {
    if value.is_nan() {
        return out.push_str("NaN");
    }
    if value.is_infinite() {
        return out.push_str(if value > 0.0 { "Infinity" } else { "-Infinity" });
    }
    let (sign, shortest) = shortest.strip_prefix('-').map_or(("", shortest), |rest| ("-", rest));
    let (mantissa, exponent) = shortest.split_once('e').unwrap_or((shortest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    out.push_str(sign);
    if !(-4..plain_below).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return shown(out, format_args!("{mantissa}e{sign}{:02}", exponent.abs()));
    }
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    match usize::try_from(exponent) {
        Err(_) => shown(out, format_args!("0.{}{digits}", "0".repeat(exponent.unsigned_abs() as usize - 1))),
        Ok(whole) if digits.len() <= whole + 1 => {
            shown(out, format_args!("{digits}{}", "0".repeat(whole + 1 - digits.len())));
        }
        Ok(whole) => shown(out, format_args!("{}.{}", &digits[..=whole], &digits[whole + 1..])),
    }
}

/// In double quotes, with backslashes before what needs one.
fn quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

/// An array's element as `array_out` prints it: what the warehouse keeps as
/// text is to be what the source printed.
fn element_text(out: &mut String, text: &str, delimiter: char) {
    let special = |c: char| matches!(c, '"' | '\\' | '{' | '}') || c == delimiter || is_space(c);
    if text.is_empty() || text.eq_ignore_ascii_case("NULL") || text.contains(special) {
        quoted(out, text);
    } else {
        out.push_str(text);
    }
}

/// A composite's field as `record_out` prints it.
fn field_text(out: &mut String, text: &str) {
    let special = |c: char| matches!(c, '"' | '\\' | '(' | ')' | ',') || is_space(c);
    if !text.is_empty() && !text.contains(special) {
        return out.push_str(text);
    }
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            out.push(c);
        }
        out.push(c);
    }
    out.push('"');
}

/// C's `isspace`.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

fn array(
    out: &mut String,
    reader: &mut Reader<'_>,
    element: &Type,
    db_type: &str,
    delimiter: char,
    depth: u32,
) -> Result<(), Malformed> {
    out.push('{');
    let mut first = true;
    loop {
        let count = reader.block()?;
        if count == 0 {
            break;
        }
        for _ in 0..count {
            if !first {
                out.push(delimiter);
            }
            first = false;
            if !reader.present()? {
                out.push_str("NULL");
            } else if let Type::Array(inner) = element {
                array(out, reader, inner, db_type, delimiter, depth + 1)?;
            } else {
                let mut text = String::new();
                value(&mut text, reader, element, db_type, depth + 1)?;
                element_text(out, &text, delimiter);
            }
        }
    }
    out.push('}');
    Ok(())
}

fn list(out: &mut String, reader: &mut Reader<'_>, element: &Type, db_type: &str, depth: u32) -> Result<(), Malformed> {
    out.push('[');
    let mut first = true;
    loop {
        let count = reader.block()?;
        if count == 0 {
            break;
        }
        for _ in 0..count {
            if !first {
                out.push(',');
            }
            first = false;
            if reader.present()? {
                value(out, reader, element, db_type, depth + 1)?;
            }
        }
    }
    out.push(']');
    Ok(())
}

fn map(out: &mut String, reader: &mut Reader<'_>) -> Result<(), Malformed> {
    let mut first = true;
    loop {
        let count = reader.block()?;
        if count == 0 {
            return Ok(());
        }
        for _ in 0..count {
            if !first {
                out.push_str(", ");
            }
            first = false;
            quoted(out, reader.string()?);
            out.push_str("=>");
            if reader.present()? {
                quoted(out, reader.string()?);
            } else {
                out.push_str("NULL");
            }
        }
    }
}

/// The date without its era, which stands behind everything else.
fn date(out: &mut String, days: i64) -> &'static str {
    let (year, month, day) = civil_from_days(days);
    let (year, era) = if year <= 0 { (1 - year, " BC") } else { (year, "") };
    shown(out, format_args!("{year:04}-{month:02}-{day:02}"));
    era
}

fn time(out: &mut String, micros: i64) {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    shown(out, format_args!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60));
    if fraction != 0 {
        out.push_str(format!(".{fraction:06}").trim_end_matches('0'));
    }
}

fn timestamp(out: &mut String, micros: i64, zone: &str) {
    match micros {
        i64::MAX => out.push_str("infinity"),
        _ if micros == -i64::MAX => out.push_str("-infinity"),
        _ => {
            let era = date(out, micros.div_euclid(DAY));
            out.push(' ');
            time(out, micros.rem_euclid(DAY));
            out.push_str(zone);
            out.push_str(era);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use connector::{Field, put_bytes, put_long};

    fn check(ty: &Type, db_type: &str, body: &[u8], expected: &str) {
        let mut out = String::new();
        let mut reader = Reader::new(body);
        put(&mut out, &mut reader, ty, db_type).unwrap();
        assert!(reader.is_empty());
        assert_eq!(out, expected);
    }

    #[test]
    fn nested_values_are_written_as_the_server_reads_them() {
        let mut body = Vec::new();
        put_long(&mut body, 3);
        body.push(2);
        put_bytes(&mut body, b"a,b");
        body.push(0);
        body.push(2);
        put_bytes(&mut body, b"q\"\\");
        body.push(0);
        check(&Type::Array(Box::new(Type::String)), "text[]", &body, r#"{"a,b",NULL,"q\"\\"}"#);
        let pair = Type::Record(vec![
            Field { name: "a".into(), ty: Type::Int, db_type: "integer".into() },
            Field { name: "b".into(), ty: Type::String, db_type: "text".into() },
        ]);
        check(&pair, "pair", &[2, 2, 0], "(1,)");
        check(&Type::Array(Box::new(Type::Int)), "integer[]", &[0], "{}");
        let mut body = Vec::new();
        put_long(&mut body, 1);
        put_bytes(&mut body, b"k");
        body.push(0);
        body.push(0);
        check(&Type::Map, "hstore", &body, "\"k\"=>NULL");
    }

    #[test]
    fn floats_look_as_the_server_prints_them() {
        for (value, expected) in [
            (0.1, "0.1"),
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (-120.0, "-120"),
            (1.5e-4, "0.00015"),
            (1.5e-5, "1.5e-05"),
            (123456.75, "123456.75"),
            (1e15, "1e+15"),
            (5e-324, "5e-324"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            check(&Type::Double, "double precision", &value.to_le_bytes(), expected);
        }
        check(&Type::Float, "real", &1_234_567f32.to_le_bytes(), "1.234567e+06");
    }

    #[test]
    fn times_before_christ_carry_their_era_last() {
        let mut out = String::new();
        timestamp(&mut out, -210_866_803_200_000_000 + 1, "+00");
        assert_eq!(out, "4714-11-24 00:00:00.000001+00 BC");
    }
}
