//! How long things take: the two cards of the fleet's page that show the server's histograms.

use serde_json::json;

use crate::browser::Browser;

/// Chooses from one of the lists of the latency cards, as a hand would.
pub(crate) fn choose(browser: &mut Browser, list: &str, value: &str) {
    let chosen = browser.eval(&format!(
        "(() => {{ const list = document.querySelector('[data-choice={list}]'); list.value = {}; list.dispatchEvent(new Event('change')); return list.value; }})()",
        json!(value)
    ));
    assert_eq!(chosen, value);
}

/// The curves are those of the API's histograms, all of them, on an axis that begins where they do, at
/// one half.
pub(crate) fn percentiles(browser: &mut Browser) {
    let chart = "document.querySelector('[data-chart=\"Latency percentiles\"]')";
    let names = browser.eval(&format!(
        "[[...{chart}.querySelectorAll('[data-series]')].map((one) => one.dataset.series).sort(), [...document.querySelectorAll('[data-choice=histogram] option')].map((one) => one.value).sort()]"
    ));
    assert_eq!(names[0], names[1]);
    let labels = browser.eval(&format!(
        "[...{chart}.querySelectorAll('text.tick')].map((one) => one.textContent).filter((one) => one.includes('%'))"
    ));
    assert_eq!(labels[0], "50 %", "{labels}");
    let starts = format!(
        "(() => {{ const left = {chart}.querySelector('.axis').getAttribute('d').match(/M(\\d+)/)[1]; return [...{chart}.querySelectorAll('path.line')].every((line) => line.getAttribute('d').startsWith(`M${{left}}.0 `)); }})()"
    );
    assert!(browser.eval(&starts) == true);
    // Nothing comes to these any more.
    for name in [
        "process",
        "command_queue",
        "command_wire",
        "command_agent",
        "handshake",
    ] {
        let same = format!(
            "(async () => {{
                const {{ get }} = await import('/ui/api.js');
                const {{ micros }} = await import('/ui/format.js');
                const told = await get('/v1/histograms/{name}');
                const shown = {chart}.querySelector('[data-series={name}] .legend-value').textContent;
                return told.count > 900 && shown === `${{micros(told.p50_us)}} / ${{micros(told.p99_us)}}`;
            }})()"
        );
        browser.until_told(name, &same);
    }
    a_curve(browser);
    a_line_less(browser, chart);
}

/// Exact where the API tells a percentile, and between those by its bins.
fn a_curve(browser: &mut Browser) {
    let curve = browser.eval(
        "(async () => {
            const { curve } = await import('/ui/histograms.js');
            const figures = { p50_us: 105, p90_us: 118, p99_us: 3050, p999_us: 3090, p9999_us: 3090, max_us: 3090 };
            const bins = [[[96, 104, 400], [104, 112, 300]], [[104, 112, 100], [112, 120, 150], [3072, 3200, 50]]];
            return [curve({ count: 1000, ...figures, intervals: bins.map((one) => ({ bins: one })) }), curve({ count: 0 })];
        })()",
    );
    let expected = [
        (0.5, 105),
        (0.8, 112),
        (0.9, 118),
        (0.95, 120),
        (0.99, 3050),
        (0.999, 3090),
    ];
    let expected: Vec<_> = expected.into_iter().map(|point| json!(point)).collect();
    assert_eq!(
        curve[0].as_array().map(|all| &all[..6]),
        Some(&expected[..])
    );
    assert_eq!(curve[1], json!([]));
}

/// A name takes its line away and brings it back, without a mouse.
fn a_line_less(browser: &mut Browser, chart: &str) {
    let line = format!("{chart}.querySelector('path.line-1')");
    let pressed =
        format!("document.activeElement.getAttribute('aria-pressed') === 'true' && {line}");
    browser.eval(&format!(
        "{chart}.querySelector('[data-series=process] button').focus()"
    ));
    assert!(browser.eval(&format!("Boolean({pressed})")) == true);
    browser.press("Enter");
    browser.until("no line", &format!("!{line}"));
    assert!(browser.eval("document.activeElement.getAttribute('aria-pressed')") == "false");
    browser.press("Enter");
    browser.until("the line again", &pressed);
}

/// Charts are read with the arrow keys as with a pointer: the curves from their ends, the heat map from
/// its newest cell.
pub(crate) fn by_arrow_keys(browser: &mut Browser) {
    let chart = "document.querySelector('[data-chart=\"Latency percentiles\"]')";
    browser.eval(&format!("{chart}.querySelector('svg.plot').focus()"));
    let place = format!(
        "Number({chart}.querySelector('.cursor').getAttribute('d').match(/M([\\d.]+)/)[1])"
    );
    browser.press("ArrowRight");
    assert_eq!(browser.eval(&place).as_f64(), Some(56.5));
    browser.press("ArrowRight");
    assert!(browser.eval(&place).as_f64() > Some(60.0));
    // One figure under the cursor, not two.
    let told = browser.text("[data-series=process] .legend-value");
    assert!(!told.is_empty() && !told.contains('/'), "{told}");
    browser.press("Escape");
    assert!(
        browser
            .text("[data-series=process] .legend-value")
            .contains('/')
    );
    browser.eval("document.querySelector('.heat').focus()");
    browser.press("ArrowLeft");
    let first = browser.text(".heat-note");
    assert!(first.contains(" took "), "{first}");
    browser.press("ArrowLeft");
    if browser.text(".heat-note") == first {
        // The map has moved on by a column between the two keys.
        browser.press("ArrowLeft");
    }
    let before = browser.text(".heat-note");
    assert!(
        before.contains(" took ") && before < first,
        "{before}; {first}"
    );
    browser.press("Escape");
    assert!(browser.text(".heat-note").contains("Busiest"));
}

/// The API's latency by route: the routes are offered where there are some, and what is shown is that
/// route's alone.
pub(crate) fn one_route(browser: &mut Browser) {
    let route = "document.querySelector('[data-choice=route]')";
    assert!(browser.eval(&format!("{route}.hidden")) == true);
    choose(browser, "histogram", "api");
    browser.until(
        "the routes",
        &format!("!{route}.hidden && {route}.length > 20"),
    );
    choose(browser, "route", "POST /v1/tokens");
    let told = "(async () => {
        const { get } = await import('/ui/api.js');
        const { count } = await import('/ui/format.js');
        const told = await get('/v1/histograms/api', { route: 'POST /v1/tokens' });
        return told.count > 0 && document.querySelector('.heat-note').textContent.startsWith(`${count(told.count)} in`);
    })()";
    browser.until_told("that route alone", told);
    choose(browser, "histogram", "process");
    browser.until("no routes", &format!("{route}.hidden"));
}

/// The last hour comes in steps of a minute.
pub(crate) fn an_hour(browser: &mut Browser) {
    let steps = |step: u32| {
        format!(
            "document.querySelector('.heat').dataset.step === '{step}' && document.querySelector('.heat-note').textContent.startsWith('1,002 in')"
        )
    };
    choose(browser, "window", "1h");
    browser.until("steps of a minute", &steps(60_000));
    choose(browser, "window", "10m");
    browser.until("steps of ten seconds", &steps(10_000));
}

/// What the server measured, whatever is chosen; then figures that are known, drawn by the page's own
/// chart: three steps with six cells between them.
pub(crate) fn heat_map(browser: &mut Browser) {
    let names = browser.eval(
        "[...document.querySelectorAll('[data-choice=histogram] option')].map((one) => one.value)",
    );
    let names: Vec<String> = serde_json::from_value(names).expect("names");
    assert!(names.contains(&"shard_turn".to_owned()), "{names:?}");
    let counted = "document.querySelector('.heat-note').textContent";
    for name in [
        "handshake",
        "command_total",
        "store_commit",
        "api",
        "process",
    ] {
        browser.eval("document.querySelector('.heat').dataset.cells = 0");
        choose(browser, "histogram", name);
        browser.until(
            name,
            &format!("Number(document.querySelector('.heat').dataset.cells) > 0 && {counted}.includes('Busiest')"),
        );
    }
    // Every process has its place; the server looks once a second, the page every ten.
    browser.until(
        "all processes",
        &format!("{counted}.startsWith('1,002 in')"),
    );
    // The server is younger than ten minutes: the axis begins when it did, in whole steps.
    let late = browser.eval("(async () => { const { live } = await import('/ui/live.js'); const began = Date.parse(live.overview.at) - live.overview.server.uptime_seconds * 1000; return began - Number(document.querySelector('.heat').dataset.start); })()");
    assert!(
        late.as_f64()
            .is_some_and(|late| (0.0..=12_000.0).contains(&late)),
        "{late}"
    );
    let windows = browser.eval("(async () => { const { shown } = await import('/ui/histograms.js'); return [shown(1005, 0, 600, 10), shown(1005, 777, 600, 10), shown(1005, 1001, 600, 10)]; })()");
    assert_eq!(
        windows,
        json!([
            { "start": 410, "end": 1010 },
            { "start": 770, "end": 1010 },
            { "start": 1000, "end": 1010 },
        ])
    );
    let draw = "(async () => {
        const { heatMap } = await import('/ui/charts.js');
        const chart = heatMap({ name: 'A test' });
        document.querySelector('main').append(chart.node);
        const bins = [[100, 110, 5], [100, 120, 5], [3000, 3100, 1]];
        const columns = [0, 10000, 20000].map((t) => ({ t, bins }));
        chart.update(columns, 0, 30000, 10000);
        await new Promise((done) => setTimeout(done, 200));
        const canvas = chart.node.querySelector('canvas');
        const said = [canvas.dataset.cells, chart.node.textContent];
        chart.node.remove();
        return said;
    })()";
    let said = browser.eval(draw);
    assert_eq!(said[0], "6", "{said}");
    assert!(
        said[1].as_str().is_some_and(|text| text.contains("33 in")),
        "{said}"
    );
}

/// Labels of the axes are apart, the plot keeps most of the width, and every name of the legend is big
/// enough for a finger.
pub(crate) fn curves_on_a_phone(browser: &mut Browser) {
    let seen = browser.eval(
        "(() => {
            const chart = document.querySelector('[data-chart=\"Latency percentiles\"]');
            chart.closest('.card').scrollIntoView();
            scrollBy(0, -document.getElementById('bar').offsetHeight - 8);
            const boxes = [...chart.querySelectorAll('text.tick')].map((tick) => tick.getBoundingClientRect());
            const apart = (one, other) => one.right <= other.left || other.right <= one.left || one.bottom <= other.top || other.bottom <= one.top;
            const overlaps = boxes.filter((one, n) => boxes.slice(n + 1).some((other) => !apart(one, other))).length;
            const plot = chart.querySelector('.axis').getBoundingClientRect().width;
            const buttons = [...chart.querySelectorAll('button')].map((one) => one.getBoundingClientRect());
            const inside = buttons.every((one) => one.left >= 0 && one.right <= innerWidth && one.height >= 28);
            return [boxes.length, overlaps, plot / innerWidth, inside];
        })()",
    );
    assert!(seen[0].as_u64() > Some(5), "{seen}");
    assert_eq!(seen[1], 0, "{seen}");
    assert!(seen[2].as_f64() > Some(0.6), "{seen}");
    assert_eq!(seen[3], true, "{seen}");
    browser.picture("phone-latency");
}
