//! Every route against a table of requests and answers.

use highwater_tests::folder;
use serde_json::{Value, json};

use super::http::{ask, ask_with, raw};
use super::{Registry, body};

const INT: &str = r#""int""#;
const V1: &str = "application/vnd.schemaregistry.v1+json";

fn record(fields: &str) -> String {
    format!(r#"{{"type":"record","name":"R","fields":[{fields}]}}"#)
}

/// Method, path, body; status and answer. An answer that is a number is an error's code.
async fn table(port: u16, rows: &[(&str, &str, String, u16, Value)]) {
    for (method, path, body, status, expected) in rows {
        let answer = ask(port, method, path, body).await;
        let what = format!("{method} {path} {body}\n{}\n{}", answer.head, answer.body);
        assert_eq!(answer.status, *status, "{what}");
        assert_eq!(answer.header("content-type"), Some(V1), "{what}");
        match expected {
            Value::Number(code) if *status >= 400 => {
                assert_eq!(answer.json()["error_code"], Value::Number(code.clone()), "{what}")
            }
            Value::Null => {}
            expected => assert_eq!(answer.json(), *expected, "{what}"),
        }
    }
}

fn none() -> String {
    String::new()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_answers_as_its_clients_expect() {
    let mut registry = Registry::start(&folder("registry-api"), "").await;
    let port = registry.port;
    let x = r#"{"name":"x","type":"int"}"#;
    let (one, two) = (record(x), record(&format!(r#"{x},{{"name":"y","type":"int","default":0}}"#)));
    let bad = record(&format!(r#"{x},{{"name":"z","type":"int"}}"#));
    let with_reference = |version: i32| {
        let text = r#"{"type":"record","name":"Out","fields":[{"name":"r","type":"R"}]}"#;
        json!({"schema": text, "references": [{"name": "R", "subject": "s", "version": version}]}).to_string()
    };
    table(port, &[
        ("GET", "/", none(), 200, json!({})),
        ("POST", "/", none(), 200, json!({})),
        ("GET", "/schemas/types", none(), 200, json!(["AVRO"])),
        ("GET", "/subjects", none(), 200, json!([])),
        ("GET", "/nothing", none(), 404, json!(404)),
        ("PUT", "/subjects", none(), 405, json!(405)),
        ("GET", "/associations/resources/-/t?resourceType=topic", none(), 404, json!(404)),
        // Compatible with what is not there.
        ("POST", "/compatibility/subjects/s/versions/latest", body(&one), 200, json!({"is_compatible": true})),
        ("POST", "/compatibility/subjects/s/versions", body(&one), 200, json!({"is_compatible": true})),
        ("POST", "/compatibility/subjects/s/versions/1", body(&one), 404, json!(40402)),
        ("GET", "/subjects/s/versions", none(), 404, json!(40401)),
        ("POST", "/subjects/s", body(&one), 404, json!(40401)),
        ("DELETE", "/subjects/s", none(), 404, json!(40401)),
        // Register.
        ("POST", "/subjects/s/versions?normalize=False", body(&one), 200, json!({"id": 1, "version": 1})),
        ("POST", "/subjects/s/versions", body(&one.replace(':', " : ")), 200, json!({"id": 1, "version": 1})),
        ("POST", "/subjects/t/versions", body(&one), 200, json!({"id": 1, "version": 1})),
        ("POST", "/subjects/s/versions", body(&two), 200, json!({"id": 2, "version": 2})),
        ("POST", "/subjects/s/versions", body(&bad), 409, json!(40901)),
        ("POST", "/subjects/s/versions", body("{"), 422, json!(42201)),
        ("POST", "/subjects/s/versions", json!({"schema": "{}", "schemaType": "JSON"}).to_string(), 422, json!(42201)),
        ("POST", "/subjects/s/versions", json!({"schema": "", "schemaType": "PROTOBUF"}).to_string(), 422, json!(42201)),
        ("POST", "/subjects/s/versions", json!({"schema": INT, "schemaType": "X"}).to_string(), 422, json!(42201)),
        ("POST", "/subjects/s/versions", json!({"schema": INT, "id": 9}).to_string(), 422, json!(42205)),
        ("POST", "/subjects/n/versions", json!({"schema": INT, "version": 2}).to_string(), 422, json!(42201)),
        ("POST", "/subjects/s/versions", json!({"schema": INT, "unknown": {"a": 1}}).to_string(), 409, json!(40901)),
        ("POST", "/subjects/s/versions", json!({"schema": 1}).to_string(), 400, json!(400)),
        ("POST", "/subjects/s/versions", "[]".into(), 400, json!(400)),
        ("POST", "/subjects/s/versions", "\"x\"".into(), 400, json!(400)),
        ("POST", "/subjects/s/versions", "{\"schema\":".into(), 400, json!(400)),
        ("POST", "/subjects/s/versions", "null".into(), 422, json!(422)),
        ("POST", "/subjects/s/versions", none(), 422, json!(422)),
        ("POST", "/subjects/s/versions", "{}".into(), 422, json!(42201)),
        // Read.
        ("GET", "/subjects", none(), 200, json!(["s", "t"])),
        ("GET", "/subjects?offset=1&limit=5", none(), 200, json!(["t"])),
        ("GET", "/subjects?offset=0&limit=1", none(), 200, json!(["s"])),
        ("GET", "/subjects?offset=0&limit=-1&deleted=false&deleted_only=false", none(), 200, json!(["s", "t"])),
        ("GET", "/subjects?limit=x", none(), 404, json!(404)),
        ("GET", "/subjects?subjectPrefix=t", none(), 200, json!(["t"])),
        ("GET", "/subjects/s/versions", none(), 200, json!([1, 2])),
        ("GET", "/subjects/s/versions/2", none(), 200, json!({"subject": "s", "version": 2, "id": 2, "schema": two})),
        ("GET", "/subjects/s/versions/LATEST", none(), 200, json!({"subject": "s", "version": 2, "id": 2, "schema": two})),
        ("GET", "/subjects/s/versions/-1", none(), 200, json!({"subject": "s", "version": 2, "id": 2, "schema": two})),
        ("GET", "/subjects/s/versions/9", none(), 404, json!(40402)),
        ("GET", "/subjects/none/versions/1", none(), 404, json!(40401)),
        ("GET", "/subjects/s/versions/0", none(), 422, json!(42202)),
        ("GET", "/subjects/s/versions/2147483648", none(), 422, json!(42202)),
        ("GET", "/subjects/s/versions/x", none(), 422, json!(42202)),
        ("GET", "/subjects/s/versions/1/schema", none(), 200, serde_json::from_str(&one).unwrap()),
        ("GET", "/schemas/ids/1", none(), 200, json!({"schema": one})),
        ("GET", "/schemas/ids/1?subject=s&fetchMaxId=true&format=nonsense", none(), 200, json!({"schema": one, "maxId": 2})),
        ("GET", "/schemas/ids/1/schema", none(), 200, serde_json::from_str(&one).unwrap()),
        ("GET", "/schemas/ids/1/subjects", none(), 200, json!(["s", "t"])),
        ("GET", "/schemas/ids/1/versions", none(), 200, json!([{"subject": "s", "version": 1}, {"subject": "t", "version": 1}])),
        ("GET", "/schemas/ids/99", none(), 404, json!(40403)),
        ("GET", "/schemas/ids/99/schema", none(), 404, json!(40403)),
        ("GET", "/schemas/ids/99/subjects", none(), 404, json!(40403)),
        ("GET", "/schemas/ids/-5", none(), 404, json!(40403)),
        ("GET", "/schemas/ids/99999999999", none(), 404, json!(404)),
        ("GET", "/schemas/ids/x", none(), 404, json!(404)),
        ("GET", "/schemas?latestOnly=true&subjectPrefix=s", none(), 200, json!([{"subject": "s", "version": 2, "id": 2, "schema": two}])),
        // Look up.
        ("POST", "/subjects/s?normalize=False&deleted=False", body(&one), 200, json!({"subject": "s", "version": 1, "id": 1, "schema": one})),
        ("POST", "/subjects/s", body(INT), 404, json!(40403)),
        ("POST", "/subjects/s", body("{"), 422, json!(42201)),
        // Compare.
        ("POST", "/compatibility/subjects/s/versions/latest", body(&bad), 200, json!({"is_compatible": false})),
        ("POST", "/compatibility/subjects/s/versions/1?verbose=true", body(&bad), 200, json!({"is_compatible": false, "messages": [
            "{errorType:'READER_FIELD_MISSING_DEFAULT_VALUE', description:'The field 'z' at path '/fields/1' in the new schema has no default value and is missing in the old schema', additionalInfo:'z'}",
            "{oldSchemaVersion: 1}", format!("{{oldSchema: '{one}'}}"), "{validateFields: 'false', compatibility: 'BACKWARD'}"]})),
        ("POST", "/compatibility/subjects/s/versions?verbose=true", body(&two), 200, json!({"is_compatible": true, "messages": []})),
        ("POST", "/compatibility/subjects/s/versions", body("{"), 422, json!(42201)),
        ("POST", "/compatibility/subjects/s/versions/0", body(&one), 422, json!(42202)),
        // References.
        ("POST", "/subjects/out/versions", with_reference(9), 422, json!(42201)),
        ("POST", "/subjects/out/versions", with_reference(1), 200, json!({"id": 3, "version": 1})),
        ("GET", "/subjects/s/versions/1/referencedby", none(), 200, json!([3])),
        ("GET", "/subjects/s/versions/2/referencedby", none(), 200, json!([])),
        ("POST", "/subjects/out", body(&format!(r#"{{"type":"record","name":"Out","fields":[{{"name":"r","type":{one}}}]}}"#)), 200, Value::Null),
        ("DELETE", "/subjects/s/versions/1", none(), 422, json!(42206)),
        ("DELETE", "/subjects/s", none(), 422, json!(42206)),
        // Delete.
        ("DELETE", "/subjects/s/versions/2?permanent=true", none(), 404, json!(40407)),
        ("DELETE", "/subjects/s/versions/latest", none(), 200, json!(2)),
        ("DELETE", "/subjects/s/versions/2", none(), 404, json!(40406)),
        ("GET", "/subjects/s/versions", none(), 200, json!([1])),
        ("GET", "/subjects/s/versions?deleted=true", none(), 200, json!([1, 2])),
        ("GET", "/subjects/s/versions?deletedOnly=true", none(), 200, json!([2])),
        ("GET", "/subjects/s/versions?deletedAsNegative=true", none(), 200, json!([1, -2])),
        ("GET", "/subjects/s/versions/2", none(), 404, json!(40402)),
        ("GET", "/subjects/s/versions/2/schema?deleted=TRUE", none(), 200, Value::Null),
        ("POST", "/subjects/s?deleted=true", body(&two), 200, Value::Null),
        ("POST", "/subjects/s", body(&two), 404, json!(40403)),
        ("GET", "/schemas/ids/2", none(), 200, json!({"schema": two})),
        ("GET", "/schemas/ids/2/subjects", none(), 200, json!([])),
        ("GET", "/schemas/ids/2/subjects?deleted=true", none(), 200, json!(["s"])),
        ("DELETE", "/subjects/t?permanent=true", none(), 404, json!(40405)),
        ("DELETE", "/subjects/t", none(), 200, json!([1])),
        ("DELETE", "/subjects/t", none(), 404, json!(40404)),
        ("GET", "/subjects", none(), 200, json!(["out", "s"])),
        ("GET", "/subjects?deletedOnly=true", none(), 200, json!(["t"])),
        ("GET", "/subjects/t/versions", none(), 404, json!(40401)),
        ("DELETE", "/subjects/t?permanent=true", none(), 200, json!([1])),
        // Settings.
        ("GET", "/config", none(), 200, json!({"compatibilityLevel": "BACKWARD"})),
        ("GET", "/config/s", none(), 404, json!(40408)),
        ("GET", "/config/s?defaultToGlobal=true", none(), 200, json!({"compatibilityLevel": "BACKWARD"})),
        ("PUT", "/config/s", json!({"compatibility": "none"}).to_string(), 200, json!({"compatibility": "NONE"})),
        ("PUT", "/config/s", json!({"compatibility": "nope"}).to_string(), 422, json!(42203)),
        ("PUT", "/config/s", json!({"compatibility": 3}).to_string(), 400, json!(400)),
        ("PUT", "/config/s", json!({"normalize": true}).to_string(), 200, json!({"normalize": true})),
        ("GET", "/config/s", none(), 200, json!({"compatibilityLevel": "NONE", "normalize": true})),
        ("POST", "/subjects/s/versions", body(&bad), 200, json!({"id": 4, "version": 3})),
        ("DELETE", "/config/s", none(), 200, json!({"compatibilityLevel": "NONE", "normalize": true})),
        ("DELETE", "/config/s", none(), 404, json!(40401)),
        ("PUT", "/config/later", json!({"alias": "s"}).to_string(), 200, json!({"alias": "s"})),
        ("GET", "/subjects/later/versions", none(), 200, json!([1, 3])),
        ("GET", "/mode", none(), 200, json!({"mode": "READWRITE"})),
        ("GET", "/mode/s", none(), 404, json!(40409)),
        ("PUT", "/mode/s", json!({"mode": "READONLY"}).to_string(), 200, json!({"mode": "READONLY"})),
        ("POST", "/subjects/s/versions", body(&one), 200, json!({"id": 1, "version": 1})),
        ("POST", "/subjects/s/versions", body(INT), 422, json!(42205)),
        ("DELETE", "/subjects/s", none(), 422, json!(42205)),
        ("DELETE", "/mode/s", none(), 200, json!({"mode": "READONLY"})),
        ("DELETE", "/mode/s", none(), 404, json!(40401)),
        ("DELETE", "/mode/s?recursive=true", none(), 200, json!({})),
        ("PUT", "/mode", json!({"mode": "x"}).to_string(), 422, json!(42204)),
        ("PUT", "/mode", json!({"mode": "IMPORT"}).to_string(), 422, json!(42205)),
        ("PUT", "/mode/imp", json!({"mode": "IMPORT"}).to_string(), 200, json!({"mode": "IMPORT"})),
        ("POST", "/subjects/imp/versions", json!({"schema": "\"bytes\"", "id": 77, "version": 5}).to_string(), 200, json!({"id": 77, "version": 5})),
        ("POST", "/subjects/imp/versions", json!({"schema": "\"long\"", "id": 77, "version": 6}).to_string(), 422, json!(42205)),
        // Names.
        ("POST", "/subjects/a%2Fb%20%25%22%E2%80%AE/versions", body(INT), 200, json!({"id": 78, "version": 1})),
        ("GET", "/subjects/a%2Fb%20%25%22%E2%80%AE/versions", none(), 200, json!([1])),
        ("POST", "/subjects/__GLOBAL/versions", body(INT), 422, json!(42208)),
        ("POST", "/subjects/a%00b/versions", body(INT), 422, json!(42208)),
        ("GET", "/subjects/%FF/versions", none(), 400, json!(400)),
        // Contexts.
        ("POST", "/subjects/:.c:a/versions", body(INT), 200, json!({"id": 1, "version": 1})),
        ("POST", "/contexts/c/subjects/b/versions", body(INT), 200, json!({"id": 1, "version": 1})),
        ("GET", "/contexts", none(), 200, json!([".", ".c"])),
        ("GET", "/contexts/c/subjects", none(), 200, json!([":.c:a", ":.c:b"])),
        ("GET", "/schemas/ids/1?subject=:.c:", none(), 200, json!({"schema": INT})),
        ("GET", "/contexts/.c/schemas/ids/1", none(), 200, json!({"schema": INT})),
        ("GET", "/subjects?subjectPrefix=", none(), 200, json!(["a/b %\"\u{202e}", "imp", "out", "s"])),
        ("PUT", "/config/:.c:", json!({"compatibility": "FULL"}).to_string(), 200, json!({"compatibility": "FULL"})),
        ("GET", "/config/:.c:a?defaultToGlobal=true", none(), 200, json!({"compatibilityLevel": "FULL"})),
        ("DELETE", "/contexts/c", none(), 422, json!(42211)),
        // Metadata.
        ("POST", "/subjects/m/versions", json!({"schema": INT, "metadata": {"properties": {"k": "v"}}, "ruleSet": {"domainRules": []}}).to_string(), 200, json!({"id": 79, "version": 1})),
        ("GET", "/subjects/m/metadata?key=k&value=v", none(), 200, json!({"subject": "m", "version": 1, "id": 79, "metadata": {"properties": {"k": "v"}}, "ruleSet": {"domainRules": []}, "schema": INT})),
        ("GET", "/subjects/m/metadata?key=k&value=w", none(), 404, json!(40403)),
        ("GET", "/v1/metadata/version", none(), 200, Value::Null),
        ("GET", "/v1/metadata/id", none(), 200, Value::Null),
        ("GET", "/v1/metadata/deployment", none(), 200, json!({"attributes": []})),
        // Contexts, by path and by name.
        ("GET", "/contexts/c/subjects/a/versions/latest/schema", none(), 200, json!("int")),
        ("GET", "/contexts?contextPrefix=.c", none(), 200, json!([".c"])),
        ("POST", "/contexts/c/subjects/a", body(INT), 200, json!({"subject": ":.c:a", "version": 1, "id": 1, "schema": INT})),
        ("POST", "/contexts/c/compatibility/subjects/a/versions/latest", body("\"bytes\""), 200, json!({"is_compatible": false})),
        ("DELETE", "/contexts/c/subjects/a", none(), 200, json!([1])),
        ("DELETE", "/contexts/c/subjects/a?permanent=true", none(), 200, json!([1])),
        ("GET", "/contexts/c/subjects", none(), 200, json!([":.c:b"])),
        // Modes and levels of all.
        ("PUT", "/mode", json!({"mode": "READONLY_OVERRIDE"}).to_string(), 200, json!({"mode": "READONLY_OVERRIDE"})),
        ("POST", "/subjects/imp/versions", body("\"float\""), 422, json!(42205)),
        ("PUT", "/config", json!({"compatibility": "FULL"}).to_string(), 422, json!(42205)),
        ("GET", "/mode/imp?defaultToGlobal=true", none(), 200, json!({"mode": "IMPORT"})),
        ("DELETE", "/mode", none(), 200, json!({"mode": "READONLY_OVERRIDE"})),
        ("PUT", "/config", json!({"compatibility": "FULL"}).to_string(), 200, json!({"compatibility": "FULL"})),
        ("DELETE", "/config", none(), 200, json!({"compatibilityLevel": "FULL"})),
        ("GET", "/config", none(), 200, json!({"compatibilityLevel": "BACKWARD"})),
    ])
    .await;
    registry.stop();
    registry.up().await;
    let after = ask(port, "GET", "/subjects/imp/versions/5", "").await;
    assert_eq!(after.json()["id"], 77, "a restart keeps it all");
    registry.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_about_a_schema_goes_on_and_is_changed_by_tags() {
    let mut registry = Registry::start(&folder("registry-tags"), "").await;
    let port = registry.port;
    let inner = r#"{"type":"record","name":"In","namespace":"n","fields":[{"name":"x","type":"int"}]}"#;
    let one = record(&format!(r#"{{"name":"a","type":["null",{inner}],"default":null}}"#));
    let said = json!({"schema": one, "metadata": {"properties": {"owner": "me"}}, "ruleSet": {"domainRules": [{"name": "r", "type": "CEL"}]}});
    let more = record(r#"{"name":"b","type":"int","default":1}"#);
    let entity = |kind: &str, path: &str, tags: &[&str]| json!([{"schemaEntity": {"entityType": kind, "entityPath": path}, "tags": tags}]);
    table(
        port,
        &[
            ("POST", "/subjects/s/versions", said.to_string(), 200, json!({"id": 1, "version": 1})),
            // A version that says nothing has what the last one said; one that says something, that.
            ("POST", "/subjects/s/versions", body(&more), 200, json!({"id": 2, "version": 2})),
            (
                "GET",
                "/subjects/s/metadata?key=owner&value=me",
                String::new(),
                200,
                json!({"subject": "s", "version": 2, "id": 2,
            "metadata": said["metadata"], "ruleSet": said["ruleSet"], "schema": more}),
            ),
            ("POST", "/subjects/s/versions", body(&one), 200, json!({"id": 1, "version": 1})),
            (
                "POST",
                "/subjects/s",
                body(&more),
                200,
                json!({"subject": "s", "version": 2, "id": 2,
            "metadata": said["metadata"], "ruleSet": said["ruleSet"], "schema": more}),
            ),
            (
                "POST",
                "/subjects/s/versions/1/tags",
                json!({"tagsToAdd": entity("sr_field", "n.In.x", &["PII", "B"])}).to_string(),
                200,
                json!({"id": 3, "version": 3}),
            ),
            (
                "GET",
                "/subjects/s/versions/3",
                String::new(),
                200,
                json!({"subject": "s", "version": 3, "id": 3,
            "metadata": {"properties": {"owner": "me", "confluent:version": "3"}}, "ruleSet": said["ruleSet"],
            "schema": one.replace(r#""type":"int"}"#, r#""type":"int","confluent:tags":["B","PII"]}"#)}),
            ),
            (
                "POST",
                "/subjects/s/versions/latest/tags",
                json!({"tagsToRemove": entity("sr_field", "n.In.x", &["PII", "B"]),
            "tagsToAdd": entity("sr_record", "R", &["T"]), "metadata": {"properties": {"level": "1"}},
            "rulesToRemove": ["r"], "rulesToMerge": {"domainRules": [{"name": "q", "type": "CEL"}]}})
                .to_string(),
                200,
                json!({"id": 4, "version": 4}),
            ),
            (
                "GET",
                "/subjects/s/versions/4",
                String::new(),
                200,
                json!({"subject": "s", "version": 4, "id": 4,
            "metadata": {"properties": {"level": "1", "confluent:version": "4"}}, "ruleSet": {"domainRules": [{"name": "q", "type": "CEL"}]},
            "schema": format!(r#"{},"confluent:tags":["T"]}}"#, one.strip_suffix('}').unwrap())}),
            ),
            // The last rule goes, and does not come back with the version before.
            (
                "POST",
                "/subjects/s/versions/latest/tags",
                json!({"rulesToRemove": ["q"]}).to_string(),
                200,
                json!({"id": 5, "version": 5}),
            ),
            (
                "GET",
                "/subjects/s/versions/5",
                String::new(),
                200,
                json!({"subject": "s", "version": 5, "id": 5,
            "metadata": {"properties": {"level": "1", "confluent:version": "5"}}, "ruleSet": {"domainRules": []},
            "schema": format!(r#"{},"confluent:tags":["T"]}}"#, one.strip_suffix('}').unwrap())}),
            ),
            (
                "POST",
                "/subjects/s/versions/latest/tags",
                json!({"tagsToAdd": entity("sr_field", "R.z", &["T"])}).to_string(),
                422,
                json!(42201),
            ),
            (
                "POST",
                "/subjects/s/versions/latest/tags",
                json!({"tagsToAdd": entity("table", "R", &["T"])}).to_string(),
                422,
                json!(42201),
            ),
            (
                "POST",
                "/subjects/s/versions/latest/tags",
                json!({"newVersion": 9, "metadata": {"properties": {"new": "1"}}}).to_string(),
                422,
                json!(42201),
            ),
            ("POST", "/subjects/s/versions/9/tags", json!({}).to_string(), 404, json!(40402)),
            ("POST", "/subjects/t/versions/1/tags", json!({}).to_string(), 404, json!(40401)),
            ("POST", "/subjects/s/versions/latest/tags", json!({"tagsToAdd": 7}).to_string(), 400, json!(400)),
        ],
    )
    .await;
    // Settings give it to whatever is registered, and override it.
    let settings = json!({"defaultMetadata": {"properties": {"owner": "all", "level": "0"}},
        "overrideMetadata": {"properties": {"team": "x"}, "sensitive": ["team"]}, "defaultRuleSet": {"domainRules": [{"name": "d", "type": "CEL"}]},
        "overrideRuleSet": {"domainRules": [{"name": "r", "type": "CEL", "doc": "always"}]}});
    let given = json!({"properties": {"owner": "me", "level": "0", "team": "x"}, "sensitive": ["team"]});
    let rules = json!({"domainRules": [{"name": "d", "type": "CEL"}, {"name": "r", "type": "CEL", "doc": "always"}]});
    let of = |version: u32, metadata: &Value, rules: &Value| json!({"subject": "g", "version": version, "id": 5 + version, "metadata": metadata, "ruleSet": rules, "schema": one});
    table(
        port,
        &[
            ("PUT", "/config/g", settings.to_string(), 200, settings.clone()),
            ("POST", "/subjects/g/versions", said.to_string(), 200, json!({"id": 6, "version": 1})),
            ("POST", "/subjects/g/versions", said.to_string(), 200, json!({"id": 6, "version": 1})),
            ("POST", "/subjects/g/versions", body(&one), 200, json!({"id": 6, "version": 1})),
            ("GET", "/subjects/g/versions/1", String::new(), 200, of(1, &given, &rules)),
            ("POST", "/subjects/g", said.to_string(), 200, of(1, &given, &rules)),
            ("PUT", "/config/g", json!({"overrideMetadata": null}).to_string(), 200, json!({})),
            ("POST", "/subjects/g/versions", body(&one), 200, json!({"id": 6, "version": 1})),
            ("POST", "/subjects/g/versions", said.to_string(), 200, json!({"id": 7, "version": 2})),
            (
                "GET",
                "/subjects/g/versions/2",
                String::new(),
                200,
                of(2, &json!({"properties": {"owner": "me", "level": "0"}}), &rules),
            ),
            // What is no rule set comes in nowhere.
            (
                "PUT",
                "/config/g",
                json!({"defaultRuleSet": {"domainRules": [{"name": "d"}]}}).to_string(),
                422,
                json!(42210),
            ),
            (
                "POST",
                "/subjects/g/versions",
                json!({"schema": more, "ruleSet": {"migrationRules": [{"name": "m", "type": "CEL"}]}}).to_string(),
                422,
                json!(42210),
            ),
            (
                "POST",
                "/subjects/g/versions/2/tags",
                json!({"rulesToMerge": {"domainRules": [{"type": "CEL"}]}}).to_string(),
                422,
                json!(42210),
            ),
        ],
    )
    .await;
    registry.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_that_tell_a_versions_number_tell_the_right_one() {
    let mut registry = Registry::start(&folder("registry-numbered"), "").await;
    let port = registry.port;
    let rules = json!({"domainRules": [{"name": "r", "type": "CEL"}]});
    let told = |number: &str, owner: &str| json!({"properties": {"confluent:version": number, "owner": owner}});
    let with = |metadata: Value| json!({"schema": INT, "metadata": metadata}).to_string();
    let of = |version: u32, metadata: Value, schema: &str| json!({"subject": "s", "version": version, "id": version, "metadata": metadata, "schema": schema});
    table(
        port,
        &[
            ("POST", "/subjects/s/versions", with(told("0", "me")), 200, json!({"id": 1, "version": 1})),
            ("GET", "/subjects/s/versions/1", String::new(), 200, of(1, told("1", "me"), INT)),
            // By its number, without one, and with nothing said at all it is the same.
            ("POST", "/subjects/s/versions", with(told("1", "me")), 200, json!({"id": 1, "version": 1})),
            (
                "POST",
                "/subjects/s/versions",
                with(json!({"properties": {"owner": "me"}})),
                200,
                json!({"id": 1, "version": 1}),
            ),
            ("POST", "/subjects/s/versions", body(INT), 200, json!({"id": 1, "version": 1})),
            ("POST", "/subjects/s", with(json!({"properties": {"owner": "me"}})), 200, of(1, told("1", "me"), INT)),
            ("POST", "/subjects/s", with(told("7", "me")), 404, json!(40403)),
            // Another number is another version, whatever it says.
            ("POST", "/subjects/s/versions", with(told("7", "me")), 200, json!({"id": 2, "version": 2})),
            ("GET", "/subjects/s/versions/2", String::new(), 200, of(2, told("2", "me"), INT)),
            // It goes on with the last version's.
            ("POST", "/subjects/s/versions", body("\"long\""), 200, json!({"id": 3, "version": 3})),
            ("GET", "/subjects/s/versions/3", String::new(), 200, of(3, told("3", "me"), "\"long\"")),
            // Without a text it is the last version's, with something else said.
            (
                "POST",
                "/subjects/s/versions",
                json!({"metadata": told("0", "you")}).to_string(),
                200,
                json!({"id": 4, "version": 4}),
            ),
            ("GET", "/subjects/s/versions/4", String::new(), 200, of(4, told("4", "you"), "\"long\"")),
            ("POST", "/subjects/s/versions", json!({"schema": " "}).to_string(), 422, json!(42201)),
            ("POST", "/subjects/t/versions", json!({"metadata": {}}).to_string(), 422, json!(42201)),
            // One by tags is another whatever is changed; rules are replaced where none are merged.
            ("POST", "/subjects/s/versions/4/tags", json!({"ruleSet": rules}).to_string(), 200, json!({"id": 5, "version": 5})),
            (
                "GET",
                "/subjects/s/versions/5",
                String::new(),
                200,
                json!({"subject": "s", "version": 5, "id": 5, "metadata": told("5", "you"), "ruleSet": rules, "schema": "\"long\""}),
            ),
            ("POST", "/subjects/s/versions/5/tags", json!({}).to_string(), 200, json!({"id": 6, "version": 6})),
            (
                "POST",
                "/subjects/s/versions/6/tags",
                json!({"ruleSet": {"domainRules": []}, "rulesToRemove": ["other"]}).to_string(),
                200,
                json!({"id": 7, "version": 7}),
            ),
            (
                "GET",
                "/subjects/s/versions/7",
                String::new(),
                200,
                json!({"subject": "s", "version": 7, "id": 7, "metadata": told("7", "you"), "ruleSet": rules, "schema": "\"long\""}),
            ),
        ],
    )
    .await;
    registry.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn media_types_methods_and_heads() {
    let mut registry = Registry::start(&folder("registry-media"), "").await;
    let port = registry.port;
    let get = async |headers: &[(&str, &str)]| ask_with(port, "GET", "/subjects", headers, "").await;
    for (accept, status, kind) in [
        ("*/*", 200, V1),
        ("application/json", 200, "application/json"),
        ("application/vnd.schemaregistry+json", 200, "application/vnd.schemaregistry+json"),
        ("application/vnd.schemaregistry.v1+json, application/vnd.schemaregistry+json, application/json", 200, V1),
        ("text/html", 406, V1),
    ] {
        let answer = get(&[("Accept", accept)]).await;
        assert_eq!((answer.status, answer.header("content-type")), (status, Some(kind)), "{accept}");
        answer.json();
    }
    let post = async |headers: &[(&str, &str)]| {
        ask_with(port, "POST", "/subjects/s/versions", headers, &body(INT)).await.status
    };
    assert_eq!(post(&[]).await, 200, "no type at all");
    for (kind, status) in [
        (V1, 200),
        ("APPLICATION/JSON; charset=utf-8", 200),
        ("application/octet-stream", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
    ] {
        assert_eq!(post(&[("Content-Type", kind)]).await, status, "{kind}");
    }
    let head = ask(port, "HEAD", "/subjects", "").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    let options = ask(port, "OPTIONS", "/subjects/s", "").await;
    assert_eq!(options.status, 200);
    assert!(options.header("allow").is_some_and(|allow| allow.contains("DELETE")), "{}", options.head);
    let wrong = ask(port, "PATCH", "/subjects/s", "").await;
    assert_eq!((wrong.status, wrong.json()["error_code"].clone()), (405, json!(405)));
    assert!(wrong.header("allow").is_some_and(|allow| allow.contains("POST")), "{}", wrong.head);
    // Newer clients are told more.
    let more = ask_with(port, "GET", "/subjects/s/versions/1", &[("Confluent-Accept-Unknown-Properties", "true")], "")
        .await
        .json();
    assert_eq!(more["schemaType"], "AVRO");
    let guid = more["guid"].as_str().unwrap();
    assert_eq!(
        ask(port, "GET", &format!("/schemas/guids/{guid}/ids"), "").await.json(),
        json!([{"context": ".", "id": 1}])
    );
    // A name that is not this machine's, on loopback: somebody rebinds DNS.
    assert_eq!(ask_with(port, "GET", "/subjects", &[("Host", "evil.example")], "").await.status, 403);
    assert_eq!(ask_with(port, "GET", "/subjects", &[("Host", "127.0.0.1:1")], "").await.status, 200);
    assert_eq!(raw(port, b"nonsense\r\n\r\n").await.status, 400);
    registry.stop();
}
