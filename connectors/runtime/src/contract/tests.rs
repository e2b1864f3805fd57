use config::Rule;
use connector::{Batch, BatchWriter, RowExtras, put_bytes, put_long};
use storage::{Frame, Kind, Micros, Offset, OffsetRange};

use super::*;

fn table() -> Table {
    let column = |id, name: &str, ty, db_type: &str| Column {
        name: name.into(),
        ty,
        db_type: db_type.into(),
        nullable: true,
        id,
    };
    Table {
        source: "shop".into(),
        schema: "public".into(),
        name: "orders".into(),
        kind: TableKind::Table,
        columns: vec![
            column(1, "id", Type::Int, "integer"),
            column(2, "amount", Type::Decimal { precision: 12, scale: 2 }, "numeric(12,2)"),
            column(3, "tags", Type::Array(Box::new(Type::String)), "text[]"),
            column(4, "status", Type::String, "text"),
            column(5, "rate", Type::String, "numeric"),
            column(6, "at", Type::Timestamp, "timestamp with time zone"),
        ],
        key: vec![0],
        full_identity: false,
    }
}

fn contract(rules: Vec<(&str, Must)>) -> Contract {
    let rule = |(column, must): (&str, Must)| Rule { column: column.into(), must, place: format!("x: {column}") };
    Contract { rules: rules.into_iter().map(rule).collect() }
}

fn bounds(min: &str, max: &str) -> Must {
    let bound = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Must::Range { min: bound(min), max: bound(max) }
}

/// Of a row: amount, status, rate, at; None is null.
fn broken(
    check: &Check,
    row: (Option<&str>, Option<&str>, Option<&str>, Option<i64>),
    absent: &[u8],
) -> Option<String> {
    let mut writer = BatchWriter::new();
    writer.begin(&[1], Micros(0), "1", 0);
    let body = writer.open_row(1);
    put_long(body, 7);
    match row.0 {
        Some(amount) => {
            body.push(2);
            decimal_from_text(body, amount.as_bytes(), 2).unwrap();
        }
        None => body.push(0),
    }
    body.push(2);
    put_long(body, 1);
    body.push(2);
    put_bytes(body, b"a tag");
    put_long(body, 0);
    for text in [row.1, row.2] {
        match text {
            Some(text) => {
                body.push(2);
                put_bytes(body, text.as_bytes());
            }
            None => body.push(0),
        }
    }
    match row.3 {
        Some(at) => {
            body.push(2);
            put_long(body, at);
        }
        None => body.push(0),
    }
    let absent = (!absent.is_empty()).then_some(absent);
    writer.close_row(Op::Update, RowExtras { absent, ..RowExtras::default() });
    let (payload, records) = writer.take().unwrap();
    let offsets = OffsetRange { start: Offset(0), end: Offset(records.into()) };
    let batch = Batch::new(Frame {
        offsets,
        kind: Kind::Data,
        ends_transaction: true,
        event_time: Micros(0),
        payload,
        position: None,
    });
    let run = batch.runs().next().unwrap().unwrap();
    let change = run.changes().next().unwrap().unwrap();
    check.broken(change.op, change.value, change.absent_bits()).unwrap().map(str::to_owned)
}

#[test]
fn a_row_that_breaks_a_rule_is_told_from_one_that_does_not() {
    let contract = contract(vec![
        ("amount", bounds("0", "999.99")),
        ("status", Must::BePresent),
        ("status", Must::BeOneOf(vec!["new".into(), "paid".into()])),
        ("status", Must::Match("^[a-z]+$".into())),
        ("rate", bounds("-0.5", "")),
        ("at", bounds("2020-01-01", "2030-12-31T23:59:59Z")),
        ("rate", Must::BeKey),
    ]);
    let (check, unfitting) = Check::compile(&contract, &table());
    assert_eq!(unfitting, []);
    let good = (Some("999.99"), Some("new"), Some("-0.50"), timestamp("2024-02-29"));
    assert_eq!(broken(&check, good, &[]), None);
    let cases = [
        ((Some("-0.01"), good.1, good.2, good.3), &[][..], Some("column \"amount\" is not between 0 and 999.99")),
        ((Some("1000"), good.1, good.2, good.3), &[], Some("column \"amount\" is not between 0 and 999.99")),
        ((None, good.1, good.2, None), &[], None),
        ((good.0, None, good.2, good.3), &[], Some("column \"status\" is null")),
        ((good.0, Some("sent"), good.2, good.3), &[], Some("column \"status\" is not one of the allowed values")),
        ((good.0, good.1, Some("-0.51"), good.3), &[], Some("column \"rate\" is less than -0.5")),
        ((good.0, good.1, Some("NaN"), good.3), &[], Some("column \"rate\" is less than -0.5")),
        ((good.0, good.1, Some("100000000000000000000000000000000000000000"), good.3), &[], None),
        (
            (good.0, good.1, good.2, Some(i64::MAX)),
            &[],
            Some("column \"at\" is not between 2020-01-01 and 2030-12-31T23:59:59Z"),
        ),
        // A status that was not sent may be anything; a key must be told.
        ((good.0, None, good.2, good.3), &[0b1000], None),
        ((good.0, good.1, None, good.3), &[0b1_0000], Some("column \"rate\" is null or not told, and part of the key")),
    ];
    for (row, absent, expected) in cases {
        assert_eq!(broken(&check, row, absent).as_deref(), expected, "{row:?}");
    }
}

#[test]
fn rules_that_do_not_fit_are_told_with_their_place() {
    let rules = vec![
        ("nothing", Must::BePresent),
        ("tags", bounds("1", "")),
        ("amount", bounds("a lot", "")),
        ("amount", bounds("0.001", "")),
        ("id", Must::Match("x".into())),
        ("status", Must::Match("(".into())),
        ("at", bounds("yesterday", "")),
        ("tags", Must::BeOneOf(vec!["x".into()])),
    ];
    let count = rules.len();
    let (check, unfitting) = Check::compile(&contract(rules), &table());
    assert_eq!(unfitting.len(), count);
    assert_eq!(unfitting[0].place, "x: nothing");
    assert!(unfitting[0].what.contains("no column \"nothing\""), "{}", unfitting[0].what);
    // What is required and not there, no row has.
    let row = (None, None, None, None);
    assert_eq!(broken(&check, row, &[]).as_deref(), Some("column \"nothing\" is required and not there"));
}

#[test]
fn numbers_of_any_length_are_compared() {
    for (a, b, expected) in [
        ("1", "1.0", Ordering::Equal),
        ("-0", "0.00", Ordering::Equal),
        ("0010", "9", Ordering::Greater),
        ("-10", "-9", Ordering::Less),
        ("0.09", "0.1", Ordering::Less),
        ("-0.1", "0", Ordering::Less),
        ("123456789012345678901234567890", "123456789012345678901234567890.5", Ordering::Less),
    ] {
        assert_eq!(compare(a.as_bytes(), b.as_bytes()), Some(expected), "{a} {b}");
    }
    for none in ["", "-", "NaN", "1e5", "Infinity", "1.2.3"] {
        assert_eq!(compare(none.as_bytes(), b"1"), None, "{none}");
    }
}
