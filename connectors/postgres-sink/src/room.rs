//! Room for rows that wait.

/// Room for what is held at once, where more than a little waits. A buffer that
/// grows leaves the places where it was behind, and the allocator gives few of
/// them back; one of this size is a mapping of its own, of which only what is
/// written to is memory, and which goes as a whole. (Four sinks of a backlog on
/// glibc: 280 MiB before, a third of them in use.)
pub(crate) fn make_room(rows: &mut Vec<u8>, held: usize) {
    const LITTLE: usize = 1 << 20;
    // What fills it goes a little beyond.
    let room = held + 4 * LITTLE;
    if rows.len() > LITTLE && rows.capacity() < room {
        rows.reserve_exact(room - rows.len());
    }
}
