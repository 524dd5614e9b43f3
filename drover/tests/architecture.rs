//! The rules of the house as tests: what may depend on what, where `unsafe` may stand, how large a
//! file may be, which files hold no clock and no lock, and that the documents name real paths.
//!
//! A rule is a pure function from sources to violations. Each has a test that runs it on the
//! repository, and a test that plants a violation: a checker that cannot fail proves nothing.

#[path = "architecture/source.rs"]
mod source;

use std::path::Path;

use source::{Source, repository, root};

/// Lines of the longest file.
const FILE_LINES_MAX: usize = 800;
/// Lines of the longest function; clippy counts them.
const FUNCTION_LINES_MAX: i64 = 70;

/// Where `unsafe` may stand: the ring files of the runtime, and generated code.
const UNSAFE_ALLOWED: [&str; 2] = ["gateway/src/runtime/ring", "protocol/src/generated"];
/// Written by a program: no limit on its size.
const GENERATED: &str = "protocol/src/generated";

/// State machines and rules: no `async`, no clock, no lock, no I/O. A file, or a folder with all
/// that is in it.
const PURE: &[&str] = &[
    "protocol/src",
    "gateway/src/flow.rs",
    "gateway/src/flow",
    "gateway/src/hub.rs",
    "gateway/src/hub",
    "gateway/src/session.rs",
    "gateway/src/session",
    "gateway/src/group.rs",
    "gateway/src/group",
    "gateway/src/runtime/wheel.rs",
    "gateway/src/endpoint/admission.rs",
    "gateway/src/endpoint/budget.rs",
    "control/src/process.rs",
    "control/src/process",
    "control/src/kinds.rs",
    "control/src/kinds",
    "control/src/lending.rs",
    "control/src/lending",
    "control/src/limits.rs",
    "control/src/dispatch/fleet.rs",
    "control/src/dispatch/fleet",
    "control/src/dispatch/pace.rs",
    "control/src/dispatch/rhythm.rs",
    "control/src/dispatch/tenants.rs",
    "control/src/batches/matching.rs",
    "control/src/gateways/balance.rs",
    "control/src/batches/rules.rs",
    "control/src/webhooks/address.rs",
    "control/src/webhooks/events.rs",
    "control/src/webhooks/plan.rs",
    "control/src/webhooks/plan",
    "control/src/webhooks/sign.rs",
    "control/src/webhooks/target.rs",
    "control/src/webhooks/verdict.rs",
    "agent/src/reconnect.rs",
    "agent/src/session.rs",
    "agent/src/session",
    "drover/src/cli/sse.rs",
    "drover/src/cli/top/figures.rs",
    "drover/src/cli/top/format.rs",
    "drover/src/cli/top/state.rs",
    "drover/src/cli/top/view.rs",
    "drover/src/cli/top/view",
    "drover/src/config/suggest.rs",
];
/// What a pure file may not say.
const IMPURE: [&str; 14] = [
    "async",
    "await",
    "Instant::now",
    "SystemTime::now",
    "Mutex",
    "RwLock",
    "tokio",
    "monoio",
    "std::fs",
    "std::thread",
    "UdpSocket",
    "TcpStream",
    "thread_rng",
    "rand::rng",
];

/// What no file may say.
const BANNED: [(&str, &str); 5] = [
    ("todo!", "finish it, or leave it out"),
    ("unimplemented!", "finish it, or leave it out"),
    ("dbg!", "use tracing"),
    ("#[ignore", "a test that does not run is no test"),
    ("#[allow", "use #[expect(lint, reason = \"…\")]"),
];

// ——— rules ———

fn words_of_tree<'a>(tree: &'a str, forbidden: &[&str]) -> Vec<&'a str> {
    tree.lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|package| forbidden.contains(package))
        .collect()
}

fn misplaced_unsafe(sources: &[Source]) -> Vec<String> {
    let allowed = |source: &&Source| !UNSAFE_ALLOWED.iter().any(|place| source.is_in(place));
    sources
        .iter()
        .filter(allowed)
        .flat_map(|source| source.lines_with("unsafe"))
        .map(|place| format!("{place}: `unsafe` outside of {UNSAFE_ALLOWED:?}"))
        .collect()
}

fn long_files(sources: &[Source]) -> Vec<String> {
    sources
        .iter()
        .filter(|source| !source.is_in(GENERATED))
        .map(|source| (source, source.text.lines().count()))
        .filter(|(_, lines)| *lines > FILE_LINES_MAX)
        .map(|(source, lines)| format!("{}: {lines} lines, at most {FILE_LINES_MAX}", source.path))
        .collect()
}

fn mod_files(sources: &[Source]) -> Vec<String> {
    sources
        .iter()
        .filter(|source| source.path.ends_with("/mod.rs"))
        .map(|source| format!("{}: use `foo.rs` beside `foo/`", source.path))
        .collect()
}

fn impure(sources: &[Source], pure: &[&str]) -> Vec<String> {
    let mut violations = Vec::new();
    for place in pure {
        let here: Vec<&Source> = sources
            .iter()
            .filter(|source| source.is_in(place) && !source.is_test())
            .collect();
        if here.is_empty() {
            violations.push(format!(
                "{place}: listed as pure, but there is no such file"
            ));
        }
        for source in here {
            for word in IMPURE {
                let found = source.lines_with_before_tests(word);
                violations.extend(found.map(|at| format!("{at}: `{word}` in a pure file")));
            }
        }
    }
    violations
}

fn banned(sources: &[Source]) -> Vec<String> {
    let mut violations = Vec::new();
    for source in sources.iter().filter(|source| !source.is_in(GENERATED)) {
        for (word, remedy) in BANNED {
            let found = source.lines_with(word);
            violations.extend(found.map(|at| format!("{at}: `{word}`: {remedy}")));
        }
    }
    violations
}

/// Dependencies of a manifest that carry a version or a path of their own.
fn own_versions(name: &str, manifest: &str) -> Vec<String> {
    let manifest: toml::Table = manifest.parse().expect("a manifest is valid TOML");
    let mut violations = Vec::new();
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let Some(table) = manifest.get(section).and_then(|section| section.as_table()) else {
            continue;
        };
        for (dependency, value) in table {
            let inherits = value.get("workspace").and_then(toml::Value::as_bool) == Some(true);
            if !inherits || value.get("version").is_some() {
                violations.push(format!(
                    "{name}: `{dependency}` has a version of its own; write it into the root table"
                ));
            }
        }
    }
    if manifest.contains_key("target") {
        violations.push(format!(
            "{name}: dependencies per target are not checked; avoid them"
        ));
    }
    violations
}

/// Whether the lints of the workspace hold in this crate.
fn without_lints(name: &str, manifest: &str) -> Option<String> {
    let manifest: toml::Table = manifest.parse().expect("a manifest is valid TOML");
    let inherits = manifest
        .get("lints")
        .and_then(|lints| lints.get("workspace"))
        .and_then(toml::Value::as_bool);
    (inherits != Some(true)).then(|| format!("{name}: `[lints] workspace = true` is missing"))
}

fn function_limit(name: &str, clippy: &str) -> Option<String> {
    let clippy: toml::Table = clippy.parse().expect("clippy.toml is valid TOML");
    let limit = clippy
        .get("too-many-lines-threshold")
        .and_then(toml::Value::as_integer);
    (limit != Some(FUNCTION_LINES_MAX))
        .then(|| format!("{name}: too-many-lines-threshold is not {FUNCTION_LINES_MAX}"))
}

/// Paths named in a document, in backticks, that do not exist.
fn missing_paths(name: &str, document: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    source::named_paths(document)
        .into_iter()
        .filter(|(_, path)| !exists(path))
        .map(|(line, path)| format!("{name}:{line}: `{path}` does not exist"))
        .collect()
}

// ——— the repository keeps them ———

#[track_caller]
fn assert_none(violations: Vec<String>) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

fn cargo_tree(package: &str) -> String {
    let output = std::process::Command::new(env!("CARGO"))
        .current_dir(root())
        .args([
            "tree",
            "--offline",
            "--prefix",
            "none",
            "--edges",
            "normal,build,dev",
        ])
        .args(["--package", package])
        .output()
        .expect("cargo runs");
    let tree = String::from_utf8(output.stdout).expect("cargo writes UTF-8");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(tree.starts_with(package), "cargo tree failed: {said}");
    tree
}

fn manifests() -> Vec<(String, String)> {
    source::members()
        .iter()
        .map(|member| {
            let name = format!("{member}/Cargo.toml");
            let text =
                std::fs::read_to_string(root().join(&name)).expect("a member has a manifest");
            (name, text)
        })
        .collect()
}

#[test]
fn no_tokio_and_no_control_plane_under_the_gateway() {
    let tree = cargo_tree("drover-gateway");
    let forbidden = ["tokio", "quinn", "drover-control", "drover-agent", "drover"];
    assert_eq!(words_of_tree(&tree, &forbidden), Vec::<&str>::new());
}

#[test]
fn no_gateway_under_the_control_plane() {
    let tree = cargo_tree("drover-control");
    let forbidden = ["drover-gateway", "drover-agent", "monoio", "drover"];
    assert_eq!(words_of_tree(&tree, &forbidden), Vec::<&str>::new());
}

#[test]
fn the_protocol_depends_on_no_runtime() {
    let tree = cargo_tree("drover-protocol");
    let forbidden = ["tokio", "monoio", "quinn", "quinn-proto", "rustls"];
    assert_eq!(words_of_tree(&tree, &forbidden), Vec::<&str>::new());
}

#[test]
fn unsafe_stands_only_in_the_ring_and_in_generated_code() {
    assert_none(misplaced_unsafe(&repository()));
}

#[test]
fn no_file_is_longer_than_800_lines() {
    assert_none(long_files(&repository()));
}

#[test]
fn no_file_is_called_mod() {
    assert_none(mod_files(&repository()));
}

#[test]
fn pure_files_hold_no_clock_no_lock_and_no_async() {
    assert_none(impure(&repository(), PURE));
}

#[test]
fn nothing_unfinished_or_ignored_is_left() {
    assert_none(banned(&repository()));
}

#[test]
fn every_dependency_version_is_in_the_root_table() {
    let violations = manifests()
        .iter()
        .flat_map(|(name, text)| own_versions(name, text))
        .collect();
    assert_none(violations);
}

#[test]
fn every_crate_keeps_the_lints_and_functions_stay_within_a_screen() {
    let mut violations: Vec<String> = manifests()
        .iter()
        .filter_map(|(name, text)| without_lints(name, text))
        .collect();
    for name in ["clippy.toml", "gateway/clippy.toml"] {
        let text = std::fs::read_to_string(root().join(name)).expect("clippy.toml exists");
        violations.extend(function_limit(name, &text));
    }
    let root_manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("it exists");
    if !root_manifest.contains("too_many_lines = ") {
        violations.push("Cargo.toml: the lint too_many_lines is off".to_owned());
    }
    assert_none(violations);
}

#[test]
fn every_path_that_a_document_names_exists() {
    let mut violations = Vec::new();
    for name in source::documents() {
        let text = std::fs::read_to_string(root().join(&name)).expect("a document can be read");
        violations.extend(missing_paths(&name, &text, |path| {
            root().join(path).exists()
        }));
    }
    assert_none(violations);
}

// ——— and each rule can fail ———

fn planted(path: &str, text: &str) -> Vec<Source> {
    vec![Source::new(path, text)]
}

#[test]
fn a_planted_dependency_is_caught() {
    let tree = "drover-gateway v0.1.0\ntokio v1.48.0\ntokio-util v0.7.0\nquinn-proto v0.11.9\n";
    assert_eq!(words_of_tree(tree, &["tokio", "quinn"]), ["tokio"]);
}

#[test]
fn planted_unsafe_is_caught_and_only_in_code() {
    let code = "fn f() { unsafe { g() } }";
    assert_eq!(
        misplaced_unsafe(&planted("gateway/src/shard.rs", code)).len(),
        1
    );
    assert_eq!(
        misplaced_unsafe(&planted("gateway/src/runtime/ringer.rs", code)).len(),
        1
    );
    assert!(misplaced_unsafe(&planted("gateway/src/runtime/ring/sqe.rs", code)).is_empty());
    assert!(misplaced_unsafe(&planted("protocol/src/generated/agent.rs", code)).is_empty());
    let words = "// unsafe\n/* unsafe /* unsafe */ */ let a = \"unsafe\"; #![deny(unsafe_code)]";
    assert!(misplaced_unsafe(&planted("gateway/src/shard.rs", words)).is_empty());
}

#[test]
fn a_planted_long_file_is_caught_at_801_lines() {
    let lines = |count: usize| "x\n".repeat(count);
    assert!(long_files(&planted("a/src/b.rs", &lines(800))).is_empty());
    assert_eq!(long_files(&planted("a/src/b.rs", &lines(801))).len(), 1);
    assert!(long_files(&planted("protocol/src/generated.rs", &lines(9000))).is_empty());
}

#[test]
fn a_planted_mod_file_is_caught() {
    assert_eq!(mod_files(&planted("gateway/src/shard/mod.rs", "")).len(), 1);
}

#[test]
fn planted_impurity_is_caught_but_not_in_comments_or_tests() {
    for word in IMPURE {
        let code = format!("fn f() {{ {word} }}");
        let found = impure(
            &planted("gateway/src/session/hello.rs", &code),
            &["gateway/src/session"],
        );
        assert_eq!(found.len(), 1, "{word}: {found:?}");
    }
    let fine =
        "// no async here\nfn a() {}\n#[cfg(test)]\nmod tests { fn t() { Instant::now(); } }";
    let pure = ["gateway/src/session.rs"];
    assert!(impure(&planted("gateway/src/session.rs", fine), &pure).is_empty());
    assert_eq!(
        impure(&planted("gateway/src/sessions.rs", fine), &pure).len(),
        1
    );
}

#[test]
fn planted_unfinished_work_is_caught() {
    for (word, _) in BANNED {
        assert_eq!(
            banned(&planted("agent/src/lib.rs", word)).len(),
            1,
            "{word}"
        );
    }
    assert!(
        banned(&planted(
            "agent/src/lib.rs",
            "// todo!()\nlet a = \"dbg!\";"
        ))
        .is_empty()
    );
}

#[test]
fn a_planted_version_is_caught() {
    for manifest in [
        "[dependencies]\nserde = \"1\"",
        "[dev-dependencies]\nserde = { version = \"1\" }",
        "[build-dependencies]\nserde = { git = \"https://example\" }",
        "[dependencies.serde]\npath = \"../serde\"",
        "[target.'cfg(unix)'.dependencies]\nlibc = \"0.2\"",
    ] {
        assert_eq!(own_versions("x", manifest).len(), 1, "{manifest}");
    }
    assert!(own_versions("x", "[dependencies]\nserde.workspace = true").is_empty());
}

#[test]
fn planted_lax_lints_are_caught() {
    assert!(without_lints("x", "[package]\nname = 'x'").is_some());
    assert!(without_lints("x", "[lints]\nworkspace = true").is_none());
    assert!(function_limit("x", "too-many-lines-threshold = 100").is_some());
    assert!(function_limit("x", "").is_some());
    assert!(function_limit("x", "too-many-lines-threshold = 70").is_none());
}

#[test]
fn a_planted_path_that_does_not_exist_is_caught() {
    let document = "See `gateway/src/nowhere.rs`.\nAnd `GET /v1/agents`, `a/b`, `drover serve`.\n";
    let exists = |path: &str| Path::new(path) == Path::new("gateway/src/lib.rs");
    assert_eq!(
        missing_paths("d.md", document, exists),
        ["d.md:1: `gateway/src/nowhere.rs` does not exist"]
    );
    for fine in [
        "`gateway/src/lib.rs`",
        "`gateway/src/lib.rs:12`",
        "`gateway/src/lib.rs::start`",
        "`gateway/src/{lib}.rs`",
        "```text\ngateway/src/nowhere.rs `gateway/src/nowhere.rs`\n```",
    ] {
        assert!(missing_paths("d.md", fine, exists).is_empty(), "{fine}");
    }
    for broken in [
        "`gateway/src/{lib,nowhere}.rs`",
        "`docs/NOWHERE.md`",
        "`control/src/x/`",
    ] {
        assert_eq!(missing_paths("d.md", broken, exists).len(), 1, "{broken}");
    }
}
