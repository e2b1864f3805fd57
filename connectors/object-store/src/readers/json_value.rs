//! Values of JSON text as their column's type has them: what equal ones have in
//! common with the source's, and the text that PostgreSQL reads.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use connector::{Type, days_from_civil};
use serde_json::value::RawValue;

use super::ndjson::{Name, Object};
use crate::values;

const DAY: i64 = 86_400_000_000;

/// As `values::hash` of the same value.
pub(super) fn hash(raw: &RawValue, ty: &Type) -> u64 {
    let mut hasher = DefaultHasher::new();
    feed(raw.get(), ty, &mut hasher);
    hasher.finish()
}

/// As `values::text` of the same value.
pub(super) fn text(raw: &RawValue, ty: &Type) -> Option<String> {
    of_text(raw.get(), ty)
}

/// What is no value of its type is told from all that are by being a text.
enum Value<'a> {
    Boolean(bool),
    Integer(i64),
    Float(f32),
    Double(f64),
    Text(Cow<'a, str>),
    Bytes(Vec<u8>),
    Date(i32),
    Time(i64),
    Timestamp(i64, bool),
    List(Vec<&'a RawValue>),
    Map(Vec<(Name<'a>, &'a RawValue)>),
    Struct(Vec<(Name<'a>, &'a RawValue)>),
}

fn value<'a>(raw: &'a str, ty: &Type) -> Value<'a> {
    typed(raw, ty).unwrap_or_else(|| Value::Text(plain(raw)))
}

/// A text without its quotes, a number as it is written.
fn plain(raw: &str) -> Cow<'_, str> {
    serde_json::from_str::<Name<'_>>(raw).map_or(Cow::Borrowed(raw), |Name(text)| text)
}

fn typed<'a>(raw: &'a str, ty: &Type) -> Option<Value<'a>> {
    let quoted = || serde_json::from_str::<Name<'_>>(raw).ok().map(|Name(text)| text);
    Some(match ty {
        Type::Boolean => Value::Boolean(raw.parse().ok()?),
        Type::Int | Type::Long => Value::Integer(raw.parse().ok()?),
        // By Rust's own reading, which is exact: NaN and the infinities are texts.
        Type::Float => Value::Float(plain(raw).parse().ok()?),
        Type::Double => Value::Double(plain(raw).parse().ok()?),
        Type::String | Type::Uuid | Type::Json | Type::Decimal { .. } => return None,
        Type::Bytes => Value::Bytes(STANDARD.decode(&*quoted()?).ok()?),
        Type::Date => Value::Date(match &*quoted()? {
            "infinity" => i32::MAX,
            "-infinity" => -i32::MAX,
            text => {
                let (text, bc) = era(text);
                i32::try_from(days(text, bc)?).ok()?
            }
        }),
        Type::Time => Value::Time(micros(&quoted()?)?),
        Type::LocalTimestamp => Value::Timestamp(timestamp(&quoted()?, "")?, false),
        Type::Timestamp => Value::Timestamp(timestamp(&quoted()?, "Z")?, true),
        Type::Array(_) => Value::List(serde_json::from_str(raw).ok()?),
        Type::Map => Value::Map(serde_json::from_str::<Object<'_>>(raw).ok()?.0),
        Type::Record(_) => Value::Struct(serde_json::from_str::<Object<'_>>(raw).ok()?.0),
    })
}

/// Year, month, day.
fn days(text: &str, bc: bool) -> Option<i64> {
    let mut parts = text.splitn(3, '-');
    let mut part = || -> Option<u32> { parts.next()?.parse().ok() };
    let (year, month, day) = (i64::from(part()?), part()?, part()?);
    let fits = year < 10_000_000 && (1..=12).contains(&month) && (1..=31).contains(&day);
    fits.then(|| days_from_civil(if bc { 1 - year } else { year }, month, day))
}

fn era(text: &str) -> (&str, bool) {
    text.strip_suffix(" BC").map_or((text, false), |text| (text, true))
}

/// Hours, minutes, seconds and what they have behind the point.
fn micros(text: &str) -> Option<i64> {
    let (clock, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut parts = clock.splitn(3, ':');
    let mut part = || -> Option<i64> { parts.next()?.parse::<u16>().ok().map(i64::from) };
    let seconds = (part()? * 60 + part()?) * 60 + part()?;
    let digits = fraction.len() <= 6 && fraction.bytes().all(|byte| byte.is_ascii_digit());
    let fraction: i64 = digits.then(|| format!("{fraction:0<6}").parse().ok())??;
    Some(seconds * 1_000_000 + fraction)
}

fn timestamp(text: &str, zone: &str) -> Option<i64> {
    match text {
        "infinity" => return Some(i64::MAX),
        "-infinity" => return Some(-i64::MAX),
        _ => {}
    }
    let (text, bc) = era(text);
    let (date, clock) = text.strip_suffix(zone)?.split_once('T')?;
    i64::try_from(i128::from(days(date, bc)?) * i128::from(DAY) + i128::from(micros(clock)?)).ok()
}

/// In the order in which `values::hash` takes them.
fn feed(raw: &str, ty: &Type, to: &mut DefaultHasher) {
    if raw == "null" {
        0u8.hash(to);
        return;
    }
    1u8.hash(to);
    match (value(raw, ty), ty) {
        (Value::Boolean(value), _) => value.hash(to),
        (Value::Integer(value), _) => value.hash(to),
        (Value::Float(value), _) => values::bits_32(value).hash(to),
        (Value::Double(value), _) => values::bits_64(value).hash(to),
        (Value::Text(value), _) => value.hash(to),
        (Value::Bytes(value), _) => value.hash(to),
        (Value::Date(value), _) => value.hash(to),
        (Value::Time(value) | Value::Timestamp(value, _), _) => value.hash(to),
        (Value::List(items), Type::Array(ty)) => {
            items.len().hash(to);
            items.iter().for_each(|item| feed(item.get(), ty, to));
        }
        (Value::Map(pairs), _) => {
            let pairs = pairs.iter().map(|(name, value)| {
                move |to: &mut DefaultHasher| {
                    1u8.hash(to);
                    name.0.hash(to);
                    feed(value.get(), &Type::String, to);
                }
            });
            values::feed_unordered(pairs, to);
        }
        (Value::Struct(pairs), Type::Record(fields)) => {
            for field in fields {
                let value = pairs.iter().find(|(name, _)| name.0 == field.name);
                feed(value.map_or("null", |(_, value)| value.get()), &field.ty, to);
            }
        }
        (Value::List(_) | Value::Struct(_), _) => raw.hash(to),
    }
}

fn of_text(raw: &str, ty: &Type) -> Option<String> {
    if raw == "null" {
        return None;
    }
    Some(match (value(raw, ty), ty) {
        (Value::Boolean(value), _) => value.to_string(),
        (Value::Integer(value), _) => value.to_string(),
        (Value::Float(value), _) => value.to_string(),
        (Value::Double(value), _) => value.to_string(),
        (Value::Text(value), _) => value.into_owned(),
        (Value::Bytes(value), _) => values::bytes_text(&value),
        (Value::Date(days), _) => values::date_text(days),
        (Value::Time(micros), _) => values::time_text(micros),
        (Value::Timestamp(micros, zoned), _) => values::timestamp_text(micros, zoned),
        (Value::List(items), Type::Array(ty)) => {
            let items: Vec<String> =
                items.iter().map(|item| of_text(item.get(), ty).unwrap_or("NULL".into())).collect();
            format!("{{{}}}", items.join(","))
        }
        (Value::Struct(pairs), Type::Record(fields)) => {
            let value = |field: &connector::Field| {
                let value = pairs.iter().find(|(name, _)| name.0 == field.name);
                value.and_then(|(_, value)| of_text(value.get(), &field.ty)).unwrap_or_default()
            };
            format!("({})", fields.iter().map(value).collect::<Vec<_>>().join(","))
        }
        (Value::List(_) | Value::Struct(_) | Value::Map(_), _) => raw.into(),
    })
}
