//! The hot path by itself, for benches/: one message of pgoutput to one Avro
//! row through a compiled plan. Nothing else is here.

use connector::{Table, Type};

use crate::codec::Codec;
use crate::pgoutput::{Message, decode};
use crate::plan::{Plan, PlanColumn};

/// A plan for one table.
pub struct Encoder {
    plan: Plan,
    absent: Vec<u8>,
}

impl Encoder {
    /// Of a table without nested types.
    pub fn new(table: Table) -> Option<Self> {
        let codec = |ty: &Type| {
            Some(match ty {
                Type::Boolean => Codec::Bool,
                Type::Int => Codec::Int,
                Type::Long => Codec::Long,
                Type::String => Codec::Text,
                Type::Uuid => Codec::Uuid,
                Type::Json => Codec::Jsonb,
                Type::Decimal { precision, scale } => Codec::Decimal { precision: *precision, scale: *scale },
                Type::Timestamp => Codec::Timestamptz,
                _ => return None,
            })
        };
        let columns: Option<Vec<_>> =
            table.columns.iter().map(|column| Some(PlanColumn { codec: codec(&column.ty)?, output: None })).collect();
        let names: Vec<String> = table.columns.iter().map(|column| column.name.clone()).collect();
        let plan = Plan::new(table, columns?, names.iter().map(String::as_str));
        Some(Self { plan, absent: Vec::new() })
    }

    /// Appends the row of an insert or update; false for everything else.
    #[inline]
    pub fn encode(&mut self, message: &[u8], out: &mut Vec<u8>) -> bool {
        match decode(message) {
            Ok(Message::Insert { new, .. }) => self.plan.value(new, None, out, &mut self.absent).is_ok(),
            Ok(Message::Update { old, new, .. }) => self.plan.value(new, old, out, &mut self.absent).is_ok(),
            _ => false,
        }
    }
}
