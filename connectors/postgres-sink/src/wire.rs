//! Avro to PostgreSQL's binary form: fields as COPY has them, a length and the
//! value. An absent column is a length of its own.

use connector::{Malformed, Reader, Type, decimal_to_i128, decimal_to_text};

use crate::text;
use crate::types::Wire;

/// NULL.
pub(crate) const NULL: i32 = -1;
/// Not known: ours, never sent.
pub(crate) const ABSENT: i32 = -2;

/// Microseconds and days from 1970 to PostgreSQL's own beginning.
const EPOCH_2000: i64 = 946_684_800_000_000;
const DAYS_2000: i32 = 10_957;

/// Appends NULL or the absent mark.
pub(crate) fn put_none(out: &mut Vec<u8>, mark: i32) {
    out.extend_from_slice(&mark.to_be_bytes());
}

/// Appends a value that is there.
#[inline]
pub(crate) fn put(
    out: &mut Vec<u8>,
    reader: &mut Reader<'_>,
    wire: Wire,
    ty: &Type,
    db_type: &str,
) -> Result<(), Malformed> {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    match (wire, ty) {
        (Wire::Bool, _) => out.push(u8::from(reader.boolean()?)),
        (Wire::Int2, _) => {
            let value = i16::try_from(reader.int()?).map_err(|_| Malformed("smallint out of range"))?;
            out.extend_from_slice(&value.to_be_bytes());
        }
        (Wire::Int4, _) => out.extend_from_slice(&reader.int()?.to_be_bytes()),
        (Wire::Int8, _) => out.extend_from_slice(&reader.long()?.to_be_bytes()),
        (Wire::Oid, _) => {
            let value = u32::try_from(reader.long()?).map_err(|_| Malformed("oid out of range"))?;
            out.extend_from_slice(&value.to_be_bytes());
        }
        (Wire::Float4, _) => out.extend_from_slice(&reader.float()?.to_be_bytes()),
        (Wire::Float8, _) => out.extend_from_slice(&reader.double()?.to_be_bytes()),
        (Wire::Text, Type::String) | (Wire::Json, _) | (Wire::Bytea, _) => out.extend_from_slice(reader.bytes()?),
        (Wire::Jsonb, _) => {
            out.push(1);
            out.extend_from_slice(reader.bytes()?);
        }
        (Wire::Text, _) => {
            let mut text = String::new();
            text::put(&mut text, reader, ty, db_type)?;
            out.extend_from_slice(text.as_bytes());
        }
        (Wire::Uuid, _) => uuid(out, reader.bytes()?)?,
        (Wire::Numeric, Type::Decimal { scale, .. }) => numeric(out, reader.bytes()?, *scale)?,
        (Wire::Numeric, _) => return Err(Malformed("no decimal")),
        (Wire::Date, _) => {
            let value = match reader.int()? {
                i32::MAX => i32::MAX,
                days if days == -i32::MAX => i32::MIN,
                days => days.checked_sub(DAYS_2000).ok_or(Malformed("date out of range"))?,
            };
            out.extend_from_slice(&value.to_be_bytes());
        }
        (Wire::Time, _) => out.extend_from_slice(&reader.long()?.to_be_bytes()),
        (Wire::Timestamp | Wire::Timestamptz, _) => out.extend_from_slice(&micros(reader.long()?).to_be_bytes()),
    }
    let length = i32::try_from(out.len() - at - 4).map_err(|_| Malformed("a value above 2 GiB"))?;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

/// A timestamp as PostgreSQL counts.
pub(crate) fn micros(unix: i64) -> i64 {
    match unix {
        i64::MAX => i64::MAX,
        _ if unix == -i64::MAX => i64::MIN,
        _ => unix.saturating_sub(EPOCH_2000),
    }
}

fn uuid(out: &mut Vec<u8>, text: &[u8]) -> Result<(), Malformed> {
    const NOT: Malformed = Malformed("not a uuid");
    let mut digits = text.iter().filter(|&&c| c != b'-').map(|&c| (c as char).to_digit(16));
    for _ in 0..16 {
        let (high, low) = (digits.next().flatten().ok_or(NOT)?, digits.next().flatten().ok_or(NOT)?);
        out.push((high << 4 | low) as u8);
    }
    if digits.next().is_some() { Err(NOT) } else { Ok(()) }
}

/// `numeric_recv`: groups of four digits, aligned at the point.
fn numeric(out: &mut Vec<u8>, be: &[u8], scale: u32) -> Result<(), Malformed> {
    const GREATEST: u128 = 10u128.pow(34);
    let padding = (4 - scale % 4) % 4;
    let fraction_groups = (scale + padding) / 4;
    let small = decimal_to_i128(be).filter(|value| value.unsigned_abs() < GREATEST);
    let mut groups: Vec<u16> = Vec::with_capacity(10);
    let negative;
    match small {
        Some(value) => {
            negative = value < 0;
            let mut rest = value.unsigned_abs() * 10u128.pow(padding);
            while rest > 0 {
                groups.push((rest % 10_000) as u16);
                rest /= 10_000;
            }
        }
        None => {
            let text = decimal_to_text(be, scale);
            negative = text.starts_with('-');
            let mut digits: Vec<u8> = text.bytes().filter(u8::is_ascii_digit).map(|c| c - b'0').collect();
            digits.extend(std::iter::repeat_n(0, padding as usize));
            for group in digits.rchunks(4) {
                groups.push(group.iter().fold(0, |n, &digit| n * 10 + u16::from(digit)));
            }
            while groups.last() == Some(&0) {
                groups.pop();
            }
        }
    }
    // Least first; zeros at that end are not sent.
    let zeros = groups.iter().take_while(|&&group| group == 0).count();
    let weight = groups.len() as i64 - i64::from(fraction_groups) - 1;
    let sent = &groups[zeros..];
    let too_long = |_| Malformed("numeric out of range");
    out.extend_from_slice(&i16::try_from(sent.len()).map_err(too_long)?.to_be_bytes());
    let weight = if sent.is_empty() { 0 } else { weight };
    out.extend_from_slice(&i16::try_from(weight).map_err(too_long)?.to_be_bytes());
    out.extend_from_slice(&(if negative { 0x4000u16 } else { 0 }).to_be_bytes());
    out.extend_from_slice(&u16::try_from(scale).map_err(|_| Malformed("numeric out of range"))?.to_be_bytes());
    sent.iter().rev().for_each(|group| out.extend_from_slice(&group.to_be_bytes()));
    Ok(())
}

/// Splits the next field off: None for NULL and absent, with its length or mark.
#[inline]
pub(crate) fn next<'a>(fields: &mut &'a [u8]) -> Option<(i32, &'a [u8])> {
    let (length, rest) = fields.split_first_chunk::<4>()?;
    let length = i32::from_be_bytes(*length);
    let (value, rest) = rest.split_at_checked(usize::try_from(length).unwrap_or(0))?;
    *fields = rest;
    Some((length, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use connector::{decimal_from_text, put_bytes};

    /// What `numeric_out` would print of the binary form.
    fn printed(binary: &[u8]) -> String {
        let word = |i: usize| i16::from_be_bytes([binary[i * 2], binary[i * 2 + 1]]);
        let (count, weight, negative, scale) = (word(0), word(1), word(2) == 0x4000, word(3) as usize);
        let group = |i: i64| if (0..i64::from(count)).contains(&i) { word(4 + i as usize) } else { 0 };
        let mut whole = String::new();
        for i in 0..=i64::from(weight.max(0)) {
            whole.push_str(&format!("{:04}", if weight < 0 { 0 } else { group(i) }));
        }
        let mut fraction = String::new();
        for i in 0..scale.div_ceil(4) as i64 {
            fraction.push_str(&format!("{:04}", group(i64::from(weight) + 1 + i)));
        }
        fraction.truncate(scale);
        let whole = whole.trim_start_matches('0');
        let whole = if whole.is_empty() { "0" } else { whole };
        let sign = if negative { "-" } else { "" };
        if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
    }

    #[test]
    fn decimals_are_groups_of_four_digits() {
        for (text, scale) in [
            ("0", 0),
            ("0.00", 2),
            ("-0.01", 2),
            ("1", 0),
            ("10000", 0),
            ("-1234567890.12", 2),
            ("0.00000001", 8),
            ("123456789012345678901234567890.0123456789", 10),
            ("-99999999999999999999999999999999999999999999999999.99999", 5),
        ] {
            let mut avro = Vec::new();
            decimal_from_text(&mut avro, text.as_bytes(), scale).unwrap();
            let mut out = Vec::new();
            let ty = Type::Decimal { precision: 100, scale };
            put(&mut out, &mut Reader::new(&avro), Wire::Numeric, &ty, "numeric").unwrap();
            let mut fields = &out[..];
            assert_eq!(printed(next(&mut fields).unwrap().1), text);
            assert!(fields.is_empty());
        }
    }

    proptest::proptest! {
        #[test]
        fn any_decimal_keeps_its_digits(value: i128, scale in 0u32..30) {
            let mut digits = value.unsigned_abs().to_string();
            while digits.len() <= scale as usize {
                digits.insert(0, '0');
            }
            if scale > 0 {
                digits.insert(digits.len() - scale as usize, '.');
            }
            let text = if value < 0 { format!("-{digits}") } else { digits };
            let mut avro = Vec::new();
            decimal_from_text(&mut avro, text.as_bytes(), scale).unwrap();
            let mut out = Vec::new();
            let ty = Type::Decimal { precision: 100, scale };
            put(&mut out, &mut Reader::new(&avro), Wire::Numeric, &ty, "numeric").unwrap();
            proptest::prop_assert_eq!(printed(&out[4..]), text);
        }
    }

    #[test]
    fn a_uuid_is_sixteen_bytes() {
        let mut avro = Vec::new();
        put_bytes(&mut avro, b"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11");
        let mut out = Vec::new();
        put(&mut out, &mut Reader::new(&avro), Wire::Uuid, &Type::Uuid, "uuid").unwrap();
        assert_eq!(out.len(), 20);
        assert_eq!(out[4], 0xa0);
    }
}
