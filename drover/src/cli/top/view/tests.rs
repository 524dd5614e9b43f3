//! Frames on a terminal that is only a buffer.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent};
use ratatui::style::{Color, Modifier};

use super::super::limits::Limits;
use super::super::sample;
use super::super::state::Input;
use super::*;

fn state(width: u16, height: u16) -> State {
    with(sample::overview(), width, height)
}

fn with(overview: control::api::model::overview::Overview, width: u16, height: u16) -> State {
    State::new("127.0.0.1:7440", true, Size::new(width, height), overview)
}

fn press(state: &mut State, key: char) {
    state.handle(Input::Key(KeyEvent::from(KeyCode::Char(key))));
}

fn buffer(state: &State) -> Buffer {
    let backend = TestBackend::new(state.size.width, state.size.height);
    let mut terminal = Terminal::new(backend).unwrap();
    terminal.draw(|frame| draw(frame, state)).unwrap();
    terminal.backend().buffer().clone()
}

/// The frame as text; a wide character's second cell is left out.
fn frame(state: &State) -> String {
    let buffer = buffer(state);
    let mut text = String::new();
    for y in 0..buffer.area.height {
        let mut line = String::new();
        let mut x = 0;
        while x < buffer.area.width {
            let symbol = buffer[(x, y)].symbol();
            line.push_str(symbol);
            x += u16::try_from(width_of(&[Span::raw(symbol)]))
                .unwrap()
                .max(1);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[track_caller]
fn assert_shows(frame: &str, parts: &[&str]) {
    for part in parts {
        assert!(frame.contains(part), "`{part}` is missing in\n{frame}");
    }
}

#[test]
fn the_fleet_at_80_by_24() {
    let frame = frame(&state(80, 24));
    assert_shows(
        &frame,
        &[
            "drover top ● ready up 3 h 20 min ",
            " 1 fleet  2 processes  3 latency  4 limits",
            "sessions 19 of 21   half-open 2   begun 1,204   ended 1,185   running 12",
            "cpu 0.31 cores   memory 96.0 MiB   commits 4,321   datapath uring",
            "PER SECOND          NOW  LAST 5 MIN",
            "connects            0.2",
            "turned away         1.5",
            "commands          1,234",
            "handshakes          0.4",
            "commits               –",
            "SHARD  SESSIONS  AT HOME HALF-OPEN",
            "1             9        8         1",
            "GROUPS 2  missing first\nrack-7",
            "9 / 11",
            "10 / 10  ████",
            " q quit  ? help  tab page  p pause  s sort  ↑↓ scroll",
        ],
    );
    assert_eq!(frame.lines().count(), 24);
}

#[test]
fn the_fleet_at_40_by_20() {
    let frame = frame(&state(40, 20));
    assert_shows(
        &frame,
        &[
            "● ready",
            " 1 fleet  2  3  4",
            "sessions 19 of 21   half-open 2",
            "PER SECOND          NOW  LAST 5 MIN",
            "processes ended",
            "GROUPS 2  missing first",
            "rack-7",
            "auto-1",
            " q quit  ? help  tab page  p pause",
        ],
    );
}

#[test]
fn forty_by_twelve_is_enough() {
    let mut overview = sample::overview();
    overview.sessions.by_group = (0..64)
        .map(|n| sample::group(&format!("auto-{n}"), 10, 10))
        .collect();
    let mut state = with(overview, 40, 12);
    assert_shows(
        &frame(&state),
        &[
            "sessions 19 of 21   half-open 2",
            "connects            0.2",
            "losses                0",
            "GROUPS 64  missing first  1–3 of 64",
            "auto-2                 10 / 10  ███████",
            " q quit  ? help  tab page  p pause",
        ],
    );
    press(&mut state, '2');
    assert_shows(
        &frame(&state),
        &["PROCESSES NOW  1–", "running               12"],
    );
    press(&mut state, '3');
    assert_shows(&frame(&state), &["store commit          950 µs  12.3 ms"]);
    // No room for the numbers beside the columns' names.
    let mut cut = state;
    cut.handle(Input::Size(Size::new(40, 5)));
    assert_shows(&frame(&cut), &["p50      p99 ↓"]);
    press(&mut cut, 'G');
    assert_shows(&frame(&cut), &["p50      p99 ↑"]);
    press(&mut cut, '?');
    cut.handle(Input::Size(Size::new(40, 12)));
    assert_shows(&frame(&cut), &["q  Esc     quit"]);
}

#[test]
fn what_the_server_does_not_say_is_left_out_and_trouble_stands_out() {
    let mut overview = sample::overview();
    overview.sessions.half_open = None;
    overview.datapath.kind = None;
    overview.datapath.dropped = None;
    let shown = frame(&with(overview.clone(), 80, 24));
    for name in ["half-open", "datapath", "dropped "] {
        let facts = shown.lines().skip(1).take(3);
        assert!(facts.clone().all(|line| !line.contains(name)), "{shown}");
    }
    assert_shows(&shown, &["queues full 0   outbox 0"]);
    overview.store.failed_commits = 3;
    overview.datapath.mailbox_full = Some(5);
    overview.datapath.downlink_full = 2;
    let shown = frame(&with(overview, 80, 24));
    assert_shows(&shown, &["commits 4,321   failed 3   queues full 7"]);
}

#[test]
fn processes_wide_and_narrow() {
    let parts = [
        "PROCESSES NOW",
        "running               12  ██",
        "WAITING ON",
        "a free place           3  ██",
        "ENDED SINCE THE START",
        "succeeded            998",
        "NEWEST FAILURES",
        "2 min ago",
        "exit code 7",
    ];
    let mut wide = state(80, 24);
    press(&mut wide, '2');
    assert_shows(&frame(&wide), &parts);
    assert_shows(&frame(&wide), &["0190b6b8…7c6d10"]);
    let mut narrow = state(40, 20);
    press(&mut narrow, '2');
    let mut seen = frame(&narrow);
    press(&mut narrow, 'G');
    seen.push_str(&frame(&narrow));
    assert_shows(&seen, &parts);
}

#[test]
fn latency_wide_and_narrow() {
    let mut wide = state(80, 24);
    press(&mut wide, '3');
    assert_shows(
        &frame(&wide),
        &[
            "p50      p90      p99    p99.9      max    count",
            "store commit          950 µs  1.40 ms  12.3 ms  54.0 ms   120 ms    4,321",
            "10µs",
            "●━",
        ],
    );
    let mut narrow = state(40, 20);
    press(&mut narrow, '3');
    assert_shows(
        &frame(&narrow),
        &["store commit          950 µs  12.3 ms", "10µs", "●━"],
    );
}

#[test]
fn limits_say_who_waits_for_which() {
    let limits = |text: &str| serde_json::from_str(text).unwrap();
    let agent = limits(
        r#"{"scope": "agent", "key": "k", "name": "hv-17", "live": {"limit": 6, "in_use": 6, "waiting": 43,
            "decision": {"why": "followed", "text": "moved", "from": 5.5, "to": 6.2}, "lines": [
            {"class": "normal", "tenant": "acme", "kind": "exec", "waiting": 41,
             "parked": {"scope": "group", "key": "rack-7", "limit": 64, "in_use": 64}},
            {"class": "interactive", "tenant": "t", "kind": "vm-start", "waiting": 2}]}}"#,
    );
    let group = limits(
        r#"{"scope": "group", "key": "rack-7", "name": "rack-7", "live": {"limit": 64, "in_use": 64}}"#,
    );
    let mut state = state(100, 24);
    press(&mut state, '4');
    assert_shows(&frame(&state), &["LIMITS", "asking…"]);
    state.handle(Input::Limits(Box::new(Limits {
        agents: vec![agent],
        set: vec![group],
        trouble: None,
    })));
    let parts = [
        "agent hv-17                  6 / 6  ████████████       43",
        "  acme normal exec              41  wait for group rack-7, 64 / 64 in use",
        "  t interactive vm-start         2  wait for their turn",
        "SET BY OPERATORS",
        "group rack-7               64 / 64  ████████████        –",
    ];
    assert_shows(&frame(&state), &parts);
    assert_shows(&frame(&state), &["↑ 5.5 → 6.2 moved"]);
    state.handle(Input::Limits(Box::default()));
    let parts = ["no agent has work", "none: each agent's limit follows"];
    assert_shows(&frame(&state), &parts);
    state.handle(Input::Limits(Box::new(Limits {
        trouble: Some("the server says no".to_owned()),
        ..Limits::default()
    })));
    assert_shows(&frame(&state), &["the server says no"]);
}

#[test]
fn a_fleet_that_has_nothing_yet_says_so() {
    let mut overview = sample::overview();
    overview.rates.clear();
    overview.latency.clear();
    overview.sessions.by_group.clear();
    overview.sessions.by_shard.clear();
    overview.processes.newest_failures.clear();
    let mut state = with(overview, 80, 24);
    assert_shows(&frame(&state), &["GROUPS 0", "connects              –"]);
    press(&mut state, '2');
    assert_shows(&frame(&state), &["none that is still kept"]);
    press(&mut state, '3');
    assert_shows(&frame(&state), &["nothing has been measured yet"]);
}

#[test]
fn no_size_and_no_page_panics() {
    let mut overview = sample::overview();
    overview.sessions.by_shard = (0..70).map(|n| sample::shard(n, 9)).collect();
    overview.store.error = Some("the disk is full".to_owned());
    for width in (0..=44).chain([75, 76, 80, 99, 100, 121, 250]) {
        for height in [0, 1, 2, 3, 4, 5, 8, 20, 24, 45, 90] {
            let mut state = with(overview.clone(), width, height);
            for key in ['1', '2', '3', '4', '?', 'p', 'G'] {
                press(&mut state, key);
                if width > 0 && height > 0 {
                    buffer(&state);
                }
            }
        }
    }
}

#[test]
fn hostile_names_neither_steer_the_terminal_nor_move_the_columns() {
    let mut overview = sample::overview();
    overview.sessions.by_group = vec![
        sample::group("\u{1b}[2J\u{1b}]0;x\u{7}\u{202e}evil", 1, 2),
        sample::group("日本語日本語日本語日本語日本語日本語日本語", 1, 2),
        sample::group("plain", 1, 2),
    ];
    overview.processes.newest_failures = vec![sample::failure("\r\n", "\u{9b}31m\u{0}end")];
    let mut state = with(overview, 80, 24);
    let fleet = frame(&state);
    assert_shows(&fleet, &["[2J", "evil", "日本語日本語日本語日本語…"]);
    let columns: Vec<usize> = fleet
        .lines()
        .filter_map(|line| {
            Some(width_of(&[Span::raw(
                line.split_once("1 / 2")?.0.to_owned(),
            )]))
        })
        .collect();
    assert_eq!(columns.len(), 3, "{fleet}");
    assert!(columns.iter().all(|at| *at == columns[0]), "{columns:?}");
    press(&mut state, '2');
    let processes = frame(&state);
    for text in [fleet, processes] {
        let harmful = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!text.contains(harmful), "{text:?}");
    }
}

#[test]
fn ten_thousand_groups_scroll_to_their_end() {
    let mut overview = sample::overview();
    overview.sessions.by_group = (0..10_000)
        .map(|n| sample::group(&format!("auto-{n}"), 10, 10))
        .collect();
    let mut state = with(overview, 80, 24);
    assert_shows(
        &frame(&state),
        &["GROUPS 10,000", "1–", "of 10,000", "auto-0 "],
    );
    press(&mut state, 'G');
    assert_shows(&frame(&state), &["–10,000 of 10,000", "auto-9999 "]);
}

#[test]
fn many_shards_are_summed_up_where_they_do_not_fit() {
    let mut overview = sample::overview();
    overview.sessions.by_shard = (0..64).map(|n| sample::shard(n, 100)).collect();
    let frame = frame(&with(overview, 80, 24));
    assert_shows(&frame, &["56 more shards hold 5,600"]);
}

#[test]
fn a_lost_connection_is_told_and_the_last_figures_are_dimmed() {
    let mut state = state(80, 24);
    let bright = |state: &State| buffer(state)[(9, 1)].modifier.contains(Modifier::DIM);
    assert!(!bright(&state));
    state.handle(Input::Second);
    state.handle(Input::Lost(
        "cannot reach the server at http://x/: connection refused".to_owned(),
    ));
    let shown = frame(&state);
    assert_shows(
        &shown,
        &[
            "○ lost",
            "reconnecting for 1 s: connection refused",
            "19 of 21",
        ],
    );
    assert!(bright(&state));
    state.handle(Input::Figures(Box::new(sample::overview())));
    assert!(!frame(&state).contains("reconnecting"));
    assert!(!bright(&state));
}

#[test]
fn a_stopped_display_and_the_help_are_visible() {
    let mut state = state(80, 24);
    press(&mut state, 'p');
    assert_shows(&frame(&state), &[" paused at 09:30:00 UTC ", "p go on"]);
    press(&mut state, '?');
    assert_shows(
        &frame(&state),
        &["keys", "PgUp PgDn  scroll by a screen", "q  Esc     quit"],
    );
}

#[test]
fn a_store_that_fails_and_a_server_in_trouble_stand_out() {
    let mut overview = sample::overview();
    overview.server.state = ServerState::Degraded;
    overview.store.error = Some("the disk is full".to_owned());
    for (width, height) in [(80, 24), (40, 20)] {
        let frame = frame(&with(overview.clone(), width, height));
        assert_shows(
            &frame,
            &["▲ degraded", "results cannot be stored: the disk is"],
        );
        // Where the names of all pages have no room, that of the page in sight has.
        let tabs = if width == 80 {
            " 4 limits"
        } else {
            " 1 fleet  2  3  4"
        };
        assert!(frame.lines().next().unwrap().ends_with(tabs), "{frame}");
    }
}

#[test]
fn without_colours_nothing_has_one() {
    for key in ['1', '2', '3', '4'] {
        for (colour, found) in [(true, true), (false, false)] {
            let mut state = state(80, 24);
            state.colour = colour;
            press(&mut state, key);
            let buffer = buffer(&state);
            let coloured = buffer
                .content
                .iter()
                .any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset);
            assert_eq!(coloured, found, "page {key}");
        }
    }
}
