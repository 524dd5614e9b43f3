//! What waits and why, what has failed and what people must look at: on the pages of a small fleet.

use std::sync::Arc;

use loadtest::api::Api;
use loadtest::fleet::{Fleet, FleetSpec};
use loadtest::ledger::Ledger;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::browser::Browser;
use crate::deployment::{Deployment, eventually, said};

/// Longer than any test.
const LONG_MS: u64 = 3_000_000;

struct World {
    deployment: Deployment,
    runtime: Runtime,
    fleet: Fleet,
}

/// The processes that the pages are about.
struct Made {
    /// Failed in its last step; the steps before are undone.
    failed: String,
    /// Works on the machine that `blocked` waits for.
    holder: String,
    blocked: String,
    paused: String,
    /// Ended by force while it ran.
    forced: String,
}

impl World {
    fn start() -> Self {
        let deployment = Deployment::start_with(&[]);
        let token =
            std::fs::read_to_string(deployment.data_dir().join("admin.token")).expect("a token");
        let api = Api::new(&deployment.addresses.api, &token).expect("a client");
        let runtime = Runtime::new().expect("a runtime");
        let spec = FleetSpec {
            agents: 2,
            server: deployment.addresses.agents.clone(),
            work_dir: deployment.path(""),
            steering_hint: true,
        };
        let enrolled = Fleet::enrol(spec, &api, Arc::new(Ledger::default()), |_| {});
        let fleet = runtime.block_on(enrolled).expect("two agents join");
        runtime.block_on(async { fleet.start(0..2) });
        eventually("two sessions", || fleet.up() == 2);
        Self {
            deployment,
            runtime,
            fleet,
        }
    }

    /// Runs the command line, which must succeed.
    fn drover(&self, words: &[&str]) {
        let run = self.deployment.drover(words);
        assert!(run.status.success(), "{words:?}: {}", said(&run));
    }

    fn start_one(&self, words: &[&str], input: &Value) -> String {
        let input = input.to_string();
        let agent = self.fleet.ids()[0].to_string();
        let mut all = vec!["processes", "create", &agent];
        all.extend(words);
        all.extend(["--input", &input]);
        let made = self.deployment.json(&all);
        made["id"].as_str().expect("an id").to_owned()
    }

    fn make(&self) -> Made {
        let failing = json!({ "vm": "web-1", "service_ms": 5, "failure_rate": 1 });
        let failed = self.start_one(&["sim-vm-create", "--max-attempts", "1"], &failing);
        let held = json!({ "vm": "db-1", "service_ms": LONG_MS });
        let holder = self.start_one(&["sim-vm-create", "--deadline", "4h"], &held);
        self.until(&holder, "running");
        let blocked = self.start_one(&["sim-vm-snapshot"], &held);
        let reason = ["--reason", "the books are closed"];
        self.drover(&[&["pauses", "add", "tenant", "acme"][..], &reason].concat());
        let short = json!({ "service_ms": 5 });
        let paused = self.start_one(&["simulated", "--tenant", "acme"], &short);
        let endless = json!({ "service_ms": LONG_MS });
        let forced = self.start_one(&["simulated"], &endless);
        self.until(&forced, "running");
        self.drover(&["processes", "cancel", "--force", &forced]);
        self.until(&failed, "failed");
        Made {
            failed,
            holder,
            blocked,
            paused,
            forced,
        }
    }

    fn until(&self, id: &str, state: &str) {
        eventually(state, || self.deployment.process_state(id) == state);
    }
}

#[test]
fn the_dashboard_shows_what_waits_and_what_wants_a_person() {
    let world = World::start();
    let made = world.make();
    let mut browser = Browser::start();
    browser.size(1440, 1000, false);
    browser.prefer("light");
    enter(&mut browser, &world);
    the_fleets_counts(&mut browser);
    why_processes_wait(&mut browser, &made);
    steps_and_their_undoing(&mut browser, &made);
    what_wants_a_person(&mut browser, &world, &made);
    the_limits(&mut browser, &world);
    on_a_phone(&mut browser, &made);
    browser.eval("1");
    assert!(browser.complaints.is_empty(), "{:#?}", browser.complaints);
    world.runtime.block_on(world.fleet.stop());
}

fn enter(browser: &mut Browser, world: &World) {
    browser.go(&world.deployment.addresses.api);
    browser.until("the sign-in", "document.activeElement?.id === 'token'");
    let token =
        std::fs::read_to_string(world.deployment.data_dir().join("admin.token")).expect("a token");
    browser.type_text(token.trim());
    browser.press("Enter");
    browser.until(
        "the fleet",
        "document.querySelector('[data-tile=sessions]')",
    );
}

/// What is paused is told apart from what is ready.
fn the_fleets_counts(browser: &mut Browser) {
    for (key, wanted) in [
        ("paused", "1"),
        ("ready", "0"),
        ("pause", "1"),
        ("permit", "0"),
        ("resource", "1"),
    ] {
        browser.until(
            key,
            &format!(
                "document.querySelector('[data-key={key}] .bar-value')?.textContent === '{wanted}'"
            ),
        );
    }
}

fn open(browser: &mut Browser, id: &str) {
    browser.eval(&format!("location.hash = '#/processes/{id}'"));
    browser.until(
        "its page",
        &format!("document.querySelector('h1')?.textContent === '{id}' && document.querySelector('[data-fact=kind] dd')?.textContent !== '–'"),
    );
}

/// In words, with what to do, and a way to what is waited for.
fn why_processes_wait(browser: &mut Browser, made: &Made) {
    open(browser, &made.paused);
    browser.until(
        "who paused it and why",
        "/paused the tenant acme .*the books are closed/.test(document.querySelector('.why[data-scope=pause] .why-said')?.textContent)",
    );
    assert_eq!(
        browser.text(".why[data-scope=pause] .why-advice code"),
        "drover pauses remove tenant acme"
    );
    assert_eq!(browser.text(".badge[data-state]"), "‖ paused");
    browser.picture("process-paused");
    open(browser, &made.blocked);
    browser.until(
        "who holds its machine",
        &format!("document.querySelector('.why[data-scope=resource] .why-figures a')?.hash === '#/processes/{}'", made.holder),
    );
    open(browser, &made.holder);
    browser.until(
        "nothing to explain",
        "document.querySelector('.why[aria-label]').hidden && document.querySelector('.steps [data-state=current]')",
    );
}

fn steps_and_their_undoing(browser: &mut Browser, made: &Made) {
    open(browser, &made.failed);
    browser.until(
        "three steps",
        "document.querySelectorAll('.steps li').length === 3",
    );
    let states = browser.eval("[...document.querySelectorAll('.steps li')].map((step) => [step.querySelector('.step-name').textContent, step.dataset.state])");
    assert_eq!(
        states,
        json!([
            ["1. create-disk", "undone"],
            ["2. define", "undone"],
            ["3. start", "failed"]
        ])
    );
    assert!(
        browser
            .text(".steps [data-state=failed] .step-said")
            .contains("a simulated failure")
    );
    assert!(
        browser
            .text(".steps [data-step='0'] .step-what")
            .contains("pool/default")
    );
    browser.picture("process-steps");
}

fn what_wants_a_person(browser: &mut Browser, world: &World, made: &Made) {
    browser.press("g");
    browser.press("n");
    browser.until("the page", "location.hash === '#/attention'");
    let row = |card: &str, part: &str| {
        format!(
            "[...document.querySelectorAll('[aria-labelledby={card}] tbody tr')].some((row) => row.textContent.includes({}))",
            json!(part)
        )
    };
    browser.until(
        "the one that was ended by force",
        &format!("document.querySelector('[aria-labelledby=card-people-must-look] a[href=\"#/processes/{}\"]')", made.forced),
    );
    browser.until(
        "dead letters by kind",
        &row("card-dead-letters", "sim-vm-create"),
    );
    browser.until(
        "what the last one said",
        &row("card-dead-letters", "a simulated failure"),
    );
    browser.until("the pause", &row("card-pauses", "the books are closed"));
    let batches = "document.querySelector('[aria-labelledby=card-batches]').textContent";
    browser.until(
        "no batch",
        &format!("{batches}.includes('None was made yet')"),
    );
    for words in [["dead-letters", "summary"], ["dead-letters", "list"]] {
        let listed = said(&world.deployment.drover(&words));
        let parts = ["sim-vm-create", "failed_transient", "a simulated failure"];
        assert!(
            parts.iter().all(|part| listed.contains(part)),
            "{words:?}: {listed}"
        );
    }
    let look = world
        .deployment
        .json(&["dead-letters", "redrive", "--dry-run"]);
    assert_eq!(look["matched"], 1, "{look}");
    world.drover(&[
        "dead-letters",
        "redrive",
        "--confirm",
        "1",
        "--reason",
        "the pool is back",
    ]);
    browser.until("the batch", &row("card-batches", "redrive"));
    browser.until("its end", &row("card-batches", "finished"));
    browser.picture("attention-light");
    browser.prefer("dark");
    browser.picture("attention-dark");
    browser.prefer("light");
    browser
        .eval("document.querySelector('[aria-labelledby=card-dead-letters] a.row-link').click()");
    browser.until(
        "those processes",
        "location.hash.includes('state=failed') && document.querySelectorAll('tr[data-process]').length === 1",
    );
    open(browser, &made.forced);
    browser.until(
        "that people must look",
        "document.querySelector('.why[data-scope=attention]')?.hidden === false",
    );
}

/// What is set, what agents follow, and who waits.
fn the_limits(browser: &mut Browser, world: &World) {
    let agent = world.fleet.ids()[0].to_string();
    world.drover(&[
        "limits",
        "set",
        "agent",
        &agent,
        "--max",
        "1",
        "--reason",
        "a slow disk",
    ]);
    let endless = json!({ "service_ms": LONG_MS });
    for _ in 0..2 {
        world.start_one(&["simulated"], &endless);
    }
    browser.press("g");
    browser.press("l");
    browser.until(
        "what is set",
        "[...document.querySelectorAll('[aria-labelledby=card-set-by-operators] tbody tr')].some((row) => row.textContent.includes('at most 1'))",
    );
    browser.until(
        "the agent that has work",
        "document.querySelector('[aria-labelledby=card-agents] tbody a.row-link')",
    );
    browser.picture("limits-light");
    browser
        .eval("document.querySelector('[aria-labelledby=card-agents] tbody a.row-link').click()");
    browser.until(
        "its line of demand",
        "document.querySelector('[aria-labelledby=card-who-waits] tbody tr')?.textContent.includes('simulated')",
    );
    browser.until(
        "who set it",
        "document.querySelector('[data-fact=who] dd').textContent.includes('a slow disk')",
    );
    browser.prefer("dark");
    browser.picture("limit-dark");
    browser.prefer("light");
    browser.eval(&format!("location.hash = '#/agents/{agent}'"));
    browser.until(
        "the limit on the agent's page",
        "document.querySelector('[aria-labelledby=card-limit] [data-fact=limit] dd')?.textContent === '1'",
    );
    browser.picture("agent-limit");
}

/// Nothing is wider than a small phone.
fn on_a_phone(browser: &mut Browser, made: &Made) {
    browser.size(360, 760, true);
    let overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
    let blocked = format!("#/processes/{}", made.blocked);
    let steps = format!("#/processes/{}", made.failed);
    for (hash, there, picture) in [
        (
            "#/attention",
            "document.querySelector('[aria-labelledby=card-batches] tbody tr')",
            "phone-attention",
        ),
        (
            "#/limits",
            "document.querySelector('[aria-labelledby=card-agents] tbody tr')",
            "phone-limits",
        ),
        (
            &blocked,
            "document.querySelector('.why[data-scope=resource] a')",
            "phone-why",
        ),
        (
            &steps,
            "document.querySelectorAll('.steps li').length === 3",
            "phone-steps",
        ),
    ] {
        browser.eval(&format!("location.hash = '{hash}'"));
        browser.until(hash, there);
        browser.picture(picture);
        assert_eq!(browser.eval(overflow), 0, "{hash} is wider than the screen");
    }
    browser.size(1440, 1000, false);
}
