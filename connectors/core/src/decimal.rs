//! Decimals: the database's digits to Avro's unscaled two's complement and back,
//! of any precision.

use std::fmt;

use crate::avro::put_bytes;

/// A value that a decimal of this scale cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange;

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a finite number of the declared scale")
    }
}

impl std::error::Error for OutOfRange {}

/// Appends `text` (`-12.50`) as an Avro decimal of this scale. NaN, infinities,
/// exponents and digits beyond the scale are refused; then nothing is appended.
#[inline]
pub fn decimal_from_text(out: &mut Vec<u8>, text: &[u8], scale: u32) -> Result<(), OutOfRange> {
    let (negative, digits) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        Some((b'+', rest)) => (false, rest),
        _ => (false, text),
    };
    // 18 digits with the scale's zeros fit an i64: nearly every decimal there is.
    if digits.len() + scale as usize <= 18 {
        let point = digits.iter().position(|&c| c == b'.').unwrap_or(digits.len());
        let (whole, fraction) = (&digits[..point], digits.get(point + 1..).unwrap_or_default());
        let mut odd = digits.is_empty() || fraction.len() > scale as usize;
        let mut value = 0i64;
        for part in [whole, fraction] {
            for &c in part {
                odd |= !c.is_ascii_digit();
                value = value.wrapping_mul(10).wrapping_add(c.wrapping_sub(b'0').into());
            }
        }
        if odd {
            return Err(OutOfRange);
        }
        for _ in fraction.len()..scale as usize {
            value *= 10;
        }
        put_decimal(out, if negative { -value } else { value });
        return Ok(());
    }
    let point = digits.iter().position(|&c| c == b'.');
    let (whole, fraction) = match point {
        Some(at) => (&digits[..at], &digits[at + 1..]),
        None => (digits, &[][..]),
    };
    let all_digits = |part: &[u8]| part.iter().all(u8::is_ascii_digit);
    if fraction.len() > scale as usize || digits.is_empty() || !all_digits(whole) || !all_digits(fraction) {
        return Err(OutOfRange);
    }
    let zeros = std::iter::repeat_n(b'0', scale as usize - fraction.len());
    let digits: Vec<u8> = whole.iter().chain(fraction).copied().chain(zeros).collect();
    // Limbs of 32 bits, least first; nine digits at a time.
    let mut limbs: Vec<u32> = Vec::with_capacity(digits.len() / 9 + 1);
    for chunk in digits.chunks(9) {
        let mut carry = chunk.iter().fold(0u64, |n, c| n * 10 + u64::from(c - b'0'));
        let factor = 10u64.pow(chunk.len() as u32);
        for limb in &mut limbs {
            let product = u64::from(*limb) * factor + carry;
            (*limb, carry) = (product as u32, product >> 32);
        }
        if carry != 0 {
            limbs.push(carry as u32);
        }
    }
    let mut be: Vec<u8> = vec![0];
    be.extend(limbs.iter().rev().flat_map(|limb| limb.to_be_bytes()));
    if negative {
        negate(&mut be);
    }
    put_be(out, &be);
    Ok(())
}

/// Appends an unscaled value.
#[inline]
pub fn put_decimal(out: &mut Vec<u8>, unscaled: i64) {
    // Bytes that only repeat the sign are left out; one stays.
    let spare = (unscaled ^ (unscaled >> 63)).leading_zeros().saturating_sub(1) / 8;
    put_bytes(out, &unscaled.to_be_bytes()[spare.min(7) as usize..]);
}

/// The unscaled value; None if it needs more than 128 bits.
pub fn decimal_to_i128(be: &[u8]) -> Option<i128> {
    let negative = be.first().is_some_and(|b| b & 0x80 != 0);
    let fill = if negative { 0xff } else { 0 };
    let extra = be.len().saturating_sub(16);
    if be[..extra].iter().any(|&b| b != fill) {
        return None;
    }
    let mut bytes = [fill; 16];
    let tail = &be[extra..];
    bytes[16 - tail.len()..].copy_from_slice(tail);
    let value = i128::from_be_bytes(bytes);
    ((value < 0) == negative).then_some(value)
}

/// The digits, with exactly `scale` of them after the point.
pub fn decimal_to_text(be: &[u8], scale: u32) -> String {
    let negative = be.first().is_some_and(|b| b & 0x80 != 0);
    let mut digits = match decimal_to_i128(be) {
        Some(value) => value.unsigned_abs().to_string(),
        None => {
            let mut magnitude = be.to_vec();
            if negative {
                negate(&mut magnitude);
            }
            big_digits(&magnitude)
        }
    };
    let scale = scale as usize;
    if scale > 0 {
        if digits.len() <= scale {
            digits.insert_str(0, &"0".repeat(scale + 1 - digits.len()));
        }
        digits.insert(digits.len() - scale, '.');
    }
    if negative {
        digits.insert(0, '-');
    }
    digits
}

fn big_digits(be: &[u8]) -> String {
    let mut groups: Vec<u32> = vec![0];
    for &byte in be {
        let mut carry = u64::from(byte);
        for group in &mut groups {
            let value = u64::from(*group) * 256 + carry;
            (*group, carry) = ((value % 1_000_000_000) as u32, value / 1_000_000_000);
        }
        if carry != 0 {
            groups.push(carry as u32);
        }
    }
    let mut out = groups.last().copied().unwrap_or(0).to_string();
    for group in groups.iter().rev().skip(1) {
        out.push_str(&format!("{group:09}"));
    }
    out
}

fn negate(be: &mut [u8]) {
    let mut carry = true;
    for byte in be.iter_mut().rev() {
        let (value, over) = (!*byte).overflowing_add(u8::from(carry));
        (*byte, carry) = (value, over);
    }
}

/// Appends the shortest two's complement that means the same.
#[inline]
fn put_be(out: &mut Vec<u8>, be: &[u8]) {
    let fill = if be[0] & 0x80 != 0 { 0xff } else { 0 };
    let mut start = 0;
    while start + 1 < be.len() && be[start] == fill && (be[start + 1] ^ fill) & 0x80 == 0 {
        start += 1;
    }
    put_bytes(out, &be[start..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::avro::Reader;

    fn round(text: &str, scale: u32) -> Result<String, OutOfRange> {
        let mut out = Vec::new();
        decimal_from_text(&mut out, text.as_bytes(), scale)?;
        Ok(decimal_to_text(Reader::new(&out).bytes().unwrap(), scale))
    }

    #[test]
    fn digits_come_back_as_the_database_prints_them() {
        for (text, scale) in [
            ("0", 0),
            ("0.00", 2),
            ("-0.01", 2),
            ("12345678901234567890.12", 2),
            ("-9999999999", 0),
            ("999999999999999999", 0),
            ("9999999999999999999", 0),
            ("-9999999999999999999", 0),
            ("99999999999999999.99", 2),
            ("128", 0),
            ("-128", 0),
            ("-129", 0),
            ("170141183460469231731687303715884105727", 0),
            ("-170141183460469231731687303715884105728", 0),
            ("170141183460469231731687303715884105728", 0),
            ("-999999999999999999999999999999999999999999999999999999999999.000000001", 9),
        ] {
            assert_eq!(round(text, scale).as_deref(), Ok(text));
        }
        assert_eq!(round(&"9".repeat(1000), 0).unwrap(), "9".repeat(1000));
        assert_eq!(round("1", 2).as_deref(), Ok("1.00"));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for text in ["NaN", "Infinity", "-Infinity", "1.234", "1e5", "", "-", "1.2.3", "12345678901234567890x"] {
            assert_eq!(round(text, 2), Err(OutOfRange), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn an_i128_comes_back(value: i128) {
            let mut out = Vec::new();
            decimal_from_text(&mut out, value.to_string().as_bytes(), 0).unwrap();
            let bytes = Reader::new(&out).bytes().unwrap();
            proptest::prop_assert_eq!(decimal_to_i128(bytes), Some(value));
            proptest::prop_assert_eq!(decimal_to_text(bytes, 0), value.to_string());
        }
    }
}
