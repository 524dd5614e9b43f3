//! What a declaration may be, and what it makes of an input.

use serde_json::json;

use super::*;

fn declared(toml: &str) -> Kinds {
    Kinds::declare(toml).unwrap_or_else(|error| panic!("{error}\n{toml}"))
}

const PING: &str = r#"
[kinds.ping]
resource = "host/${host}"
class = "background"
deadline = "5m"
max_attempts = 7
supersedes = ["ping"]
[[kinds.ping.steps]]
name = "ping"
operation = "exec"
input = { program = "ping", args = ["-c", "${count}", "${host}"], env = { N = "n=${count}" } }
timeout = "30s"
resources = ["net/${host}"]
compensate = { operation = "exec", input = { program = "unping", args = "${list}" } }
"#;

#[test]
fn a_kind_makes_a_plan_of_an_input() {
    let kinds = declared(PING);
    let kind = kinds.get("ping").unwrap();
    assert_eq!(kind.origin, Origin::Configured);
    assert_eq!(
        (kind.class, kind.max_attempts),
        (Class::Background, Some(7))
    );
    assert_eq!(kind.deadline, Some(Duration::from_secs(300)));
    let input = json!({"host": "a.example", "count": 3, "list": ["x", 1]});
    let resolved = kind.resolve(&input).unwrap();
    assert_eq!(resolved.resource.as_deref(), Some("host/a.example"));
    let step = &resolved.plan.steps[0];
    let input: Value = serde_json::from_str(&step.work.input).unwrap();
    assert_eq!(
        input,
        json!({"program": "ping", "args": ["-c", 3, "a.example"], "env": {"N": "n=3"}})
    );
    assert_eq!(step.work.timeout, Duration::from_secs(30));
    assert_eq!(step.resources, ["net/a.example"]);
    let undo = step.undo.as_ref().unwrap();
    assert_eq!(undo.input, r#"{"args":["x",1],"program":"unping"}"#);
    assert_eq!(undo.timeout, Duration::from_secs(15 * 60), "the default");
    assert_eq!(resolved.plan.shape(), crate::process::Shape::new(1, 1));
}

#[test]
fn an_input_that_does_not_fit_is_refused_by_the_name_of_its_field() {
    let kinds = declared(PING);
    let ping = kinds.get("ping").unwrap();
    let start = kinds.get("vm-start").unwrap();
    let cases = [
        (
            ping,
            json!({"host": "a", "count": 1}),
            "input.list",
            "missing",
        ),
        (
            ping,
            json!({"host": "a", "count": [1], "list": []}),
            "input.count",
            "must be text",
        ),
        (
            ping,
            json!({"host": "", "count": 1, "list": 1, "x": 1}),
            "input.x",
            "no such field",
        ),
        (
            ping,
            json!({"host": "a\nb", "count": 1, "list": 1}),
            "input.host",
            "control",
        ),
        (
            ping,
            json!({"host": "h".repeat(200), "count": 1, "list": 1}),
            "input.host",
            "204 bytes",
        ),
        (ping, json!([1]), "input", "takes a JSON object"),
        (
            ping,
            json!({"host": "a", "count": 1, "list": "x".repeat(100_000)}),
            "input",
            "98304",
        ),
        (start, json!({}), "input.vm", "missing"),
        (start, json!({"vm": 7}), "input.vm", "a name"),
        (start, json!({"vm": "--help"}), "input.vm", "no `-`"),
        (start, json!({"vm": "a b"}), "input.vm", "a name"),
        (
            start,
            json!({"vm": "a", "memory": 1}),
            "input.memory",
            "no such field; it takes `vm`",
        ),
    ];
    for (kind, input, field, words) in cases {
        let error = kind.resolve(&input).unwrap_err();
        assert_eq!(error.field, field, "{error}");
        assert!(error.detail.contains(words), "{error}");
    }
}

/// A kind with one line changed.
fn broken(from: &str, to: &str) -> KindsError {
    let text = PING.replace(from, to);
    assert_ne!(text, PING, "nothing was replaced");
    Kinds::declare(&text).map(|_| ()).unwrap_err()
}

/// A line of `PING`, what stands there instead, and which key is refused with which words.
const BROKEN: &[(&str, &str, &str, &str)] = &[
    (
        "[kinds.ping]",
        "[kinds.ping]\ncolour = 1",
        "kinds.ping.colour",
        "unknown field `colour`",
    ),
    (
        "timeout = \"30s\"",
        "timeout = \"30\"",
        "kinds.ping.steps[0].timeout",
        "such as 30s",
    ),
    (
        "timeout = \"30s\"",
        "timeout = \"0s\"",
        "kinds.ping.steps[0].timeout",
        "1s to 30d",
    ),
    (
        "timeout = \"30s\"",
        "timeout = 30",
        "kinds.ping.steps[0].timeout",
        "invalid type",
    ),
    (
        "timeout = \"30s\"",
        "time = \"30s\"",
        "kinds.ping.steps[0].time",
        "unknown field `time`",
    ),
    (
        "deadline = \"5m\"",
        "deadline = \"31d\"",
        "kinds.ping.deadline",
        "30d",
    ),
    (
        "max_attempts = 7",
        "max_attempts = 0",
        "kinds.ping.max_attempts",
        "1 to 100",
    ),
    (
        "\"background\"",
        "\"urgent\"",
        "kinds.ping.class",
        "unknown variant",
    ),
    (
        "operation = \"exec\"\n",
        "operation = \"Exec!\"\n",
        "kinds.ping.steps[0].operation",
        "a-z",
    ),
    (
        "operation = \"exec\"\n",
        "operation = \"ping\"\n",
        "kinds.ping.steps[0].operation",
        "a kind itself",
    ),
    (
        "operation = \"exec\"\n",
        "operation = \"vm-start\"\n",
        "kinds.ping.steps[0].operation",
        "a kind itself",
    ),
    (
        "operation = \"exec\"\n",
        "",
        "kinds.ping.steps[0]",
        "missing field `operation`",
    ),
    (
        "\"${count}\"",
        "\"${count\"",
        "kinds.ping.steps[0].input",
        "without its",
    ),
    (
        "\"host/${host}\"",
        "\"host/$host\"",
        "kinds.ping.resource",
        "single `$`",
    ),
    (
        "resource = \"host/${host}\"\n",
        "",
        "kinds.ping.supersedes",
        "needs `resource`",
    ),
    (
        "supersedes = [\"ping\"]",
        "supersedes = [\"Ping\"]",
        "kinds.ping.supersedes",
        "a-z",
    ),
    (
        "name = \"ping\"",
        "name = \"\"",
        "kinds.ping.steps[0].name",
        "1 to 64",
    ),
    (
        "[kinds.ping]",
        "[kinds.ping]\nfields.host = { type = \"name\" }",
        "kinds.ping.steps[0].input",
        "not in `fields`",
    ),
    (
        "[kinds.ping]",
        "[kinds.ping]\nfields.host = { type = \"colour\" }",
        "kinds.ping.fields.host.type",
        "unknown variant",
    ),
    (
        "[kinds.ping]",
        "[kinds.ping]\nfields.host = { type = \"name\", default = 7 }",
        "kinds.ping.fields.host.default",
        "a name",
    ),
    (
        "[kinds.ping]",
        "[kinds.ping]\nfields.HOST = { type = \"name\" }",
        "kinds.ping.fields.HOST",
        "a-z",
    ),
    (
        "unping\", args",
        "unping\", \"${a}\" = 1, args",
        "kinds.ping.steps[0].compensate.input",
        "member's name",
    ),
];

#[test]
fn a_declaration_that_cannot_be_meant_is_refused_by_its_key() {
    for (from, to, key, words) in BROKEN.iter().copied() {
        let error = broken(from, to);
        assert_eq!(error.key, key, "{error}");
        assert!(error.problem.contains(words), "{error}");
    }
    let bad_name = PING.replace("kinds.ping", "kinds.Ping");
    assert_eq!(Kinds::declare(&bad_name).unwrap_err().key, "kinds.Ping");
    assert!(
        Kinds::declare("[kinds")
            .unwrap_err()
            .problem
            .contains("not TOML")
    );
    assert!(
        Kinds::declare("kinds = 3")
            .unwrap_err()
            .problem
            .contains("invalid type")
    );
}

#[test]
fn the_number_of_steps_and_kinds_is_bounded() {
    let head = "[kinds.many]\n";
    let step = |n| format!("[[kinds.many.steps]]\nname = \"s{n}\"\noperation = \"exec\"\n");
    let many = |count| format!("{head}{}", (0..count).map(step).collect::<String>());
    assert_eq!(declared(&many(32)).get("many").unwrap().steps.len(), 32);
    let error = Kinds::declare(&many(33)).unwrap_err();
    assert_eq!(error.key, "kinds.many.steps");
    assert!(error.problem.contains("33 steps; a kind has 1 to 32"));
    let none = Kinds::declare("[kinds.many]\nsteps = []").unwrap_err();
    assert!(none.problem.contains("0 steps"), "{none}");
    // A gateway counts an operation against so many shared resources and no more.
    let uses = |count| format!("{}resources = {:?}", many(1), vec!["pool/a"; count]);
    assert!(Kinds::declare(&uses(4)).is_ok());
    let error = Kinds::declare(&uses(5)).unwrap_err();
    assert_eq!(error.key, "kinds.many.steps[0].resources");
    assert_eq!(error.problem, "names more than 4");
    let missing = Kinds::declare(head).unwrap_err();
    assert!(
        missing.problem.contains("missing field `steps`"),
        "{missing}"
    );
    let twice = Kinds::declare(&format!("{head}{}{}", step(1), step(1))).unwrap_err();
    assert_eq!(twice.key, "kinds.many.steps[1].name");
    let kind =
        |n| format!("[kinds.k{n}]\n[[kinds.k{n}.steps]]\nname = \"s\"\noperation = \"exec\"\n");
    let crowd: String = (0..KINDS_MAX).map(kind).collect();
    assert!(
        Kinds::declare(&crowd)
            .unwrap_err()
            .problem
            .contains("at most 256")
    );
}

#[test]
fn the_built_in_kinds_cover_a_machines_life_on_both_drivers() {
    let kinds = Kinds::built_in().unwrap();
    for life in [
        "create", "start", "stop", "reboot", "migrate", "snapshot", "delete",
    ] {
        for (prefix, driver) in [("vm", "exec"), ("sim-vm", "simulated")] {
            let kind = kinds.get(&format!("{prefix}-{life}")).unwrap();
            assert_eq!(kind.origin, Origin::BuiltIn);
            assert!(!kind.description.is_empty());
            assert!(kind.steps.iter().all(|step| step.work.operation == driver));
            let many = matches!(life, "create" | "migrate" | "snapshot" | "delete");
            let undone = kind.steps.iter().any(|step| step.compensate.is_some());
            assert_eq!(
                (kind.steps.len() > 1, undone),
                (many, many),
                "{}",
                kind.name
            );
            let input = json!({"vm": "web-1", "pool": "ssd", "definition": "web", "destination": "hv-2",
                "snapshot": "before"});
            let Value::Object(mut input) = input else {
                unreachable!()
            };
            input.retain(|name, _| kind.fields.contains_key(name));
            let resolved = kind.resolve(&Value::Object(input)).unwrap();
            assert_eq!(resolved.resource.as_deref(), Some("vm/web-1"));
        }
    }
}

#[test]
fn a_declaration_replaces_a_built_in_kind_and_may_shadow_a_driver() {
    let text = PING
        .replace("kinds.ping", "kinds.vm-start")
        .replace("supersedes = [\"ping\"]", "");
    let kinds = declared(&text);
    assert_eq!(kinds.get("vm-start").unwrap().origin, Origin::Configured);
    let shadow = PING.replace("kinds.ping", "kinds.exec");
    assert!(declared(&shadow).get("exec").is_some());
    // Other parts of the file are none of ours.
    assert!(declared("[gateway]\nshards = 2\n").get("ping").is_none());
}
