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
    assert_eq!(source("postgres://u@localhost/shop?host=/run/postgresql").host, "/run/postgresql");
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
