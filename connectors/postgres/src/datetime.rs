//! Dates, times and timestamps as the database prints them.

use connector::days_from_civil;

use crate::codec::Why;

pub(crate) const TOO_LATE: Why = "beyond the year 294246";

/// Digits up to the next byte that is none.
#[inline]
fn digits(text: &mut &[u8]) -> Result<i64, Why> {
    let mut value = 0i64;
    let mut count = 0;
    while let Some((c, rest)) = text.split_first() {
        let digit = c.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        value = value * 10 + i64::from(digit);
        count += 1;
        *text = rest;
        if count > 9 {
            break;
        }
    }
    if count == 0 || count > 9 { Err("not a date or time") } else { Ok(value) }
}

#[inline]
fn expect(text: &mut &[u8], c: u8) -> Result<(), Why> {
    match text.split_first() {
        Some((first, rest)) if *first == c => {
            *text = rest;
            Ok(())
        }
        _ => Err("not a date or time"),
    }
}

/// Days of `2024-02-29`, the era still to come.
#[inline]
fn ymd(text: &mut &[u8]) -> Result<(i64, u32, u32), Why> {
    let year = digits(text)?;
    expect(text, b'-')?;
    let month = digits(text)?;
    expect(text, b'-')?;
    let day = digits(text)?;
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return Err("not a date");
    }
    Ok((year, month as u32, day as u32))
}

fn strip_bc(text: &[u8]) -> (&[u8], bool) {
    match text.strip_suffix(b" BC") {
        Some(text) => (text, true),
        None => (text, false),
    }
}

/// Days since 1970.
pub(crate) fn date(text: &[u8]) -> Result<i32, Why> {
    match text {
        b"infinity" => return Ok(i32::MAX),
        b"-infinity" => return Ok(-i32::MAX),
        _ => {}
    }
    let (mut text, bc) = strip_bc(text);
    let (year, month, day) = ymd(&mut text)?;
    if !text.is_empty() {
        return Err("not a date");
    }
    let days = days_from_civil(if bc { 1 - year } else { year }, month, day);
    i32::try_from(days).map_err(|_| "not a date")
}

/// Microseconds of `24:00:00.000001`.
#[inline]
fn clock(text: &mut &[u8]) -> Result<i64, Why> {
    let hours = digits(text)?;
    expect(text, b':')?;
    let minutes = digits(text)?;
    expect(text, b':')?;
    let seconds = digits(text)?;
    let mut micros = ((hours * 60 + minutes) * 60 + seconds) * 1_000_000;
    if let Some((b'.', rest)) = text.split_first() {
        *text = rest;
        let before = text.len();
        let fraction = digits(text)?;
        let places = (before - text.len()) as u32;
        micros += fraction * 10i64.pow(6u32.checked_sub(places).ok_or("more than six places")?);
    }
    Ok(micros)
}

/// Microseconds since midnight.
pub(crate) fn time_of_day(mut text: &[u8]) -> Result<i64, Why> {
    let micros = clock(&mut text)?;
    if text.is_empty() { Ok(micros) } else { Err("not a time") }
}

/// Eight bytes that stand as in `00:00:00`: a digit where it has one, and the
/// same byte elsewhere.
struct Form {
    like: u64,
    /// What makes a byte of more than a digit, or of more than nothing, overflow to 0x80.
    most: u64,
}

impl Form {
    const fn new(like: [u8; 8]) -> Self {
        let mut most = [0x7f; 8];
        let mut i = 0;
        while i < 8 {
            if like[i] == b'0' {
                most[i] = 0x7f - 9;
            }
            i += 1;
        }
        Self { like: u64::from_le_bytes(like), most: u64::from_le_bytes(most) }
    }

    #[inline]
    fn fits<const AT: usize, const N: usize>(&self, text: &[u8; N]) -> bool {
        let bytes = std::array::from_fn(|i| text[AT + i]);
        let differ = u64::from_le_bytes(bytes) ^ self.like;
        (differ & 0xf0f0_f0f0_f0f0_f0f0) | (differ.wrapping_add(self.most) & 0x8080_8080_8080_8080) == 0
    }
}

const YEAR_MONTH: Form = Form::new(*b"0000-00-");
const DAY_HOUR: Form = Form::new(*b"00 00:00");
const CLOCK: Form = Form::new(*b"00:00:00");
const FRACTION: Form = Form::new(*b"0.000000");

/// What nearly every timestamp is: a year of four digits, in our era, in UTC or
/// without a zone. None: it is another, or none at all.
#[inline]
fn plain_timestamp(text: &[u8]) -> Option<i64> {
    /// Of two digits.
    #[inline(always)]
    fn two<const N: usize>(text: &[u8; N], at: usize) -> u32 {
        (u32::from(text[at]) * 10 + u32::from(text[at + 1])).wrapping_sub(11 * u32::from(b'0'))
    }
    let (head, mut rest) = text.split_first_chunk::<19>()?;
    if !(YEAR_MONTH.fits::<0, 19>(head) && DAY_HOUR.fits::<8, 19>(head) && CLOCK.fits::<11, 19>(head)) {
        return None;
    }
    let (year, month, day) = (two(head, 0) * 100 + two(head, 2), two(head, 5), two(head, 8));
    let seconds = (two(head, 11) * 60 + two(head, 14)) * 60 + two(head, 17);
    let mut micros = i64::from(seconds) * 1_000_000;
    match text.split_first_chunk::<26>() {
        Some((whole, behind)) if FRACTION.fits::<18, 26>(whole) => {
            micros += i64::from((two(whole, 20) * 100 + two(whole, 22)) * 100 + two(whole, 24));
            rest = behind;
        }
        // Zeros at the end are not printed.
        _ => {
            if let [b'.', behind @ ..] = rest {
                let mut fraction = behind;
                let before = fraction.len();
                let value = digits(&mut fraction).ok()?;
                micros += value * 10i64.pow(6u32.checked_sub((before - fraction.len()) as u32)?);
                rest = fraction;
            }
        }
    }
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let here = rest.is_empty() || rest == b"+00";
    here.then(|| days_from_civil(year.into(), month, day) * 86_400_000_000 + micros)
}

/// Microseconds since 1970 of `2024-02-29 12:34:56.789+00`.
#[inline]
pub(crate) fn timestamp(text: &[u8]) -> Result<i64, Why> {
    match plain_timestamp(text) {
        Some(micros) => Ok(micros),
        None => any_timestamp(text),
    }
}

fn any_timestamp(text: &[u8]) -> Result<i64, Why> {
    match text {
        b"infinity" => return Ok(i64::MAX),
        b"-infinity" => return Ok(-i64::MAX),
        _ => {}
    }
    let (mut text, bc) = strip_bc(text);
    let (year, month, day) = ymd(&mut text)?;
    expect(&mut text, b' ')?;
    let mut micros = clock(&mut text)?;
    if let Some((sign @ (b'+' | b'-'), rest)) = text.split_first() {
        text = rest;
        let mut seconds = digits(&mut text)? * 3600;
        for unit in [60, 1] {
            if let Some((b':', rest)) = text.split_first() {
                text = rest;
                seconds += digits(&mut text)? * unit;
            }
        }
        micros -= if *sign == b'-' { -seconds } else { seconds } * 1_000_000;
    }
    if !text.is_empty() {
        return Err("not a timestamp");
    }
    let days = days_from_civil(if bc { 1 - year } else { year }, month, day);
    let whole = i128::from(days) * 86_400_000_000 + i128::from(micros);
    i64::try_from(whole).ok().filter(|m| *m < i64::MAX && *m > -i64::MAX).ok_or(TOO_LATE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_way_takes_nothing_that_the_long_way_refuses() {
        for whole in ["2024-12-31 23:59:58.987654+00", "2024-12-31 23:59:58"] {
            for at in 0..whole.len() {
                for byte in 0..=255 {
                    let mut text = whole.as_bytes().to_vec();
                    text[at] = byte;
                    let taken = plain_timestamp(&text);
                    assert!(taken.is_none_or(|micros| any_timestamp(&text) == Ok(micros)), "byte {byte} at {at}");
                    assert!(taken.is_some() || text != whole.as_bytes());
                }
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn the_short_way_reads_what_the_long_way_reads(
            text in "[0-9]{4}-[01][0-9]-[0-3][0-9] [0-2][0-9]:[0-9]{2}:[0-9]{2}(\\.[0-9]{0,8})?(\\+00|-07|\\+05:30)?( BC)?",
        ) {
            if let Some(micros) = plain_timestamp(text.as_bytes()) {
                proptest::prop_assert_eq!(any_timestamp(text.as_bytes()), Ok(micros));
            }
        }
    }
}
