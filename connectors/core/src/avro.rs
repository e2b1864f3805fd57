//! Avro's binary form: what a row's body is made of.

use crate::batch::Malformed;
use crate::table::Type;

/// Appends an int or a long: zig-zag, seven bits a byte.
#[inline(always)]
pub fn put_long(out: &mut Vec<u8>, value: i64) {
    let rest = ((value << 1) ^ (value >> 63)) as u64;
    match rest {
        0..0x80 => out.push(rest as u8),
        0x80..0x4000 => out.extend_from_slice(&[rest as u8 | 0x80, (rest >> 7) as u8]),
        _ => put_many(out, rest),
    }
}

/// Three bytes and more: seven bits to each of eight bytes, all at once.
#[inline]
fn put_many(out: &mut Vec<u8>, rest: u64) {
    if rest >> 56 != 0 {
        return put_most(out, rest);
    }
    let bytes = rest & 0x0fff_ffff | (rest & 0x00ff_ffff_f000_0000) << 4;
    let bytes = bytes & 0x0000_3fff_0000_3fff | (bytes & 0x0fff_c000_0fff_c000) << 2;
    let bytes = bytes & 0x007f_007f_007f_007f | (bytes & 0x3f80_3f80_3f80_3f80) << 1;
    let length = (70 - rest.leading_zeros()) / 7;
    // All but the last say that another one comes.
    let more = 0x0080_8080_8080_8080 & ((1 << (8 * length - 8)) - 1);
    // So many that the compiler knows, and back: it is cheaper than to copy a few.
    let end = out.len() + length as usize;
    out.extend_from_slice(&(bytes | more).to_le_bytes());
    out.truncate(end);
}

#[cold]
fn put_most(out: &mut Vec<u8>, mut rest: u64) {
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Appends bytes or a string.
#[inline(always)]
pub fn put_bytes(out: &mut Vec<u8>, value: &[u8]) {
    put_long(out, value.len() as i64);
    out.extend_from_slice(value);
}

/// Appends a float.
#[inline]
pub fn put_float(out: &mut Vec<u8>, value: f32) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends a double.
#[inline]
pub fn put_double(out: &mut Vec<u8>, value: f64) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Reads a body from its start, borrowing what it can.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Over a whole body.
    pub fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    /// Whether all was read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What was not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The branch of a `["null", T]` union: true when there is a value.
    #[inline]
    pub fn present(&mut self) -> Result<bool, Malformed> {
        match self.byte()? {
            0 => Ok(false),
            2 => Ok(true),
            _ => Err(Malformed("union branch")),
        }
    }

    /// A boolean.
    #[inline]
    pub fn boolean(&mut self) -> Result<bool, Malformed> {
        Ok(self.byte()? != 0)
    }

    /// An int or a long.
    #[inline]
    pub fn long(&mut self) -> Result<i64, Malformed> {
        let (mut value, mut shift) = (0u64, 0);
        for (i, &byte) in self.rest.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                self.rest = &self.rest[i + 1..];
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
            shift += 7;
        }
        Err(Malformed("variable-length integer"))
    }

    /// An int.
    #[inline]
    pub fn int(&mut self) -> Result<i32, Malformed> {
        i32::try_from(self.long()?).map_err(|_| Malformed("int out of range"))
    }

    /// A float.
    #[inline]
    pub fn float(&mut self) -> Result<f32, Malformed> {
        Ok(f32::from_le_bytes(self.array()?))
    }

    /// A double.
    #[inline]
    pub fn double(&mut self) -> Result<f64, Malformed> {
        Ok(f64::from_le_bytes(self.array()?))
    }

    /// Bytes.
    #[inline]
    pub fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let len = usize::try_from(self.long()?).map_err(|_| Malformed("negative length"))?;
        self.take(len)
    }

    /// A string; its UTF-8 is checked.
    #[inline]
    pub fn string(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed("string is not UTF-8"))
    }

    /// The count of an array's or map's next block; 0 ends it.
    #[inline]
    pub fn block(&mut self) -> Result<usize, Malformed> {
        let mut count = self.long()?;
        if count < 0 {
            // A negative count is followed by the block's size in bytes.
            self.long()?;
            count = count.checked_neg().ok_or(Malformed("block count"))?;
        }
        let count = usize::try_from(count).map_err(|_| Malformed("block count"))?;
        // No item is smaller than a byte: our items are unions.
        if count > self.rest.len() { Err(Malformed("block count")) } else { Ok(count) }
    }

    /// Passes over a value.
    pub fn skip(&mut self, ty: &Type) -> Result<(), Malformed> {
        match ty {
            Type::Boolean => drop(self.byte()?),
            Type::Int | Type::Long | Type::Date | Type::Time | Type::LocalTimestamp | Type::Timestamp => {
                self.long()?;
            }
            Type::Float => drop(self.take(4)?),
            Type::Double => drop(self.take(8)?),
            Type::String | Type::Bytes | Type::Uuid | Type::Json | Type::Decimal { .. } => drop(self.bytes()?),
            Type::Array(item) => loop {
                let count = self.block()?;
                if count == 0 {
                    break;
                }
                for _ in 0..count {
                    self.skip_nullable(item)?;
                }
            },
            Type::Map => loop {
                let count = self.block()?;
                if count == 0 {
                    break;
                }
                for _ in 0..count {
                    self.bytes()?;
                    self.skip_nullable(&Type::String)?;
                }
            },
            Type::Record(fields) => {
                for field in fields {
                    self.skip_nullable(&field.ty)?;
                }
            }
        }
        Ok(())
    }

    /// Passes over a `["null", T]`.
    pub fn skip_nullable(&mut self, ty: &Type) -> Result<(), Malformed> {
        if self.present()? { self.skip(ty) } else { Ok(()) }
    }

    #[inline]
    fn byte(&mut self) -> Result<u8, Malformed> {
        let (&byte, rest) = self.rest.split_first().ok_or(Malformed("body ends early"))?;
        self.rest = rest;
        Ok(byte)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed("body ends early"))?;
        self.rest = rest;
        Ok(*head)
    }

    #[inline]
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(Malformed("body ends early"))?;
        self.rest = rest;
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn a_long_of_any_length_comes_back(value: i64, shift in 0..64u32) {
            let value = value >> shift;
            let mut out = Vec::new();
            put_long(&mut out, value);
            let mut bytes = Vec::new();
            put_most(&mut bytes, ((value << 1) ^ (value >> 63)) as u64);
            proptest::prop_assert_eq!(&out, &bytes);
            let mut reader = Reader::new(&out);
            proptest::prop_assert_eq!(reader.long(), Ok(value));
            proptest::prop_assert!(reader.is_empty());
        }

        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            let _ = reader.long();
            let _ = reader.bytes();
            let _ = reader.block();
            let _ = reader.string();
        }
    }
}
