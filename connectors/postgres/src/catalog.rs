//! What the server's catalog says of tables and types.

use std::collections::{BTreeMap, HashMap};

use config::Partitions;
use connector::Result;
use tokio_postgres::{Client, Row};

use crate::codec::Codec;
use crate::error::control_failed;
use crate::plan::{PlanColumn, quote};

/// A table.
#[derive(Clone, Debug)]
pub(crate) struct CatalogTable {
    pub(crate) oid: u32,
    pub(crate) schema: String,
    pub(crate) name: String,
    /// `r`, `p`, `v`, `m`, `f`.
    pub(crate) kind: char,
    /// `p`, `u`, `t`.
    pub(crate) persistence: char,
    /// `d`, `n`, `f`, `i`.
    pub(crate) identity: char,
    pub(crate) is_partition: bool,
    /// Row security would thin what we read.
    pub(crate) row_security: bool,
    /// SELECT on it and USAGE of its schema.
    pub(crate) readable: bool,
    pub(crate) file_node: u32,
    /// Of its place in our publication: one that was taken out and put back has
    /// another, and its changes in between are lost. By a wider rule: the publication's own.
    pub(crate) published: u32,
    /// The transaction that gave the publication its options: what it did not
    /// publish before is lost. 0: not known.
    pub(crate) publication: u32,
    /// Primary key's column numbers, in its order.
    pub(crate) primary: Vec<i16>,
    /// The replica identity index's, in its order.
    pub(crate) identity_index: Vec<i16>,
    pub(crate) columns: Vec<CatalogColumn>,
}

/// A column; generated ones are left out, as the stream leaves them out.
#[derive(Clone, Debug)]
pub(crate) struct CatalogColumn {
    pub(crate) number: i16,
    pub(crate) name: String,
    pub(crate) type_oid: u32,
    pub(crate) typmod: i32,
    pub(crate) dimensions: u32,
    pub(crate) not_null: bool,
    pub(crate) db_type: String,
}

impl CatalogTable {
    pub(crate) fn qualified(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    pub(crate) fn quoted(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }

    /// Whether the stream tells its changes under its own name.
    pub(crate) fn is_told(&self, partitions: Partitions) -> bool {
        let whole = match partitions {
            Partitions::Root => matches!(self.kind, 'r' | 'p') && !self.is_partition,
            Partitions::Leaf => self.kind == 'r',
        };
        whole && self.persistence == 'p'
    }

    /// Whether old rows can be told: else updates and deletes cannot be published.
    pub(crate) fn has_identity(&self) -> bool {
        match self.identity {
            'd' => !self.primary.is_empty(),
            'i' => !self.identity_index.is_empty(),
            'f' => true,
            _ => false,
        }
    }

    /// The key's column numbers.
    pub(crate) fn key(&self) -> &[i16] {
        match self.identity {
            'i' => &self.identity_index,
            'n' => &[],
            _ => &self.primary,
        }
    }
}

const TABLES: &str = "
SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, c.relreplident::text,
       c.relispartition, row_security_active(c.oid), coalesce(pg_relation_filenode(c.oid), 0)::oid,
       has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE'),
       (SELECT i.indkey::text FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indisvalid),
       (SELECT i.indkey::text FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident AND i.indisvalid)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
   AND n.nspname !~ '^pg_(temp|toast_temp)_' AND ($1::oid = 0 OR c.oid = $1)";

const COLUMNS: &str = "
SELECT a.attrelid, a.attnum, a.attname::text, a.atttypid, a.atttypmod, a.attndims::int4, a.attnotnull,
       format_type(a.atttypid, a.atttypmod)
  FROM pg_attribute a
 WHERE a.attrelid = ANY($1) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
 ORDER BY a.attrelid, a.attnum";

/// Tables that pass `wanted` (by `schema.table`), or the one of an oid.
pub(crate) async fn tables(
    client: &Client,
    oid: Option<u32>,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<CatalogTable>> {
    let failed = |error| control_failed(error, "could not read the catalog's tables");
    let rows = client.query(TABLES, &[&oid.unwrap_or(0)]).await.map_err(failed)?;
    let numbers = |row: &Row, at: usize| -> Vec<i16> {
        let text: Option<String> = row.get(at);
        text.unwrap_or_default().split_whitespace().filter_map(|n| n.parse().ok()).collect()
    };
    let letter = |row: &Row, at: usize| row.get::<_, String>(at).chars().next().unwrap_or(' ');
    let mut found: BTreeMap<u32, CatalogTable> = rows
        .iter()
        .map(|row| CatalogTable {
            oid: row.get(0),
            schema: row.get(1),
            name: row.get(2),
            kind: letter(row, 3),
            persistence: letter(row, 4),
            identity: letter(row, 5),
            is_partition: row.get(6),
            row_security: row.get(7),
            file_node: row.get(8),
            published: 0,
            publication: 0,
            readable: row.get(9),
            primary: numbers(row, 10),
            identity_index: numbers(row, 11),
            columns: Vec::new(),
        })
        .filter(|table| wanted(&table.qualified()))
        .map(|table| (table.oid, table))
        .collect();
    let oids: Vec<u32> = found.keys().copied().collect();
    for row in client.query(COLUMNS, &[&oids]).await.map_err(failed)? {
        let Some(table) = found.get_mut(&row.get::<_, u32>(0)) else { continue };
        table.columns.push(CatalogColumn {
            number: row.get(1),
            name: row.get(2),
            type_oid: row.get(3),
            typmod: row.get(4),
            dimensions: row.get::<_, i32>(5).max(0) as u32,
            not_null: row.get(6),
            db_type: row.get(7),
        });
    }
    Ok(found.into_values().collect())
}

/// Of which columns rows that are there already may have got a value without
/// an event: those with a default.
pub(crate) async fn defaults(client: &Client, table: u32) -> Result<Vec<i16>> {
    let sql = "SELECT attnum FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND (atthasdef OR atthasmissing)";
    let rows = client.query(sql, &[&table]).await;
    let rows = rows.map_err(|error| control_failed(error, "could not ask for the defaults of columns"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// A relation that holds rows of a table.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    pub(crate) oid: u32,
    /// Quoted.
    pub(crate) name: String,
    pub(crate) file_node: u32,
    pub(crate) blocks: u64,
}

/// The relations that hold a table's rows.
pub(crate) async fn leaves(client: &Client, table: &CatalogTable) -> Result<Vec<Leaf>> {
    let sql = "SELECT c.oid, n.nspname::text, c.relname::text, coalesce(pg_relation_filenode(c.oid), 0)::oid,
                      pg_relation_size(c.oid) / current_setting('block_size')::bigint
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE c.relkind = 'r' AND (c.oid = $1 OR c.oid IN
                      (SELECT relid::oid FROM pg_partition_tree($1::oid::regclass) WHERE isleaf))
                ORDER BY c.oid";
    let rows = client.query(sql, &[&table.oid]).await;
    let rows = rows.map_err(|error| control_failed(error, format!("could not measure {}", table.qualified())))?;
    Ok(rows
        .iter()
        .map(|row| Leaf {
            oid: row.get(0),
            name: format!("{}.{}", quote(row.get(1)), quote(row.get(2))),
            file_node: row.get(3),
            blocks: row.get::<_, i64>(4).max(0) as u64,
        })
        .collect())
}

/// Leaves that were tables before they were made partitions, themselves or with
/// what is above them: what they brought along has sent no events. (The row of
/// a system column never changes, so it tells the transaction that made the table.)
pub(crate) async fn attached(client: &Client, root: u32) -> Result<Vec<u32>> {
    let sql = "SELECT l.relid::oid FROM pg_partition_tree($1::oid::regclass) l WHERE l.isleaf AND EXISTS (
                   SELECT FROM pg_partition_ancestors(l.relid) a
                     JOIN pg_inherits i ON i.inhrelid = a.relid::oid
                     JOIN pg_attribute c ON c.attrelid = a.relid::oid AND c.attname = 'tableoid'
                    WHERE i.xmin::text <> c.xmin::text)";
    let rows = client.query(sql, &[&root]).await;
    let rows = rows.map_err(|error| control_failed(error, "could not read the partitions of a table"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Types by oid and modifier, as the server names them.
pub(crate) async fn type_names(client: &Client, types: Vec<(u32, i32)>) -> Result<Vec<String>> {
    let (oids, modifiers): (Vec<u32>, Vec<i32>) = types.into_iter().unzip();
    let sql = "SELECT format_type(t, m) FROM unnest($1::oid[], $2::int4[]) WITH ORDINALITY AS u (t, m, n) ORDER BY n";
    let rows = client.query(sql, &[&oids, &modifiers]).await;
    let rows = rows.map_err(|error| control_failed(error, "could not ask for the names of types"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// A type.
#[derive(Clone, Debug)]
struct CatalogType {
    schema: String,
    name: String,
    /// `b`, `c`, `d`, `e`, `p`, `r`, `m`.
    kind: char,
    /// An array's element.
    element: u32,
    is_array: bool,
    /// A domain's.
    base: u32,
    base_typmod: i32,
    base_dimensions: u32,
    delimiter: u8,
    output: String,
    fields: Vec<(String, u32, i32, u32, String)>,
}

/// The types of a database, by oid as this server has them, known by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Types {
    by_oid: HashMap<u32, CatalogType>,
}

const TYPES: &str = "
SELECT t.oid, n.nspname::text, t.typname::text, t.typtype::text, t.typelem, t.typcategory = 'A' AND t.typelem <> 0,
       t.typbasetype, t.typtypmod, t.typndims::int4, t.typdelim::text, t.typrelid,
       (SELECT quote_ident(pn.nspname) || '.' || quote_ident(p.proname)
          FROM pg_proc p JOIN pg_namespace pn ON pn.oid = p.pronamespace WHERE p.oid = t.typoutput)
  FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace";

const FIELDS: &str = "
SELECT t.oid, a.attname::text, a.atttypid, a.atttypmod, a.attndims::int4, format_type(a.atttypid, a.atttypmod)
  FROM pg_type t JOIN pg_class c ON c.oid = t.typrelid AND c.relkind = 'c'
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY t.oid, a.attnum";

impl Types {
    /// Reads them all.
    pub(crate) async fn read(client: &Client) -> Result<Self> {
        let failed = |error| control_failed(error, "could not read the catalog's types");
        let mut by_oid = HashMap::new();
        for row in client.query(TYPES, &[]).await.map_err(failed)? {
            let letter = |at: usize| row.get::<_, String>(at).chars().next().unwrap_or(' ');
            let read = CatalogType {
                schema: row.get(1),
                name: row.get(2),
                kind: letter(3),
                element: row.get(4),
                is_array: row.get(5),
                base: row.get(6),
                base_typmod: row.get(7),
                base_dimensions: row.get::<_, i32>(8).max(0) as u32,
                delimiter: letter(9) as u8,
                output: row.get::<_, Option<String>>(11).unwrap_or_default(),
                fields: Vec::new(),
            };
            by_oid.insert(row.get::<_, u32>(0), read);
        }
        for row in client.query(FIELDS, &[]).await.map_err(failed)? {
            if let Some(owner) = by_oid.get_mut(&row.get::<_, u32>(0)) {
                let dimensions = row.get::<_, i32>(4).max(0) as u32;
                owner.fields.push((row.get(1), row.get(2), row.get(3), dimensions, row.get(5)));
            }
        }
        Ok(Self { by_oid })
    }

    /// Whether a type is known.
    pub(crate) fn knows(&self, oid: u32) -> bool {
        self.by_oid.contains_key(&oid)
    }

    /// How a column of this type is read.
    pub(crate) fn column(&self, oid: u32, typmod: i32, dimensions: u32, as_text: bool) -> PlanColumn {
        let codec = if as_text { Codec::Text } else { self.codec(oid, typmod, dimensions, 0) };
        // Text of the stream is what the type's own output function prints; the
        // binary form of text types is that text.
        let base = self.base(oid);
        let plain = base.is_some_and(|t| {
            t.schema == "pg_catalog" && matches!(t.name.as_str(), "text" | "varchar" | "bpchar" | "json")
        });
        let binary = match &codec {
            Codec::Text => plain,
            codec => codec.has_binary(),
        };
        let output = (!binary).then(|| {
            let function = base.map_or("pg_catalog.textout", |t| t.output.as_str());
            function.to_owned()
        });
        PlanColumn { codec, output }
    }

    fn base(&self, mut oid: u32) -> Option<&CatalogType> {
        for _ in 0..32 {
            let found = self.by_oid.get(&oid)?;
            if found.kind != 'd' {
                return Some(found);
            }
            oid = found.base;
        }
        None
    }

    fn codec(&self, oid: u32, typmod: i32, dimensions: u32, depth: u32) -> Codec {
        let Some(t) = self.by_oid.get(&oid) else { return Codec::Text };
        if depth > 16 {
            return Codec::Text;
        }
        if t.kind == 'd' {
            return self.codec(t.base, t.base_typmod, t.base_dimensions, depth + 1);
        }
        if t.is_array && t.kind == 'b' {
            // The catalog's own vector types print without braces.
            if matches!(t.name.as_str(), "int2vector" | "oidvector") {
                return Codec::Text;
            }
            let element = Box::new(self.codec(t.element, typmod, 0, depth + 1));
            let delimiter = self.by_oid.get(&t.element).map_or(b',', |e| e.delimiter);
            return Codec::Array { element, dimensions: dimensions.clamp(1, 6), delimiter };
        }
        if t.kind == 'c' && !t.fields.is_empty() {
            let field = |(name, oid, typmod, dimensions, db_type): &(String, u32, i32, u32, String)| {
                (name.clone(), db_type.clone(), self.codec(*oid, *typmod, *dimensions, depth + 1))
            };
            return Codec::Composite(t.fields.iter().map(field).collect());
        }
        // Extensions' types by their name alone: their schema is anybody's choice.
        match t.name.as_str() {
            "hstore" if t.kind == 'b' => return Codec::Hstore,
            "vector" | "halfvec" if t.kind == 'b' => return Codec::Vector,
            _ if t.schema != "pg_catalog" => return Codec::Text,
            _ => {}
        }
        match t.name.as_str() {
            "bool" => Codec::Bool,
            "int2" | "int4" => Codec::Int,
            "int8" | "oid" => Codec::Long,
            "float4" => Codec::Float,
            "float8" => Codec::Double,
            "bytea" => Codec::Bytes,
            "uuid" => Codec::Uuid,
            "json" => Codec::Json,
            "jsonb" => Codec::Jsonb,
            "money" => Codec::Money,
            "date" => Codec::Date,
            "time" => Codec::Time,
            "timestamp" => Codec::Timestamp,
            "timestamptz" => Codec::Timestamptz,
            "numeric" => numeric(typmod),
            _ => Codec::Text,
        }
    }
}

/// numeric(p,s) with 0 ≤ s ≤ p is a decimal; any other is text.
fn numeric(typmod: i32) -> Codec {
    if typmod < 4 {
        return Codec::Text;
    }
    let packed = typmod - 4;
    let precision = (packed >> 16 & 0xffff) as u32;
    // The scale is 11 bits with a sign since 15.
    let scale = ((packed & 0x7ff) ^ 1024) - 1024;
    match u32::try_from(scale) {
        Ok(scale) if scale <= precision => Codec::Decimal { precision, scale },
        _ => Codec::Text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_numerics_modifier_is_precision_and_scale() {
        let modifier = |p: i32, s: i32| ((p << 16) | (s & 0x7ff)) + 4;
        assert_eq!(numeric(modifier(12, 2)), Codec::Decimal { precision: 12, scale: 2 });
        assert_eq!(numeric(modifier(1000, 0)), Codec::Decimal { precision: 1000, scale: 0 });
        assert_eq!(numeric(modifier(3, -2)), Codec::Text);
        assert_eq!(numeric(modifier(2, 5)), Codec::Text);
        assert_eq!(numeric(-1), Codec::Text);
    }
}
