//! What the store promises the deliverer.

use bytes::Bytes;
use protocol::ids::ProcessId;

use super::*;
use crate::store::sql;

const NOW: UnixMs = UnixMs(1_795_512_600_000);

async fn store() -> (Store, tempfile::TempDir) {
    let (directory, store) = crate::store::tests::fresh().await;
    (store, directory)
}

fn new() -> NewWebhook {
    NewWebhook {
        url: "https://example.com/".to_owned(),
        events: vec!["*".to_owned()],
        agent: None,
        kind: None,
        tenant: None,
        description: String::new(),
        secret: Secret::new(vec![7; 32]).unwrap(),
        disabled: false,
        after: None,
    }
}

fn delivery(seq: u64, state: DeliveryState) -> DeliveryRow {
    DeliveryRow {
        seq,
        name: "process.state".to_owned(),
        body: Bytes::from(format!("{{\"n\":{seq},\"text\":\"[1,2]\"}}")),
        state,
        attempts: 1,
        status: Some(500),
        took_ms: 3,
        error: None,
        first_at: NOW,
        last_at: NOW,
        next_at: (state == DeliveryState::Waiting).then_some(NOW),
    }
}

fn write(row: &WebhookRow, cursor: u64, deliveries: Vec<DeliveryRow>) -> WebhookWrite {
    WebhookWrite {
        webhook: row.id,
        generation: row.generation,
        cursor,
        missed: 0,
        failing_since: None,
        disable: None,
        deliveries,
    }
}

async fn record(store: &Store, count: usize) {
    for _ in 0..count {
        let data = json!({});
        store
            .record_event(NOW, "agent.up", None, data)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_webhook_is_read_as_it_was_written() {
    let (store, _directory) = store().await;
    record(&store, 3).await;
    let agent = AgentId(Uuid::from_u128(9));
    let asked = NewWebhook {
        agent: Some(agent),
        kind: Some("exec".to_owned()),
        tenant: Some("acme".to_owned()),
        description: "ci".to_owned(),
        disabled: true,
        ..new()
    };
    let made = store.create_webhook(asked, NOW).await.unwrap();
    assert_eq!(store.webhook(made.id).await.unwrap(), Some(made.clone()));
    assert_eq!(
        (made.cursor, made.agent, made.generation),
        (3, Some(agent), 1)
    );
    assert_eq!(made.disabled.unwrap().why, BY_HAND);
    let later = NewWebhook {
        after: Some(1),
        ..new()
    };
    assert_eq!(store.create_webhook(later, NOW).await.unwrap().cursor, 1);
    assert!(store.delete_webhook(made.id).await.unwrap());
    assert!(!store.delete_webhook(made.id).await.unwrap());
    assert_eq!(store.webhook(made.id).await.unwrap(), None);
}

#[tokio::test]
async fn results_and_cursor_are_written_together_and_bodies_come_back_as_they_were() {
    let (store, _directory) = store().await;
    let row = store.create_webhook(new(), NOW).await.unwrap();
    let waits = delivery(5, DeliveryState::Waiting);
    let done = delivery(7, DeliveryState::Succeeded);
    let writes = vec![write(&row, 5, vec![waits.clone(), done.clone()])];
    store.settle_webhooks(writes, NOW).await.unwrap();
    let known = store.known_webhooks().await.unwrap().remove(0);
    assert_eq!(known.row.cursor, 5);
    assert_eq!(known.waiting, [(NOW, 5)]);
    assert_eq!(known.beyond, [7]);
    assert_eq!(
        store.webhook_delivery(row.id, 5).await.unwrap(),
        Some(waits)
    );
    let all = store
        .webhook_deliveries(row.id, None, None, 10)
        .await
        .unwrap();
    assert_eq!(all.iter().map(|row| row.seq).collect::<Vec<_>>(), [7, 5]);
    let some = store
        .webhook_deliveries(row.id, Some(DeliveryState::Succeeded), Some(8), 10)
        .await
        .unwrap();
    assert_eq!(some, [done]);
    let unsettled = store.unsettled_deliveries().await.unwrap()[&row.id];
    assert_eq!(
        unsettled,
        Unsettled {
            waiting: 1,
            dead: 0
        }
    );
}

#[tokio::test]
async fn a_cursor_moved_by_hand_is_not_moved_back_by_an_old_write() {
    let (store, _directory) = store().await;
    record(&store, 9).await;
    let row = store.create_webhook(new(), NOW).await.unwrap();
    let change = WebhookChange {
        after: Some(2),
        ..WebhookChange::default()
    };
    let moved = store
        .update_webhook(row.id, change, NOW)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((moved.cursor, moved.generation), (2, row.generation + 1));
    store
        .settle_webhooks(vec![write(&row, 9, Vec::new())], NOW)
        .await
        .unwrap();
    assert_eq!(store.webhook(row.id).await.unwrap().unwrap().cursor, 2);
    store
        .settle_webhooks(vec![write(&moved, 4, Vec::new())], NOW)
        .await
        .unwrap();
    store
        .settle_webhooks(vec![write(&moved, 3, Vec::new())], NOW)
        .await
        .unwrap();
    assert_eq!(store.webhook(row.id).await.unwrap().unwrap().cursor, 4);
}

#[tokio::test]
async fn results_of_a_webhook_that_is_gone_spoil_nobody_elses() {
    let (store, _directory) = store().await;
    let gone = store.create_webhook(new(), NOW).await.unwrap();
    let here = store.create_webhook(new(), NOW).await.unwrap();
    store.delete_webhook(gone.id).await.unwrap();
    let rows = || vec![delivery(1, DeliveryState::Waiting)];
    let writes = vec![write(&gone, 1, rows()), write(&here, 1, rows())];
    store.settle_webhooks(writes, NOW).await.unwrap();
    let known = store.known_webhooks().await.unwrap();
    assert_eq!((known.len(), known[0].row.cursor), (1, 1));
    assert_eq!(store.webhook_delivery(gone.id, 1).await.unwrap(), None);
}

#[tokio::test]
async fn what_is_kept_is_bounded() {
    let (store, _directory) = store().await;
    let row = store.create_webhook(new(), NOW).await.unwrap();
    for (from, state) in [(0, DeliveryState::Succeeded), (2000, DeliveryState::Dead)] {
        let rows = (from + 1..=from + 1200)
            .map(|seq| delivery(seq, state))
            .collect();
        store
            .settle_webhooks(vec![write(&row, 0, rows)], NOW)
            .await
            .unwrap();
        let kept = store
            .webhook_deliveries(row.id, Some(state), None, 5000)
            .await
            .unwrap();
        let most = match state {
            DeliveryState::Dead => deliveries::DEAD_MAX,
            _ => deliveries::SUCCEEDED_MAX,
        };
        assert_eq!(kept.len(), usize::try_from(most).unwrap());
        assert_eq!(kept[0].seq, from + 1200, "the newest");
    }
}

#[tokio::test]
async fn disabling_is_told_once_and_not_after_a_change_by_hand() {
    let (store, _directory) = store().await;
    let row = store.create_webhook(new(), NOW).await.unwrap();
    let disable = WebhookWrite {
        disable: Some("it fails".to_owned()),
        ..write(&row, 0, Vec::new())
    };
    for _ in 0..2 {
        store
            .settle_webhooks(vec![disable.clone()], NOW)
            .await
            .unwrap();
    }
    let events = store.events_after(0, None, 10).await.unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].kind, "webhook.disabled");
    assert_eq!(events[0].data["reason"], "it fails");
    let enable = WebhookChange {
        disabled: Some(false),
        ..WebhookChange::default()
    };
    let on = store
        .update_webhook(row.id, enable, NOW)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((&on.disabled, on.cursor), (&None, 1));
    store.settle_webhooks(vec![disable], NOW).await.unwrap();
    assert_eq!(store.webhook(row.id).await.unwrap().unwrap().disabled, None);
}

#[tokio::test]
async fn events_come_with_the_kind_of_their_process() {
    let (store, _directory) = store().await;
    let id = ProcessId(Uuid::from_u128(3));
    let insert = store.write(move |db| {
        Box::pin(async move {
            let id = id.to_bytes().to_vec();
            sql::query(
                "INSERT INTO process (id, kind, target_id, class, state, deadline_at, attempt,
                     counted_fence, max_attempts, busy_count, fence, progress_next, progress_rows,
                     progress_bytes, progress_dropped, created_at)
                 VALUES ($1, 'exec', $1, 2, 'ready', 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0)",
            )
            .bind(&id)
            .execute(&mut *db)
            .await?;
            sql::query(
                "INSERT INTO process_event (at, type, process_id, data)
                 VALUES (0, 'process.created', $1, '{}'), (0, 'agent.up', NULL, '{}')",
            )
            .bind(&id)
            .execute(&mut *db)
            .await?;
            Ok::<_, StoreError>(())
        })
    });
    insert.await.unwrap();
    let all = store.webhook_events(0, 10).await.unwrap();
    assert_eq!(all[0].kind.as_deref(), Some("exec"));
    assert_eq!(all[0].tenant.as_deref(), Some("default"));
    assert_eq!(all[0].event.process, Some(id));
    assert_eq!((&all[1].kind, &all[1].tenant), (&None, &None));
}

crate::store::tests::conformance::suite! {
    a_webhook_is_read_as_it_was_written,
    results_and_cursor_are_written_together_and_bodies_come_back_as_they_were,
    a_cursor_moved_by_hand_is_not_moved_back_by_an_old_write,
    results_of_a_webhook_that_is_gone_spoil_nobody_elses,
    what_is_kept_is_bounded,
    disabling_is_told_once_and_not_after_a_change_by_hand,
    events_come_with_the_kind_of_their_process,
}
