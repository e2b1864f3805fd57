//! Memory of payloads that were given out and dropped again.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Kept in all.
const MOST: usize = 4 << 20;
/// Smaller ones the allocator has at hand.
const LEAST: usize = 16 << 10;

/// Payloads in the order in which they were given out: the oldest is mostly the
/// first that nobody holds any more. Fresh memory costs a fault a page, and its
/// zeros: three in ten samples of what read and gathered a backlog.
#[derive(Debug, Default)]
pub(crate) struct Used {
    given: VecDeque<Bytes>,
    bytes: usize,
}

impl Used {
    /// Memory for the next, with whatever it holds.
    pub(crate) fn take(&mut self) -> BytesMut {
        let Some(oldest) = self.given.pop_front() else { return BytesMut::new() };
        let length = oldest.len();
        match oldest.try_into_mut() {
            Ok(free) => {
                self.bytes -= length;
                free
            }
            Err(held) => {
                self.given.push_front(held);
                BytesMut::new()
            }
        }
    }

    /// A payload goes out.
    pub(crate) fn give(&mut self, payload: &Bytes) {
        if !(LEAST..=MOST).contains(&payload.len()) {
            return;
        }
        self.bytes += payload.len();
        self.given.push_back(payload.clone());
        while self.bytes > MOST
            && let Some(oldest) = self.given.pop_front()
        {
            self.bytes -= oldest.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(used: &mut Used, byte: u8) -> Bytes {
        let mut bytes = used.take();
        bytes.resize(LEAST, 0);
        bytes.fill(byte);
        let bytes = bytes.freeze();
        used.give(&bytes);
        bytes
    }

    #[test]
    fn memory_is_used_again_once_nobody_holds_it() {
        let mut used = Used::default();
        let first = given(&mut used, 1);
        let part = first.slice(3..9);
        let second = given(&mut used, 2);
        assert_ne!(first.as_ptr(), second.as_ptr());
        let (at, kept) = (first.as_ptr(), second.as_ptr());
        drop(first);
        let third = given(&mut used, 3);
        assert!(third.as_ptr() != at && part == [1; 6][..], "a part of it is held");
        drop((part, second));
        let fourth = given(&mut used, 4);
        let fifth = given(&mut used, 5);
        assert_eq!((fourth.as_ptr(), fifth.as_ptr()), (at, kept));
        assert!(third.iter().all(|byte| *byte == 3) && fourth.iter().all(|byte| *byte == 4));
    }

    #[test]
    fn what_it_keeps_is_bounded() {
        let mut used = Used::default();
        let all: Vec<Bytes> = (0..100).map(|_| Bytes::from(vec![0; 1 << 20])).collect();
        for payload in &all {
            used.give(payload);
            assert!(used.bytes <= MOST && used.bytes == used.given.iter().map(Bytes::len).sum::<usize>());
        }
        used.give(&Bytes::from(vec![0; MOST + 1]));
        assert_eq!(used.given.len(), 4);
    }
}
