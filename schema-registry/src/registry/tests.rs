use serde_json::json;

use super::*;
use crate::content::{NewSchema, Parsed, Reference};

#[derive(Default)]
struct Bench {
    registry: Registry,
}

impl Bench {
    fn apply<T>(&mut self, planned: Result<(T, Vec<Change>), Refusal>) -> Result<T, Code> {
        let (answer, changes) = planned.map_err(|refusal| refusal.code)?;
        for change in &changes {
            self.registry.apply(change);
            // Twice does no harm.
            self.registry.apply(change);
        }
        // The registry is what its changes make of it.
        let mut again = Registry::default();
        self.registry.dump().iter().for_each(|change| again.apply(change));
        assert_eq!(again.dump(), self.registry.dump());
        assert_eq!(again.count(), self.registry.count());
        Ok(answer)
    }

    fn register(&mut self, name: &str, new: NewSchema) -> Result<(u32, u32), Code> {
        let subject = subject(name);
        let refused = |refusal: Refusal| refusal.code;
        let demand = self.registry.demand(&subject, &new, false).map_err(refused)?;
        let parsed = Parsed::new(&new, demand.resolved, &demand.references, demand.normalize, demand.strict);
        let mode = self.registry.mode(&subject);
        let planned = self.registry.plan_register(&subject, &new, &parsed.map_err(refused)?, mode);
        self.apply(planned).map(|registered| (registered.id, registered.version))
    }

    fn avro(&mut self, name: &str, text: &str) -> Result<(u32, u32), Code> {
        self.register(name, NewSchema::avro(text))
    }

    fn delete(&mut self, name: &str, permanent: bool) -> Result<Vec<u32>, Code> {
        let planned = self.registry.plan_delete_subject(&subject(name), permanent);
        self.apply(planned)
    }

    fn delete_version(&mut self, name: &str, version: u32, permanent: bool) -> Result<u32, Code> {
        let planned = self.registry.plan_delete_version(&subject(name), Which::Number(version), permanent);
        self.apply(planned)
    }

    fn mode(&mut self, scope: Option<&str>, mode: &str, force: bool) -> Result<(), Code> {
        let scope = scope.map(|scope| Subject::scope(scope).unwrap());
        let planned = self.registry.plan_mode(scope.as_ref(), Some(mode), force);
        self.apply(planned.map(|changes| ((), changes)))
    }

    fn config(&mut self, scope: Option<&str>, request: Value) -> Result<Value, Code> {
        let scope = scope.map(|scope| Subject::scope(scope).unwrap());
        let planned = self.registry.plan_config(scope.as_ref(), request.as_object().unwrap()).unwrap();
        self.apply(planned).map(Value::Object)
    }

    fn versions(&self, name: &str, shown: Shown) -> Vec<u32> {
        self.registry.versions(&subject(name), shown).unwrap_or_default().iter().map(|v| v.version).collect()
    }

    fn uses(&self, id: u32, shown: Shown) -> Option<Vec<(&str, u32)>> {
        self.registry.uses(".", id, shown)
    }
}

use serde_json::Value;

fn subject(name: &str) -> Subject {
    Subject::parse(name).unwrap()
}

const INT: &str = "\"int\"";
const LONG: &str = "\"long\"";

fn referring(name: &str, version: i32) -> NewSchema {
    let references = vec![Reference { name: "In".into(), subject: name.into(), version }];
    let text = r#"{"type":"record","name":"Out","fields":[{"name":"x","type":"In"}]}"#;
    NewSchema { references: Some(references), ..NewSchema::avro(text) }
}

const IN: &str = r#"{"type":"record","name":"In","fields":[]}"#;

#[test]
fn a_schema_has_one_id_over_all_subjects_and_a_version_in_each() {
    let mut bench = Bench::default();
    assert_eq!(bench.avro("a", INT), Ok((1, 1)));
    assert_eq!(bench.avro("a", " { \"type\": \"int\" } "), Ok((1, 1)));
    assert_eq!(bench.avro("a", LONG), Ok((2, 2)));
    assert_eq!(bench.avro("b/with/slashes", LONG), Ok((2, 1)));
    assert_eq!(bench.avro("a", INT), Ok((1, 1)));
    assert_eq!(bench.registry.subjects(&Prefix::new(":*:"), Shown::Live), ["a", "b/with/slashes"]);
    assert_eq!(bench.uses(2, Shown::Live), Some(vec![("a", 2), ("b/with/slashes", 1)]));
    // Another context has ids of its own.
    assert_eq!(bench.avro(":.c:a", LONG), Ok((1, 1)));
    assert_eq!(bench.registry.contexts(), [".", ".c"]);
    // What is said about a schema makes another one.
    let tagged = NewSchema { metadata: Some(json!({"properties": {"a": "1"}})), ..NewSchema::avro(INT) };
    assert_eq!(bench.register("a", tagged.clone()), Ok((3, 3)));
    assert_eq!(bench.register("a", tagged), Ok((3, 3)));
    assert_eq!(bench.avro("a", INT), Ok((1, 1)), "as it is, where it is");
    assert_eq!(bench.avro("a", "\"in\""), Err(Code::InvalidSchema));
    let json = NewSchema { schema_type: Some("JSON".into()), ..NewSchema::avro("{}") };
    assert_eq!(bench.register("a", json), Err(Code::InvalidSchema));
}

#[test]
fn versions_and_ids_after_deletes() {
    let mut bench = Bench::default();
    bench.avro("a", INT).unwrap();
    bench.avro("a", LONG).unwrap();
    assert_eq!(bench.delete_version("a", 2, true), Err(Code::VersionNotSoftDeleted));
    assert_eq!(bench.delete_version("a", 2, false), Ok(2));
    assert_eq!(bench.delete_version("a", 2, false), Err(Code::VersionSoftDeleted));
    assert_eq!(bench.delete_version("a", 9, false), Err(Code::VersionNotFound));
    assert_eq!(bench.delete_version("zzz", 1, false), Err(Code::SubjectNotFound));
    assert_eq!(bench.versions("a", Shown::Live), [1]);
    assert_eq!(bench.versions("a", Shown::Deleted), [2]);
    assert!(bench.registry.schema(".", 2).is_some(), "softly deleted is readable");
    // The number is not given again while a soft delete remains.
    assert_eq!(bench.avro("a", "\"string\""), Ok((3, 3)));
    // A softly deleted schema comes back under its id, and the old version goes.
    assert_eq!(bench.avro("a", LONG), Ok((2, 4)));
    assert_eq!(bench.versions("a", Shown::All), [1, 3, 4]);
    // The highest, gone for good, frees its number but not its id.
    bench.delete_version("a", 4, false).unwrap();
    bench.delete_version("a", 4, true).unwrap();
    assert!(bench.registry.schema(".", 2).is_none());
    assert_eq!(bench.avro("a", LONG), Ok((4, 4)));
    assert_eq!(bench.delete("a", true), Err(Code::SubjectNotSoftDeleted));
    assert_eq!(bench.delete("a", false), Ok(vec![1, 3, 4]));
    assert_eq!(bench.delete("a", false), Err(Code::SubjectSoftDeleted));
    assert_eq!(bench.registry.subjects(&Prefix::new(":*:"), Shown::Live), Vec::<&str>::new());
    assert_eq!(bench.registry.subjects(&Prefix::new(":*:"), Shown::Deleted), ["a"]);
    bench.config(Some("a"), json!({"compatibility": "full"})).unwrap();
    assert_eq!(bench.delete("a", true), Ok(vec![1, 3, 4]));
    assert_eq!(bench.delete("a", true), Err(Code::SubjectNotFound));
    assert_eq!(bench.registry.config(Some(&subject("a")), false).unwrap_err().code, Code::LevelNotConfigured);
    assert_eq!(bench.avro("a", INT), Ok((5, 1)));
}

#[test]
fn what_is_referred_to_stays() {
    let mut bench = Bench::default();
    assert_eq!(bench.register("out", referring("in", 1)), Err(Code::InvalidSchema));
    bench.avro("in", IN).unwrap();
    bench.register("out", referring("in", -1)).unwrap();
    let found = bench.registry.version(&subject("out"), Which::Latest, Shown::Live).unwrap();
    assert_eq!(found.content.references[0].version, 1, "the number that was the last");
    let of = bench.registry.version(&subject("in"), Which::Number(1), Shown::Live).unwrap();
    assert_eq!(bench.registry.referenced_by(&of, Shown::Live), [2]);
    assert_eq!(bench.delete_version("in", 1, false), Err(Code::ReferenceExists));
    assert_eq!(bench.delete("in", false), Err(Code::ReferenceExists));
    bench.delete("out", false).unwrap();
    assert_eq!(bench.registry.referenced_by(&of, Shown::Live), Vec::<u32>::new());
    assert_eq!(bench.registry.referenced_by(&of, Shown::All), [2]);
    assert_eq!(bench.delete("in", false), Ok(vec![1]), "softly: no live schema needs it");
    assert_eq!(bench.delete("in", true), Err(Code::ReferenceExists), "for good: one might come back");
    assert_eq!(bench.register("other", referring("in", 1)), Err(Code::InvalidSchema), "not to what is deleted");
    bench.delete("out", true).unwrap();
    assert_eq!(bench.delete("in", true), Ok(vec![1]));
    // Inside of one subject, references do not hold it together.
    bench.avro("self", IN).unwrap();
    bench.register("self", referring("self", 1)).unwrap();
    assert_eq!(bench.delete_version("self", 1, false), Err(Code::ReferenceExists));
    assert_eq!(bench.delete("self", false), Ok(vec![1, 2]));
    assert_eq!(bench.delete("self", true), Ok(vec![1, 2]));
    // In a context, names without one mean that context.
    bench.avro(":.c:in", IN).unwrap();
    assert_eq!(bench.register(":.c:out", referring("in", 1)), Ok((2, 1)));
    assert_eq!(bench.delete(":.c:in", false), Err(Code::ReferenceExists));
    // A version that is needed stays when its schema comes back.
    let mut bench = Bench::default();
    bench.avro("in", IN).unwrap();
    bench.register("out", referring("in", 1)).unwrap();
    bench.delete("out", false).unwrap();
    bench.delete("in", false).unwrap();
    assert_eq!(bench.avro("in", IN), Ok((1, 2)));
    assert_eq!(bench.versions("in", Shown::All), [1, 2]);
}

#[test]
fn references_in_a_circle_are_refused() {
    let mut bench = Bench::default();
    bench.avro("a", IN).unwrap();
    bench.register("b", referring("a", 1)).unwrap();
    // Not by any request; but a log could hold it.
    let circle = NewSchema { references: referring("b", 1).references, ..NewSchema::avro(IN) };
    let references = circle.references.clone().unwrap();
    let content = crate::content::Content::new(Default::default(), IN.into(), references, None, None);
    bench.registry.apply(&Change::Schema { context: ".".into(), id: 9, content: Arc::new(content) });
    bench.registry.apply(&Change::Version { subject: "a".into(), version: 1, id: 9, deleted: false });
    let refused = bench.registry.demand(&subject("c"), &referring("b", 1), false).unwrap_err();
    assert!(refused.message.contains("circle"), "{refused}");
}

#[test]
fn settings_are_inherited_from_the_nearest() {
    let mut bench = Bench::default();
    let (a, ca) = (subject("a"), subject(":.c:a"));
    assert_eq!(bench.registry.level(&a), crate::Level::Backward);
    assert_eq!(
        bench.config(None, json!({"compatibility": "full", "normalize": true, "unknown": 1})),
        Ok(json!({"compatibility": "FULL", "normalize": true}))
    );
    assert_eq!(bench.registry.level(&ca), crate::Level::Full);
    bench.config(Some(":.c:"), json!({"compatibility": "NONE"})).unwrap();
    assert_eq!((bench.registry.level(&ca), bench.registry.level(&a)), (crate::Level::None, crate::Level::Full));
    assert!(bench.registry.normalizes(&ca), "each member by itself");
    bench.config(Some(":.c:a"), json!({"compatibility": "FORWARD", "alias": "b"})).unwrap();
    assert_eq!(bench.registry.level(&ca), crate::Level::Forward);
    assert_eq!(bench.registry.real(ca.clone()), subject(":.c:b"));
    // Left out keeps, null clears.
    bench.config(Some(":.c:a"), json!({"compatibility": null})).unwrap();
    assert_eq!(bench.registry.level(&ca), crate::Level::None);
    assert_eq!(bench.registry.real(ca.clone()), subject(":.c:b"));
    assert_eq!(bench.config(None, json!({"compatibility": "backwards"})), Err(Code::InvalidLevel));
    assert_eq!(bench.registry.config(Some(&a), false).unwrap_err().code, Code::LevelNotConfigured);
    assert_eq!(
        serde_json::to_value(bench.registry.config(Some(&a), true).unwrap()).unwrap(),
        json!({"compatibilityLevel": "FULL", "normalize": true})
    );
    let planned = bench.registry.plan_no_config(Some(&ca));
    assert_eq!(bench.apply(planned).unwrap().alias.as_deref(), Some("b"));
    assert_eq!(bench.registry.plan_no_config(Some(&ca)).unwrap_err().code, Code::SubjectNotFound);
    assert!(bench.registry.plan_config(None, json!({"normalize": "yes"}).as_object().unwrap()).is_err());
}

#[test]
fn modes_say_what_may_be_done() {
    let mut bench = Bench::default();
    bench.avro("a", INT).unwrap();
    let with_id = |id, version, text: &str| NewSchema { id: Some(id), version, ..NewSchema::avro(text) };
    assert_eq!(bench.register("a", with_id(7, None, LONG)), Err(Code::NotPermitted));
    assert_eq!(bench.register("a", with_id(1, None, INT)), Ok((1, 1)), "it has that id");
    bench.mode(Some("a"), "READONLY", false).unwrap();
    assert_eq!(bench.avro("a", INT), Ok((1, 1)));
    assert_eq!(bench.avro("a", LONG), Err(Code::NotPermitted));
    assert_eq!(bench.delete("a", false), Err(Code::NotPermitted));
    assert_eq!(bench.config(Some("a"), json!({"compatibility": "NONE"})), Err(Code::NotPermitted));
    assert_eq!(bench.avro("b", LONG), Ok((2, 1)));
    bench.mode(Some("a"), "READWRITE", false).unwrap();
    bench.mode(None, "READONLY", false).unwrap();
    assert_eq!(bench.avro("a", LONG), Ok((2, 2)), "its own mode counts");
    bench.mode(None, "READONLY_OVERRIDE", false).unwrap();
    assert_eq!(bench.avro("a", "\"bytes\""), Err(Code::NotPermitted), "but not against this");
    assert_eq!(bench.mode(None, "IMPORT", false), Err(Code::NotPermitted), "there are subjects");
    assert_eq!(bench.mode(None, "anything", false), Err(Code::InvalidMode));
    assert_eq!(bench.mode(Some("a"), "FORWARD", false), Err(Code::InvalidMode));
    bench.mode(None, "IMPORT", true).unwrap();
    bench.mode(Some("c"), "import", false).unwrap();
    assert_eq!(bench.avro("c", LONG), Err(Code::NotPermitted), "without an id");
    assert_eq!(bench.register("c", with_id(1, Some(1), LONG)), Err(Code::NotPermitted), "1 means int");
    assert_eq!(bench.register("c", with_id(50, Some(9), "\"bytes\"")), Ok((50, 9)), "with gaps");
    assert_eq!(bench.register("c", with_id(51, Some(9), "\"double\"")), Err(Code::NotPermitted));
    assert_eq!(bench.register("c", with_id(60, None, "\"float\"")), Ok((60, 10)));
    bench.delete_version("c", 9, false).unwrap();
    assert_eq!(bench.register("c", with_id(50, Some(9), "\"bytes\"")), Ok((50, 9)));
    assert_eq!(bench.versions("c", Shown::Live), [9, 10], "it is back");
    bench.mode(Some("c"), "READWRITE", false).unwrap();
    assert_eq!(bench.avro("c", "\"double\""), Ok((61, 11)));
    let given = NewSchema { version: Some(12), ..NewSchema::avro("\"null\"") };
    assert_eq!(bench.register("c", NewSchema { version: Some(14), ..given.clone() }), Err(Code::InvalidSchema));
    assert_eq!(bench.register("c", given), Ok((62, 12)));
    let planned = bench.registry.plan_no_mode(Some(&subject("c")), false);
    assert_eq!(bench.apply(planned), Ok(Some(Mode::Readwrite)));
    assert_eq!(bench.registry.plan_no_mode(Some(&subject("c")), false).unwrap_err().code, Code::SubjectNotFound);
    assert_eq!(bench.registry.mode_of(Some(&subject("c")), false).unwrap_err().code, Code::ModeNotConfigured);
    assert_eq!(bench.registry.mode_of(Some(&subject("c")), true), Ok(Mode::Import));
}

#[test]
fn a_context_goes_when_it_is_empty_and_its_ids_do_not_come_back() {
    let mut bench = Bench::default();
    bench.avro(":.c:a", INT).unwrap();
    assert_eq!(bench.registry.plan_delete_context("c").unwrap_err().code, Code::ContextNotEmpty);
    bench.delete(":.c:a", false).unwrap();
    bench.delete(":.c:a", true).unwrap();
    let planned = bench.registry.plan_delete_context(".c");
    bench.apply(planned.map(|changes| ((), changes))).unwrap();
    assert_eq!(bench.registry.contexts(), ["."]);
    assert_eq!(bench.avro(":.c:a", INT), Ok((2, 1)));
}

proptest::proptest! {
    /// Whatever is done in whatever order: an id never changes its meaning or
    /// comes back with another, and versions only grow while a subject is there.
    #[test]
    fn ids_keep_their_meaning(actions in proptest::collection::vec((0u8..6, 0u8..3, 0u8..5), 1..80)) {
        let mut bench = Bench::default();
        let texts = [INT, LONG, "\"string\"", "\"bytes\"", IN];
        let mut meanings: HashMap<u32, String> = HashMap::new();
        let mut gone: HashMap<u32, ()> = HashMap::new();
        for (action, name, what) in actions {
            let name = ["a", "b", "c"][usize::from(name)];
            let last = bench.versions(name, Shown::All).last().copied().unwrap_or(1);
            match action {
                0..=2 => {
                    let (id, _) = bench.avro(name, texts[usize::from(what)]).unwrap();
                    proptest::prop_assert!(!gone.contains_key(&id), "id {} came back", id);
                    let text = bench.registry.schema(".", id).unwrap().text.to_string();
                    let meaning = meanings.entry(id).or_insert_with(|| text.clone());
                    proptest::prop_assert_eq!(&*meaning, &text);
                }
                3 => drop(bench.delete(name, what % 2 == 0)),
                4 => drop(bench.delete_version(name, last, what % 2 == 0)),
                _ => drop(bench.delete_version(name, u32::from(what) + 1, what % 2 == 0)),
            }
            for &id in meanings.keys() {
                match bench.registry.schema(".", id) {
                    None => drop(gone.insert(id, ())),
                    Some(_) => proptest::prop_assert!(!bench.uses(id, Shown::All).unwrap().is_empty()),
                }
            }
        }
    }
}
