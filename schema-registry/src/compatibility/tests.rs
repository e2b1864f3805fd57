use proptest::prelude::*;

mod reads;

use super::*;

fn parse(text: &str) -> Avro {
    Avro::parse(text, &[], true).unwrap_or_else(|why| panic!("{text}: {why}"))
}

fn told(new: &str, old: &str, level: Level) -> Vec<String> {
    let all = compare(&parse(new), &parse(old), level, &Budget::new(None)).unwrap();
    all.iter().map(Violation::to_string).collect()
}

/// What stands in the way of `reader` reading what `writer` wrote: kind, path, detail.
fn check(reader: &str, writer: &str, expected: &[(&str, &str, &str)]) {
    let all = compare(&parse(reader), &parse(writer), Level::Backward, &Budget::new(None)).unwrap();
    let all: Vec<_> = all.iter().map(|v| (v.kind.name(), v.path.as_str(), v.detail.as_str())).collect();
    assert_eq!(all, expected, "reader {reader}, writer {writer}");
}

fn record(fields: &[&str]) -> String {
    format!(r#"{{"type":"record","name":"R","fields":[{}]}}"#, fields.join(","))
}

const X: &str = r#"{"name":"x","type":"int"}"#;

#[test]
fn promotions_go_one_way() {
    let all = ["null", "boolean", "int", "long", "float", "double", "bytes", "string"];
    let good = [
        ("long", "int"),
        ("float", "int"),
        ("float", "long"),
        ("double", "int"),
        ("double", "long"),
        ("double", "float"),
        ("bytes", "string"),
        ("string", "bytes"),
    ];
    for reader in all {
        for writer in all {
            let fits = told(&format!("{reader:?}"), &format!("{writer:?}"), Level::Backward).is_empty();
            assert_eq!(fits, reader == writer || good.contains(&(reader, writer)), "{reader} reads {writer}");
        }
    }
    check("\"int\"", "\"long\"", &[("TYPE_MISMATCH", "/", "reader type: INT not compatible with writer type: LONG")]);
}

#[test]
fn every_violation_is_told_with_its_path() {
    let new = record(&[
        r#"{"name":"a","type":"string"}"#,
        r#"{"name":"b","type":{"type":"fixed","name":"F","size":4}}"#,
        r#"{"name":"c","type":{"type":"enum","name":"E","symbols":["A"]}}"#,
        r#"{"name":"d","type":["null","int"]}"#,
        r#"{"name":"e","type":{"type":"array","items":{"type":"map","values":"int"}}}"#,
        r#"{"name":"f","type":"int"}"#,
    ]);
    let old = record(&[
        r#"{"name":"a","type":"int"}"#,
        r#"{"name":"b","type":{"type":"fixed","name":"G","size":8}}"#,
        r#"{"name":"c","type":{"type":"enum","name":"E","symbols":["A","B","C"]}}"#,
        r#"{"name":"d","type":["null","string","boolean"]}"#,
        r#"{"name":"e","type":{"type":"array","items":{"type":"map","values":"long"}}}"#,
    ]);
    check(
        &new,
        &old,
        &[
            ("TYPE_MISMATCH", "/fields/0/type", "reader type: STRING not compatible with writer type: INT"),
            ("NAME_MISMATCH", "/fields/1/type/name", "expected: G"),
            ("FIXED_SIZE_MISMATCH", "/fields/1/type/size", "expected: 8, found: 4"),
            ("MISSING_ENUM_SYMBOLS", "/fields/2/type/symbols", "[B, C]"),
            ("MISSING_UNION_BRANCH", "/fields/3/type/1", "reader union lacking writer type: STRING"),
            ("MISSING_UNION_BRANCH", "/fields/3/type/2", "reader union lacking writer type: BOOLEAN"),
            ("TYPE_MISMATCH", "/fields/4/type/items/values", "reader type: INT not compatible with writer type: LONG"),
            ("READER_FIELD_MISSING_DEFAULT_VALUE", "/fields/5", "f"),
        ],
    );
}

#[test]
fn the_words_are_those_of_the_reference() {
    let two = record(&[X, r#"{"name":"y","type":"int"}"#]);
    let one = record(&[X]);
    let line = |sides: [&str; 2]| {
        format!(
            "{{errorType:'READER_FIELD_MISSING_DEFAULT_VALUE', description:'The field 'y' at path '/fields/1' in the \
             {} schema has no default value and is missing in the {} schema', additionalInfo:'y'}}",
            sides[0], sides[1]
        )
    };
    assert_eq!(told(&two, &one, Level::Backward), [line(["new", "old"])]);
    assert_eq!(told(&one, &two, Level::Backward), Vec::<String>::new());
    assert_eq!(told(&one, &two, Level::Forward), [line(["old", "new"])]);
    assert_eq!(told(&one, &two, Level::Full), [line(["old", "new"])]);
    assert_eq!(
        told("\"int\"", "\"string\"", Level::Backward),
        ["{errorType:'TYPE_MISMATCH', description:'The type (path '/') of a field in the new schema does not match \
          with the old schema', additionalInfo:'reader type: INT not compatible with writer type: STRING'}"]
    );
    let old = Earlier { version: 3, text: "\"string\"".into(), schema: Arc::new(parse("\"string\"")) };
    let all = messages(&parse("\"int\""), &[old], Level::BackwardTransitive, false, None).unwrap();
    assert_eq!(
        all[1..],
        [
            "{oldSchemaVersion: 3}",
            "{oldSchema: '\"string\"'}",
            "{validateFields: 'false', compatibility: 'BACKWARD_TRANSITIVE'}"
        ]
    );
}

#[test]
fn defaults_names_and_aliases() {
    let with_default = record(&[X, r#"{"name":"y","type":"int","default":0}"#]);
    check(&with_default, &record(&[X]), &[]);
    check(&record(&[X]), &with_default, &[]);
    check(&record(&[r#"{"name":"z","type":"long","aliases":["x"]}"#]), &record(&[X]), &[]);
    check(
        &record(&[r#"{"name":"z","type":"long"}"#]),
        &record(&[X]),
        &[("READER_FIELD_MISSING_DEFAULT_VALUE", "/fields/0", "z")],
    );
    let named = |name: &str, more: &str| format!(r#"{{"type":"record","name":"{name}","fields":[]{more}}}"#);
    check(&named("a.R", ""), &named("b.R", ""), &[]);
    check(&named("S", ""), &named("b.R", ""), &[("NAME_MISMATCH", "/name", "expected: b.R")]);
    check(&named("a.S", r#","aliases":["b.R"]"#), &named("b.R", ""), &[]);
    check(&named("a.S", r#","aliases":["R"]"#), &named("b.R", ""), &[("NAME_MISMATCH", "/name", "expected: b.R")]);
    check(&named("a.S", r#","aliases":["R"]"#), &named("a.R", ""), &[]);
    let symbols = |symbols: &str, more: &str| format!(r#"{{"type":"enum","name":"E","symbols":[{symbols}]{more}}}"#);
    check(&symbols(r#""A""#, r#","default":"A""#), &symbols(r#""A","B""#, ""), &[]);
    check(&symbols(r#""A","B""#, ""), &symbols(r#""A""#, ""), &[]);
    // Not looked at, as the reference does not: docs, orders, properties, logical types.
    let decimal = |scale: u8| format!(r#"{{"type":"bytes","logicalType":"decimal","precision":9,"scale":{scale}}}"#);
    check(&decimal(1), &decimal(2), &[]);
    check(r#"{"type":"int","logicalType":"date"}"#, "\"int\"", &[]);
}

#[test]
fn unions_in_any_direction() {
    check(r#"["null","long"]"#, "\"int\"", &[]);
    check("\"long\"", r#"["int","long"]"#, &[]);
    check(
        "\"int\"",
        r#"["int","string"]"#,
        &[("TYPE_MISMATCH", "/1", "reader type: INT not compatible with writer type: STRING")],
    );
    check(
        r#"["null","int"]"#,
        "\"string\"",
        &[("MISSING_UNION_BRANCH", "/", "reader union lacking writer type: STRING")],
    );
    check(r#"["int","null","string"]"#, r#"["null","int"]"#, &[]);
    check("[]", "[]", &[]);
    check("\"int\"", "[]", &[]);
    // The reader's branch of that name does not fit, another one does.
    let inner = |ty: &str| format!(r#"{{"type":"record","name":"I","fields":[{{"name":"x","type":"{ty}"}}]}}"#);
    let other = r#"{"type":"record","name":"J","aliases":["I"],"fields":[]}"#;
    check(&format!("[{},{other}]", inner("int")), &inner("string"), &[]);
    check(
        &format!("[\"null\",{}]", inner("int")),
        &inner("string"),
        &[("MISSING_UNION_BRANCH", "/", "reader union lacking writer type: RECORD")],
    );
    let many = |n: usize, last: &str| {
        let all: Vec<String> = (0..n).map(|i| format!(r#"{{"type":"record","name":"N{i}","fields":[]}}"#)).collect();
        format!("[{},{last}]", all.join(","))
    };
    check(&many(20, "\"int\""), &many(10, "\"int\""), &[]);
    check(
        &many(10, "\"int\""),
        &many(11, "\"int\""),
        &[("MISSING_UNION_BRANCH", "/10", "reader union lacking writer type: RECORD")],
    );
}

#[test]
fn a_type_that_holds_itself_is_followed_once() {
    let list = |value: &str| {
        format!(
            r#"{{"type":"record","name":"L","fields":[{{"name":"v","type":"{value}"}},{{"name":"next","type":["null","L"]}}]}}"#
        )
    };
    check(&list("long"), &list("int"), &[]);
    // What hangs on the whole fitting does not fit either.
    check(
        &list("int"),
        &list("long"),
        &[
            ("TYPE_MISMATCH", "/fields/0/type", "reader type: INT not compatible with writer type: LONG"),
            ("MISSING_UNION_BRANCH", "/fields/1/type/1", "reader union lacking writer type: RECORD"),
        ],
    );
    // B fits only as long as A is taken to fit, which it does not: the branch
    // that was tried first must leave nothing behind.
    let types = |a: &str| {
        format!(
            r#"{{"type":"record","name":"Top","fields":[
              {{"name":"a","type":["null",{{"type":"record","name":"A","fields":[
                {{"name":"b","type":["null",{{"type":"record","name":"B","fields":[{{"name":"back","type":["null","A"]}}]}}]}},
                {{"name":"v","type":"{a}"}}]}}]}},
              {{"name":"b","type":["null","B"]}}]}}"#
        )
    };
    check(
        &types("int"),
        &types("long"),
        &[
            ("MISSING_UNION_BRANCH", "/fields/0/type/1", "reader union lacking writer type: RECORD"),
            ("MISSING_UNION_BRANCH", "/fields/1/type/1", "reader union lacking writer type: RECORD"),
        ],
    );
}

#[test]
fn references_are_part_of_what_is_compared() {
    let inner = |ty: &str| format!(r#"{{"type":"record","name":"In","fields":[{{"name":"x","type":"{ty}"}}]}}"#);
    let with = |inner: &str| {
        let references = [crate::avro::Reference { text: inner }];
        Avro::parse(&record(&[r#"{"name":"i","type":"In"}"#]), &references, true).unwrap()
    };
    let all = compare(&with(&inner("int")), &with(&inner("string")), Level::Backward, &Budget::new(None)).unwrap();
    assert_eq!(all[0].path, "/fields/0/type/fields/0/type");
}

#[test]
fn levels_look_at_the_last_or_at_all_in_their_direction() {
    let versions = [record(&[X, r#"{"name":"y","type":"int"}"#]), record(&[X])];
    let earlier: Vec<Earlier> = versions
        .iter()
        .enumerate()
        .map(|(i, text)| Earlier { version: i as u32 + 1, text: text.as_str().into(), schema: Arc::new(parse(text)) })
        .collect();
    let fits = |new: &str, level| messages(&parse(new), &earlier, level, false, None).unwrap().is_empty();
    let wider = record(&[X, r#"{"name":"z","type":"int","default":1}"#]);
    // Drops y, which version 1 had without default: its readers miss it.
    for (level, expected) in [
        (Level::None, true),
        (Level::Backward, true),
        (Level::BackwardTransitive, true),
        (Level::Forward, true),
        (Level::ForwardTransitive, false),
        (Level::Full, true),
        (Level::FullTransitive, false),
    ] {
        assert_eq!(fits(&wider, level), expected, "{level:?}");
    }
    let narrower = record(&[r#"{"name":"x","type":"string"}"#]);
    for (level, expected) in [(Level::None, true), (Level::Backward, false), (Level::Forward, false)] {
        assert_eq!(fits(&narrower, level), expected, "{level:?}");
    }
    assert_eq!(Level::by_name("full_Transitive"), Some(Level::FullTransitive));
    assert_eq!(Level::by_name("backwards"), None);
}

#[test]
fn bombs_end_in_bounded_time() {
    let started = Instant::now();
    let deadline = || Some(Instant::now() + std::time::Duration::from_millis(500));
    // Records that hold each other in all ways: pairs without end, were they not remembered.
    let knot = |n: usize, ty: &str| {
        let all: Vec<String> = (0..n)
            .map(|i| {
                let all: Vec<String> = (0..i).map(|j| format!(r#"{{"name":"f{j}","type":["null","K{j}"]}}"#)).collect();
                let own = format!(r#"{{"name":"v","type":"{ty}"}}"#);
                format!(r#"{{"type":"record","name":"K{i}","fields":[{}]}}"#, [all, vec![own]].concat().join(","))
            })
            .collect();
        format!("[{}]", all.join(","))
    };
    let all = compare(&parse(&knot(60, "int")), &parse(&knot(60, "long")), Level::Full, &Budget::new(deadline()));
    assert_eq!(all.unwrap().len(), 60);
    let wide = |prefix: &str| {
        let all: Vec<String> =
            (0..10_000).map(|i| format!(r#"{{"type":"record","name":"{prefix}{i}","fields":[]}}"#)).collect();
        format!("[{}]", all.join(","))
    };
    let (a, b) = (parse(&wide("A")), parse(&wide("B")));
    assert_eq!(compare(&a, &a, Level::Full, &Budget::new(deadline())).unwrap().len(), 0);
    assert_eq!(compare(&a, &b, Level::Full, &Budget::new(deadline())).unwrap().len(), 20_000);
    let chain: Vec<String> = (0..10_000)
        .map(|i| match i {
            0 => r#"{"type":"record","name":"R0","fields":[]}"#.to_owned(),
            i => format!(r#"{{"type":"record","name":"R{i}","fields":[{{"name":"f","type":"R{}"}}]}}"#, i - 1),
        })
        .collect();
    let chain = parse(&format!(
        r#"{{"type":"record","name":"C","fields":[{{"name":"all","type":[{}]}},{{"name":"last","type":"R9999"}}]}}"#,
        chain.join(",")
    ));
    // Deeper than is followed; but from the first on, all is known.
    assert!(compare(&chain, &chain, Level::Full, &Budget::new(deadline())).is_ok());
    let small = std::thread::Builder::new().stack_size(1 << 20);
    let deep = move || {
        let types: Vec<String> = (0..2_000)
            .map(|i| match i {
                0 => r#"{"type":"record","name":"R0","fields":[]}"#.to_owned(),
                i => format!(r#"{{"type":"record","name":"R{i}","fields":[{{"name":"f","type":"R{}"}}]}}"#, i - 1),
            })
            .collect();
        let references: Vec<_> = types.iter().map(|text| crate::avro::Reference { text }).collect();
        let deep = Avro::parse("\"R1999\"", &references, true).unwrap();
        assert_eq!(compare(&deep, &deep, Level::Full, &Budget::new(None)), Err(Exhausted));
    };
    small.spawn(deep).unwrap().join().unwrap();
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

/// Small schemas over few names, so that many pairs are near each other.
fn any_schema() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("\"null\"".to_owned()),
        Just("\"boolean\"".to_owned()),
        Just("\"int\"".to_owned()),
        Just("\"long\"".to_owned()),
        Just("\"float\"".to_owned()),
        Just("\"double\"".to_owned()),
        Just("\"bytes\"".to_owned()),
        Just("\"string\"".to_owned()),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(|of| format!(r#"{{"type":"array","items":{of}}}"#)),
            inner.clone().prop_map(|of| format!(r#"{{"type":"map","values":{of}}}"#)),
            proptest::collection::vec(inner.clone(), 1..4).prop_map(|all| format!("[{}]", all.join(","))),
            proptest::collection::btree_map("[xyz]", (inner, any::<bool>()), 1..4).prop_map(|fields| {
                let fields: Vec<String> = fields
                    .iter()
                    .map(|(name, (ty, has_default))| {
                        let default = if *has_default { default_of(ty) } else { None };
                        let default = default.map(|value| format!(",\"default\":{value}")).unwrap_or_default();
                        format!(r#"{{"name":"{name}","type":{ty}{default}}}"#)
                    })
                    .collect();
                format!(r#"{{"type":"record","name":"R@","fields":[{}]}}"#, fields.join(","))
            }),
            (0u8..7).prop_map(|mask| {
                let symbols: Vec<&str> = ["\"A\"", "\"B\"", "\"C\""]
                    .into_iter()
                    .enumerate()
                    .filter(|(i, _)| mask & (1 << i) == 0)
                    .map(|(_, s)| s)
                    .collect();
                format!(r#"{{"type":"enum","name":"E@","symbols":[{}]}}"#, symbols.join(","))
            }),
            (1u8..3).prop_map(|size| format!(r#"{{"type":"fixed","name":"F@","size":{size}}}"#)),
        ]
    })
    .prop_map(|text| {
        // Every named type is another one, by its place.
        let mut out = String::new();
        for (i, piece) in text.split('@').enumerate() {
            if i > 0 {
                out.push_str(&i.to_string());
            }
            out.push_str(piece);
        }
        out
    })
}

fn default_of(ty: &str) -> Option<&'static str> {
    Some(match ty {
        "\"null\"" => "null",
        "\"boolean\"" => "true",
        "\"int\"" | "\"long\"" => "1",
        "\"float\"" | "\"double\"" => "1.5",
        "\"bytes\"" | "\"string\"" => "\"a\"",
        _ if ty.starts_with(r#"{"type":"array""#) => "[]",
        _ if ty.starts_with(r#"{"type":"map""#) => "{}",
        _ => return None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// apache-avro says "partly" where some of the writer's values cannot be
    /// read: for Confluent that is incompatible.
    #[test]
    fn apache_avro_comes_to_the_same_verdict(reader in any_schema(), writer in any_schema()) {
        use apache_avro::schema_compatibility::{Compatibility, SchemaCompatibility};
        let (Ok(theirs), Ok(other)) = (apache_avro::Schema::parse_str(&reader), apache_avro::Schema::parse_str(&writer)) else {
            return Ok(());
        };
        let ours = told(&reader, &writer, Level::Backward);
        let verdict = match SchemaCompatibility::can_read(&other, &theirs) {
            Ok(Compatibility::Full) => true,
            Ok(Compatibility::Partial) | Err(_) => false,
        };
        prop_assert_eq!(ours.is_empty(), verdict, "reader {} writer {}: {:?}", reader, writer, ours);
    }

    #[test]
    fn a_schema_always_reads_itself(schema in any_schema()) {
        if Avro::parse(&schema, &[], true).is_ok() {
            prop_assert_eq!(told(&schema, &schema, Level::Full), Vec::<String>::new());
        }
    }
}
