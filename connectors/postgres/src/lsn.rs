//! A log sequence number: a byte position in PostgreSQL's WAL.

use std::fmt;
use std::str::FromStr;

use storage::Position;

/// Ordered, unlike positions in general.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 as u32)
    }
}

/// Not of the form `16/B374D848`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a log sequence number")]
pub struct NotAnLsn(String);

impl FromStr for Lsn {
    type Err = NotAnLsn;

    fn from_str(text: &str) -> Result<Self, NotAnLsn> {
        let parse = || {
            let (high, low) = text.split_once('/')?;
            let part = |digits| u32::from_str_radix(digits, 16).ok().map(u64::from);
            Some(part(high)? << 32 | part(low)?)
        };
        parse().map(Self).ok_or_else(|| NotAnLsn(text.into()))
    }
}

impl Lsn {
    /// As the log carries it: 8 bytes, the highest first.
    pub fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// None: these bytes are no position of PostgreSQL's.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(|bytes| Self(u64::from_be_bytes(bytes)))
    }

    /// For the log.
    pub fn position(self) -> Position {
        Position::new(self.to_bytes().to_vec()).expect("8 bytes are a short position")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_lsn_is_printed_as_postgresql_does() {
        assert_eq!(Lsn(0x16_B374_D848).to_string(), "16/B374D848");
        assert_eq!("0/1A2B3C8".parse(), Ok(Lsn(0x1A2_B3C8)));
        assert!("x/1".parse::<Lsn>().is_err());
        assert_eq!(Lsn::from_bytes(&Lsn(77).to_bytes()), Some(Lsn(77)));
    }
}
