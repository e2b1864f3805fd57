//! A table in both places, and the expressions that are computed in each.

/// A relation that holds rows.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Its oid.
    pub oid: u32,
    /// For SQL.
    pub quoted: String,
    /// Its file: another one is a rewrite, in which a snapshot may see nothing.
    pub file_node: u32,
    /// Its size.
    pub blocks: u64,
}

/// Where a table is.
#[derive(Clone, Debug)]
pub struct Place {
    /// For SQL.
    pub quoted: String,
    /// Those with its rows; none: it is a view.
    pub leaves: Vec<Leaf>,
    /// For each column of the table its name and type here; None: it is not here.
    pub columns: Vec<Option<(String, String)>>,
}

/// A table in both places.
#[derive(Clone, Debug)]
pub struct Table {
    /// Names, for people.
    pub columns: Vec<String>,
    /// Indexes into `columns`; empty: no key, a bag of rows.
    pub key: Vec<usize>,
    /// At the source.
    pub source: Place,
    /// At the destination.
    pub sink: Place,
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Source,
    Sink,
}

pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// As a literal, whatever standard_conforming_strings says.
pub(crate) fn literal(text: &str) -> String {
    if text.contains('\\') {
        format!(" E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

impl Table {
    pub(crate) fn place(&self, which: Which) -> &Place {
        match which {
            Which::Source => &self.source,
            Which::Sink => &self.sink,
        }
    }

    fn types(&self, i: usize) -> Option<(&str, &str)> {
        let (_, source) = self.source.columns.get(i)?.as_ref()?;
        let (_, sink) = self.sink.columns.get(i)?.as_ref()?;
        Some((source, sink))
    }

    /// A column as both sides print it alike: as it is where the types are the
    /// same, else as text. One that is not there is null.
    fn expression(&self, which: Which, i: usize) -> String {
        let Some(Some((name, _))) = self.place(which).columns.get(i) else { return "NULL::text".into() };
        match self.types(i) {
            Some((source, sink)) if source == sink => quote(name),
            _ => format!("{}::text", quote(name)),
        }
    }

    /// A column as text.
    pub(crate) fn text(&self, which: Which, i: usize) -> String {
        match &self.place(which).columns[i] {
            Some((name, _)) => format!("{}::text", quote(name)),
            None => "NULL::text".into(),
        }
    }

    /// The whole row as text in which NULL and an empty text are two things.
    pub(crate) fn row(&self, which: Which) -> String {
        let all: Vec<String> = (0..self.columns.len()).map(|i| self.expression(which, i)).collect();
        format!("ROW({})::text", all.join(", "))
    }

    /// The key as a number of 64 bits that is hashed as such: the cheaper way for most keys.
    pub(crate) fn integer_key(&self, which: Which) -> Option<String> {
        let &[key] = self.key.as_slice() else { return None };
        let (source, sink) = self.types(key)?;
        let integer = |ty: &str| matches!(ty, "smallint" | "integer" | "bigint");
        let (name, _) = self.place(which).columns[key].as_ref()?;
        (integer(source) && integer(sink)).then(|| format!("{}::bigint", quote(name)))
    }

    /// The key as text; of a table without one the row.
    pub(crate) fn key_text(&self, which: Which) -> String {
        if self.key.is_empty() {
            return self.row(which);
        }
        let key: Vec<String> = self.key.iter().map(|&i| self.expression(which, i)).collect();
        format!("ROW({})::text", key.join(", "))
    }

    /// Blocks of both sides.
    pub fn blocks(&self) -> u64 {
        self.source.leaves.iter().chain(&self.sink.leaves).map(|leaf| leaf.blocks).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_types_do_not_share_is_compared_as_text() {
        let column = |name: &str, ty: &str| Some((name.to_owned(), ty.to_owned()));
        let place = |columns| Place { quoted: "t".into(), leaves: Vec::new(), columns };
        let table = Table {
            columns: vec!["id".into(), "mood".into(), "new".into()],
            key: vec![0],
            source: place(vec![column("id", "integer"), column("mo\"od", "mood"), column("new", "text")]),
            sink: place(vec![column("id", "bigint"), column("mo\"od", "text"), None]),
        };
        assert_eq!(table.row(Which::Source), r#"ROW("id"::text, "mo""od"::text, "new"::text)::text"#);
        assert_eq!(table.row(Which::Sink), r#"ROW("id"::text, "mo""od"::text, NULL::text)::text"#);
        assert_eq!(table.integer_key(Which::Sink).as_deref(), Some("\"id\"::bigint"));
        assert_eq!(literal("a'\\b"), " E'a''\\\\b'");
    }
}
