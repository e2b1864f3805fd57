use super::*;

fn canonical(text: &str) -> String {
    Avro::parse(text, &[], true).unwrap().text(Form::Canonical).unwrap()
}

fn why_not(text: &str) -> String {
    Avro::parse(text, &[], true).unwrap_err()
}

#[test]
fn what_means_the_same_has_one_text() {
    let check = |text: &str, expected: &str| {
        let once = canonical(text);
        assert_eq!(once, expected, "{text}");
        assert_eq!(canonical(&once), once, "the text of the text is itself");
    };
    check(" { \"type\" : \"string\" } ", r#""string""#);
    check(r#"{"type":"string","avro.java.string":"String"}"#, r#"{"type":"string","avro.java.string":"String"}"#);
    check(
        r#"{"fields":[{"type":{"type":"int"},"name":"x","order":"ascending"}],"name":"a.B","type":"record"}"#,
        r#"{"type":"record","name":"B","namespace":"a","fields":[{"name":"x","type":"int"}]}"#,
    );
    check(
        r#"{"type":"record","name":"B","namespace":"a","doc":"d","p":1,"aliases":["a.O","z.P"],"fields":[
            {"name":"x","default":null,"type":["null","B"],"q":{"b":1,"a":2},"doc":"e","aliases":["y"],"order":"ignore"}]}"#,
        r#"{"type":"record","name":"B","namespace":"a","doc":"d","fields":[{"name":"x","type":["null","B"],"doc":"e","default":null,"order":"ignore","aliases":["y"],"q":{"b":1,"a":2}}],"p":1,"aliases":["O","z.P"]}"#,
    );
    check(
        r#"{"type":"enum","name":"E","symbols":["A","B"],"default":"B"}"#,
        r#"{"type":"enum","name":"E","symbols":["A","B"],"default":"B"}"#,
    );
    check(
        r#"{"type":"fixed","name":"n.F","size":8,"logicalType":"decimal","precision":99}"#,
        r#"{"type":"fixed","name":"F","namespace":"n","size":8,"logicalType":"decimal","precision":99}"#,
    );
    check("[]", "[]");
    // A type without namespace inside of one with.
    check(
        r#"{"type":"record","name":"a.B","fields":[{"name":"x","type":{"type":"fixed","name":"F","namespace":"","size":1}},{"name":"y","type":"F"}]}"#,
        r#"{"type":"record","name":"B","namespace":"a","fields":[{"name":"x","type":{"type":"fixed","name":"F","namespace":"","size":1}},{"name":"y","type":"F"}]}"#,
    );
    check(r#"{"type":"array","items":"int","x":[1.50]}"#, r#"{"type":"array","items":"int","x":[1.5]}"#);
    check(r#"{"type":"error","name":"E","fields":[]}"#, r#"{"type":"error","name":"E","fields":[]}"#);
}

#[test]
fn a_type_defined_twice_alike_is_taken_and_differently_not() {
    let twice = |a: &str, b: &str| {
        format!(
            r#"{{"type":"record","name":"R","fields":[{{"name":"x","type":{{"type":"fixed","name":"F","size":{a}}}}},{{"name":"y","type":{{"type":"fixed","name":"F","size":{b}}}}}]}}"#
        )
    };
    assert_eq!(
        canonical(&twice("4", "4")),
        r#"{"type":"record","name":"R","fields":[{"name":"x","type":{"type":"fixed","name":"F","size":4}},{"name":"y","type":"F"}]}"#
    );
    assert_eq!(why_not(&twice("4", "5")), "R.y: \"F\" is defined twice, differently");
    let inside =
        r#"{"type":"record","name":"R","fields":[{"name":"x","type":{"type":"record","name":"R","fields":[]}}]}"#;
    assert!(why_not(inside).contains("defined twice"));
}

#[test]
fn normalized_has_full_names_and_sorted_properties() {
    let text = r#"{"type":"record","name":"B","namespace":"a","z":1,"b":2,"fields":[{"name":"x","type":["null","B"],"q":1,"c":2}]}"#;
    let normalized = Avro::parse(text, &[], true).unwrap().text(Form::Normalized).unwrap();
    assert_eq!(
        normalized,
        r#"{"type":"record","name":"a.B","fields":[{"name":"x","type":["null","a.B"],"c":2,"q":1}],"b":2,"z":1}"#
    );
    assert_eq!(Avro::parse(&normalized, &[], true).unwrap().text(Form::Normalized).unwrap(), normalized);
}

#[test]
fn types_of_references_are_known_by_name_and_can_be_put_in() {
    let inner = r#"{"type":"record","name":"a.In","fields":[{"name":"i","type":"int"}]}"#;
    let outer = r#"{"type":"record","name":"a.Out","fields":[{"name":"x","type":"In"},{"name":"y","type":"a.In"}]}"#;
    assert!(why_not(outer).contains("\"In\" is not defined"));
    let avro = Avro::parse(outer, &[Reference { text: inner }], true).unwrap();
    assert_eq!(
        avro.text(Form::Canonical).unwrap(),
        r#"{"type":"record","name":"Out","namespace":"a","fields":[{"name":"x","type":"In"},{"name":"y","type":"In"}]}"#
    );
    assert_eq!(
        avro.text(Form::Resolved).unwrap(),
        r#"{"type":"record","name":"Out","namespace":"a","fields":[{"name":"x","type":{"type":"record","name":"In","fields":[{"name":"i","type":"int"}]}},{"name":"y","type":"In"}]}"#
    );
}

#[test]
fn what_is_no_schema_is_told_where_and_why() {
    let check = |text: &str, why: &str| assert_eq!(why_not(text), why, "{text}");
    let record = |field: &str| format!(r#"{{"type":"record","name":"R","fields":[{field}]}}"#);
    check("", "the schema is empty");
    check("3", "3 is no type");
    check("\"strin\"", "type \"strin\" is not defined");
    check("{}", "has no \"type\"");
    check(r#"{"type":"record","name":"R"}"#, "record \"R\" has no list \"fields\"");
    check(r#"{"type":"record","fields":[]}"#, "has no \"name\"");
    check(r#"{"type":"record","name":"int","fields":[]}"#, "\"int\" is a type of Avro's own");
    check(
        r#"{"type":"record","name":"1x","fields":[]}"#,
        "\"1x\" is no name: letters of ASCII, digits and _, not a digit first",
    );
    check(&record(r#"{"name":"a-b","type":"int"}"#), "R: \"a-b\" is no name of a field");
    check(&record(r#"{"name":"x"}"#), "R.x: has no \"type\"");
    check(&record(r#"{"name":"x","type":"int"},{"name":"x","type":"int"}"#), "record \"R\" has field \"x\" twice");
    check(&record(r#"{"name":"x","type":"int","default":"a"}"#), "R.x: the default \"a\" is none of type int");
    check(
        &record(r#"{"name":"x","type":"int","default":2147483648}"#),
        "R.x: the default 2147483648 is none of type int",
    );
    check(
        &record(r#"{"name":"x","type":["null","int"],"default":"a"}"#),
        "R.x: the default \"a\" is none of type union",
    );
    check(
        &record(r#"{"name":"x","type":{"type":"array","items":["int",["int"]]}}"#),
        "R.x: a union may not hold a union",
    );
    check(r#"["int","int"]"#, "a union holds \"int\" twice");
    check(r#"{"type":"enum","name":"E","symbols":["A","A"]}"#, "enum \"E\" has symbol \"A\" twice");
    check(
        r#"{"type":"enum","name":"E","symbols":["A"],"default":"B"}"#,
        "enum \"E\" has no symbol \"B\", which is its default",
    );
    check(r#"{"type":"fixed","name":"F","size":-1}"#, "fixed \"F\" has no valid \"size\"");
    check(r#"{"type":"array"}"#, "array has no \"items\"");
    assert!(why_not("{\"type\":").starts_with("it is not JSON: "));
    assert!(why_not("\"int\" x").starts_with("it is not JSON: "));
    // As the reference: any branch of a union, odd decimals, defaults of records in themselves.
    canonical(&record(r#"{"name":"x","type":["null","int"],"default":3}"#));
    canonical(&record(r#"{"name":"x","type":{"type":"bytes","logicalType":"decimal","precision":2147483648}}"#));
    canonical(&record(r#"{"name":"x","type":["null","R"],"default":null}"#));
    canonical(&record(r#"{"name":"x","type":"R","default":{}}"#));
    // What is there already, or imported, is not looked at so closely.
    Avro::parse(&record(r#"{"name":"a-b","type":"int","default":"x"}"#), &[], false).unwrap();
}

#[test]
fn bombs_are_refused_in_little_time_and_stack() {
    let small = std::thread::Builder::new().stack_size(1 << 20);
    let bombs = || {
        let nested = |n: usize| format!("{}\"int\"{}", "{\"type\":\"array\",\"items\":".repeat(n), "}".repeat(n));
        canonical(&nested(200));
        assert_eq!(why_not(&nested(1_001)), "it is nested deeper than 256");
        assert!(why_not(&"[".repeat(1_000_000)).contains("deeper"));
        let names = (0..10_000).map(|i| format!(r#"{{"type":"record","name":"R{i}","fields":[]}}"#));
        let union = format!("[{}]", names.collect::<Vec<_>>().join(","));
        assert!(canonical(&union).len() > 300_000);
        // A chain of types: shallow as text, deep in meaning.
        let chain = (1..10_000)
            .map(|i| format!(r#"{{"type":"record","name":"R{i}","fields":[{{"name":"f","type":"R{}"}}]}}"#, i - 1));
        let chain = format!(r#"[{{"type":"record","name":"R0","fields":[]}},{}]"#, chain.collect::<Vec<_>>().join(","));
        canonical(&chain);
        let types: Vec<String> = (0..5_000)
            .map(|i| match i {
                0 => r#"{"type":"record","name":"R0","fields":[]}"#.to_owned(),
                i => format!(r#"{{"type":"record","name":"R{i}","fields":[{{"name":"f","type":"R{}"}}]}}"#, i - 1),
            })
            .collect();
        let references: Vec<Reference<'_>> = types.iter().map(|text| Reference { text }).collect();
        assert_eq!(Avro::parse("\"R4999\"", &references, true).unwrap().text(Form::Resolved), None);
    };
    small.spawn(bombs).unwrap().join().unwrap();
}

proptest::proptest! {
    #[test]
    fn hostile_text_never_panics(text in "[\\[\\]{}\",:a-z0-9 ]{0,200}") {
        let _ = Avro::parse(&text, &[], true);
    }
}
