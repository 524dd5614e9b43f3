//! Every statement is asked once, with every filter: what a backend does not understand shows here, whatever the
//! other tests are about.

use std::collections::BTreeSet;
use std::time::Duration;

use protocol::ids::{AgentId, Epoch, Fence, GrantId, GroupId, ProcessId};
use protocol::operation::{Outcome, OutcomeStatus};
use uuid::Uuid;

use super::super::agents::{AgentFilter, Inventory};
use super::super::api_tokens::Deleted;
use super::super::batches::{Matching, NewBatch, Progress, Range};
use super::super::dead_letters::{DeadCursor, DeadFilter};
use super::super::lines::{Others, Want};
use super::super::pauses::{Pause, PauseKey};
use super::super::processes::{Actor, Batch, Creation, Happened, IdempotencyKey, NewProcess};
use super::super::queries::ProcessFilter;
use super::super::tokens::{ConsumeError, SecretHash, TokenUse};
use super::super::{Store, log};
use super::{enrol, fresh};
use crate::api::model::access::Role;
use crate::api::model::batches::{BatchAction, BatchFilter, BatchState};
use crate::clock::UnixMs;
use crate::process::pause::Pauses;
use crate::process::{Input, Plan, PlanOperation, PlanStep, State};

const TEXT: &str = "ü \"quoted\" \\ \u{1f980} 'x' \\u0041";

async fn apply(store: &Store, at: u64, batch: Batch) -> Vec<Creation> {
    let (at, seed) = (UnixMs(at), rand::random());
    store
        .apply(Batch { at, seed, ..batch })
        .await
        .unwrap()
        .creations
}

async fn make(store: &Store, at: u64, new: NewProcess) -> ProcessId {
    let batch = Batch {
        creates: vec![new],
        ..Batch::default()
    };
    match apply(store, at, batch).await.remove(0) {
        Creation::Created(record) => record.id,
        other => panic!("{other:?}"),
    }
}

async fn happen(store: &Store, at: u64, inputs: Vec<Happened>) {
    let batch = Batch {
        inputs,
        ..Batch::default()
    };
    apply(store, at, batch).await;
}

/// A process of this agent that has failed, with `message`.
async fn failed(store: &Store, at: u64, agent: AgentId, message: &str) -> ProcessId {
    let new = NewProcess {
        max_attempts: 1,
        ..NewProcess::of_driver(agent, "exec", "{}", UnixMs(1_000_000))
    };
    let id = make(store, at, new).await;
    let outcome = Outcome {
        status: OutcomeStatus::FailedPermanent,
        exit_code: Some(3),
        message: message.to_owned(),
        output: bytes::Bytes::from_static(b"\xff\0"),
        service_time: Duration::ZERO,
    };
    let claim = Happened {
        grant: GrantId(1),
        ..Happened::new(id, Input::Claim)
    };
    let end = Happened {
        from: Some(agent),
        ..Happened::new(id, Input::Finished(Fence(1), outcome))
    };
    happen(store, at, vec![claim, end]).await;
    id
}

#[tokio::test]
async fn agents_are_found_by_every_filter_and_noted() {
    let (_directory, store) = fresh().await;
    store.ensure_automatic_groups(UnixMs(1)).await.unwrap();
    let (one, two) = (enrol(&store, 1).await, enrol(&store, 2).await);
    let seen = Inventory {
        agent: one.agent,
        at: UnixMs(50),
        hostname: "hv-one".to_owned(),
        software: TEXT.to_owned(),
        kinds: vec!["exec".to_owned()],
        labels: vec![("zone".to_owned(), TEXT.to_owned())],
    };
    store.note_inventories(vec![seen]).await.unwrap();
    let times = [(one.agent, 40), (two.agent, 60)];
    let times = times.map(|(agent, at)| (agent, UnixMs(at))).to_vec();
    store.note_last_seen(times).await.unwrap();
    let first = store.agent(one.agent).await.unwrap().unwrap();
    assert_eq!(
        (first.hostname.as_str(), first.software.as_str()),
        ("hv-one", TEXT)
    );
    assert_eq!(first.labels["zone"], TEXT);
    assert_eq!(first.last_seen_at, Some(UnixMs(50)));
    assert_eq!(first.keys.len(), 1);
    assert_eq!(store.agents_of_host("hv-one").await.unwrap(), [first]);
    let revoked = store.revoke_agent(two.agent, "ann".to_owned(), UnixMs(70));
    assert_eq!(revoked.await.unwrap(), super::agents::Revoked::Now);
    for (group, revoked, found) in [
        (None, None, 2),
        (None, Some(false), 1),
        (None, Some(true), 1),
        (Some(one.group), None, 1),
        (Some(one.group), Some(true), 0),
    ] {
        let filter = AgentFilter { group, revoked };
        let agents = store.agents_after(filter, None, 10).await.unwrap();
        assert_eq!(agents.len(), found, "{filter:?}");
    }
    let after = store.agents_after(AgentFilter::default(), Some(one.agent), 10);
    assert_eq!(after.await.unwrap()[0].target.agent, two.agent);
    let admitted = store.admissions().await.unwrap();
    assert_eq!((admitted.len(), admitted[0].target), (1, one));
    assert_eq!(admitted[0].keys.len(), 1);
    assert_eq!(store.revoked_with_work().await.unwrap(), []);
}

#[tokio::test]
async fn join_tokens_are_used_once_and_taken_back() {
    let (_directory, store) = fresh().await;
    store.ensure_automatic_groups(UnixMs(1)).await.unwrap();
    let target = enrol(&store, 1).await;
    // The one that was used.
    let token = store.tokens_after(None, 10).await.unwrap().remove(0);
    assert_eq!(
        (token.used_by, token.used_at),
        (Some(target.agent), Some(UnixMs(2)))
    );
    let again = store.look_at_token(SecretHash::of(&[1]), UnixMs(3)).await;
    assert!(matches!(again, Err(ConsumeError::Used)));
    let rekey = TokenUse::Rekey(target.agent);
    let made = store.create_tokens(vec![SecretHash::of(b"x")], rekey, UnixMs(3), UnixMs(9));
    let made = made.await.unwrap();
    let looked = store.look_at_token(SecretHash::of(b"x"), UnixMs(4)).await;
    assert_eq!(looked.unwrap(), Some(target.agent));
    assert!(store.delete_token(made[0].id).await.unwrap());
    assert!(!store.delete_token(made[0].id).await.unwrap());
    // Keys of two agents never meet, and nothing is left of the attempt.
    let join = TokenUse::Join(target.group);
    store
        .create_tokens(vec![SecretHash::of(b"y")], join, UnixMs(3), UnixMs(9))
        .await
        .unwrap();
    let consume = super::tokens::Consume {
        secret: SecretHash::of(b"y"),
        agent: AgentId::from_bytes([2; 16]),
        key: protocol::identity::KeyHash([1; 32]),
        hostname: "hv".to_owned(),
        software: String::new(),
        remote: ([127, 0, 0, 1], 1).into(),
        now: UnixMs(4),
    };
    let refused = store.consume_token(consume).await;
    assert!(
        matches!(refused, Err(ConsumeError::KeyInUse)),
        "{refused:?}"
    );
    assert_eq!(
        store.agent(AgentId::from_bytes([2; 16])).await.unwrap(),
        None
    );
}

#[tokio::test]
async fn tokens_of_the_api_are_noted_and_the_last_admin_stays() {
    let (_directory, store) = fresh().await;
    let admin = |secret: &'static [u8], expires| {
        let hash = SecretHash::of(secret);
        store.create_api_token(hash, TEXT.to_owned(), Role::Admin, UnixMs(5), expires)
    };
    let lasting = admin(b"a", None).await.unwrap();
    admin(b"b", Some(UnixMs(9))).await.unwrap();
    assert!(store.has_lasting_admin().await.unwrap());
    let found = store.find_api_token(SecretHash::of(b"a")).await.unwrap();
    assert_eq!(found.map(|token| token.id), Some(lasting.id));
    store
        .note_api_tokens_used(vec![(lasting.id, UnixMs(7))])
        .await
        .unwrap();
    let tokens = store.api_tokens_after(None, 10).await.unwrap();
    assert_eq!(tokens.len(), 2);
    assert_eq!(
        (tokens[0].name.as_str(), tokens[0].last_used_at),
        (TEXT, Some(UnixMs(7)))
    );
    assert_eq!(
        store.delete_api_token(lasting.id).await.unwrap(),
        Deleted::LastAdmin
    );
    let other = admin(b"c", None).await.unwrap();
    assert_eq!(
        store.delete_api_token(lasting.id).await.unwrap(),
        Deleted::Now
    );
    assert_eq!(
        store.delete_api_token(lasting.id).await.unwrap(),
        Deleted::Unknown
    );
    assert_eq!(
        store.delete_api_token(other.id).await.unwrap(),
        Deleted::LastAdmin
    );
    store.probe().await.unwrap();
}

#[tokio::test]
async fn processes_are_found_by_every_filter() {
    let (_directory, store) = fresh().await;
    store.ensure_automatic_groups(UnixMs(1)).await.unwrap();
    let target = enrol(&store, 1).await;
    let key = IdempotencyKey {
        scope: "ann".to_owned(),
        key: TEXT.to_owned(),
        fingerprint: [7; 32],
    };
    let new = NewProcess {
        resource: Some("pool/ü".to_owned()),
        tenant: "acme".to_owned(),
        idempotency: Some(key.clone()),
        ..NewProcess::of_driver(target.agent, "vm", "{\"a\":\"\\u0000\"}", UnixMs(1_000_000))
    };
    let id = make(&store, 10, new.clone()).await;
    assert!(store.knows_key(&key, UnixMs(11)).await.unwrap());
    let again = Batch {
        creates: vec![new],
        ..Batch::default()
    };
    let again = apply(&store, 12, again).await;
    assert!(matches!(&again[0], Creation::Existing(record) if record.id == id));
    let input = store.process_input(id).await.unwrap();
    assert_eq!(input.as_deref(), Some("{\"a\":\"\\u0000\"}"));
    let mut filter = ProcessFilter {
        state: Some(State::Ready),
        agent: Some(target.agent),
        kind: Some("vm".to_owned()),
        resource: Some("pool/ü".to_owned()),
        tenant: Some("acme".to_owned()),
        needs_attention: Some(false),
        paused: Some(false),
    };
    assert_eq!(store.processes(&filter, None, 10).await.unwrap().len(), 1);
    assert_eq!(
        store.processes(&filter, Some(id), 10).await.unwrap().len(),
        0
    );
    filter.needs_attention = Some(true);
    assert_eq!(store.processes(&filter, None, 10).await.unwrap().len(), 0);
    let line = store.resource_line("pool/ü", Some(id)).await.unwrap();
    assert_eq!(line.holder, Some((id, "vm".to_owned(), State::Ready)));
    let needless = store.would_supersede("pool/ü", &["vm".to_owned()]).await;
    assert_eq!(needless.unwrap(), [id]);
    assert_eq!(store.waiting_by_state().await.unwrap(), [(State::Ready, 1)]);
    assert_eq!(store.free_resources().await.unwrap(), Vec::<String>::new());
    assert_eq!(
        store.earliest_timer().await.unwrap(),
        Some(UnixMs(1_000_000))
    );
}

#[tokio::test]
async fn pauses_of_every_scope_keep_a_process() {
    let (_directory, store) = fresh().await;
    store.ensure_automatic_groups(UnixMs(1)).await.unwrap();
    let target = enrol(&store, 1).await;
    let new = NewProcess {
        tenant: "acme".to_owned(),
        ..NewProcess::of_driver(target.agent, "vm", "{}", UnixMs(1_000_000))
    };
    let id = make(&store, 10, new).await;
    assert_eq!(store.count_paused(10).await.unwrap(), 0);
    let pause = |key: &str| Pause {
        key: PauseKey::from_sql(key).unwrap(),
        by: "ann".to_owned(),
        reason: TEXT.to_owned(),
        at: UnixMs(20),
    };
    let group = target.group.0.simple().to_string();
    let hex = |id: Uuid| id.simple().to_string();
    for scope in [
        "tenant/acme".to_owned(),
        "kind/vm".to_owned(),
        format!("group/{group}"),
        format!("agent/{}", hex(target.agent.0)),
        format!("process/{}", hex(id.0)),
    ] {
        let key = pause(&scope).key;
        store.add_pause(pause(&scope)).await.unwrap();
        assert_eq!(store.pause(&key).await.unwrap(), Some(pause(&scope)));
        assert_eq!(store.count_paused(10).await.unwrap(), 1, "{scope}");
        let record = store.process(id).await.unwrap().unwrap();
        assert_eq!(record.paused, Some(key.clone()));
        for (paused, found) in [(true, 1), (false, 0)] {
            let filter = ProcessFilter {
                paused: Some(paused),
                ..ProcessFilter::default()
            };
            let list = store.processes(&filter, None, 10).await.unwrap();
            assert_eq!(list.len(), found, "{scope} {paused}");
        }
        let removed = store.remove_pause(key, UnixMs(21), "bob".to_owned(), String::new());
        assert!(removed.await.unwrap());
    }
}

#[tokio::test]
async fn ready_processes_are_read_by_line_past_what_is_paused() {
    let (_directory, store) = fresh().await;
    let agent = AgentId(Uuid::from_u128(7));
    let mut ids = Vec::new();
    for (kind, tenant) in [("a", "x"), ("b", "x"), ("b", "x"), ("a", "y")] {
        let new = NewProcess {
            tenant: tenant.to_owned(),
            ..NewProcess::of_driver(agent, kind, "{}", UnixMs(1_000))
        };
        ids.push(make(&store, 10, new).await);
    }
    let counts = store.ready_counts().await.unwrap();
    assert_eq!(counts.iter().map(|count| count.ready).sum::<u32>(), 4);
    let line = counts
        .iter()
        .find(|count| count.ready == 2)
        .unwrap()
        .line
        .clone();
    let want = Want {
        agent,
        lines: vec![(line, 10)],
        others: Some(Others {
            after: None,
            limit: 2,
        }),
    };
    let found = store
        .ready_of(std::slice::from_ref(&want), &Pauses::default())
        .await
        .unwrap();
    assert_eq!(found[0].lines[0].places.len(), 2);
    assert_eq!(found[0].others.as_ref().unwrap().len(), 2);
    let paused = PauseKey::from_sql(&format!("process/{}", ids[1].0.simple())).unwrap();
    let pauses = Pauses::new([&paused]);
    let found = store.ready_of(&[want], &pauses).await.unwrap();
    assert_eq!(found[0].lines[0].places[0].0.1, ids[2]);
}

#[tokio::test]
async fn what_has_failed_is_found_by_every_filter_and_counted() {
    let (_directory, store) = fresh().await;
    store.ensure_automatic_groups(UnixMs(1)).await.unwrap();
    let target = enrol(&store, 1).await;
    let message = format!("{TEXT}{}", "x".repeat(600));
    let one = failed(&store, 100, target.agent, &message).await;
    let two = failed(&store, 200, target.agent, "no\0thing").await;
    let filter = DeadFilter {
        agent: Some(target.agent),
        group: Some(target.group),
        kind: Some("exec".to_owned()),
        tenant: Some("default".to_owned()),
        outcome: Some("failed_permanent".to_owned()),
        needs_attention: Some(false),
        finished_after: Some(UnixMs(100)),
        finished_before: Some(UnixMs(201)),
    };
    let letters = store.dead_letters(&filter, None, 10).await.unwrap();
    let ids: Vec<ProcessId> = letters.iter().map(|letter| letter.id).collect();
    assert_eq!(ids, [two, one]);
    let output = letters[0].outcome.as_ref().unwrap().output.clone();
    assert_eq!(output.unwrap().to_bytes().unwrap(), b"\xff\0");
    let cursor = DeadCursor {
        finished_at: UnixMs(200),
        id: two,
    };
    let rest = store
        .dead_letters(&DeadFilter::default(), Some(cursor), 10)
        .await;
    assert_eq!(rest.unwrap()[0].id, one);
    let (groups, more) = store.count_dead_letters(&filter).await.unwrap();
    assert_eq!((groups.len(), groups[0].count, more), (1, 2, false));
    assert_eq!(groups[0].outcome.as_deref(), Some("failed_permanent"));
    let newest = store.newest_failures(1, 10).await.unwrap();
    assert_eq!(newest[0].id, two);
    let matching = Matching {
        states: vec![State::Failed],
        agent: filter.agent,
        kind: filter.kind.clone(),
        tenant: filter.tenant.clone(),
        group: filter.group,
        outcome: filter.outcome.clone(),
        needs_attention: Some(false),
        paused: Some(false),
        paused_itself: Some(false),
        finished_after: filter.finished_after,
        finished_before: filter.finished_before,
        over_by: Some(UnixMs(200)),
        admitted: true,
    };
    let range = Range {
        after: ProcessId(Uuid::nil()),
        last: store.newest_process().await.unwrap().unwrap(),
    };
    let found = store.find_processes(range, &matching, 10).await.unwrap();
    assert_eq!(found.processes, [one, two]);
    let paused = Matching {
        paused: Some(true),
        paused_itself: Some(true),
        ..matching
    };
    let found = store.find_processes(range, &paused, 10).await.unwrap();
    assert_eq!(found.processes, []);
}

#[tokio::test]
async fn a_batch_is_made_noted_and_ended_and_its_orders_are_found_again() {
    let (_directory, store) = fresh().await;
    let agent = AgentId(Uuid::from_u128(7));
    let id = make(
        &store,
        10,
        NewProcess::of_driver(agent, "vm", "{}", UnixMs(1000)),
    )
    .await;
    let actor = |reason: Option<&str>| Actor {
        by: "ann".to_owned(),
        reason: reason.map(str::to_owned),
    };
    let cancel = Happened {
        actor: Some(actor(Some(TEXT)).into()),
        ..Happened::new(id, Input::Cancel)
    };
    happen(&store, 20, vec![cancel]).await;
    for (reason, found) in [(Some(TEXT), 1), (Some("other"), 0), (None, 0)] {
        let ordered = store.ordered_by(&[id], actor(reason)).await.unwrap();
        assert_eq!(ordered.len(), found, "{reason:?}");
    }
    let new = NewBatch {
        action: BatchAction::Cancel,
        step: Some(2),
        filter: BatchFilter::default(),
        range: Range {
            after: ProcessId(Uuid::nil()),
            last: id,
        },
        max: 10,
        rate: 5,
        matched: 1,
        reason: TEXT.to_owned(),
        by: "ann".to_owned(),
    };
    let made = store.create_batch(new, UnixMs(30)).await.unwrap();
    assert_eq!((made.step, made.reason.as_str()), (Some(2), TEXT));
    assert_eq!(store.running_batches().await.unwrap().len(), 1);
    let progress = Progress {
        cursor: id,
        done: 1,
        failed: 0,
        trouble: None,
        finished: true,
    };
    let noted = store
        .note_batch(made.id, progress, UnixMs(40))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (noted.cursor, noted.done, noted.state),
        (id, 1, BatchState::Finished)
    );
    let cancelled = store
        .cancel_batch(made.id, UnixMs(50))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(cancelled.state, BatchState::Finished);
    assert_eq!(store.batches_before(None, 10).await.unwrap(), [cancelled]);
    assert_eq!(
        store.processes_by_ids(vec![id]).await.unwrap()[0].state,
        State::Cancelled
    );
}

#[tokio::test]
async fn a_plan_is_read_back_as_it_was_made() {
    let (_directory, store) = fresh().await;
    let agent = AgentId(Uuid::from_u128(7));
    let work = |operation: &str| PlanOperation {
        operation: operation.to_owned(),
        input: format!(
            "{{\"text\":\"{}\"}}",
            TEXT.replace('\\', "\\\\").replace('"', "\\\"")
        ),
        timeout: Duration::from_secs(3),
    };
    let step = |name: &str, undo| PlanStep {
        name: name.to_owned(),
        work: work("exec"),
        class: Some("heavy".to_owned()),
        resources: vec!["pool/ü".to_owned()],
        undo,
    };
    let plan = Plan {
        steps: vec![step("one", Some(work("undo"))), step("two", None)],
    };
    let new = NewProcess {
        plan: Some(plan.clone()),
        ..NewProcess::of_driver(agent, "vm", "{}", UnixMs(100_000))
    };
    let id = make(&store, 10, new).await;
    assert_eq!(store.plan(id).await.unwrap(), Some(plan));
    let claim = Happened {
        grant: GrantId(1),
        ..Happened::new(id, Input::Claim)
    };
    happen(&store, 20, vec![claim]).await;
    let worker = Uuid::from_u128(1);
    store.begin_worker(worker, UnixMs(30)).await.unwrap();
    let leases = store.leases(worker).await.unwrap();
    assert_eq!(
        (leases[0].process, leases[0].line.work.as_str()),
        (id, "heavy")
    );
}

#[tokio::test]
async fn history_is_trimmed_with_its_processes_keys_and_pauses() {
    let (_directory, store) = fresh().await;
    let agent = AgentId(Uuid::from_u128(7));
    let key = IdempotencyKey {
        scope: "ann".to_owned(),
        key: "k".to_owned(),
        fingerprint: [7; 32],
    };
    let new = NewProcess {
        idempotency: Some(key.clone()),
        ..NewProcess::of_driver(agent, "vm", "{}", UnixMs(1000))
    };
    let id = make(&store, 10, new).await;
    happen(&store, 20, vec![Happened::new(id, Input::Cancel)]).await;
    let pause = Pause {
        key: PauseKey::from_sql(&format!("process/{}", id.0.simple())).unwrap(),
        by: "ann".to_owned(),
        reason: String::new(),
        at: UnixMs(20),
    };
    store.add_pause(pause).await.unwrap();
    let events = store.history(id, 0, 10).await.unwrap();
    assert_eq!(events.len(), 3);
    assert!(events.is_sorted_by(|a, b| a.seq < b.seq));
    let retention = log::Retention {
        events: 1,
        processes: Duration::ZERO,
    };
    let later = UnixMs(20).plus(super::super::processes::IDEMPOTENCY_LIFE);
    while store.trim(retention, later).await.unwrap() {}
    assert_eq!(store.process(id).await.unwrap(), None);
    assert_eq!(store.process_input(id).await.unwrap(), None);
    assert!(!store.knows_key(&key, UnixMs(11)).await.unwrap());
    assert_eq!(store.pauses().await.unwrap().pauses, []);
    let left = store.events_after(0, None, 10).await.unwrap();
    assert_eq!(left.len(), 1);
}

#[tokio::test]
async fn what_two_of_the_same_name_ask_for_is_refused_in_words() {
    let (_directory, store) = fresh().await;
    let group = store.create_group("rack", UnixMs(1)).await.unwrap();
    assert_eq!(store.group(group.id).await.unwrap(), Some(group.clone()));
    assert_eq!(store.group(GroupId(Uuid::nil())).await.unwrap(), None);
    assert_eq!(group.epoch, Epoch(0));
    let groups: BTreeSet<String> = ["Rack", "rack ", "räck"].map(str::to_owned).into();
    for name in &groups {
        store.create_group(name, UnixMs(1)).await.unwrap();
    }
    let names = store.groups().await.unwrap();
    let names: Vec<&str> = names.iter().map(|group| group.name.as_str()).collect();
    assert_eq!(names, ["Rack", "rack", "rack ", "räck"], "by their bytes");
}

super::conformance::suite! {
    agents_are_found_by_every_filter_and_noted,
    join_tokens_are_used_once_and_taken_back,
    tokens_of_the_api_are_noted_and_the_last_admin_stays,
    pauses_of_every_scope_keep_a_process,
    processes_are_found_by_every_filter,
    ready_processes_are_read_by_line_past_what_is_paused,
    what_has_failed_is_found_by_every_filter_and_counted,
    a_batch_is_made_noted_and_ended_and_its_orders_are_found_again,
    a_plan_is_read_back_as_it_was_made,
    history_is_trimmed_with_its_processes_keys_and_pauses,
    what_two_of_the_same_name_ask_for_is_refused_in_words,
}
