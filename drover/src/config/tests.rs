//! Precedence, and what people read when they make a mistake.

use super::*;

fn flag(key: &str, value: &str) -> Setting {
    Setting {
        key: key.to_owned(),
        value: value.to_owned(),
        origin: Origin::Flag(format!("--set {key}")),
    }
}

fn load_text(text: &str) -> Result<Loaded, Fault> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drover.toml");
    std::fs::write(&path, text).unwrap();
    load(Sources {
        file: Some(path),
        ..Sources::default()
    })
}

#[test]
fn flags_win_over_variables_over_the_file_over_defaults() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drover.toml");
    std::fs::write(
        &path,
        "domain = 'file'\n[gateway]\nshards = 2\n[log]\nfilter='file'\n",
    )
    .unwrap();
    let loaded = load(Sources {
        file: Some(path),
        environment: vec![
            ("DROVER_DOMAIN".to_owned(), "variable".to_owned()),
            ("DROVER_GATEWAY_SHARDS".to_owned(), "3".to_owned()),
        ],
        flags: vec![flag("gateway.shards", "4")],
    })
    .unwrap();
    assert_eq!(loaded.config.gateway.shards, Some(4));
    assert_eq!(loaded.config.domain, "variable");
    assert_eq!(loaded.config.log.filter, "file");
    assert_eq!(loaded.config.api, Config::default().api);
}

#[test]
fn the_printed_configuration_reads_back_as_the_same_configuration() {
    let loaded = load(Sources {
        flags: vec![
            flag("gateway.advertise", "a.example:7443,b.example:7443"),
            flag("gateway.shards", "3"),
            flag("api.ui.certificate", "/etc/drover/tls.crt"),
            flag("api.ui.burst", "7"),
            flag("api.public.listen", "[::1]:7442"),
            flag("api.public.requests_per_second", "none"),
            flag("api.public.workers", "auto"),
            flag("admin.listen", "off"),
            flag("gateway.datapath", "poll"),
            flag("drain.deadline", "1500ms"),
            flag("store", "postgres://db/drover"),
            flag("store_read_urls", "postgres://a/drover,postgres://b/drover"),
            flag("store_read_max_age", "2s"),
            flag("data_dir", "/tmp/a \"quoted\" place"),
        ],
        ..Sources::default()
    })
    .unwrap();
    assert_eq!(load_text(&loaded.print()).unwrap().config, loaded.config);
    let defaults = load(Sources::default()).unwrap();
    assert_eq!(
        load_text(&defaults.print()).unwrap().config,
        Config::default()
    );
}

/// A file, and what a person sees for the mistake in it.
const MISTAKES: [(&str, &str, &str); 28] = [
    (
        "[store]\nread_urls = ['postgres://a/b']\n",
        "line 2: there is no key `store.read_urls`",
        "did you mean `store_read_urls`?",
    ),
    (
        "store_read_urls = ['sqlite:x']\n",
        "line 1: store_read_urls = `sqlite:x` cannot be used",
        "expected postgres://",
    ),
    (
        "[gatway]\nshards = 2\n",
        "line 2: there is no key `gatway.shards`",
        "did you mean `gateway.shards`?",
    ),
    (
        "[gateway]\nshrads = 2\n",
        "line 2: there is no key `gateway.shrads`",
        "did you mean `gateway.shards`?",
    ),
    (
        "[gatewya]\n",
        "line 1: there is no section `gatewya`",
        "print-config",
    ),
    (
        "colour = 'red'\n",
        "line 1: there is no key `colour`",
        "print-config",
    ),
    (
        "\n\ngateway.shards = 65\n",
        "line 3: gateway.shards = `65`",
        "from 1 to 64",
    ),
    (
        "gateway.shards = 'many'\n",
        "line 1: gateway.shards = `many`",
        "from 1 to 64",
    ),
    (
        "gateway.datapath = 'fast'\n",
        "gateway.datapath = `fast`",
        "auto, uring or poll",
    ),
    (
        "gateway.park = 'x'\n",
        "gateway.park = `x`",
        "monoio or direct",
    ),
    (
        "[api]\nlisten = 'localhost'\n",
        "api.listen = `localhost`",
        "IP address with a port",
    ),
    (
        "api.ui.workers = 0\n",
        "api.ui.workers = `0`",
        "from 1 to 64, or auto",
    ),
    (
        "[api.public]\nrequests_per_second = 0\n",
        "line 2: api.public.requests_per_second = `0`",
        "from 1 to 100000, or none",
    ),
    (
        "api.public.burst = 'none'\n",
        "api.public.burst = `none`",
        "from 1 to 100000, or auto",
    ),
    (
        "api.public.connections = 0\n",
        "api.public.connections = `0`",
        "from 1 to 65536",
    ),
    (
        "api.public.listen = ':7442'\n",
        "api.public.listen = `:7442`",
        "or off",
    ),
    (
        "admin.listen = 'localhost:7441'\n",
        "admin.listen = `localhost:7441`",
        "or off",
    ),
    (
        "api.public.certifcate = 'x'\n",
        "there is no key `api.public.certifcate`",
        "did you mean `api.public.certificate`?",
    ),
    ("drain.deadline = 20\n", "drain.deadline = `20`", "10s"),
    (
        "domain = 'Cloud Example'\n",
        "domain = `Cloud Example`",
        "trust domain",
    ),
    ("profile = 'al'\n", "profile = `al`", "did you mean `all`"),
    ("store = 'oracle:x'\n", "store = `oracle:x`", "sqlite:"),
    (
        "log.format = 'xml'\n",
        "log.format = `xml`",
        "human or json",
    ),
    ("log.filter = 'a=b=c'\n", "log.filter = `a=b=c`", "filter"),
    ("data_dir = ''\n", "data_dir = ``", "directory"),
    (
        "gateway.advertise = ['a']\n",
        "gateway.advertise = `a`",
        "HOST:PORT",
    ),
    ("gateway = 1\n", "`gateway` is a section", "[gateway]"),
    ("gateway.listen = \n", "line 1:", "toml"),
];

#[test]
fn mistakes_in_a_file_are_told_with_line_and_remedy() {
    for (text, what, advice) in MISTAKES {
        let fault = load_text(text).expect_err(text);
        let advice_text = fault.advice.clone().unwrap_or_default();
        assert!(fault.what.contains(what), "{text:?} gave {fault:?}");
        assert!(advice_text.contains(advice), "{text:?} gave {fault:?}");
        assert_eq!(fault.exit, crate::fault::Exit::Usage);
    }
}

#[test]
fn a_missing_file_is_named() {
    let fault = load(Sources {
        file: Some(PathBuf::from("/nowhere/drover.toml")),
        ..Sources::default()
    })
    .unwrap_err();
    assert!(fault.what.contains("/nowhere/drover.toml"), "{fault:?}");
}

#[test]
fn variables_that_look_like_a_slip_are_warned_of_and_others_left_alone() {
    let loaded = load(Sources {
        environment: vec![
            ("DROVER_GATEWAY_SHRADS".to_owned(), "3".to_owned()),
            (
                "DROVER_SERVICE_HOST_OF_SOMETHING".to_owned(),
                "x".to_owned(),
            ),
            ("DROVER_TOKEN".to_owned(), "secret".to_owned()),
        ],
        ..Sources::default()
    })
    .unwrap();
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    assert!(loaded.warnings[0].contains("DROVER_GATEWAY_SHARDS"));
}

#[test]
fn kinds_of_the_file_are_read_beside_its_other_sections() {
    let text = "[gateway]\nshards = 2\n\n[kinds.ping]\n\n[[kinds.ping.steps]]\nname = 'ping'\noperation = 'exec'\ninput = { program = 'ping', args = ['${host}'] }\n";
    let loaded = load_text(text).unwrap();
    assert_eq!(loaded.config.gateway.shards, Some(2));
    let kind = loaded.config.kinds.get("ping").unwrap();
    assert!(kind.fields.contains_key("host"));
    assert!(loaded.config.kinds.get("vm-start").is_some(), "built in");
    let printed = loaded.print();
    assert!(printed.contains("declares: ping"), "{printed}");
}

#[test]
fn kinds_that_cannot_be_meant_stop_the_start() {
    let step = "[[kinds.ping.steps]]\nname = 'ping'\n";
    for (text, what) in [
        (
            format!("{step}operation = 'Exec'\n"),
            "kinds.ping.steps[0].operation: a driver's name",
        ),
        (
            format!("{step}operation = 'exec'\ntimeout = '5'\n"),
            "kinds.ping.steps[0].timeout",
        ),
        (
            format!("[kinds.ping]\ncolour = 1\n{step}operation = 'exec'\n"),
            "unknown field `colour`",
        ),
        ("[kinds.ping]\n".to_owned(), "missing field `steps`"),
        ("kinds = 1\n".to_owned(), "kinds: invalid type"),
    ] {
        let fault = load_text(&text).unwrap_err();
        assert!(fault.what.contains(what), "{fault:?}");
        assert!(fault.what.contains("drover.toml"), "{fault:?}");
        assert_eq!(fault.exit, crate::fault::Exit::Usage);
        assert!(fault.advice.unwrap().contains("PROCESSES.md"));
    }
}
