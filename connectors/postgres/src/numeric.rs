//! The binary form of `numeric`, as numeric_send of PostgreSQL's
//! utils/adt/numeric.c writes it: the number of digits to the base 10,000, the
//! weight of the first, a sign, the digits behind the point that are shown, and
//! the digits.

const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xc000;
const INFINITY: u16 = 0xd000;
const NEGATIVE_INFINITY: u16 = 0xf000;
/// NUMERIC_DSCALE_MASK.
const GREATEST_SCALE: u16 = 0x3fff;

/// A value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numeric<'a> {
    digits: &'a [[u8; 2]],
    weight: i16,
    sign: u16,
    scale: u16,
}

impl<'a> Numeric<'a> {
    /// None: not in that form.
    #[inline]
    pub(crate) fn parse(value: &'a [u8]) -> Option<Self> {
        let (head, digits) = value.split_first_chunk::<8>()?;
        let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let (digits, odd) = digits.as_chunks::<2>();
        let (sign, scale) = (word(4), word(6));
        let known = matches!(sign, 0 | NEGATIVE | NAN | INFINITY | NEGATIVE_INFINITY);
        if !known || !odd.is_empty() || digits.len() != usize::from(word(0)) || scale > GREATEST_SCALE {
            return None;
        }
        if digits.iter().any(|digit| u16::from_be_bytes(*digit) > 9999) {
            return None;
        }
        Some(Self { digits, weight: word(2) as i16, sign, scale })
    }

    /// How many decimal digits it is printed with, at most.
    pub(crate) fn length(&self) -> usize {
        (i32::from(self.weight) + 1).max(1) as usize * 4 + usize::from(self.scale)
    }

    /// Times ten to the power of `scale`, if that is an integer of at most 18 digits.
    #[inline]
    pub(crate) fn unscaled(&self, scale: u32) -> Option<i64> {
        const TENS: [i64; 19] = {
            let mut tens = [1; 19];
            let mut i = 1;
            while i < tens.len() {
                tens[i] = tens[i - 1] * 10;
                i += 1;
            }
            tens
        };
        if self.sign & !NEGATIVE != 0 || !(-5..=3).contains(&self.weight) || scale > 18 {
            return None;
        }
        if (i32::from(self.weight) + 1) * 4 + scale as i32 > 18 {
            return None;
        }
        let mut value = 0;
        let mut power = i32::from(self.weight) * 4 + scale as i32;
        for digit in self.digits {
            let digit = i64::from(u16::from_be_bytes(*digit));
            if power >= 0 {
                value += digit * TENS[power as usize];
            } else {
                let cut = TENS[power.unsigned_abs().min(4) as usize];
                if digit % cut != 0 {
                    return None;
                }
                value += digit / cut;
            }
            power -= 4;
        }
        Some(if self.sign == NEGATIVE { -value } else { value })
    }

    /// As numeric_out prints it.
    pub(crate) fn print(&self) -> Vec<u8> {
        match self.sign {
            NAN => return b"NaN".to_vec(),
            INFINITY => return b"Infinity".to_vec(),
            NEGATIVE_INFINITY => return b"-Infinity".to_vec(),
            _ => {}
        }
        let digit = |at: i32| {
            let digit = usize::try_from(at).ok().and_then(|at| self.digits.get(at));
            digit.map_or(0, |digit| u16::from_be_bytes(*digit))
        };
        let weight = i32::from(self.weight);
        let mut out = Vec::with_capacity(self.length() + 2);
        if self.sign == NEGATIVE {
            out.push(b'-');
        }
        let whole = out.len();
        for at in 0..=weight {
            out.extend_from_slice(&four(digit(at)));
        }
        let zeros = out[whole..].iter().take_while(|c| **c == b'0').count();
        out.drain(whole..whole + zeros);
        if out.len() == whole {
            out.push(b'0');
        }
        if self.scale > 0 {
            out.push(b'.');
            let end = out.len() + usize::from(self.scale);
            let mut at = weight + 1;
            while out.len() < end {
                out.extend_from_slice(&four(if at < 0 { 0 } else { digit(at) }));
                at += 1;
            }
            out.truncate(end);
        }
        out
    }
}

fn four(digit: u16) -> [u8; 4] {
    [digit / 1000, digit / 100 % 10, digit / 10 % 10, digit % 10].map(|digit| b'0' + digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(weight: i16, sign: u16, scale: u16, digits: &[u16]) -> Vec<u8> {
        let head = [digits.len() as u16, weight as u16, sign, scale];
        head.iter().chain(digits).flat_map(|word| word.to_be_bytes()).collect()
    }

    #[test]
    fn it_is_printed_as_the_server_prints_it() {
        for (value, text, unscaled) in [
            (sent(0, 0, 0, &[]), "0", Some(0)),
            (sent(0, 0, 2, &[]), "0.00", Some(0)),
            (sent(0, 0, 2, &[12, 3400]), "12.34", Some(1234)),
            (sent(1, NEGATIVE, 2, &[1, 2345, 6700]), "-12345.67", Some(-1_234_567)),
            (sent(-1, 0, 2, &[500]), "0.05", Some(5)),
            (sent(-2, 0, 7, &[1230]), "0.0000123", None),
            (sent(3, 0, 2, &[9999, 9999, 9999, 9999, 9900]), "9999999999999999.99", Some(999_999_999_999_999_999)),
            (sent(3, 0, 0, &[1]), "1000000000000", Some(100_000_000_000_000)),
            (sent(4, 0, 0, &[1]), "10000000000000000", None),
            (sent(0, NAN, 0, &[]), "NaN", None),
            (sent(0, INFINITY, 0, &[]), "Infinity", None),
            (sent(0, NEGATIVE_INFINITY, 0, &[]), "-Infinity", None),
        ] {
            let value = Numeric::parse(&value).unwrap();
            assert_eq!(String::from_utf8(value.print()).unwrap(), text);
            assert_eq!(value.unscaled(2), unscaled, "{text}");
        }
    }

    #[test]
    fn what_is_no_numeric_is_told() {
        for value in [
            &b""[..],
            &[0; 7],
            &sent(0, 0x1234, 0, &[]),
            &sent(0, 0, 0x4000, &[]),
            &sent(0, 0, 0, &[10_000]),
            &sent(0, 0, 0, &[1])[..9],
            &[&sent(0, 0, 0, &[1])[..], &[0, 0]].concat(),
        ] {
            assert!(Numeric::parse(value).is_none(), "{value:?}");
        }
    }
}
