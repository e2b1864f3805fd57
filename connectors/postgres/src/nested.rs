//! Text of values within values: arrays, composites, hstore.

use std::borrow::Cow;

use connector::{put_bytes, put_long};

use crate::codec::{Codec, Why};

type Item<'a> = Option<Cow<'a, [u8]>>;

/// `{1,NULL,"a b"}`, of exactly the declared dimensions; `{}` is empty in any.
pub(crate) fn parse_array(
    text: &[u8],
    element: &Codec,
    dimensions: u32,
    delimiter: u8,
    out: &mut Vec<u8>,
) -> Result<(), Why> {
    if text.first() == Some(&b'[') {
        return Err("an array with other lower bounds than 1");
    }
    let mut rest = text;
    array(&mut rest, element, dimensions, delimiter, out)?;
    if rest.is_empty() { Ok(()) } else { Err("not an array") }
}

fn array(rest: &mut &[u8], element: &Codec, dimensions: u32, delimiter: u8, out: &mut Vec<u8>) -> Result<(), Why> {
    let inside = rest.strip_prefix(b"{").ok_or("an array of other dimensions than declared")?;
    *rest = inside;
    if let Some(behind) = rest.strip_prefix(b"}") {
        *rest = behind;
        out.push(0);
        return Ok(());
    }
    // The count stands before the items: they are gathered first.
    let mut items = Vec::new();
    let mut count = 0;
    loop {
        if dimensions > 1 {
            items.push(2);
            array(rest, element, dimensions - 1, delimiter, &mut items)?;
        } else {
            match array_item(rest, delimiter)? {
                None => items.push(0),
                Some(text) => {
                    items.push(2);
                    element.text(&text, &mut items)?;
                }
            }
        }
        count += 1;
        match rest.split_first() {
            Some((c, behind)) if *c == delimiter => *rest = behind,
            Some((b'}', behind)) => {
                *rest = behind;
                break;
            }
            _ => return Err("not an array"),
        }
    }
    put_long(out, count);
    out.append(&mut items);
    out.push(0);
    Ok(())
}

fn array_item<'a>(rest: &mut &'a [u8], delimiter: u8) -> Result<Item<'a>, Why> {
    match rest.first() {
        Some(b'{') => Err("an array of more dimensions than declared"),
        Some(b'"') => Ok(Some(quoted(rest, false)?)),
        _ => {
            let end = rest.iter().position(|&c| c == delimiter || c == b'}').ok_or("not an array")?;
            let (text, behind) = rest.split_at(end);
            *rest = behind;
            if text.eq_ignore_ascii_case(b"NULL") {
                return Ok(None);
            }
            if !text.contains(&b'\\') {
                return Ok(Some(Cow::Borrowed(text)));
            }
            let mut plain = Vec::with_capacity(text.len());
            let mut bytes = text.iter();
            while let Some(&c) = bytes.next() {
                plain.push(if c == b'\\' { *bytes.next().ok_or("not an array")? } else { c });
            }
            Ok(Some(Cow::Owned(plain)))
        }
    }
}

/// `"a \"b\""`, or with doubled quotes too, as composites have them.
fn quoted<'a>(rest: &mut &'a [u8], doubled: bool) -> Result<Cow<'a, [u8]>, Why> {
    const OPEN: Why = "a quote is not closed";
    let inside = rest.get(1..).ok_or(OPEN)?;
    let end = inside.iter().position(|&c| c == b'"' || c == b'\\').ok_or(OPEN)?;
    if inside[end] == b'"' && !(doubled && inside.get(end + 1) == Some(&b'"')) {
        *rest = &inside[end + 1..];
        return Ok(Cow::Borrowed(&inside[..end]));
    }
    let mut plain = Vec::with_capacity(inside.len());
    let mut i = 0;
    loop {
        match inside.get(i).ok_or(OPEN)? {
            b'\\' => {
                plain.push(*inside.get(i + 1).ok_or(OPEN)?);
                i += 2;
            }
            b'"' if doubled && inside.get(i + 1) == Some(&b'"') => {
                plain.push(b'"');
                i += 2;
            }
            b'"' => {
                *rest = &inside[i + 1..];
                return Ok(Cow::Owned(plain));
            }
            &c => {
                plain.push(c);
                i += 1;
            }
        }
    }
}

/// `(1,"a ""b""",)`: nothing at all is NULL.
pub(crate) fn parse_composite(text: &[u8], fields: &[(String, String, Codec)], out: &mut Vec<u8>) -> Result<(), Why> {
    const NOT: Why = "not a composite of the known fields";
    let mut rest = text.strip_prefix(b"(").ok_or(NOT)?;
    for (i, (_, _, codec)) in fields.iter().enumerate() {
        if i > 0 {
            rest = rest.strip_prefix(b",").ok_or(NOT)?;
        }
        match composite_item(&mut rest)? {
            None => out.push(0),
            Some(text) => {
                out.push(2);
                codec.text(&text, out)?;
            }
        }
    }
    if rest == b")" { Ok(()) } else { Err(NOT) }
}

fn composite_item<'a>(rest: &mut &'a [u8]) -> Result<Item<'a>, Why> {
    let mut item: Item<'a> = None;
    // Quoted and plain parts may follow each other within one field.
    loop {
        let part = match rest.first() {
            None | Some(b',' | b')') => return Ok(item),
            Some(b'"') => quoted(rest, true)?,
            Some(b'\\') => {
                let c = rest.get(1..2).ok_or("not a composite")?;
                *rest = &rest[2..];
                Cow::Borrowed(c)
            }
            Some(_) => {
                let stop = |c: &u8| matches!(c, b',' | b')' | b'"' | b'\\');
                let end = rest.iter().position(stop).unwrap_or(rest.len());
                let (part, behind) = rest.split_at(end);
                *rest = behind;
                Cow::Borrowed(part)
            }
        };
        item = Some(match item {
            None => part,
            Some(before) => Cow::Owned([&before[..], &part[..]].concat()),
        });
    }
}

/// `"a"=>"1", "b"=>NULL`.
pub(crate) fn parse_hstore(text: &[u8], out: &mut Vec<u8>) -> Result<(), Why> {
    const NOT: Why = "not an hstore";
    let mut rest = text;
    let mut pairs = Vec::new();
    let mut count = 0;
    while !rest.is_empty() {
        if count > 0 {
            rest = rest.strip_prefix(b", ").ok_or(NOT)?;
        }
        if rest.first() != Some(&b'"') {
            return Err(NOT);
        }
        let key = quoted(&mut rest, false)?;
        rest = rest.strip_prefix(b"=>").ok_or(NOT)?;
        std::str::from_utf8(&key).map_err(|_| "not UTF-8")?;
        put_bytes(&mut pairs, &key);
        if let Some(behind) = rest.strip_prefix(b"NULL") {
            rest = behind;
            pairs.push(0);
        } else if rest.first() == Some(&b'"') {
            let value = quoted(&mut rest, false)?;
            std::str::from_utf8(&value).map_err(|_| "not UTF-8")?;
            pairs.push(2);
            put_bytes(&mut pairs, &value);
        } else {
            return Err(NOT);
        }
        count += 1;
    }
    if count > 0 {
        put_long(out, count);
        out.append(&mut pairs);
    }
    out.push(0);
    Ok(())
}
