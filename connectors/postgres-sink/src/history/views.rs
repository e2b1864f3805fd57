//! The views of a history: its rows as they are now, and each version of them
//! with the time that it was there. A table without a key has none.

use connector::Result;
use tokio_postgres::Client;

use crate::merge::{Merge, run};
use crate::plan::Plan;
use crate::sql::{literal, qualified, quote};
use crate::table::Mirror;

/// Behind a table's name, for the view of its rows as they are now.
pub(crate) const CURRENT: &str = "_current";
/// For the view of every version.
const VERSIONS: &str = "_versions";
/// Behind the names of tables.
pub(crate) const SUFFIXES: [&str; 2] = [CURRENT, VERSIONS];

/// Drops the views, before their table is altered.
pub(crate) async fn drop(client: &Client, mirror: &Mirror) -> Result<()> {
    let views = SUFFIXES.map(|suffix| named(mirror, suffix));
    run(client, mirror, &format!("DROP VIEW IF EXISTS {}", views.join(", "))).await
}

/// Makes them.
pub(crate) async fn make(client: &Client, mirror: &Mirror, plan: &Plan, prefix: &str) -> Result<()> {
    if !plan.has_key() {
        return Ok(());
    }
    let words = Words::new(mirror, plan, prefix)?;
    run(client, mirror, &words.current()).await?;
    run(client, mirror, &words.versions()).await
}

fn named(mirror: &Mirror, suffix: &str) -> String {
    qualified(&mirror.schema, &format!("{}{suffix}", mirror.name))
}

/// What both are made of. Our own names within them begin with the prefix: no
/// column of the source does.
struct Words<'a> {
    mirror: &'a Mirror,
    plan: &'a Plan,
    prefix: &'a str,
    names: Vec<String>,
    types: Vec<String>,
}

impl<'a> Words<'a> {
    fn new(mirror: &'a Mirror, plan: &'a Plan, prefix: &'a str) -> Result<Self> {
        let merge = Merge::new(mirror, plan)?;
        let (names, types) = (merge.names.to_vec(), merge.types.iter().map(|ty| ty.to_string()).collect());
        Ok(Self { mirror, plan, prefix, names, types })
    }

    fn own(&self, name: &str) -> String {
        quote(&format!("{}{name}", self.prefix))
    }

    fn each_of_key(&self, f: impl Fn(usize) -> String) -> String {
        self.plan.shape.table.key.iter().map(|&i| f(i)).collect::<Vec<_>>().join(", ")
    }

    /// A column of the key as it was before the change.
    fn old(&self, from: &str, i: usize) -> String {
        let column = literal(&self.plan.shape.table.columns[i].name);
        format!("({from}{} ->> {column})::{}", self.own("old_key"), self.types[i])
    }

    /// `placed`: a row for each change that puts a key there, or takes it away.
    fn placed(&self) -> String {
        format!(
            "placed AS (
           SELECT {keys}, {offset} AS {at}, {time} AS {since}, {op} <> 'delete' AS {there} FROM {table}
            WHERE {op} IN ('read', 'insert', 'update', 'delete')
           UNION ALL
           SELECT {old_keys}, {offset}, {time}, false FROM {table} WHERE {old_key} IS NOT NULL)",
            keys = self.keys(),
            old_keys = self.each_of_key(|i| self.old("", i)),
            offset = self.own("offset"),
            time = self.own("commit_time"),
            at = self.own("at"),
            since = self.own("since"),
            there = self.own("there"),
            op = self.own("op"),
            old_key = self.own("old_key"),
            table = self.mirror.quoted(),
        )
    }

    fn keys(&self) -> String {
        self.each_of_key(|i| self.names[i].clone())
    }

    /// `filled`: the rows of some changes, and what those did not tell from the
    /// changes before them, back through the keys that the row has had.
    fn filled(&self, which: &str) -> String {
        let (table, names) = (self.mirror.quoted(), &self.names);
        let was = |i: usize| self.own(&format!("was{i}"));
        let came = |from: &str| {
            self.each_of_key(|i| format!("coalesce({}, {from}{}) AS {}", self.old(from, i), names[i], was(i)))
        };
        let here: Vec<String> = names.iter().map(|name| format!("a.{name}")).collect();
        let missing = self.own("missing");
        let filled: Vec<String> = (0..names.len())
            .map(|i| {
                let column = literal(&self.plan.shape.table.columns[i].name);
                if self.plan.shape.table.in_key(i) {
                    format!("f.{}", names[i])
                } else {
                    format!("CASE WHEN {column} = ANY (f.{missing}) THEN p.{0} ELSE f.{0} END", names[i])
                }
            })
            .collect();
        let key = &self.plan.shape.table.key;
        let came_from: Vec<String> = key.iter().map(|&i| format!("h.{} = f.{}", names[i], was(i))).collect();
        format!(
            "filled AS (
           SELECT a.{offset} AS {root}, a.{offset} AS {at}, {here}, coalesce(a.{absent}, '{{}}') AS {missing}, {came_here}
             FROM {table} a {which}
           UNION ALL
           SELECT f.{root}, p.{offset}, {filled},
                  ARRAY(SELECT unnest(f.{missing}) INTERSECT SELECT unnest(p.{absent})), {came_before}
             FROM filled f CROSS JOIN LATERAL (
               SELECT * FROM {table} h WHERE {came_from} AND h.{offset} < f.{at} AND h.{op} IN ('read', 'insert', 'update')
                ORDER BY h.{offset} DESC LIMIT 1) p
            WHERE f.{missing} <> '{{}}'),
         whole AS (SELECT DISTINCT ON ({root}) * FROM filled ORDER BY {root}, {at})",
            offset = self.own("offset"),
            at = self.own("at"),
            root = self.own("root"),
            absent = self.own("absent"),
            op = self.own("op"),
            here = here.join(", "),
            came_here = came("a."),
            filled = filled.join(", "),
            came_before = came("p."),
            came_from = came_from.join(" AND "),
        )
    }

    /// For each key its last change, if that left a row behind, and if the
    /// table was not emptied or swept since.
    fn current(&self) -> String {
        let (offset, op, at, there) = (self.own("offset"), self.own("op"), self.own("at"), self.own("there"));
        let which =
            format!("JOIN last ON last.{at} = a.{offset} WHERE last.{there} AND last.{at} > (SELECT {at} FROM floor)");
        format!(
            "CREATE VIEW {view} AS
         WITH RECURSIVE floor AS (
           SELECT greatest(
             (SELECT max({offset}) FROM {table} WHERE {op} = 'truncate'),
             (SELECT max({offset}) FROM {table} WHERE {op} = 'snapshot_begin'
                 AND {offset} < (SELECT max({offset}) FROM {table} WHERE {op} = 'snapshot_end')), -1) AS {at}),
         {placed},
         last AS (SELECT DISTINCT ON ({keys}) {at}, {there} FROM placed ORDER BY {keys}, {at} DESC),
         {filled}
         SELECT {names} FROM whole",
            view = named(self.mirror, CURRENT),
            table = self.mirror.quoted(),
            placed = self.placed(),
            keys = self.keys(),
            filled = self.filled(&which),
            names = self.names.join(", "),
        )
    }

    /// Each version of each row. `ends` are looked through for every version, and
    /// would be gathered anew each time if they were not kept. A version ends
    /// with the next change of its key, when the table is emptied, or at the end
    /// of a reading that did not meet it: whichever comes first in the log.
    fn versions(&self) -> String {
        let [offset, op, at, there, since, time] =
            ["offset", "op", "at", "there", "since", "commit_time"].map(|name| self.own(name));
        let [until, next, root, from, to] =
            ["until", "next", "root", "valid_from", "valid_to"].map(|name| self.own(name));
        let which = format!("JOIN spans ON spans.{at} = a.{offset} WHERE spans.{there}");
        format!(
            "CREATE VIEW {view} AS
         WITH RECURSIVE {placed},
         spans AS (
           SELECT {at}, {there}, {since}, lead({at}) OVER same AS {next}, lead({since}) OVER same AS {until}
             FROM placed WINDOW same AS (PARTITION BY {keys} ORDER BY {at})),
         ends AS MATERIALIZED (
           SELECT {offset} AS {at}, {offset} AS {from}, {time} AS {until} FROM {table} WHERE {op} = 'truncate'
           UNION ALL
           SELECT {offset}, (SELECT max(b.{offset}) FROM {table} b WHERE b.{op} = 'snapshot_begin' AND b.{offset} < e.{offset}),
                  {time} FROM {table} e WHERE {op} = 'snapshot_end'),
         {filled}
         SELECT {columns}, s.{since} AS {from}, CASE WHEN over.{until} IS NOT NULL THEN greatest(s.{since}, over.{until}) END AS {to}
           FROM whole w JOIN spans s ON s.{at} = w.{root} AND s.{there}
           LEFT JOIN LATERAL (
             SELECT {until} FROM (
               SELECT {at}, {until} FROM ends WHERE ends.{from} > s.{at}
               UNION ALL SELECT s.{next}, s.{until} WHERE s.{next} IS NOT NULL) x
              ORDER BY {at} LIMIT 1) over ON true",
            view = named(self.mirror, VERSIONS),
            placed = self.placed(),
            keys = self.keys(),
            table = self.mirror.quoted(),
            filled = self.filled(&which),
            columns = self.names.iter().map(|name| format!("w.{name}")).collect::<Vec<_>>().join(", "),
        )
    }
}
