//! Values of Arrow columns, as what equal ones have in common: for comparing,
//! and as the text that PostgreSQL prints and reads.

use std::hash::{DefaultHasher, Hash, Hasher};

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type, Time64MicrosecondType,
    TimestampMicrosecondType,
};
use arrow_array::{Array, ArrayRef};
use arrow_schema::{DataType, TimeUnit};
use connector::civil_from_days;

/// Of each column in a row; None: the file is older than the column.
pub(crate) fn hashes(columns: &[Option<ArrayRef>], i: usize) -> Box<[u64]> {
    columns.iter().map(|column| column.as_ref().map_or_else(null, |c| hash(c, i))).collect()
}

/// A hash that equal values share, whatever the widths of their types.
fn hash(array: &ArrayRef, i: usize) -> u64 {
    let mut hasher = DefaultHasher::new();
    feed(array, i, &mut hasher);
    hasher.finish()
}

/// Of a value that is not there.
pub(crate) fn null() -> u64 {
    let mut hasher = DefaultHasher::new();
    0u8.hash(&mut hasher);
    hasher.finish()
}

fn feed(array: &ArrayRef, i: usize, to: &mut DefaultHasher) {
    if array.is_null(i) {
        0u8.hash(to);
        return;
    }
    1u8.hash(to);
    match array.data_type() {
        DataType::Boolean => array.as_boolean().value(i).hash(to),
        DataType::Int32 => i64::from(array.as_primitive::<Int32Type>().value(i)).hash(to),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(i).hash(to),
        DataType::Float32 => bits_32(array.as_primitive::<Float32Type>().value(i)).hash(to),
        DataType::Float64 => bits_64(array.as_primitive::<Float64Type>().value(i)).hash(to),
        DataType::Utf8 => array.as_string::<i32>().value(i).hash(to),
        DataType::Binary => array.as_binary::<i32>().value(i).hash(to),
        // A numeric that lost its precision is a text from then on, with the same digits.
        DataType::Decimal128(..) => array.as_primitive::<Decimal128Type>().value_as_string(i).hash(to),
        DataType::Date32 => array.as_primitive::<Date32Type>().value(i).hash(to),
        DataType::Time64(TimeUnit::Microsecond) => array.as_primitive::<Time64MicrosecondType>().value(i).hash(to),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            array.as_primitive::<TimestampMicrosecondType>().value(i).hash(to)
        }
        DataType::List(_) => {
            let list = array.as_list::<i32>().value(i);
            list.len().hash(to);
            (0..list.len()).for_each(|i| feed(&list, i, to));
        }
        DataType::Map(..) => {
            let entries = array.as_map().value(i);
            let entry = |i| {
                let columns = entries.columns();
                move |to: &mut DefaultHasher| columns.iter().for_each(|column| feed(column, i, to))
            };
            feed_unordered((0..entries.len()).map(entry), to);
        }
        DataType::Struct(_) => array.as_struct().columns().iter().for_each(|column| feed(column, i, to)),
        other => format!("{other:?}").hash(to),
    }
}

/// Of a map's entries, which have no order: other writers give them another.
pub(crate) fn feed_unordered(
    entries: impl ExactSizeIterator<Item = impl Fn(&mut DefaultHasher)>,
    to: &mut DefaultHasher,
) {
    entries.len().hash(to);
    let one = |entry: &dyn Fn(&mut DefaultHasher)| {
        let mut hasher = DefaultHasher::new();
        entry(&mut hasher);
        hasher.finish()
    };
    entries.fold(0u64, |sum, entry| sum.wrapping_add(one(&entry))).hash(to);
}

/// Equal where they are printed alike: -0 is not 0, and there is one NaN.
pub(crate) fn bits_32(value: f32) -> u32 {
    if value.is_nan() { f32::NAN } else { value }.to_bits()
}

/// The same of a double.
pub(crate) fn bits_64(value: f64) -> u64 {
    if value.is_nan() { f64::NAN } else { value }.to_bits()
}

/// As text; None: NULL.
pub(crate) fn text(array: &ArrayRef, i: usize) -> Option<String> {
    if array.is_null(i) {
        return None;
    }
    Some(match array.data_type() {
        DataType::Boolean => array.as_boolean().value(i).to_string(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(i).to_string(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(i).to_string(),
        DataType::Float32 => array.as_primitive::<Float32Type>().value(i).to_string(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(i).to_string(),
        DataType::Utf8 => array.as_string::<i32>().value(i).to_owned(),
        DataType::Binary => bytes_text(array.as_binary::<i32>().value(i)),
        DataType::Decimal128(..) => array.as_primitive::<Decimal128Type>().value_as_string(i),
        DataType::Date32 => date_text(array.as_primitive::<Date32Type>().value(i)),
        DataType::Time64(TimeUnit::Microsecond) => time_text(array.as_primitive::<Time64MicrosecondType>().value(i)),
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            timestamp_text(array.as_primitive::<TimestampMicrosecondType>().value(i), zone.is_some())
        }
        DataType::List(_) => {
            let list = array.as_list::<i32>().value(i);
            let items: Vec<String> = (0..list.len()).map(|i| text(&list, i).unwrap_or("NULL".into())).collect();
            format!("{{{}}}", items.join(","))
        }
        DataType::Struct(_) => {
            let columns = array.as_struct().columns();
            let items: Vec<String> = columns.iter().map(|column| text(column, i).unwrap_or_default()).collect();
            format!("({})", items.join(","))
        }
        other => format!("a {other}"),
    })
}

pub(crate) fn bytes_text(bytes: &[u8]) -> String {
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("\\x{hex}")
}

pub(crate) fn date_text(days: i32) -> String {
    match days {
        i32::MAX => "infinity".into(),
        days if days == -i32::MAX => "-infinity".into(),
        days => {
            let (date, bc) = date(i64::from(days));
            format!("{date}{bc}")
        }
    }
}

pub(crate) fn timestamp_text(micros: i64, zoned: bool) -> String {
    match micros {
        i64::MAX => "infinity".into(),
        micros if micros == -i64::MAX => "-infinity".into(),
        micros => {
            const DAY: i64 = 86_400_000_000;
            let (date, bc) = date(micros.div_euclid(DAY));
            let zone = if zoned { "+00" } else { "" };
            format!("{date} {}{zone}{bc}", time_text(micros.rem_euclid(DAY)))
        }
    }
}

fn date(days: i64) -> (String, &'static str) {
    let (year, month, day) = civil_from_days(days);
    match year {
        ..=0 => (format!("{:04}-{month:02}-{day:02}", 1 - year), " BC"),
        _ => (format!("{year:04}-{month:02}-{day:02}"), ""),
    }
}

pub(crate) fn time_text(micros: i64) -> String {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let mut text = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction > 0 {
        text.push_str(format!(".{fraction:06}").trim_end_matches('0'));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{Date32Array, Decimal128Array, Float64Array, Int32Array, Int64Array, StringArray};
    use arrow_array::{TimestampMicrosecondArray, UInt8Array};

    use super::*;

    #[test]
    fn values_are_told_as_postgresql_reads_them() {
        let check = |array: ArrayRef, expected: &str| assert_eq!(text(&array, 0).as_deref(), Some(expected));
        check(Arc::new(Date32Array::from(vec![19_782])), "2024-02-29");
        check(Arc::new(Date32Array::from(vec![-735_160])), "0044-03-15 BC");
        check(Arc::new(Date32Array::from(vec![i32::MAX])), "infinity");
        let micros = TimestampMicrosecondArray::from(vec![1_709_208_000_500_000]);
        check(Arc::new(micros.clone()), "2024-02-29 12:00:00.5");
        check(Arc::new(micros.with_timezone("UTC")), "2024-02-29 12:00:00.5+00");
        let decimal = Decimal128Array::from(vec![-150]).with_precision_and_scale(12, 2);
        check(Arc::new(decimal.expect("it fits")), "-1.50");
    }

    #[test]
    fn equal_values_of_other_widths_are_equal_and_all_else_is_not() {
        let of = |array: ArrayRef| hash(&array, 0);
        assert_eq!(of(Arc::new(Int32Array::from(vec![7]))), of(Arc::new(Int64Array::from(vec![7]))));
        assert_ne!(of(Arc::new(Float64Array::from(vec![0.0]))), of(Arc::new(Float64Array::from(vec![-0.0]))));
        assert_ne!(
            of(Arc::new(StringArray::from(vec![Some("")]))),
            of(Arc::new(StringArray::from(vec![None::<&str>])))
        );
        assert_eq!(of(Arc::new(UInt8Array::from(vec![None]))), null());
    }
}
