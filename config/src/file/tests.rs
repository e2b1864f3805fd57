use super::*;

fn load(text: &str) -> Result<Config, Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("highwater.toml");
    std::fs::write(&file, text).unwrap();
    let shorten = |fault: &Fault| fault.to_string().replace(&format!("{}/", folder.path().display()), "");
    Config::load(&file).map_err(|faults| faults.faults.iter().map(shorten).collect())
}

#[test]
fn the_example_is_without_fault() {
    let config = load(crate::EXAMPLE).unwrap();
    assert!(config.sources.contains_key("shop") && config.sinks.contains_key("lake"));
}

#[test]
fn all_faults_are_told_together_with_line_key_and_suggestion() {
    let faults = load(
        "data_dirr = \"x\"\n\
         [sources.shop]\n\
         type = \"postgress\"\n\
         url = \"postgres://u@db.example/shop\"\n\
         password = \"hunter2\"\n\
         heartbeat = 10\n\
         [sinks.lake]\n\
         type = \"object-store\"\n\
         from = [\"shpo\"]\n\
         url = \"https://x\"\n\
         cut = { bytes = \"1 potato\" }\n",
    )
    .unwrap_err();
    let mut at = 0;
    for expected in [
        "highwater.toml:1: data_dirr: is not a setting (did you mean `data_dir`?)",
        "highwater.toml:3: sources.shop.type: \"postgress\" is not known (did you mean \"postgres\"?)",
        "highwater.toml:5: sources.shop.password: may not stand in the file in the clear for a server elsewhere \
         (write { env = \"NAME\" } or { file = \"PATH\" })",
        "highwater.toml:6: sources.shop.heartbeat: is no time (write it like \"10s\", \"5m\" or \"7d\")",
        "highwater.toml:9: sinks.lake.from: there is no source \"shpo\" (did you mean \"shop\"?)",
        "highwater.toml:11: sinks.lake.cut.bytes: is no size (write it like \"64MiB\")",
    ] {
        let place = faults.iter().skip(at).position(|fault| fault == expected);
        at += place.unwrap_or_else(|| panic!("{expected}\nis not, or not in its order, in\n{}", faults.join("\n"))) + 1;
    }
    assert!(!faults.join("\n").contains("hunter2"), "a secret is never shown");
}

#[test]
fn a_contract_is_rules_with_their_places() {
    let source = "[sources.shop]\ntype = \"postgres\"\nurl = \"postgres://u@localhost/shop\"\n";
    let more = "[sources.shop.table.\"public.t\".contract]\nrequired = [\"a\"]\nrange = { b = { min = -1.5 } }\n\
                pattern = { c = \"^x\" }\nallowed = { d = [1, \"two\", true] }\nkey = [\"a\"]\n";
    let config = load(&format!("{source}{more}")).unwrap();
    let crate::Source::Postgres(shop) = &config.sources["shop"];
    let rules = &shop.options("public", "t").unwrap().contract.rules;
    let musts: Vec<_> = rules.iter().map(|rule| (rule.column.as_str(), rule.must.clone())).collect();
    use crate::Must::*;
    let expected = [
        ("a", BePresent),
        ("a", BeKey),
        ("b", Range { min: Some("-1.5".into()), max: None }),
        ("c", Match("^x".into())),
        ("d", BeOneOf(vec!["1".into(), "two".into(), "true".into()])),
    ];
    assert_eq!(musts, expected);
    assert!(rules[2].place.ends_with(":6: sources.shop.table.public.t.contract.range.b"), "{}", rules[2].place);
    let bad =
        "[sources.shop.table.\"public.t\"]\ncontract = { requird = [], range = { b = {} }, pattern = { c = 1 } }\n";
    let faults = load(&format!("{source}{bad}")).unwrap_err().join("\n");
    for word in ["did you mean `required`", "a range has `min`, `max`", "must be a regular expression"] {
        assert!(faults.contains(word), "{word}: {faults}");
    }
}

#[test]
fn rules_in_json_are_rules_of_the_configuration() {
    use crate::{Contract, Must};
    let read = |column: Option<&str>, text: &str| Contract::from_json("version 3", column, text);
    let table = r#"{"required": ["a"], "range": {"b.c": {"min": -1.5}}, "allowed": {"d": [1, "two", true]}}"#;
    let musts =
        |contract: &Contract| contract.rules.iter().map(|r| (r.column.clone(), r.must.clone())).collect::<Vec<_>>();
    let range = Must::Range { min: Some("-1.5".into()), max: None };
    let allowed = Must::BeOneOf(vec!["1".into(), "two".into(), "true".into()]);
    let whole = read(None, table).unwrap();
    let expected =
        [("a".into(), Must::BePresent), ("b.c".into(), range.clone()), ("d".into(), allowed.clone())].to_vec();
    assert_eq!(musts(&whole), expected);
    let column =
        r#"{"required": true, "key": false, "range": {"min": -1.5}, "pattern": "^x", "allowed": [1, "two", true]}"#;
    let of_b = |must: Must| ("b".to_owned(), must);
    let of = read(Some("b"), column).unwrap();
    let expected = [Must::BePresent, range, Must::Match("^x".into()), allowed].map(of_b).to_vec();
    assert_eq!(musts(&of), expected);
    assert_eq!(of.rules[1].place, "version 3: range.b");
    for (column, text, said) in [
        (Some("b"), "{", "version 3: is no JSON"),
        (Some("b"), "7", "must be an object"),
        (Some("b"), r#"{"rang": {"min": 1}}"#, "version 3: rang: is not a setting (did you mean `range`?)"),
        (Some("b"), r#"{"required": "yes"}"#, "must be true or false"),
        (Some("b"), r#"{"range": {"min": null}}"#, "must be a number or a text"),
        (None, r#"{"required": "a"}"#, "must be a list of texts"),
        (None, "[]", "must be a table"),
    ] {
        let faults = read(column, text).unwrap_err().join("\n");
        assert!(faults.contains(said), "{text}: {faults}");
    }
}

#[test]
fn what_is_no_toml_is_told_with_its_line() {
    let faults = load("data_dir = \"a\"\n[sources.shop\n").unwrap_err();
    assert!(faults[0].starts_with("highwater.toml:2: "), "{}", faults[0]);
    let faults = load("data_dir = \"a\"\ndata_dir = \"b\"\n").unwrap_err();
    assert!(faults[0].starts_with("highwater.toml:2: "), "{}", faults[0]);
}

#[test]
fn a_server_elsewhere_is_reached_over_verified_tls() {
    let source = |url: &str| {
        let config = load(&format!("[sources.shop]\ntype = \"postgres\"\nurl = \"{url}\"\n")).unwrap();
        let Source::Postgres(source) = config.sources["shop"].clone();
        source
    };
    let verified = crate::PostgresTls::VerifyFull { ca: None, cert: None, key: None };
    assert_eq!(source("postgres://u@db.example/shop").tls, verified);
    assert_eq!(source("postgres://u@127.0.0.1:5433/shop").tls, crate::PostgresTls::Disable);
    let near = source("postgres://u:p%40ss@localhost/shop");
    assert_eq!(near.password.as_ref().unwrap().expose(), "p@ss");
    assert!(!format!("{near:?}").contains("p@ss"));
    assert_eq!(source("postgres://u@localhost/shop?host=/run/postgresql").hosts[0].name, "/run/postgresql");
    let several = source("postgres://u@a.example:5433,b.example,[::1]:5434/shop?target_session_attrs=read-write");
    let hosts: Vec<String> = several.hosts.iter().map(ToString::to_string).collect();
    assert_eq!(hosts, ["a.example:5433", "b.example:5432", "[::1]:5434"]);
    assert_eq!(
        (several.session, several.database.as_str(), several.tls),
        (crate::Session::ReadWrite, "shop", verified)
    );
    let near = source("postgres://u:p%40ss@localhost:1,127.0.0.1:2/shop");
    assert_eq!((near.hosts.len(), near.session, near.tls), (2, crate::Session::Any, crate::PostgresTls::Disable));
}

#[test]
fn a_registry_alone_is_a_configuration_and_opens_to_others_only_with_tls_and_users() {
    let config = load("[registry]\nbind = \"localhost:8081\"\n").unwrap();
    let Some(crate::Registry::Served(served)) = config.registry else { panic!("it is served") };
    assert_eq!((served.listen.bind.to_string().as_str(), served.max_body), ("127.0.0.1:8081", 1 << 20));
    let limited = "[registry]\nbind = \"127.0.0.1:1\"\nmax_connections = 64\nmax_body = 4096\n";
    let Some(crate::Registry::Served(served)) = load(limited).unwrap().registry else { panic!("it is served") };
    assert_eq!((served.listen.max_connections, served.max_body), (64, 4096));
    let faults = load("[registry]\nbind = \"0.0.0.0:8081\"\n").unwrap_err();
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(faults[0].starts_with("highwater.toml:2: registry.bind: is not this machine alone: it needs TLS"));
    assert!(faults[1].contains("it needs users or tokens"));
    let whole = "[registry]\nbind = \"0.0.0.0:8081\"\ntls = { cert = \"c.pem\", key = \"k.pem\" }\n\
         [registry.users.ann]\npassword = \"$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaA\"\nrole = \"admin\"\n";
    let Some(crate::Registry::Served(served)) = load(whole).unwrap().registry else { panic!("it is served") };
    assert_eq!(served.listen.users["ann"].role, crate::Role::Admin);
    assert!(served.listen.tls.as_ref().unwrap().cert.is_absolute());
    assert!(!format!("{:?}", served.listen.users).contains("argon2id"));
}

#[test]
fn http_listens_on_this_machine_or_with_tls_and_users() {
    let source = "[sources.shop]\ntype = \"postgres\"\nurl = \"postgres://u@localhost/shop\"\n";
    let http = |text: &str| load(&format!("{source}[http]\n{text}"));
    let read = http("bind = \"127.0.0.1:8484\"\npatience = \"5s\"\n").unwrap().http.unwrap();
    assert_eq!((read.listen.bind.port(), read.patience.as_secs()), (8484, 5));
    assert_eq!(http("bind = \"localhost:1\"\n").unwrap().http.unwrap().patience.as_secs(), 30);
    assert_eq!(http("").unwrap_err(), ["highwater.toml:4: http.bind: is missing"]);
    let faults = http("bind = \"0.0.0.0:8484\"\n").unwrap_err();
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(
        faults[0].contains("http.bind: is not this machine alone: it needs TLS")
            && faults[0].contains("[http.users.NAME]")
    );
    let whole = "bind = \"0.0.0.0:8484\"\ntls = { cert = \"c.pem\", key = \"k.pem\", client_ca = \"ca.pem\" }\n";
    assert!(http(whole).unwrap().http.unwrap().listen.tls.is_some());
}

#[test]
fn faults_of_the_registry_are_told_with_suggestions() {
    let faults = load(
        "[registry]\n\
         bind = \"8081\"\n\
         max_bodi = \"2MiB\"\n\
         [registry.users.ann]\n\
         password = \"sesame\"\n\
         rolle = \"admin\"\n\
         [registry.users.bob]\n\
         role = \"adm\"\n\
         [registry.tokens.ci]\n\
         token = \"0123456789abcdef\"\n",
    )
    .unwrap_err();
    for expected in [
        "highwater.toml:2: registry.bind: \"8081\" is no address with a port (write it like \"127.0.0.1:8081\")",
        "highwater.toml:3: registry.max_bodi: is not a setting (did you mean `max_body`?)",
        "highwater.toml:5: registry.users.ann.password: is no argon2 hash: $argon2id$v=19$… \
         (`highwater schemas password` makes the hash of one)",
        "highwater.toml:6: registry.users.ann.rolle: is not a setting (did you mean `role`?)",
        "highwater.toml:7: registry.users.bob.password: is missing",
        "highwater.toml:10: registry.tokens.ci.token: may not stand in the file in the clear for a server elsewhere \
         (write { env = \"NAME\" } or { file = \"PATH\" })",
    ] {
        assert!(faults.contains(&expected.to_owned()), "{expected}\nis not in\n{}", faults.join("\n"));
    }
    assert!(!faults.join("\n").contains("sesame"));
    let faults = load("[registry]\nbind = \"127.0.0.1:1\"\nurl = \"http://x\"\n").unwrap_err();
    assert!(faults[0].contains("registry.url: stands beside `bind`"), "{faults:?}");
    let elsewhere = |more: &str| {
        let source = "[sources.shop]\ntype = \"postgres\"\nurl = \"postgres://u@localhost/shop\"\n";
        load(&format!("{source}[registry]\n{more}"))
    };
    let faults =
        elsewhere("url = \"http://registry.example\"\nuser = \"a\"\npassword = { env = \"PATH\" }\n").unwrap_err();
    assert!(faults[0].contains("would send the password in the clear"), "{faults:?}");
    let config = elsewhere("url = \"https://registry.example/base\"\ntoken = { env = \"PATH\" }\n").unwrap();
    assert!(matches!(config.registry, Some(crate::Registry::External(_))));
}

#[test]
fn the_warehouse_example_is_a_mirror() {
    let config = load(include_str!("../../examples/warehouse.toml")).unwrap();
    let crate::Destination::Postgres(sink) = &config.sinks["warehouse"].destination else {
        panic!("it is a warehouse")
    };
    assert_eq!(sink.mode, crate::WarehouseMode::Mirror);
    assert_eq!(sink.server.database, "analytics");
    assert!(config.sinks["warehouse"].destination.cut_age() < Duration::from_secs(1));
}

#[test]
fn an_object_stores_settings_are_of_its_store_and_its_format() {
    let sink = |more: &str| {
        load(&format!(
            "[sources.shop]\ntype = \"postgres\"\nurl = \"postgres://u@localhost/shop\"\n\
             [sinks.lake]\ntype = \"object-store\"\nfrom = [\"shop\"]\n{more}"
        ))
    };
    for (more, fault) in [
        ("url = \"https://lake.example/cdc\"\n", "sinks.lake.url: HTTP and WebDAV have no conditional writes"),
        ("url = \"gs:///cdc\"\n", "sinks.lake.url: names no bucket"),
        ("url = \"s3://lake\"\nformat = \"avro\"\ncompression = \"gzip\"\n", "compression: \"gzip\" is not known"),
        ("url = \"s3://lake\"\ncompression = \"none\"\n", "compression: \"none\" is not known"),
        ("url = \"s3://lake\"\npartition = { by = \"day\" }\n", "partition.by: \"day\" is not known"),
        ("url = \"s3://lake\"\npartition = {}\n", "partition.by: or `column` must be there"),
        ("url = \"s3://lake\"\nretain = { age = \"1s\" }\n", "retain.age: is less than a minute"),
        ("url = \"s3://lake\"\noptions = { account_key = \"x\" }\n", "account_key: is not an option of s3:// urls"),
        ("url = \"az://lake\"\noptions = { account_key = \"x\" }\n", "account_key: may not stand in the file"),
        ("url = \"gs://lake\"\noptions = { service_account = \"no.json\" }\n", "no.json cannot be read"),
        (
            "url = \"s3://lake\"\noptions = { proxy_url = \"http://u:p@proxy\" }\n",
            "proxy_url: may not stand in the file",
        ),
    ] {
        let faults = sink(more).unwrap_err().join("\n");
        assert!(faults.contains(fault), "{more}{faults}");
    }
    for more in [
        "url = \"gs://lake/cdc\"\nformat = \"avro\"\ncompression = \"deflate\"\npartition = { by = \"commit_date\" }\n",
        "url = \"az://lake/cdc\"\nformat = \"ndjson\"\nretain = { age = \"30d\" }\npartition = { column = \"country\" }\n",
        "url = \"s3://lake/cdc\"\noptions = { proxy_url = \"http://proxy:3128\", server_side_encryption = \"AES256\" }\n",
    ] {
        sink(more).unwrap();
    }
}

#[test]
fn a_new_sink_begins_where_it_is_told() {
    let at = |start: &str| {
        let text = format!(
            "[sources.a]\ntype = \"postgres\"\nurl = \"postgres://u@localhost/a\"\n[sinks.b]\ntype = \"object-store\"\n\
             from = [\"a\"]\nurl = \"file:///b\"\nmax_backlog = \"1GiB\"\n{start}"
        );
        Config::from_text(Path::new("highwater.toml"), &text).map(|config| config.sinks["b"].start.clone())
    };
    assert_eq!(at("").unwrap(), Start::Log);
    assert_eq!(at("start = \"snapshot\"").unwrap(), Start::Snapshot);
    assert_eq!(at("start = 1337").unwrap(), Start::Offset(1337));
    assert_eq!(at("start = \"1337\"").unwrap(), Start::Offset(1337));
    let time = "2026-11-22T10:00:00Z";
    assert_eq!(at(&format!("start = \"{time}\"")).unwrap(), Start::Time(time.into()));
    for wrong in ["start = -1", "start = 1.5", "start = true", "start = \"yesterday\""] {
        let faults = at(wrong).unwrap_err().faults;
        assert!(faults.len() == 1 && faults[0].to_string().contains("sinks.b.start"), "{wrong}: {faults:?}");
    }
}
