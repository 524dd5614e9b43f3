//! The dashboard in a real browser, before a real server with a thousand agents: what is shown, by
//! keyboard, in the dark, on a phone, with hostile names, and while the server is away.
//!
//! `DROVER_SCREENSHOTS=FOLDER` keeps pictures of it.

#[path = "dashboard/attention.rs"]
mod attention;
#[path = "support/browser.rs"]
mod browser;
#[expect(dead_code, reason = "end_to_end.rs uses the rest")]
#[path = "support/deployment.rs"]
mod deployment;
#[path = "dashboard/latency.rs"]
mod latency;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use browser::Browser;
use deployment::{Deployment, Running, said};
use loadtest::api::{Api, Created, Item, NewProcess};
use loadtest::fleet::{Fleet, FleetSpec};
use loadtest::ledger::Ledger;
use serde_json::json;
use tokio::runtime::Runtime;

const AGENTS: usize = 1000;
/// Sessions begun in a second: what two cores do in a debug build beside everything else.
const STEP: usize = 100;
/// Those that can be killed alone.
const MORTAL: Range<usize> = AGENTS - STEP..AGENTS;
/// A name, a label and an output that would do something if they were ever read as HTML.
const HOSTILE: &str = "<img src=x onerror=document.title='owned'>";
const HOSTILE_OUTPUT: &str = "<script>document.title='owned'</script><b>bold</b>";

/// A server, a thousand simulated agents with work to do, and one real agent with a bad name.
struct World {
    deployment: Deployment,
    hostile: Running,
    fleet: Option<Fleet>,
    api: Api,
    runtime: Runtime,
}

impl World {
    fn start() -> Self {
        let deployment = Deployment::start_with(&[
            "--set",
            "gateway.enrolments_per_second=1000",
            "--set",
            "gateway.enrolment_burst=1000",
        ]);
        let token =
            std::fs::read_to_string(deployment.data_dir().join("admin.token")).expect("a token");
        let api = Api::new(&deployment.addresses.api, &token).expect("a client");
        // First: the command line looks up names among the first thousand.
        let hostile = hostile_agent(&deployment);
        let runtime = Runtime::new().expect("a runtime");
        let spec = FleetSpec {
            agents: AGENTS,
            server: deployment.addresses.agents.clone(),
            work_dir: deployment.path(""),
            steering_hint: true,
        };
        let ledger = Arc::new(Ledger::default());
        let fleet = runtime
            .block_on(Fleet::enrol(spec, &api, ledger, |_| {}))
            .expect("a thousand agents join");
        runtime.block_on(async {
            for first in (0..AGENTS).step_by(STEP) {
                let step = first..first + STEP;
                if step.contains(&MORTAL.start) {
                    fleet.start_apart(step);
                } else {
                    fleet.start(step);
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
        deployment::eventually("a thousand sessions", || fleet.up() == AGENTS);
        Self {
            deployment,
            hostile,
            fleet: Some(fleet),
            api,
            runtime,
        }
    }

    /// Gives every agent of the fleet one process, some of which fail.
    fn work(&self) {
        let fleet = self.fleet.as_ref().expect("it runs");
        let ids = fleet.ids();
        for (n, chunk) in ids.chunks(250).enumerate() {
            let items: Vec<Item> = chunk
                .iter()
                .enumerate()
                .map(|(k, agent)| Item {
                    idempotency_key: format!("work-{n}-{k}"),
                    process: NewProcess {
                        agent: agent.to_string(),
                        kind: "simulated",
                        input: json!({ "service_ms": 15, "distribution": "exponential" }),
                        deadline_seconds: 600,
                    },
                })
                .collect();
            self.runtime
                .block_on(self.api.create(&items))
                .expect("they are made");
        }
    }
}

/// An agent whose name and label are HTML, and a process on it whose output is.
fn hostile_agent(deployment: &Deployment) -> Running {
    let joined = deployment.join(HOSTILE, &deployment.token());
    assert!(joined.status.success(), "{}", said(&joined));
    let config = deployment.path(HOSTILE).join("agent.toml");
    let mut text = std::fs::read_to_string(&config).expect("the agent has a configuration");
    text.push_str(&format!("\n[labels]\nnote = {}\n", json!(HOSTILE)));
    std::fs::write(&config, text).expect("it can be written");
    let agent = deployment.run_agent(HOSTILE);
    let run = deployment.drover(&["run", HOSTILE, "exec", "--", "echo", HOSTILE_OUTPUT]);
    assert_eq!(run.status.code(), Some(0), "{}", said(&run));
    let run = deployment.drover(&[
        "run",
        HOSTILE,
        "exec",
        "--",
        "sh",
        "-c",
        "echo oh no >&2; exit 3",
    ]);
    assert_eq!(run.status.code(), Some(3), "{}", said(&run));
    agent
}

#[test]
fn the_dashboard_shows_a_thousand_agents() {
    let mut world = World::start();
    let mut browser = Browser::start();
    browser.size(1440, 1000, false);
    browser.prefer("light");

    sign_in(&mut browser, &world);
    world.work();
    the_fleet(&mut browser);
    a_minute_of_work(&mut browser, &world);
    the_dark(&mut browser);
    an_agent_by_keyboard(&mut browser);
    an_operation_under_way(&mut browser, &world);
    hostile_text(&mut browser);
    on_a_phone(&mut browser);
    nothing_from_elsewhere(&mut browser, &world);
    // From here on requests fail, and the console says so.
    away_and_back(&mut browser, &mut world);
    signed_out(&mut browser);

    let fleet = world.fleet.take().expect("it runs");
    world.runtime.block_on(fleet.stop());
    world.hostile.kill();
}

/// A wrong token is refused in words, a right one opens the page, and neither is ever in an address.
fn sign_in(browser: &mut Browser, world: &World) {
    browser.go(&world.deployment.addresses.api);
    browser.until("the sign-in", "document.activeElement?.id === 'token'");
    assert!(browser.eval("location.pathname") == "/ui/");
    browser.picture("sign-in");
    browser.type_text("drvapi_wrong");
    browser.press("Enter");
    browser.until(
        "a refusal",
        "document.querySelector('.trouble')?.textContent.includes('not known')",
    );
    // The browser itself logs a request that was answered with 401.
    browser
        .complaints
        .retain(|complaint| !complaint.contains("401"));
    browser.eval("document.getElementById('token').value = ''");
    let token =
        std::fs::read_to_string(world.deployment.data_dir().join("admin.token")).expect("a token");
    browser.type_text(token.trim());
    browser.press("Enter");
    browser.until(
        "the fleet",
        "document.querySelector('[data-tile=sessions]')",
    );
    let urls = browser.requests.join("\n");
    assert!(!urls.contains("drvapi_"), "{urls}");
    assert!(
        browser
            .eval("Object.keys(localStorage).some((key) => localStorage[key].includes('drvapi_'))")
            == false
    );
}

fn the_fleet(browser: &mut Browser) {
    let sessions = "document.querySelector('[data-tile=sessions] .tile-value').textContent";
    browser.until("1,001 sessions", &format!("{sessions} === '1,001'"));
    browser.until(
        "live",
        "document.querySelector('#pulse').textContent === 'live'",
    );
    // Every agent is in a group, every session on a shard.
    let groups = browser.eval("[...document.querySelectorAll('.cells .cell-value')].reduce((sum, cell) => sum + Number(cell.textContent), 0)");
    assert_eq!(groups, 1001);
    let shards = browser.eval("[...document.querySelectorAll('[data-shard]')].map((row) => Number(row.cells[1].textContent.replace(',', '')))");
    let shards: Vec<u64> = serde_json::from_value(shards).expect("numbers");
    assert_eq!(shards.len(), 2, "{shards:?}");
    assert_eq!(shards.iter().sum::<u64>(), 1001);
    assert!(shards.iter().all(|count| *count > 300), "{shards:?}");
    let succeeded = "document.querySelector('[data-key=succeeded] .bar-value').textContent";
    browser.until("1,001 succeeded", &format!("{succeeded} === '1,001'"));
    browser.until(
        "the failure",
        "document.querySelector('.failures li')?.textContent.includes('exec')",
    );
    browser.until("rates over time", "Number(document.querySelector('[data-chart^=Processes] svg').dataset.points) > 3 && document.querySelector('[data-chart^=Processes] .line-1').getAttribute('d')");
    browser.until(
        "curves",
        "document.querySelectorAll('path.line[data-points]').length >= 3",
    );
    browser.until("curves of points", "[...document.querySelectorAll('path.line[data-points]')].every((line) => Number(line.dataset.points) >= 3)");
    browser.until("memory and processor", "/MiB/.test(document.querySelector('[data-tile=rss]').textContent) && /\\d cores/.test(document.querySelector('[data-fact=cpu]').textContent)");
    what_the_gateway_counts(browser);
    latency::heat_map(browser);
    latency::one_route(browser);
    latency::percentiles(browser);
    latency::an_hour(browser);
    latency::by_arrow_keys(browser);
    for tile in ["sessions", "process", "rss"] {
        let line =
            format!("document.querySelector('[data-tile={tile}] .spark-line').getAttribute('d')");
        browser.until(tile, &line);
    }
}

/// For pictures only, which of an idle fleet would show nothing: a minute of processes that come and
/// go, and agents that die and come back.
fn a_minute_of_work(browser: &mut Browser, world: &World) {
    if !browser.takes_pictures() {
        return;
    }
    let fleet = world.fleet.as_ref().expect("it runs");
    fleet.expect_losses(true);
    let ids = fleet.ids();
    // What happened before the page was opened is out of its rates by now.
    std::thread::park_timeout(Duration::from_secs(11));
    browser.eval("window.before = true; location.reload()");
    browser.until(
        "the page anew",
        "!window.before && document.querySelector('[data-tile=sessions]')",
    );
    for second in 0..60_usize {
        let item = |n: usize| Item {
            idempotency_key: format!("minute-{second}-{n}"),
            process: NewProcess {
                agent: ids[(second * 97 + n * 7) % MORTAL.start].to_string(),
                kind: "simulated",
                input: json!({ "service_ms": 60, "distribution": "lognormal", "cv": 1.5 }),
                deadline_seconds: 600,
            },
        };
        let items: Vec<Item> = (0..20 + (second % 20) * 2).map(item).collect();
        world.runtime.block_on(async {
            world.api.create(&items).await.expect("they are made");
            if second % 20 == 10 {
                fleet.kill(MORTAL).await;
                fleet.start_apart(MORTAL);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        });
    }
    deployment::eventually("all sessions again", || fleet.up() == AGENTS);
    fleet.expect_losses(false);
    latency::choose(browser, "histogram", "process");
    browser.until(
        "a minute of it",
        "Number(document.querySelector('.heat').dataset.cells) > 12",
    );
    browser.picture("fleet-light");
}

/// Handshakes, those under way, and the datapath's health: figures where there are some, and a dash
/// where the overview has none.
fn what_the_gateway_counts(browser: &mut Browser) {
    let said = |selector: &str, pattern: &str, count: usize| {
        format!(
            "(() => {{ const all = [...document.querySelectorAll('{selector}')]; return all.length === {count} && all.every((one) => /^(?:{pattern})$/.test(one.textContent)); }})()"
        )
    };
    for (selector, pattern, count) in [
        ("[data-chart^=Newcomers] .legend-value", "<?[0-9.,]+[/]s", 4),
        ("[data-fact=datapath] dd", "uring|poll", 1),
        ("[data-fact=dropped] dd", "[0-9,]+", 1),
        ("[data-fact=full] dd", "[0-9,]+ [/] [0-9,]+", 1),
        ("[data-shard] td:last-child", "0", 2),
        (
            "[data-tile=sessions] .tile-sub",
            "of 1,001 · 0 half-open",
            1,
        ),
    ] {
        browser.until(selector, &said(selector, pattern, count));
    }
    let without = "(async () => {
        const { live } = await import('/ui/live.js');
        const { fleetView } = await import('/ui/fleet.js');
        const before = live.overview;
        const { half_open, ...sessions } = before.sessions;
        sessions.by_shard = sessions.by_shard.map(({ half_open, ...shard }) => shard);
        const { kind, dropped, uplink_full, mailbox_full, ...datapath } = before.datapath;
        live.overview = { ...before, sessions, datapath };
        const view = fleetView();
        live.overview = before;
        const facts = ['datapath', 'dropped', 'full'].map((name) => view.node.querySelector(`[data-fact=${name}] dd`).textContent);
        const said = [facts, view.node.querySelector('[data-shard]').cells[3].textContent, view.node.querySelector('[data-tile=sessions] .tile-sub').textContent];
        view.leave();
        return said;
    })()";
    assert_eq!(
        browser.eval(without),
        json!([["–", "–", "– / –"], "–", "of 1,001 · – half-open"])
    );
}

/// The theme follows the system, and the choice of the person above it, and is remembered.
fn the_dark(browser: &mut Browser) {
    let lightness = "(() => { const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number); return (r + g + b) / 3; })()";
    assert!(browser.eval(lightness).as_f64() > Some(200.0));
    browser.prefer("dark");
    browser.until("darkness", &format!("{lightness} < 60"));
    browser.picture("fleet-dark");
    browser.press("t");
    browser.until("the light that was chosen", &format!("{lightness} > 200"));
    browser.eval("window.before = true; location.reload()");
    browser.until(
        "the same after a reload, still signed in",
        &format!("!window.before && document.querySelector('[data-tile=sessions] .tile-value')?.textContent === '1,001' && {lightness} > 200"),
    );
    browser.prefer("light");
}

/// Help, the list of agents, the search, and an agent: without a mouse.
fn an_agent_by_keyboard(browser: &mut Browser) {
    browser.press("?");
    browser.until("the help", "document.querySelector('dialog').open && document.querySelector('dialog').textContent.includes('search agents')");
    browser.press("Escape");
    browser.until("no help", "!document.querySelector('dialog').open");
    browser.press("g");
    browser.press("a");
    browser.until(
        "fifty agents",
        "location.hash === '#/agents' && document.querySelectorAll('tr[data-agent]').length === 50",
    );
    browser.press("j");
    browser.press("j");
    browser.until(
        "the second row",
        "document.activeElement === document.querySelectorAll('a.row-link')[1]",
    );
    browser.picture("agents");
    browser.press("/");
    browser.until("the search", "document.activeElement?.id === 'search'");
    browser.type_text("HV-777");
    browser.until(
        "one agent",
        "document.querySelectorAll('tr[data-agent]').length === 1",
    );
    browser.press("Enter");
    browser.until(
        "its row",
        "document.activeElement?.textContent === 'hv-777'",
    );
    browser.press("Enter");
    browser.until(
        "its page",
        "document.querySelector('h1')?.textContent === 'hv-777'",
    );
    browser.until("its session", "/home/.test(document.querySelector('[data-fact=shard] dd').textContent) && /127\\.0\\.0\\.1:/.test(document.querySelector('[data-fact=remote] dd').textContent)");
    browser.until(
        "its finished process",
        "document.querySelector('tr[data-process]')?.textContent.includes('succeeded')",
    );
    browser.until("its event stream", "document.querySelector('.card-head .note').textContent && [...document.querySelectorAll('.card-head .note')].some((note) => note.textContent === 'live')");
}

/// On an agent's page: what it has under way is told from what has ended, however much has ended since.
fn an_operation_under_way(browser: &mut Browser, world: &World) {
    let agent = browser.eval("location.hash.split('/').pop()");
    let agent = agent.as_str().expect("it is the page of an agent");
    let make = |key: &str, count: usize, service_ms: u64| {
        let item = |n| Item {
            idempotency_key: format!("{key}-{n}"),
            process: NewProcess {
                agent: agent.to_owned(),
                kind: "simulated",
                input: json!({ "service_ms": service_ms }),
                deadline_seconds: 3600,
            },
        };
        let items: Vec<Item> = (0..count).map(item).collect();
        let made = world.runtime.block_on(world.api.create(&items));
        match made.expect("they are made").first() {
            Some(Created::Accepted(id)) => id.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let rows = |card: &str, state: &str| {
        format!(
            "[...document.querySelectorAll('[aria-labelledby={card}] tr[data-process]')].filter((row) => row.textContent.includes('{state}'))"
        )
    };
    let long = make("long", 1, 3_000_000);
    let running = format!("{}.length === 1", rows("card-under-way", "running"));
    browser.until("the operation under way", &running);
    make("short", 60, 1);
    let ended = rows("card-processes", "succeeded");
    browser.until(
        "the newest that have ended, and where the others are",
        &format!("{ended}.length === 15 && document.querySelector('[aria-labelledby=card-processes] a[href*=\"?agent=\"]')"),
    );
    browser.until("it is still there", &running);
    assert_eq!(
        browser.text("[aria-labelledby=card-under-way] tr[data-process] a"),
        format!("{}…{}", &long[..8], &long[long.len() - 6..])
    );
    browser.until(
        "its one place in use",
        "document.querySelector('[data-fact=use] dd').textContent === '1 of 16 at once'",
    );
    browser.picture("agent");
    let cancelled = world.deployment.drover(&["processes", "cancel", &long]);
    assert!(cancelled.status.success(), "{}", said(&cancelled));
    browser.until(
        "nothing under way",
        "document.querySelector('[aria-labelledby=card-under-way]').textContent.includes('Nothing at the moment')",
    );
}

/// What agents say is text, wherever it is shown.
fn hostile_text(browser: &mut Browser) {
    browser.eval("location.hash = '#/agents?search=onerror'");
    browser.until(
        "the hostile agent",
        "document.querySelectorAll('tr[data-agent]').length === 1",
    );
    assert_eq!(browser.text("a.row-link"), HOSTILE);
    browser.eval("document.querySelector('a.row-link').click()");
    browser.until(
        "its page",
        "document.querySelector('h1')?.textContent.startsWith('<img')",
    );
    browser.until(
        "its label",
        &format!(
            "document.querySelector('.chips')?.textContent === {}",
            json!(format!("note={HOSTILE}"))
        ),
    );
    browser.until(
        "its processes",
        "document.querySelectorAll('tr[data-process]').length === 2",
    );
    browser.eval("[...document.querySelectorAll('tr[data-process]')].find((row) => row.textContent.includes('succeeded')).querySelector('a').click()");
    browser.until(
        "its output",
        &format!(
            "document.querySelector('.output')?.textContent.trim() === {}",
            json!(HOSTILE_OUTPUT)
        ),
    );
    browser.until("its history", "document.querySelectorAll('.events li').length >= 3 && document.querySelector('.events').textContent.includes('succeeded')");
    browser.until(
        "its outcome",
        "document.querySelector('[data-fact=outcome] dd').textContent.includes('exit code 0')",
    );
    browser.picture("process");
    assert_eq!(
        browser.eval("document.querySelectorAll('main img, main script, main b').length"),
        0
    );
    assert!(
        browser
            .eval("document.title")
            .as_str()
            .is_some_and(|title| !title.contains("owned"))
    );
    // What there is could not be done anyway: the page's policy has no way from text to HTML.
    let refused = "(() => { try { document.createElement('p').innerHTML = '<b>x</b>'; return false; } catch { return true; } })()";
    assert!(browser.eval(refused) == true);
    // The browser logs what it has refused; nothing else may have tried.
    browser.eval("1");
    let tried = browser.complaints.len();
    browser
        .complaints
        .retain(|complaint| !complaint.contains("TrustedHTML"));
    assert_eq!(tried - browser.complaints.len(), 1);
}

/// Nothing is wider than a small phone.
fn on_a_phone(browser: &mut Browser) {
    browser.size(360, 760, true);
    let overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
    for (hash, there) in [
        (
            "#/",
            "document.querySelector('[data-tile=sessions] .tile-value')?.textContent === '1,001'",
        ),
        (
            "#/agents",
            "document.querySelectorAll('tr[data-agent]').length === 50",
        ),
        (
            "#/processes",
            "document.querySelectorAll('tr[data-process]').length === 50",
        ),
        (
            "#/agents?search=onerror",
            "document.querySelectorAll('tr[data-agent]').length === 1",
        ),
    ] {
        browser.eval(&format!("location.hash = '{hash}'"));
        browser.until(hash, there);
        assert_eq!(browser.eval(overflow), 0, "{hash} is wider than the screen");
        if hash == "#/" {
            browser.until("curves", "document.querySelector('path.line[data-points]')");
            browser.until(
                "the tile of processes",
                "/p50/.test(document.querySelector('[data-tile=process]').textContent)",
            );
            browser.picture("phone");
            latency::curves_on_a_phone(browser);
        }
    }
    browser.eval("document.querySelector('a.row-link').click()");
    browser.until("an agent", "document.querySelector('tr[data-process]')");
    assert_eq!(
        browser.eval(overflow),
        0,
        "an agent's page is wider than the screen"
    );
    browser.eval("location.hash = '#/agents?search=hv-777'");
    browser.until(
        "the list again",
        "document.querySelector('a.row-link')?.textContent === 'hv-777'",
    );
    browser.eval("document.querySelector('a.row-link').click()");
    browser.until(
        "the newest of its processes",
        "document.querySelectorAll('tr[data-process]').length === 15",
    );
    assert_eq!(
        browser.eval(overflow),
        0,
        "a page of many processes is too wide"
    );
    browser.picture("phone-agent");
    browser.size(1440, 1000, false);
}

fn nothing_from_elsewhere(browser: &mut Browser, world: &World) {
    // Brings in what the browser has said until now.
    browser.eval("1");
    assert!(browser.complaints.is_empty(), "{:#?}", browser.complaints);
    let here = format!("{}/", world.deployment.addresses.api);
    let elsewhere: Vec<_> = browser
        .requests
        .iter()
        .filter(|url| !url.starts_with(&here) && *url != "about:blank")
        .collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
}

/// The server is killed: the page says so, keeps what it showed, and goes on by itself.
fn away_and_back(browser: &mut Browser, world: &mut World) {
    browser.eval("location.hash = '#/'");
    browser.until(
        "the fleet",
        "document.querySelector('[data-tile=sessions] .tile-value')?.textContent === '1,001'",
    );
    browser.until(
        "latency over time",
        "Number(document.querySelector('.heat').dataset.cells) > 0",
    );
    world.fleet.as_ref().expect("it runs").expect_losses(true);
    world.deployment.server.kill();
    browser.until(
        "the loss",
        "document.querySelector('#pulse').textContent === 'reconnecting…'",
    );
    assert_eq!(browser.text("[data-tile=sessions] .tile-value"), "1,001");
    assert!(browser.eval("document.querySelector('#say').textContent.includes('lost')") == true);
    browser.picture("reconnecting");
    world.deployment.start_again();
    browser.until(
        "the return",
        "document.querySelector('#pulse').textContent === 'live'",
    );
    browser.until("sessions again", "Number(document.querySelector('[data-tile=sessions] .tile-value').textContent.replace(',', '')) > 0");
}

fn signed_out(browser: &mut Browser) {
    browser.eval("document.getElementById('sign-out').click()");
    browser.until("the sign-in", "document.activeElement?.id === 'token'");
    assert!(browser.eval("sessionStorage.length") == 0);
    assert!(browser.eval("document.getElementById('nav').hidden") == true);
}
