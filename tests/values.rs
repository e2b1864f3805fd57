//! Every type's extremes: the snapshot's rows, the stream's, and the source's own text.

use std::collections::BTreeSet;

use highwater_tests::{Daemon, Postgres, folder};
use serde_json::Value;

use crate::spine::to_folder;

/// Type, a literal, and how `tail` prints it; None: as the database's text.
pub(crate) const VALUES: &[(&str, &str, Option<&str>)] = &[
    ("boolean", "true", Some("true")),
    ("smallint", "-32768", Some("-32768")),
    ("integer", "2147483647", Some("2147483647")),
    ("bigint", "-9223372036854775808", Some("-9223372036854775808")),
    ("oid", "4294967295", Some("4294967295")),
    ("real", "'NaN'", Some("\"NaN\"")),
    ("real", "3.4028235e38", Some("3.4028235e+38")),
    ("double precision", "'-Infinity'", Some("\"-Infinity\"")),
    ("double precision", "0.1", Some("0.1")),
    ("double precision", "5e-324", Some("5e-324")),
    ("numeric", "'NaN'", None),
    ("numeric", "'-Infinity'", None),
    ("numeric", "repeat('9', 1000)::numeric + 0.5", None),
    ("numeric", "('1' || repeat('0', 131071))::numeric", None),
    ("numeric(12,2)", "-1234567890.12", None),
    ("numeric(40,10)", "123456789012345678901234567890.0123456789", None),
    ("numeric(3,-2)", "12345", None),
    ("money", "-1234567.89", Some("\"-1234567.89\"")),
    ("text", "E'uni\\u00e9 \\U0001F418 \\\\ \" \\n'", None),
    ("varchar(5)", "'ab'", None),
    ("char(5)", "'ab'", None),
    ("\"char\"", "'x'", None),
    ("name", "'pg'", None),
    ("bytea", "'\\x00ff10'", Some("\"AP8Q\"")),
    ("date", "'infinity'", Some("\"infinity\"")),
    ("date", "'0044-03-15 BC'", Some("\"0044-03-15 BC\"")),
    ("date", "'5874897-12-31'", Some("\"5874897-12-31\"")),
    ("time", "'24:00:00'", Some("\"24:00:00\"")),
    ("time", "'23:59:59.999999'", Some("\"23:59:59.999999\"")),
    ("timetz", "'12:00:00.5+05:30'", None),
    ("timestamp", "'-infinity'", Some("\"-infinity\"")),
    ("timestamp", "'4714-11-24 00:00:00 BC'", Some("\"4714-11-24T00:00:00 BC\"")),
    ("timestamp", "'2024-02-29 12:00:00.5'", Some("\"2024-02-29T12:00:00.5\"")),
    ("timestamptz", "'2024-02-29 12:00:00+02'", Some("\"2024-02-29T10:00:00Z\"")),
    ("timestamptz", "'99999-01-01 00:00:00+00'", Some("\"99999-01-01T00:00:00Z\"")),
    ("interval", "'1 year 2 months 3 days 04:05:06.789'", Some("\"P1Y2M3DT4H5M6.789S\"")),
    ("uuid", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", None),
    ("json", "'{\"a\":  1e400, \"a\": 12345678901234567890}'", None),
    ("jsonb", "'{\"b\": [1, null, \"x\"]}'", None),
    ("xml", "'<a>b</a>'", None),
    ("inet", "'::1/64'", None),
    ("cidr", "'10.0.0.0/8'", None),
    ("macaddr", "'08:00:2b:01:02:03'", None),
    ("bit(5)", "B'10101'", None),
    ("varbit", "B''", None),
    ("point", "'(1.5,-2)'", None),
    ("box", "'((1,2),(3,4))'", None),
    ("tsvector", "'a:1 b:2 ''it''''s'':3'", None),
    ("pg_lsn", "'16/B374D848'", None),
    ("int4range", "'[1,5)'", None),
    ("tstzrange", "'empty'", None),
    ("mood", "'so ''so''\"'", None),
    ("positive", "7", Some("7")),
    ("deep", "1.50", Some("\"1.50\"")),
    ("pair", "ROW(1, 'x \"y\", \\z')::pair", Some(r#"{"a":1,"b":"x \"y\", \\z"}"#)),
    ("pair[]", "ARRAY[ROW(1, NULL)::pair, NULL]", Some(r#"[{"a":1,"b":null},null]"#)),
    ("integer[]", "'{}'", Some("[]")),
    ("integer[]", "'{1,NULL,3}'", Some("[1,null,3]")),
    ("integer[][]", "'{{1,2},{3,4}}'", Some("[[1,2],[3,4]]")),
    ("text[]", "ARRAY['a,b', 'NULL', NULL, '', 'q\"\\', '{}']", Some(r#"["a,b","NULL",null,"","q\"\\","{}"]"#)),
    ("box[]", "ARRAY['((1,2),(3,4))'::box]", Some(r#"["(3,4),(1,2)"]"#)),
    ("numeric(5,1)[]", "ARRAY[1.5, -2]", Some(r#"["1.5","-2.0"]"#)),
    ("timestamptz[]", "ARRAY['2024-02-29 12:00:00+00'::timestamptz]", Some(r#"["2024-02-29T12:00:00Z"]"#)),
    ("int2vector", "'1 2 3'", None),
    ("numeric", "0.00000000000000000000000000000000000000000000000001", None),
    ("numeric(1000,500)", "-(10::numeric ^ 400) - 0.5", None),
    ("numeric(2,5)", "0.00012", None),
    ("xid8", "'18446744073709551615'", None),
    ("xid", "'4294967295'", None),
    ("regclass", "'pg_class'", None),
    ("circle", "'<(1,2),3.5>'", None),
    ("path", "'[(1,2),(3,4)]'", None),
    ("polygon", "'((1,2),(3,4),(5,6))'", None),
    ("line", "'{1,2,3}'", None),
    ("lseg", "'[(1,2),(3,4)]'", None),
    ("macaddr8", "'08:00:2b:01:02:03:04:05'", None),
    ("tsquery", "'a & !b'", None),
    ("jsonpath", "'$.a[*] ? (@ > 1)'", None),
    ("numrange", "'(,5.5]'", None),
    ("daterange", "'[2024-01-01,infinity)'", None),
    ("int4multirange", "'{[1,3),[5,7)}'", None),
    ("timestamp(0)", "'9999-12-31 23:59:59'", Some("\"9999-12-31T23:59:59\"")),
    ("timestamptz", "'infinity'", Some("\"infinity\"")),
    ("time(3)", "'00:00:00.001'", Some("\"00:00:00.001\"")),
    ("timetz", "'24:00:00-15:59:59'", None),
    ("interval", "'-178000000 years'", None),
    ("interval day to second", "'1 02:03:04.000001'", None),
    ("bytea", "''", Some("\"\"")),
    ("text", "''", Some("\"\"")),
    ("text", "repeat('x', 300000)", None),
    ("bit varying(70)", "B'1010101010101010101010101010101010101010101010101010101010101010101'", None),
    ("mood[]", "ARRAY['other', 'so ''so''\"']::mood[]", Some(r#"["other","so 'so'\""]"#)),
    ("positive[]", "ARRAY[1, 2]::positive[]", Some("[1,2]")),
    ("bytea[]", "ARRAY['\\x00'::bytea, '\\xff']", Some(r#"["AA==","/w=="]"#)),
    (
        "uuid[]",
        "ARRAY['a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid]",
        Some(r#"["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]"#),
    ),
    ("jsonb[]", "ARRAY['{\"a\": [1, \"x\"]}'::jsonb, 'null']", Some(r#"["{\"a\": [1, \"x\"]}","null"]"#)),
    ("date[]", "ARRAY['infinity'::date, '0044-03-15 BC']", Some(r#"["infinity","0044-03-15 BC"]"#)),
    ("interval[]", "ARRAY['1 day'::interval]", Some(r#"["P1D"]"#)),
    ("int4range[]", "ARRAY['[1,5)'::int4range, 'empty']", Some(r#"["[1,5)","empty"]"#)),
    ("double precision[]", "ARRAY['NaN'::float8, 1e-300, NULL]", Some(r#"["NaN",1e-300,null]"#)),
    ("boolean[]", "ARRAY[true, false, NULL]", Some("[true,false,null]")),
    ("money[]", "ARRAY['-5.5'::money]", Some(r#"["-5.50"]"#)),
    ("char(3)[]", "ARRAY['a'::char(3)]", Some(r#"["a  "]"#)),
    ("integer[][][]", "'{{{1},{2}},{{3},{4}}}'", Some("[[[1],[2]],[[3],[4]]]")),
    (
        "nested",
        "ROW(1, ROW(2, 'in (ner)'), ARRAY[3, NULL])::nested",
        Some(r#"{"n":1,"p":{"a":2,"b":"in (ner)"},"l":[3,null]}"#),
    ),
];

/// Of extensions, where the server has them: extension, type, literal, as printed.
pub(crate) const EXTENSIONS: &[(&str, &str, &str, Option<&str>)] = &[
    ("hstore", "hstore", "'a=>1, \"b c\"=>NULL, d=>\"x\\\"y\"'", Some(r#"{"a":"1","d":"x\"y","b c":null}"#)),
    ("citext", "citext", "'MiXed'", None),
    ("ltree", "ltree", "'Top.Science'", None),
    ("cube", "cube", "'(1,2),(3,4)'", None),
    ("isn", "isbn13", "'978-0-393-04002-9'", None),
    ("seg", "seg", "'1.5 .. 2'", None),
];

/// Types within types, and those that few tables have.
const FURTHER: &[(&str, &str, Option<&str>)] = &[
    ("int8range", "'(,10)'", None),
    ("tsrange", "'[2024-01-01,2024-01-02)'", None),
    ("floatrange", "'[1.5,2.5)'", None),
    ("nummultirange", "'{[1.5,2.5),(3,)}'", None),
    ("tstzmultirange", "'{[2024-01-01 00:00+00,2024-02-01 00:00+00)}'", None),
    ("int4multirange[]", "ARRAY['{[1,3)}'::int4multirange, '{}']", Some(r#"["{[1,3)}","{}"]"#)),
    ("pg_snapshot", "'10:20:10,14,15'", None),
    ("oidvector", "'1 2 3'", None),
    ("inet[]", "ARRAY['10.0.0.1/8'::inet]", Some(r#"["10.0.0.1/8"]"#)),
    ("text[][]", "ARRAY[ARRAY['a', NULL], ARRAY['', 'd']]", Some(r#"[["a",null],["","d"]]"#)),
    ("deep[]", "ARRAY[1.5, NULL]::deep[]", Some(r#"["1.50",null]"#)),
    ("couple", "ROW(1, 'x')::pair", Some(r#"{"a":1,"b":"x"}"#)),
    (
        "nested[]",
        "ARRAY[ROW(1, ROW(2, 'x'), ARRAY[3])::nested, NULL]",
        Some(r#"[{"n":1,"p":{"a":2,"b":"x"},"l":[3]},null]"#),
    ),
];

/// The same of extensions.
const FURTHER_EXTENSIONS: &[(&str, &str, &str, Option<&str>)] = &[
    ("hstore", "hstore[]", "ARRAY['a=>1'::hstore, NULL]", Some(r#"[{"a":"1"},null]"#)),
    ("citext", "citext[]", "ARRAY['MiXed'::citext]", Some(r#"["MiXed"]"#)),
    ("ltree", "ltree[]", "ARRAY['a.b'::ltree]", Some(r#"["a.b"]"#)),
    ("ltree", "lquery", "'Top.*'", None),
    ("postgis", "geometry(PointZ,4326)", "'SRID=4326;POINT Z(1 2 3)'::geometry", None),
    ("postgis", "geometry", "'POLYGON((0 0,0 1,1 1,0 0))'::geometry", None),
    (
        "postgis",
        "geometry[]",
        "ARRAY['POINT(1 2)'::geometry]",
        Some(r#"["0101000000000000000000F03F0000000000000040"]"#),
    ),
    ("postgis", "geography", "'POINT(1 2)'::geography", None),
    ("vector", "vector", "'[1,2.5,-3]'", Some("[1.0,2.5,-3.0]")),
    ("vector", "vector[]", "ARRAY['[1,2]'::vector, NULL]", Some("[[1.0,2.0],null]")),
    ("vector", "halfvec", "'[0.5,2]'", Some("[0.5,2.0]")),
    ("vector", "sparsevec", "'{1:1,3:2}/5'", None),
];

/// Where pgvector is not installed, types of its names that are read and
/// printed as it prints its own: it is the name that they are known by.
async fn named_as_pgvectors(client: &tokio_postgres::Client) {
    for ty in ["vector", "halfvec", "sparsevec"] {
        let sql = format!(
            "CREATE TYPE {ty};
             CREATE FUNCTION {ty}_in(cstring) RETURNS {ty} AS 'textin' LANGUAGE internal IMMUTABLE STRICT;
             CREATE FUNCTION {ty}_out({ty}) RETURNS cstring AS 'textout' LANGUAGE internal IMMUTABLE STRICT;
             CREATE TYPE {ty} (INPUT = {ty}_in, OUTPUT = {ty}_out, LIKE = text)"
        );
        client.batch_execute(&sql).await.unwrap();
    }
}

/// Types of the database's own.
pub(crate) const TYPES: &str =
    "CREATE TYPE mood AS ENUM ('so ''so''\"', 'other'); CREATE DOMAIN positive AS int CHECK (VALUE > 0);
    CREATE DOMAIN shallow AS numeric(9,2); CREATE DOMAIN deep AS shallow; CREATE TYPE pair AS (a int, b text);
    CREATE TYPE nested AS (n bigint, p pair, l int[])";

async fn values(version: u32) {
    let postgres = Postgres::new(version).await;
    let client = postgres.client().await;
    client.batch_execute(TYPES).await.unwrap();
    let further = "CREATE DOMAIN couple AS pair; CREATE TYPE floatrange AS RANGE (subtype = float8)";
    client.batch_execute(further).await.unwrap();
    // A server that came before scales out of bounds has fewer.
    let newer = |ty: &str| matches!(ty, "numeric(3,-2)" | "numeric(2,5)");
    let all = VALUES.iter().chain(FURTHER);
    let mut values: Vec<_> = all.filter(|(ty, _, _)| version >= 15 || !newer(ty)).copied().collect();
    let mut lacking = BTreeSet::new();
    for &(extension, ty, literal, expected) in EXTENSIONS.iter().chain(FURTHER_EXTENSIONS) {
        let there = client.batch_execute(&format!("CREATE EXTENSION IF NOT EXISTS {extension}")).await.is_ok();
        if !there && lacking.insert(extension) && extension == "vector" {
            assert!(!matches!(version, 16 | 18), "tests/servers gives pgvector to these");
            named_as_pgvectors(&client).await;
        }
        if there || extension == "vector" {
            values.push((ty, literal, expected));
        }
    }
    let types: BTreeSet<&str> = values.iter().map(|(ty, _, _)| *ty).collect();
    println!(
        "PostgreSQL {version}: {} values of {} types; extensions that are not installed here: {}",
        values.len(),
        types.len(),
        Vec::from_iter(lacking).join(", ")
    );
    let columns: Vec<String> = values.iter().enumerate().map(|(i, (ty, _, _))| format!("c{i} {ty}")).collect();
    let row: Vec<String> = values.iter().map(|(ty, literal, _)| format!("({literal})::{ty}")).collect();
    let (columns, row) = (columns.join(", "), row.join(", "));
    client
        .batch_execute(&format!("CREATE TABLE t (id int PRIMARY KEY, {columns}); INSERT INTO t SELECT 1, {row}; INSERT INTO t (id) VALUES (2)"))
        .await
        .unwrap();
    // What a role or database sets must not change how values look.
    client
        .batch_execute(&format!(
            "ALTER DATABASE {0} SET DateStyle = 'German'; ALTER DATABASE {0} SET IntervalStyle = 'sql_standard';
             ALTER DATABASE {0} SET TimeZone = 'Asia/Kolkata'; ALTER DATABASE {0} SET bytea_output = 'escape';
             ALTER DATABASE {0} SET extra_float_digits = -5",
            postgres.database
        ))
        .await
        .unwrap();
    postgres.publish("highwater_shop", "t").await;
    let folder = folder(&format!("values-{version}"));
    // PostGIS has a table of its own.
    let config = to_folder(&postgres, &folder.join("lake"), "300ms");
    let mut daemon = Daemon::new(&folder, &config.replace("[log]", "tables = [\"public.t\"]\n[log]"));
    daemon.catch_up();
    client.batch_execute(&format!("INSERT INTO t SELECT 3, {row}; INSERT INTO t (id) VALUES (4)")).await.unwrap();
    daemon.catch_up();
    let events = daemon.tail("shop", &[]);
    let of = |id: i64| events.iter().find(|event| event["after"]["id"] == id).unwrap()["after"].clone();
    let (read, streamed, nulls) = (of(1), of(3), of(2));
    assert_eq!(of(4).as_object().unwrap().values().filter(|v| v.is_null()).count(), values.len());
    client
        .batch_execute("SET DateStyle = ISO; SET IntervalStyle = iso_8601; SET TimeZone = UTC; SET bytea_output = hex")
        .await
        .unwrap();
    for (i, (ty, literal, expected)) in values.iter().enumerate() {
        let name = format!("c{i}");
        assert_eq!(read[&name], streamed[&name], "{ty} {literal}: snapshot and stream");
        assert!(nulls[&name].is_null(), "{ty}");
        let expected = match expected {
            Some(json) => json.to_string(),
            // What the type's own output function prints.
            None => {
                let sql = format!("SELECT c{i} FROM t WHERE id = 1");
                let rows = client.simple_query(&sql).await.unwrap();
                let text = rows.iter().find_map(|message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                    _ => None,
                });
                Value::from(text.unwrap()).to_string()
            }
        };
        assert_eq!(read[&name].to_string(), expected, "{ty} {literal}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_snapshot_the_stream_and_the_source_agree_on_every_value_of_15() {
    values(15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_snapshot_the_stream_and_the_source_agree_on_every_value_of_14() {
    values(14).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_snapshot_the_stream_and_the_source_agree_on_every_value_of_16() {
    values(16).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_snapshot_the_stream_and_the_source_agree_on_every_value_of_17() {
    values(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_snapshot_the_stream_and_the_source_agree_on_every_value_of_18() {
    values(18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_its_type_cannot_hold_waits_until_a_setting_carries_it() {
    let postgres = Postgres::new(17).await;
    let client = postgres.client().await;
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, n numeric(12,2)); INSERT INTO t VALUES (7, 'NaN')")
        .await
        .unwrap();
    postgres.publish("highwater_shop", "t").await;
    let folder = folder("unfit");
    let config = to_folder(&postgres, &folder.join("lake"), "300ms");
    let mut daemon = Daemon::new(&folder, &config);
    daemon.start(&["run", "--until-caught-up"], None);
    let ended = daemon.wait(std::time::Duration::from_secs(20));
    assert_eq!(ended.code, Some(1));
    let (_, listed, _) = daemon.run(&["quarantine", "list", "shop"]);
    assert!(listed.contains("{\"id\":7}  value: column \"n\" of type numeric(12,2)"), "{listed}");
    // The table is read again, and what waited with it.
    let mended = config.replace("[log]", "[sources.shop.table.\"public.t\"]\nas = { n = \"text\" }\n[log]");
    let mut daemon = Daemon::new(&folder, &mended);
    daemon.catch_up();
    assert_eq!(daemon.tail("shop", &[])[0]["after"]["n"], "NaN");
}
