//! Names that have to survive in places stricter than a database.

use std::fmt::Write;

/// A part of a stream's name: everything but ASCII letters, digits, `_`, `-`
/// and `$` is percent-encoded, so no two tables meet.
pub fn stream_part(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for &byte in name.as_bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'$') {
            out.push(byte as char);
        } else {
            // Writing into a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// A name that Avro allows, injectively: what it does not allow becomes
/// `_u<hex>_`, and so does an underscore that would look like the start of one.
pub fn avro_name(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut chars = name.chars().peekable();
    let mut first = true;
    while let Some(c) = chars.next() {
        let plain =
            c.is_ascii_alphabetic() || (c.is_ascii_digit() && !first) || (c == '_' && chars.peek() != Some(&'u'));
        if plain {
            out.push(c);
        } else {
            let _ = write!(out, "_u{:x}_", c as u32);
        }
        first = false;
    }
    if out.is_empty() {
        out.push_str("_u_");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dot_in_a_part_is_encoded() {
        assert_eq!(stream_part("a.b"), "a%2Eb");
        assert_eq!(stream_part("Ünï $-_9"), "%C3%9Cn%C3%AF%20$-_9");
    }

    #[test]
    fn an_avro_name_is_kept_or_rewritten_injectively() {
        for (given, expected) in [
            ("orders", "orders"),
            ("9lives", "_u39_lives"),
            ("a.b", "a_u2e_b"),
            ("a_u2e_b", "a_u5f_u2e_b"),
            ("a_b", "a_b"),
            ("", "_u_"),
            ("_unit", "_u5f_unit"),
        ] {
            assert_eq!(avro_name(given), expected, "{given}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_two_names_meet(a in "[_u2e.\\-aé5f]{0,8}", b in "[_u2e.\\-aé5f]{0,8}") {
            proptest::prop_assert_eq!(a == b, avro_name(&a) == avro_name(&b));
        }
    }
}
