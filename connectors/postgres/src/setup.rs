//! The whole set-up of a server for a source, from the configuration alone: for
//! a role that cannot get in yet, and so can see nothing.

use config::{Partitions, Postgres};

use crate::plan::{literal, quote};

/// Whether the server has turned the role away.
pub(crate) fn is_wanted(error: &connector::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(found) = cause {
        if let Some(error) = found.downcast_ref::<tokio_postgres::Error>() {
            // No such role, or it may not log in, has another password, or may
            // not connect to the database.
            return error.code().is_some_and(|code| matches!(code.code(), "28000" | "28P01" | "42501"));
        }
        cause = found.source();
    }
    false
}

/// SQL for a superuser in the source's database; may be run again.
pub(crate) fn script(config: &Postgres) -> String {
    let (role, database) = (quote(&config.user), quote(&config.database));
    let (publication, inserts) = (config.publication.clone(), format!("{}_inserts", config.publication));
    let (via_root, told) = match config.partitions {
        Partitions::Root => (true, "c.relkind IN ('r', 'p') AND NOT c.relispartition"),
        Partitions::Leaf => (false, "c.relkind = 'r'"),
    };
    let (wanted, unwanted) = regexes(config.tables.given());
    format!(
        r#"-- For source {source} of highwater: run it as superuser in database {database}.
DO $highwater$ BEGIN CREATE ROLE {role}; EXCEPTION WHEN duplicate_object THEN END $highwater$;
ALTER ROLE {role} LOGIN REPLICATION; -- and, unless pg_hba.conf trusts it: \password {role}
GRANT CONNECT ON DATABASE {database} TO {role};
ALTER SYSTEM SET wal_level = 'logical'; -- if it was another: then restart the server
DO $highwater$
DECLARE
  role constant text := {role_text};
  main constant text := {main_text};
  inserts constant text := {inserts_text};
  found record;
  part record;
  publication text;
BEGIN
  IF NOT EXISTS (SELECT FROM pg_publication WHERE pubname = main) THEN
    EXECUTE format('CREATE PUBLICATION %I WITH (publish_via_partition_root = {via_root})', main);
  END IF;
  FOR found IN
    SELECT c.oid, n.nspname, c.relname, c.relrowsecurity,
           CASE c.relreplident WHEN 'f' THEN true WHEN 'n' THEN false ELSE EXISTS (
             SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid
                AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END) END AS tells_old_rows
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE {told} AND c.relpersistence = 'p'
       AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
       AND concat(n.nspname, '.', c.relname) ~ ANY ({wanted}) AND NOT concat(n.nspname, '.', c.relname) ~ ANY ({unwanted})
     ORDER BY 2, 3
  LOOP
    -- A snapshot reads each partition by its own name.
    FOR part IN
      SELECT DISTINCT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
       WHERE c.oid = found.oid OR c.oid IN (SELECT relid FROM pg_partition_tree(found.oid::regclass))
    LOOP
      EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', part.nspname, role);
      EXECUTE format('GRANT SELECT ON %I.%I TO %I', part.nspname, part.relname, role);
    END LOOP;
    -- A snapshot would lack rows, and nothing would tell.
    IF found.relrowsecurity THEN
      EXECUTE format('ALTER ROLE %I BYPASSRLS', role);
    END IF;
    -- Published with updates, a table without a replica identity could be updated no more.
    publication := CASE WHEN found.tells_old_rows THEN main ELSE inserts END;
    IF NOT EXISTS (SELECT FROM pg_publication WHERE pubname = publication) THEN
      EXECUTE format('CREATE PUBLICATION %I WITH (publish = %L, publish_via_partition_root = {via_root})', publication, 'insert, truncate');
    END IF;
    IF NOT EXISTS (SELECT FROM pg_publication_tables t
                    WHERE t.pubname = publication AND t.schemaname = found.nspname AND t.tablename = found.relname) THEN
      EXECUTE format('ALTER PUBLICATION %I ADD TABLE %I.%I', publication, found.nspname, found.relname);
    END IF;
  END LOOP;
END $highwater$;
-- Then `highwater check` looks at what it sees by now."#,
        source = config.name,
        role_text = literal(&config.user),
        main_text = literal(&publication),
        inserts_text = literal(&inserts),
    )
}

/// The patterns as PostgreSQL's regular expressions: those that are wanted, and
/// those that are not.
fn regexes(given: &[String]) -> (String, String) {
    let array = |wanted: bool| {
        let patterns = given.iter().filter(|pattern| pattern.starts_with('!') != wanted);
        let regexes: Vec<String> = patterns.map(|pattern| literal(&regex(pattern.trim_start_matches('!')))).collect();
        format!("ARRAY[{}]::text[]", regexes.join(", "))
    };
    (array(true), array(false))
}

fn regex(glob: &str) -> String {
    let mut out = String::from("^");
    let mut rest = glob.chars().peekable();
    let (mut class, mut choices) = (false, 0);
    while let Some(c) = rest.next() {
        match c {
            ']' if class => {
                class = false;
                out.push(']');
            }
            '\\' if class => out.push_str(r"\\"),
            c if class => out.push(c),
            '*' => out.push_str(".*"),
            '?' => out.push('.'),
            '[' => {
                class = true;
                out.push('[');
                if rest.next_if(|c| matches!(c, '!' | '^')).is_some() {
                    out.push('^');
                }
            }
            '{' => {
                choices += 1;
                out.push('(');
            }
            '}' if choices > 0 => {
                choices -= 1;
                out.push(')');
            }
            ',' if choices > 0 => out.push('|'),
            '\\' => out.push_str(&rest.next().map(escaped).unwrap_or_default()),
            c => out.push_str(&escaped(c)),
        }
    }
    out.push('$');
    out
}

fn escaped(c: char) -> String {
    if c.is_alphanumeric() || c == '_' { c.to_string() } else { format!("\\{c}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_becomes_a_regular_expression_that_means_the_same() {
        for (glob, expected) in [
            ("public.*", r"^public\..*$"),
            ("a?.t_[!0-9]", r"^a.\.t_[^0-9]$"),
            ("{a,b}.x\\*", r"^(a|b)\.x\*$"),
            ("public.a$b,c", r"^public\.a\$b\,c$"),
        ] {
            assert_eq!(regex(glob), expected);
        }
    }
}
