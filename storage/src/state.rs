//! The log's state: a small ordered map, rewritten at every segment's head.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use crate::batch::StateChange;

/// Entries by key. Whoever appends gives them meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    entries: BTreeMap<Bytes, Bytes>,
}

impl State {
    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.entries.get(key).map(|value| &value[..])
    }

    /// Entries whose key begins so, in order.
    pub fn prefix<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.entries
            .range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (&key[..], &value[..]))
    }

    /// All entries in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entries.iter().map(|(key, value)| (&key[..], &value[..]))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn apply(&mut self, change: StateChange) {
        match change.value {
            Some(value) => self.entries.insert(change.key, value),
            None => self.entries.remove(&change.key),
        };
    }

    /// Everything, as changes to an empty state.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        for (key, value) in &self.entries {
            put(out, key, Some(value));
        }
    }
}

/// Changes as a frame carries them: key length u32, key, present u8, value
/// length u32, value.
pub(crate) fn encode_changes(changes: &[StateChange]) -> Vec<u8> {
    let mut out = Vec::new();
    for change in changes {
        put(&mut out, &change.key, change.value.as_ref());
    }
    out
}

fn put(out: &mut Vec<u8>, key: &[u8], value: Option<&Bytes>) {
    out.extend_from_slice(&(key.len() as u32).to_le_bytes());
    out.extend_from_slice(key);
    out.push(u8::from(value.is_some()));
    let value = value.map(|v| &v[..]).unwrap_or_default();
    out.extend_from_slice(&(value.len() as u32).to_le_bytes());
    out.extend_from_slice(value);
}

/// None: not in that form.
pub(crate) fn decode_changes(mut bytes: &[u8]) -> Option<Vec<StateChange>> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let key = take(&mut bytes)?;
        let (&present, rest) = bytes.split_first()?;
        bytes = rest;
        let value = take(&mut bytes)?;
        let value = (present != 0).then(|| Bytes::copy_from_slice(value));
        out.push(StateChange { key: Bytes::copy_from_slice(key), value });
    }
    Some(out)
}

fn take<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (taken, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *bytes = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn changes_come_back(entries: Vec<(Vec<u8>, Option<Vec<u8>>)>) {
            let changes: Vec<_> = entries
                .into_iter()
                .map(|(key, value)| StateChange { key: key.into(), value: value.map(Bytes::from) })
                .collect();
            proptest::prop_assert_eq!(decode_changes(&encode_changes(&changes)), Some(changes));
        }

        #[test]
        fn hostile_bytes_never_panic(bytes: Vec<u8>) {
            let _ = decode_changes(&bytes);
        }
    }
}
