//! A row of an earlier shape under a later one: columns are known by their
//! ids, and their bytes are copied where the type is the same.

use connector::{Change, Malformed, Reader, Table, Type};

/// A row under another shape.
#[derive(Debug, Default)]
pub(crate) struct Reshaped {
    pub(crate) value: Vec<u8>,
    pub(crate) old_key: Option<Vec<u8>>,
    pub(crate) before: Option<Vec<u8>>,
    pub(crate) absent: Option<Vec<u8>>,
}

/// Why a row does not go over, in words; or its bytes are broken.
#[derive(Debug)]
pub(crate) enum Refused {
    Words(String),
    Malformed(Malformed),
}

impl From<Malformed> for Refused {
    fn from(error: Malformed) -> Self {
        Refused::Malformed(error)
    }
}

/// Whether bodies under both are the same bytes.
pub(crate) fn same_bytes(from: &Table, to: &Table) -> bool {
    let columns = |table: &Table| -> Vec<(i32, Type)> { table.columns.iter().map(|c| (c.id, c.ty.clone())).collect() };
    from.key == to.key && columns(from) == columns(to)
}

/// Moves a row over.
pub(crate) fn reshape(from: &Table, to: &Table, change: &Change<'_>) -> Result<Reshaped, Refused> {
    let ids = |table: &Table| -> Vec<i32> { table.key.iter().map(|&i| table.columns[i].id).collect() };
    if ids(from) != ids(to) {
        return Err(Refused::Words("the table's key is another since".into()));
    }
    let mut out = Reshaped { value: body(from, to, change.value)?, ..Reshaped::default() };
    out.before = change.before.map(|before| body(from, to, before)).transpose()?;
    // The key's columns have the same types, or `body` had refused.
    out.old_key = change.old_key.map(<[u8]>::to_vec);
    if change.has_absent() {
        let mut bits = vec![0; to.columns.len().div_ceil(8)];
        for (i, column) in to.columns.iter().enumerate() {
            let was = from.columns.iter().position(|other| other.id == column.id);
            if was.is_some_and(|was| change.is_absent(was)) {
                bits[i / 8] |= 1 << (i % 8);
            }
        }
        out.absent = Some(bits);
    }
    Ok(out)
}

fn body(from: &Table, to: &Table, value: &[u8]) -> Result<Vec<u8>, Refused> {
    let mut reader = Reader::new(value);
    let mut slices = Vec::with_capacity(from.columns.len());
    for (i, column) in from.columns.iter().enumerate() {
        let present = from.in_key(i) || reader.present()?;
        let start = value.len() - reader.rest().len();
        if present {
            reader.skip(&column.ty)?;
        }
        slices.push(present.then(|| &value[start..value.len() - reader.rest().len()]));
    }
    let mut out = Vec::with_capacity(value.len() + 8);
    for (i, column) in to.columns.iter().enumerate() {
        let was = from.columns.iter().position(|other| other.id == column.id);
        // An int is written as a long is.
        let fits = |was: &Type| *was == column.ty || matches!((was, &column.ty), (Type::Int, Type::Long));
        let slice = match was {
            Some(was) if fits(&from.columns[was].ty) => slices[was],
            Some(was) if slices[was].is_some() => {
                let (old, new) = (&from.columns[was].db_type, &column.db_type);
                return Err(Refused::Words(format!("column {:?} was {old} and is {new} since", column.name)));
            }
            // Null under any type, or a column that came later.
            _ => None,
        };
        match slice {
            Some(slice) => {
                if !to.in_key(i) {
                    out.push(2);
                }
                out.extend_from_slice(slice);
            }
            None if to.in_key(i) => {
                return Err(Refused::Words(format!("column {:?} is part of the key since", column.name)));
            }
            None => out.push(0),
        }
    }
    Ok(out)
}
