//! A value's binary form as the database's text, for rows of a snapshot that
//! cannot be carried: people read text, and so does who encodes them again.

use connector::civil_from_days;

use crate::codec::Codec;
use crate::numeric::Numeric;
use crate::replication::EPOCH_2000;

const DAY: i64 = 86_400_000_000;

/// None: not in that form.
pub(crate) fn printed(codec: &Codec, value: &[u8]) -> Option<Vec<u8>> {
    Some(match codec {
        Codec::Bool => if *value.first()? == 0 { "f" } else { "t" }.into(),
        Codec::Int => integer(value)?.to_string().into_bytes(),
        Codec::Long => match value.try_into() {
            Ok(bytes) => u32::from_be_bytes(bytes).to_string().into_bytes(),
            Err(_) => integer(value)?.to_string().into_bytes(),
        },
        Codec::Float => number(f32::from_be_bytes(value.try_into().ok()?).into(), |_| {
            value.try_into().map(f32::from_be_bytes).unwrap_or_default().to_string()
        }),
        Codec::Double => number(f64::from_be_bytes(value.try_into().ok()?), |value| value.to_string()),
        Codec::Decimal { .. } => Numeric::parse(value)?.print(),
        Codec::Jsonb => value.strip_prefix(&[1])?.to_vec(),
        Codec::Bytes => {
            let digits = value.iter().map(|byte| format!("{byte:02x}"));
            format!("\\x{}", digits.collect::<String>()).into_bytes()
        }
        Codec::Uuid => {
            let bytes: [u8; 16] = value.try_into().ok()?;
            let digits = format!("{:032x}", u128::from_be_bytes(bytes));
            let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
            parts.join("-").into_bytes()
        }
        Codec::Date => match integer(value)? {
            days if days == i64::from(i32::MAX) => "infinity".into(),
            days if days == i64::from(i32::MIN) => "-infinity".into(),
            days => {
                let (date, era) = date(days + EPOCH_2000 / DAY);
                format!("{date}{era}").into_bytes()
            }
        },
        Codec::Time => clock(integer(value)?).into_bytes(),
        Codec::Timestamp | Codec::Timestamptz => match integer(value)? {
            i64::MAX => "infinity".into(),
            i64::MIN => "-infinity".into(),
            micros => {
                // Days apart from the rest: together they may be too many microseconds.
                let (date, era) = date(micros.div_euclid(DAY) + EPOCH_2000 / DAY);
                let zone = if *codec == Codec::Timestamptz { "+00" } else { "" };
                format!("{date} {}{zone}{era}", clock(micros.rem_euclid(DAY))).into_bytes()
            }
        },
        // Text both ways.
        _ => value.to_vec(),
    })
}

fn integer(value: &[u8]) -> Option<i64> {
    match *value {
        [a, b] => Some(i16::from_be_bytes([a, b]).into()),
        [a, b, c, d] => Some(i32::from_be_bytes([a, b, c, d]).into()),
        _ => value.try_into().ok().map(i64::from_be_bytes),
    }
}

fn number(value: f64, finite: impl Fn(f64) -> String) -> Vec<u8> {
    match value {
        value if value.is_nan() => "NaN".into(),
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        value => finite(value).into_bytes(),
    }
}

fn date(days: i64) -> (String, &'static str) {
    let (year, month, day) = civil_from_days(days);
    let (year, era) = if year <= 0 { (1 - year, " BC") } else { (year, "") };
    (format!("{year:04}-{month:02}-{day:02}"), era)
}

fn clock(micros: i64) -> String {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let mut out = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction != 0 {
        let digits = format!("{fraction:06}");
        out = format!("{out}.{}", digits.trim_end_matches('0'));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is printed reads back to the same.
    #[test]
    fn text_and_binary_form_are_one_value() {
        let cases: [(Codec, &[u8]); 10] = [
            (Codec::Int, &(-5i32).to_be_bytes()),
            (Codec::Long, &u32::MAX.to_be_bytes()),
            (Codec::Float, &0.1f32.to_be_bytes()),
            (Codec::Double, &1e300f64.to_be_bytes()),
            (Codec::Decimal { precision: 40, scale: 3 }, &[0, 2, 0, 7, 0x40, 0, 0, 3, 0, 1, 0, 2]),
            (Codec::Bytes, b"\0\xff"),
            (Codec::Uuid, &[7; 16]),
            (Codec::Date, &(-800_000i32).to_be_bytes()),
            (Codec::Time, &1_000_001i64.to_be_bytes()),
            (Codec::Timestamptz, &(-1i64).to_be_bytes()),
        ];
        for (codec, value) in cases {
            let text = printed(&codec, value).unwrap();
            let (mut as_text, mut as_binary) = (Vec::new(), Vec::new());
            codec.text(&text, &mut as_text).unwrap();
            codec.binary(value, &mut as_binary).unwrap();
            assert_eq!(as_text, as_binary, "{codec:?} {}", String::from_utf8_lossy(&text));
        }
        let late = 9_223_371_331_199_999_999i64.to_be_bytes();
        assert_eq!(printed(&Codec::Timestamp, &late).unwrap(), b"294276-12-31 23:59:59.999999");
    }
}
