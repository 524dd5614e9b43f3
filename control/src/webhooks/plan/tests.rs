//! The plan without a store, a network or a clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use protocol::ids::ProcessId;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;

use super::*;
use crate::store::log::EventRow;
use crate::store::webhooks::{DeliveryRow, DeliveryState, Disabled};

const NOW: UnixMs = UnixMs(1_795_512_600_000);

fn row(n: u128) -> WebhookRow {
    WebhookRow {
        id: Uuid::from_u128(n),
        url: format!("https://example.com/{n}"),
        events: vec!["*".to_owned()],
        agent: None,
        kind: None,
        tenant: None,
        description: String::new(),
        secret: Secret::new(vec![7; 32]).unwrap(),
        old_secret: None,
        disabled: None,
        generation: 1,
        cursor: 0,
        missed: 0,
        failing_since: None,
        created_at: NOW,
    }
}

fn known(row: WebhookRow) -> Known {
    Known {
        row,
        waiting: Vec::new(),
        beyond: Vec::new(),
    }
}

fn plan(hooks: impl IntoIterator<Item = WebhookRow>) -> Plan {
    let mut plan = Plan::new(Timing::default());
    plan.handle_webhooks(hooks.into_iter().map(known).collect(), NOW);
    plan
}

fn log(from: u64, to: u64) -> Vec<Logged> {
    (from..=to)
        .map(|seq| Logged {
            event: EventRow {
                seq,
                at: NOW,
                kind: "process.state".to_owned(),
                process: Some(ProcessId(Uuid::nil())),
                agent: None,
                data: json!({}),
            },
            kind: None,
            tenant: None,
        })
        .collect()
}

/// Reads until nobody wants to read; the log has the events 1 to `last`, pages of 10.
fn read(plan: &mut Plan, last: u64) {
    plan.handle_recorded(Some(last));
    loop {
        let places = plan.poll_read();
        if places.is_empty() {
            return;
        }
        for place in places {
            let end = last.min(place + 10);
            plan.handle_page(place, &log(place + 1, end), end == place + 10);
        }
    }
}

fn attempts(plan: &mut Plan, now: UnixMs) -> Vec<Attempt> {
    std::iter::from_fn(|| plan.poll_attempt(now)).collect()
}

fn answer(plan: &mut Plan, attempt: &Attempt, result: Result<u16, &str>, now: UnixMs) {
    answer_nth(plan, attempt, result, 1, NOW, now);
}

fn answer_nth(
    plan: &mut Plan,
    attempt: &Attempt,
    result: Result<u16, &str>,
    attempts: u32,
    first_at: UnixMs,
    now: UnixMs,
) {
    let message = attempt.message.clone().unwrap_or(Message {
        name: "process.state".to_owned(),
        body: Bytes::from_static(b"{}"),
    });
    let tried = Tried {
        message,
        attempts,
        first_at,
        ended: Ended {
            result: result.map_err(str::to_owned),
            retry_after: None,
            took: Duration::from_millis(1),
        },
    };
    plan.handle_ended(attempt, Some(tried), now, 0.999);
}

fn seqs(attempts: &[Attempt]) -> Vec<u64> {
    attempts.iter().map(|attempt| attempt.seq).collect()
}

fn save(plan: &mut Plan, now: UnixMs) -> Vec<WebhookWrite> {
    let writes = plan.poll_write(now, false);
    plan.handle_written(writes.clone(), true, now);
    writes
}

#[test]
fn events_are_told_in_order_four_at_a_time_and_the_cursor_follows() {
    let mut plan = plan([row(1)]);
    read(&mut plan, 6);
    let first = attempts(&mut plan, NOW);
    assert_eq!(seqs(&first), [1, 2, 3, 4]);
    // The second ends first: the cursor stays before the first.
    answer(&mut plan, &first[1], Ok(200), NOW);
    let writes = save(&mut plan, NOW);
    assert_eq!((writes[0].cursor, writes[0].deliveries.len()), (0, 1));
    answer(&mut plan, &first[0], Ok(204), NOW);
    assert_eq!(save(&mut plan, NOW)[0].cursor, 2);
    assert_eq!(seqs(&attempts(&mut plan, NOW)), [5, 6]);
}

#[test]
fn a_failure_waits_in_the_store_and_holds_nobody_up() {
    let mut plan = plan([row(1)]);
    read(&mut plan, 2);
    let first = attempts(&mut plan, NOW);
    answer(&mut plan, &first[0], Ok(500), NOW);
    answer(&mut plan, &first[1], Ok(200), NOW);
    assert!(
        attempts(&mut plan, NOW.plus(Duration::from_secs(60))).is_empty(),
        "not written yet"
    );
    let writes = save(&mut plan, NOW);
    assert_eq!(writes[0].cursor, 2);
    let waits = &writes[0].deliveries[0];
    assert_eq!(
        (waits.state, waits.status),
        (DeliveryState::Waiting, Some(500))
    );
    let due = plan.next_due(NOW).unwrap();
    assert_eq!(waits.next_at, Some(due));
    assert!(plan.poll_attempt(NOW).is_none());
    let again = plan.poll_attempt(due).unwrap();
    assert_eq!((again.seq, &again.message), (1, &None));
    answer_nth(&mut plan, &again, Ok(200), 2, NOW, due);
    let row = save(&mut plan, due)[0].deliveries[0].clone();
    assert_eq!((row.state, row.attempts), (DeliveryState::Succeeded, 2));
    assert_eq!(plan.next_due(due), None);
}

#[test]
fn dead_receivers_leave_room_for_those_that_work() {
    let mut plan = plan((1..=40).map(row));
    let mut now = NOW;
    read(&mut plan, 60);
    // Everybody but the 40th fails until they count as failing.
    for _ in 0..30 {
        for attempt in attempts(&mut plan, now) {
            let works = attempt.receiver.webhook == Uuid::from_u128(40);
            let result = if works { Ok(200) } else { Err("no answer") };
            answer(&mut plan, &attempt, result, now);
        }
        save(&mut plan, now);
        now = now.plus(Duration::from_secs(61));
    }
    // Then they hang: what they hold is bounded, each by one and all by a half.
    let hanging = attempts(&mut plan, now);
    let failing: Vec<_> = hanging.iter().filter(|attempt| attempt.failing).collect();
    let distinct: BTreeSet<_> = failing
        .iter()
        .map(|attempt| attempt.receiver.webhook)
        .collect();
    assert_eq!((failing.len(), distinct.len()), (16, 16));
    read(&mut plan, 70);
    let mut told = 0;
    loop {
        let healthy = attempts(&mut plan, now);
        if healthy.is_empty() {
            break;
        }
        for attempt in healthy {
            assert!(!attempt.failing);
            answer(&mut plan, &attempt, Ok(200), now);
            told += 1;
        }
        save(&mut plan, now);
    }
    assert!(told >= 10, "{told}");
}

#[test]
fn nobody_gets_more_than_four_attempts_and_all_together_32() {
    let mut plan = plan((1..=20).map(row));
    read(&mut plan, 50);
    let all = attempts(&mut plan, NOW);
    assert_eq!(all.len(), FLIGHTS_MAX);
    let mut each: BTreeMap<Uuid, usize> = BTreeMap::new();
    for attempt in &all {
        *each.entry(attempt.receiver.webhook).or_default() += 1;
    }
    assert!(
        each.values().all(|count| (1..=4).contains(count)),
        "{each:?}"
    );
    assert_eq!(each.len(), 20, "everybody has a turn");
}

#[test]
fn a_failing_receiver_is_probed_one_at_a_time_until_it_is_back() {
    let mut plan = plan([row(1)]);
    read(&mut plan, 30);
    let mut now = NOW;
    while !plan.hooks[&Uuid::from_u128(1)].is_failing() {
        for attempt in attempts(&mut plan, now) {
            answer(&mut plan, &attempt, Err("connection refused"), now);
        }
        save(&mut plan, now);
    }
    assert!(attempts(&mut plan, now).is_empty(), "a pause");
    now = plan.next_due(now).unwrap();
    assert!(now <= NOW.plus(Duration::from_secs(60)));
    let probe = attempts(&mut plan, now);
    assert_eq!(probe.len(), 1);
    answer(&mut plan, &probe[0], Ok(200), now);
    assert_eq!(attempts(&mut plan, now).len(), 4, "back to full speed");
}

#[test]
fn a_receiver_that_is_gone_or_dead_for_days_is_disabled() {
    let mut plan = plan([row(1), row(2)]);
    read(&mut plan, 10);
    let all = attempts(&mut plan, NOW);
    let of = |n| {
        let mine = all
            .iter()
            .filter(move |a| a.receiver.webhook == Uuid::from_u128(n));
        mine.cloned().collect::<Vec<_>>()
    };
    answer(&mut plan, &of(1)[0], Ok(410), NOW);
    answer(&mut plan, &of(2)[0], Err("no answer"), NOW);
    let late = NOW.plus(Duration::from_secs(5 * 24 * 3600));
    answer(&mut plan, &of(2)[1], Ok(404), late);
    let writes = save(&mut plan, late);
    let why = |n: u128| {
        let write = writes
            .iter()
            .find(|write| write.webhook == Uuid::from_u128(n));
        write.unwrap().disable.clone().unwrap()
    };
    assert!(why(1).contains("410 Gone"), "{}", why(1));
    assert!(
        why(2).contains("since 2026-11-24") && why(2).contains("404"),
        "{}",
        why(2)
    );
    let dead = writes.iter().flat_map(|write| &write.deliveries);
    assert!(
        dead.clone()
            .any(|row| row.state == DeliveryState::Dead && row.status == Some(410))
    );
    assert!(attempts(&mut plan, late.plus(Duration::from_secs(60))).is_empty());
    assert!(
        save(&mut plan, late)
            .iter()
            .all(|write| write.disable.is_none()),
        "said once"
    );
}

#[test]
fn a_write_that_failed_is_written_again_with_everything_in_it() {
    let mut plan = plan([row(1)]);
    read(&mut plan, 2);
    let first = attempts(&mut plan, NOW);
    answer(&mut plan, &first[0], Ok(410), NOW);
    let writes = plan.poll_write(NOW, false);
    plan.handle_written(writes, false, NOW);
    answer(&mut plan, &first[1], Ok(200), NOW);
    let writes = save(&mut plan, NOW);
    assert_eq!(writes[0].deliveries.len(), 2);
    assert_eq!(writes[0].cursor, 2);
    assert!(writes[0].disable.is_some());
    assert!(save(&mut plan, NOW).is_empty());
}

#[test]
fn after_a_restart_rows_behind_the_cursor_are_not_told_twice() {
    let mut plan = Plan::new(Timing::default());
    let hook = Known {
        row: WebhookRow {
            cursor: 3,
            ..row(1)
        },
        waiting: vec![(NOW, 5)],
        beyond: vec![5, 6],
    };
    plan.handle_webhooks(vec![hook], NOW);
    read(&mut plan, 7);
    let all = attempts(&mut plan, NOW);
    assert_eq!(seqs(&all), [5, 4, 7]);
    assert_eq!(all[0].message, None, "from its row");
}

#[test]
fn events_that_were_trimmed_unread_are_counted() {
    let mut plan = plan([
        row(1),
        WebhookRow {
            cursor: 25,
            ..row(2)
        },
    ]);
    for place in plan.poll_read() {
        plan.handle_page(place, &log(21.max(place + 1), 30), false);
    }
    let writes = plan.poll_write(NOW, true);
    let missed: BTreeMap<_, _> = writes
        .iter()
        .map(|w| (w.webhook.as_u128(), w.missed))
        .collect();
    assert_eq!(missed.get(&1), Some(&20));
    assert!(missed.get(&2).is_none_or(|missed| *missed == 0));
}

#[test]
fn a_cursor_over_unwanted_events_is_stored_now_and_then() {
    let mut plan = plan([WebhookRow {
        events: vec!["agent.up".to_owned()],
        ..row(1)
    }]);
    read(&mut plan, 40);
    assert!(
        plan.poll_write(NOW.plus(Duration::from_secs(4)), false)
            .is_empty()
    );
    let writes = plan.poll_write(NOW.plus(Duration::from_secs(5)), false);
    assert_eq!(writes[0].cursor, 40);
    assert_eq!(plan.figures()[0].lag, 0);
}

#[test]
fn a_changed_filter_counts_for_what_was_not_sent_yet_and_a_moved_cursor_for_everything() {
    let mut plan = plan([row(1)]);
    read(&mut plan, 8);
    let first = attempts(&mut plan, NOW);
    answer(&mut plan, &first[2], Ok(200), NOW);
    save(&mut plan, NOW);
    let other = WebhookRow {
        events: vec!["agent.*".to_owned()],
        ..row(1)
    };
    plan.handle_webhooks(
        vec![Known {
            beyond: vec![3],
            ..known(other.clone())
        }],
        NOW,
    );
    read(&mut plan, 8);
    assert!(attempts(&mut plan, NOW).is_empty());
    for attempt in [&first[0], &first[1], &first[3]] {
        answer(&mut plan, attempt, Ok(200), NOW);
    }
    assert_eq!(save(&mut plan, NOW)[0].cursor, 8);
    let back = WebhookRow {
        generation: 2,
        cursor: 5,
        ..row(1)
    };
    plan.handle_webhooks(vec![known(back)], NOW);
    read(&mut plan, 8);
    assert_eq!(seqs(&attempts(&mut plan, NOW)), [6, 7, 8]);
}

#[test]
fn a_disabled_webhook_gets_nothing_and_its_results_hurt_nobody() {
    let mut plan = plan([row(1)]);
    read(&mut plan, 3);
    let first = attempts(&mut plan, NOW);
    let off = WebhookRow {
        disabled: Some(Disabled {
            at: NOW,
            why: "by hand".to_owned(),
        }),
        ..row(1)
    };
    plan.handle_webhooks(vec![known(off)], NOW);
    assert!(plan.is_empty());
    for attempt in &first {
        answer(&mut plan, attempt, Ok(200), NOW);
    }
    assert_eq!(plan.flights, 0);
    assert!(plan.poll_write(NOW, true).is_empty());
}

/// What the receivers of the random test have got, and what is in the "store".
#[derive(Default)]
struct World {
    got: BTreeMap<(u128, u64), u32>,
    cursors: BTreeMap<u128, u64>,
    rows: BTreeMap<(u128, u64), DeliveryRow>,
}

impl World {
    fn keep(&mut self, writes: &[WebhookWrite]) {
        for write in writes {
            let id = write.webhook.as_u128();
            let cursor = self.cursors.entry(id).or_default();
            *cursor = (*cursor).max(write.cursor);
            for row in &write.deliveries {
                self.rows.insert((id, row.seq), row.clone());
            }
        }
    }

    fn known(&self, id: u128) -> Known {
        let cursor = self.cursors.get(&id).copied().unwrap_or(0);
        let mine = self.rows.iter().filter(|((of, _), _)| *of == id);
        Known {
            row: WebhookRow { cursor, ..row(id) },
            waiting: mine
                .clone()
                .filter_map(|((_, seq), row)| Some((row.next_at?, *seq)))
                .collect(),
            beyond: mine
                .map(|((_, seq), _)| *seq)
                .filter(|seq| *seq > cursor)
                .collect(),
        }
    }
}

#[test]
fn whatever_fails_and_whenever_it_crashes_everything_is_told_in_the_end() {
    const EVENTS: u64 = 40;
    const HOOKS: u128 = 4;
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::default();
        let mut plan = plan((1..=HOOKS).map(row));
        let mut flying: Vec<Attempt> = Vec::new();
        let mut now = NOW;
        for step in 0..4000 {
            now = now.plus(Duration::from_millis(rng.random_range(0..20_000)));
            read(&mut plan, EVENTS);
            flying.extend(attempts(&mut plan, now));
            if !flying.is_empty() {
                let attempt = flying.swap_remove(rng.random_range(0..flying.len()));
                let id = attempt.receiver.webhook.as_u128();
                let fails = step < 1500 && rng.random_bool(0.6);
                let earlier = world.rows.get(&(id, attempt.seq));
                let (nth, first) = earlier.map_or((0, now), |row| (row.attempts, row.first_at));
                if !fails {
                    *world.got.entry((id, attempt.seq)).or_default() += 1;
                }
                let result = if fails { Ok(503) } else { Ok(200) };
                answer_nth(&mut plan, &attempt, result, nth + 1, first, now);
            }
            if rng.random_bool(0.3) {
                let writes = plan.poll_write(now, false);
                let ok = rng.random_bool(0.8);
                if ok {
                    world.keep(&writes);
                }
                plan.handle_written(writes, ok, now);
            }
            if rng.random_bool(0.01) {
                // The server dies and starts again on what the store has.
                flying.clear();
                plan = Plan::new(Timing::default());
                plan.handle_webhooks((1..=HOOKS).map(|id| world.known(id)).collect(), now);
            }
        }
        for id in 1..=HOOKS {
            for seq in 1..=EVENTS {
                assert!(
                    world.got.contains_key(&(id, seq)),
                    "seed {seed}: {id} lacks {seq}"
                );
            }
        }
    }
}
