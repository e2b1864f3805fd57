//! Our verdict against real reads: values are written under one schema and
//! read under the other by apache-avro's resolving decoder.
//!
//! Of each writer's type, values are written that reach every branch, every
//! symbol, every element, and the ends of every range: so "all of them can be
//! read" is what BACKWARD means. Pairs are neighbours: the reader is the writer
//! with a few things changed, else nearly all would differ at their root.
//!
//! Where apache-avro is known to read more than Avro's rules let a reader read,
//! and why, stands in `reads_too_much`; where it reads less, in the generators:
//! aliases are not used, for its decoder does not look at those of fields; texts
//! are UTF-8, for bytes that are not are an error of the value's, not of the schemas.

use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use proptest::prelude::*;

use super::*;

const PRIMITIVES: [&str; 8] = ["null", "boolean", "int", "long", "float", "double", "bytes", "string"];
const SYMBOLS: [&str; 4] = ["A", "B", "C", "D"];
/// Not a symbol, no number, and as long as no fixed.
const TEXT: &str = "Straße 12";

/// A type that can be written down, changed, and has values.
#[derive(Clone, Debug)]
enum Type {
    Primitive(usize),
    Array(Box<Type>),
    Map(Box<Type>),
    Union(Vec<Type>),
    Record {
        name: u32,
        fields: Vec<Field>,
    },
    /// `["null", R]`, where R is the record around it.
    Itself(u32),
    Enum {
        name: u32,
        symbols: u8,
        default: bool,
    },
    Fixed {
        name: u32,
        size: u8,
    },
}

#[derive(Clone, Debug)]
struct Field {
    name: char,
    ty: Type,
    default: bool,
}

impl Type {
    fn json(&self) -> serde_json::Value {
        use serde_json::json;
        match self {
            Type::Primitive(of) => json!(PRIMITIVES[*of]),
            Type::Array(of) => json!({"type": "array", "items": of.json()}),
            Type::Map(of) => json!({"type": "map", "values": of.json()}),
            Type::Union(all) => all.iter().map(Type::json).collect(),
            Type::Record { name, fields } => {
                let field = |field: &Field| {
                    let mut json = json!({"name": field.name.to_string(), "type": field.ty.json()});
                    if let Some(default) = field.default.then(|| field.ty.default()).flatten() {
                        json["default"] = default;
                    }
                    json
                };
                json!({"type": "record", "name": format!("R{name}"), "fields": fields.iter().map(field).collect::<Vec<_>>()})
            }
            Type::Itself(name) => json!(["null", format!("R{name}")]),
            Type::Enum { name, default, .. } => {
                let symbols = self.symbols();
                let mut json = json!({"type": "enum", "name": format!("E{name}"), "symbols": symbols});
                if *default {
                    json["default"] = symbols[0].into();
                }
                json
            }
            Type::Fixed { name, size } => json!({"type": "fixed", "name": format!("F{name}"), "size": size}),
        }
    }

    fn symbols(&self) -> Vec<&'static str> {
        let Type::Enum { symbols, .. } = self else { return Vec::new() };
        (0..SYMBOLS.len()).filter(|i| symbols & (1 << i) != 0).map(|i| SYMBOLS[i]).collect()
    }

    /// A default that fits, for types that have a simple one.
    fn default(&self) -> Option<serde_json::Value> {
        use serde_json::json;
        match self {
            Type::Primitive(of) => Some(
                [json!(null), json!(true), json!(1), json!(2), json!(0.5), json!(1.5), json!("a"), json!("b")][*of]
                    .clone(),
            ),
            Type::Array(_) => Some(json!([])),
            Type::Map(_) => Some(json!({})),
            Type::Union(all) => all.first()?.default(),
            Type::Itself(_) => Some(json!(null)),
            Type::Enum { .. } => Some(json!(self.symbols()[0])),
            Type::Record { .. } | Type::Fixed { .. } => None,
        }
    }

    /// Values that reach everything, and a number of the caller's among them.
    fn values(&self, around: &[&Type], deep: u8, number: i64) -> Vec<Value> {
        match self {
            Type::Primitive(of) => match PRIMITIVES[*of] {
                "null" => vec![Value::Null],
                "boolean" => vec![Value::Boolean(number % 2 == 0)],
                "int" => [i32::MIN, number as i32, i32::MAX].map(Value::Int).into(),
                "long" => [i64::MIN, number, i64::MAX].map(Value::Long).into(),
                "float" => [f32::MIN, number as f32, 0.1].map(Value::Float).into(),
                "double" => [f64::MIN, number as f64, 0.1].map(Value::Double).into(),
                "bytes" => vec![Value::Bytes(TEXT.into()), Value::Bytes(number.to_string().into())],
                _ => vec![Value::String(TEXT.into()), Value::String(format!("x{number}"))],
            },
            Type::Array(of) => vec![Value::Array(of.values(around, deep, number)), Value::Array(Vec::new())],
            Type::Map(of) => {
                let all = of.values(around, deep, number).into_iter().enumerate();
                vec![Value::Map(all.map(|(i, value)| (format!("k{i}"), value)).collect())]
            }
            Type::Union(all) => {
                let of = |(i, ty): (usize, &Type)| {
                    ty.values(around, deep, number)
                        .into_iter()
                        .map(move |value| Value::Union(i as u32, Box::new(value)))
                };
                all.iter().enumerate().flat_map(of).collect()
            }
            Type::Record { fields, .. } => {
                let around: Vec<&Type> = around.iter().copied().chain([self]).collect();
                let all: Vec<Vec<Value>> = fields.iter().map(|field| field.ty.values(&around, deep, number)).collect();
                let most = all.iter().map(Vec::len).max().unwrap_or(1);
                let row = |i: usize| {
                    let value = |(field, values): (&Field, &Vec<Value>)| {
                        (field.name.to_string(), values[i % values.len()].clone())
                    };
                    Value::Record(fields.iter().zip(&all).map(value).collect())
                };
                (0..most).map(row).collect()
            }
            Type::Itself(name) => {
                let nothing = Value::Union(0, Box::new(Value::Null));
                let is_it = |ty: &&&Type| matches!(ty, Type::Record { name: other, .. } if other == name);
                // Once around is enough to find what does not fit.
                let place = around.iter().position(|ty| is_it(&ty)).filter(|_| deep > 0);
                let Some(place) = place else { return vec![nothing] };
                let inner = around[place].values(&around[..place], deep - 1, number);
                inner.into_iter().map(|value| Value::Union(1, Box::new(value))).chain([nothing]).collect()
            }
            Type::Enum { .. } => {
                let symbols = self.symbols();
                symbols.iter().enumerate().map(|(i, symbol)| Value::Enum(i as u32, (*symbol).into())).collect()
            }
            // Not UTF-8.
            Type::Fixed { size, .. } => vec![Value::Fixed(usize::from(*size), vec![0xff; usize::from(*size)])],
        }
    }

    /// Changes one thing somewhere; `choice` says where and what.
    fn change(&mut self, choice: &mut Choice) {
        let go_in = choice.of(3) > 0;
        match self {
            Type::Array(of) | Type::Map(of) if go_in => of.change(choice),
            Type::Union(all) if go_in && !all.is_empty() => {
                let at = choice.of(all.len());
                match choice.of(4) {
                    0 if all.len() > 1 => drop(all.remove(at)),
                    1 => all.push(Type::Primitive(choice.of(8))),
                    2 => all.rotate_left(1),
                    _ => all[at].change(choice),
                }
            }
            Type::Record { name, fields } if go_in && !fields.is_empty() => {
                let at = choice.of(fields.len());
                match choice.of(8) {
                    0 => drop(fields.remove(at)),
                    1 => fields.rotate_left(1),
                    2 => fields[at].default ^= true,
                    3 => *name += 100,
                    4 => {
                        fields.push(Field { name: 'w', ty: Type::Primitive(choice.of(8)), default: choice.of(2) == 0 })
                    }
                    _ => fields[at].ty.change(choice),
                }
            }
            Type::Enum { name, symbols, default } if go_in => match choice.of(4) {
                0 => *name += 100,
                1 => *default ^= true,
                _ => *symbols = (*symbols ^ (1 << choice.of(4))).max(1),
            },
            Type::Fixed { name, size } if go_in => match choice.of(2) {
                0 => *name += 100,
                _ => *size += 1,
            },
            Type::Primitive(of) => *of = choice.of(8),
            _ => {
                *self = match choice.of(3) {
                    0 => Type::Primitive(choice.of(8)),
                    1 => Type::Union(vec![Type::Primitive(0), self.clone()]),
                    _ => Type::Array(Box::new(self.clone())),
                }
            }
        }
    }
}

/// Numbers drawn from one.
struct Choice(u64);

impl Choice {
    fn of(&mut self, many: usize) -> usize {
        let (rest, drawn) = (self.0 / many as u64, self.0 % many as u64);
        self.0 = rest.wrapping_mul(31).wrapping_add(drawn).wrapping_add(0x9e37_79b9);
        drawn as usize
    }
}

fn any_type() -> impl Strategy<Value = Type> {
    let leaf = prop_oneof![
        4 => (0usize..8).prop_map(Type::Primitive),
        1 => (1u8..16, any::<bool>()).prop_map(|(symbols, default)| Type::Enum { name: 0, symbols, default }),
        1 => (1u8..4).prop_map(|size| Type::Fixed { name: 0, size }),
    ];
    let nested = leaf.prop_recursive(3, 16, 4, |inner| {
        let field = (inner.clone(), any::<bool>(), 0u8..8);
        prop_oneof![
            1 => inner.clone().prop_map(|of| Type::Array(Box::new(of))),
            1 => inner.clone().prop_map(|of| Type::Map(Box::new(of))),
            1 => proptest::collection::vec(inner, 1..4).prop_map(Type::Union),
            3 => proptest::collection::vec(field, 1..5).prop_map(|fields| {
                let field = |(i, (ty, default, kind)): (usize, (Type, bool, u8))| {
                    let ty = if kind == 0 { Type::Itself(0) } else { ty };
                    Field { name: ['x', 'y', 'z', 'v'][i], ty, default }
                };
                Type::Record { name: 0, fields: fields.into_iter().enumerate().map(field).collect() }
            }),
        ]
    });
    nested.prop_map(|mut ty| {
        name(&mut ty, &mut 0, 0);
        ty
    })
}

/// Gives every named type a name of its own.
fn name(ty: &mut Type, next: &mut u32, around: u32) {
    match ty {
        Type::Primitive(_) => {}
        Type::Array(of) | Type::Map(of) => name(of, next, around),
        Type::Union(all) => all.iter_mut().for_each(|ty| name(ty, next, around)),
        Type::Itself(of) => *of = around,
        Type::Enum { name, .. } | Type::Fixed { name, .. } => {
            *next += 1;
            *name = *next;
        }
        Type::Record { name: own, fields } => {
            *next += 1;
            *own = *next;
            let own = *own;
            fields.iter_mut().for_each(|field| name(&mut field.ty, next, own));
        }
    }
}

/// Whether apache-avro is known to read in spite of a violation.
fn reads_too_much(violation: &Violation, reader: &str) -> bool {
    match violation.kind {
        // Its decoder does not compare names at all.
        ViolationKind::NameMismatch => true,
        ViolationKind::TypeMismatch => [
            // Narrowed, with what is lost lost.
            ("FLOAT", "DOUBLE"),
            // A text is taken for a symbol (and the default where it is none)
            // and for a fixed of whatever length it has.
            ("ENUM", "STRING"),
            ("FIXED", "STRING"),
            // Keys are taken for fields: enough where all have defaults.
            ("RECORD", "MAP"),
        ]
        .iter()
        .any(|(r, w)| violation.detail == format!("reader type: {r} not compatible with writer type: {w}")),
        // A branch is found by trying them all, with all the above.
        ViolationKind::MissingUnionBranch => {
            let writer = violation.detail.rsplit(' ').next().unwrap_or_default();
            let near = match writer {
                "DOUBLE" => "\"float\"",
                "STRING" => "\"enum\"|\"fixed\"",
                // Without their names, or with another that happens to fit.
                "RECORD" => "\"record\"",
                "ENUM" => "\"enum\"",
                "FIXED" => "\"fixed\"",
                // What they hold may be any of these.
                "ARRAY" | "MAP" | "UNION" => "\"float\"|\"enum\"|\"fixed\"|\"record\"",
                _ => return false,
            };
            near.split('|').any(|near| reader.contains(near))
        }
        _ => false,
    }
}

fn schemas(reader: &Type, writer: &Type) -> Option<(String, String)> {
    let (reader, writer) = (reader.json().to_string(), writer.json().to_string());
    // A union may hold two of a kind, a record two fields of a name.
    let valid = |text: &str| Avro::parse(text, &[], true).is_ok() && apache_avro::Schema::parse_str(text).is_ok();
    (valid(&reader) && valid(&writer)).then_some((reader, writer))
}

/// What cannot be read, and why; None: everything can.
fn unread(reader: &str, writer: &str, values: Vec<Value>) -> Option<String> {
    let theirs = |text: &str| apache_avro::Schema::parse_str(text).expect("it was parsed before");
    let (reader, writer) = (theirs(reader), theirs(writer));
    let write = GenericDatumWriter::builder(&writer).build().expect("a writer");
    let read = GenericDatumReader::builder(&writer).reader_schema(&reader).build().expect("a reader");
    values.into_iter().find_map(|value| {
        let bytes = write.write_value_to_vec(value.clone()).unwrap_or_else(|error| panic!("{value:?}: {error}"));
        read.read_value(&mut &bytes[..]).err().map(|error| format!("{value:?}: {error}"))
    })
}

#[derive(Debug, PartialEq)]
enum Opinion {
    Both(bool),
    /// Not valid, or a known disagreement.
    None,
}

fn compared(reader: &Type, writer: &Type, number: i64) -> Result<Opinion, TestCaseError> {
    let Some((r, w)) = schemas(reader, writer) else { return Ok(Opinion::None) };
    let ours = compare(&parse(&r), &parse(&w), Level::Backward, &Budget::new(None)).unwrap();
    let theirs = unread(&r, &w, writer.values(&[], 1, number));
    match (&ours[..], theirs) {
        ([], None) => Ok(Opinion::Both(true)),
        ([], Some(why)) => Err(TestCaseError::fail(format!("we say yes: reader {r} writer {w}: {why}"))),
        (_, Some(_)) => Ok(Opinion::Both(false)),
        (all, None) => {
            let unexplained = all.iter().find(|violation| !reads_too_much(violation, &r));
            match unexplained {
                None => Ok(Opinion::None),
                Some(why) => Err(TestCaseError::fail(format!("we say no: reader {r} writer {w}: {why}"))),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_compatible_can_be_read(writer in any_type(), changes in proptest::collection::vec(any::<u64>(), 0..3), number: i64) {
        let mut reader = writer.clone();
        changes.into_iter().for_each(|change| reader.change(&mut Choice(change)));
        compared(&reader, &writer, number)?;
    }

    #[test]
    fn strangers_agree_too(writer in any_type(), reader in any_type(), number: i64) {
        compared(&reader, &writer, number)?;
    }
}

/// The property would be worth nothing if most pairs were passed over.
#[test]
fn both_have_an_opinion_mostly() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut yes, mut no, mut none) = (0, 0, 0);
    for change in 0..1_000u64 {
        let writer = any_type().new_tree(&mut runner).unwrap().current();
        let mut reader = writer.clone();
        reader.change(&mut Choice(change.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        match compared(&reader, &writer, 7).unwrap() {
            Opinion::Both(true) => yes += 1,
            Opinion::Both(false) => no += 1,
            Opinion::None => none += 1,
        }
    }
    assert!(yes > 200 && no > 200, "{yes} yes, {no} no, {none} without");
}
