//! Whether two PostgreSQL tables are equal, told by hashes that both servers
//! compute, and which rows are not.
//!
//! ```text
//!  source ── chunks by block ──► hash(key) mod n ─► count, sum of hash(row) ─┐
//!                                                                           ├─ equal but for a few buckets
//!  sink   ── chunks by block ──► hash(key) mod n ─► count, sum of hash(row) ─┘        │
//!                                       the rows of those buckets: key, hash(row) ◄──┘
//!                                       those that differ, by key: column by column
//! ```
//!
//! Rows fall into buckets by the hash of their key's text, and not into ranges
//! of the key: ranges need an order that both servers agree on, which text under
//! a collation has not, and an index that has it. So each side reads its table
//! as it lies on its disk, once and in order, in short transactions under one
//! exported snapshot: a long one would make an ALTER wait, and all traffic behind
//! it. Sums do not mind the order in which rows come; the sum of rows that are
//! there twice is twice theirs (which an exclusive or would not tell), so tables
//! without a key are compared too, as bags of rows.
//!
//! Nothing here knows a source or a sink: it is given sessions and names.

mod narrow;
mod pace;
mod side;
mod sums;
mod table;

pub use narrow::{Finding, Found, Limits, Outcome, compare};
pub use pace::{Pace, Progress};
pub use side::{Hash, Side};
pub use table::{Leaf, Place, Table};
