//! The suite that every kind of events passes.

use std::collections::BTreeSet;

use control::coordination::{Events, Notice, PAYLOAD_MAX, Subscription};

use crate::parties::Two;
use crate::{name, not_yet, soon};

/// Waits until there is nothing more to be heard for a moment.
async fn drain(subscription: &mut Subscription) -> Vec<Notice> {
    let mut heard = Vec::new();
    while let Ok(notice) = tokio::time::timeout(crate::MOMENT, subscription.next()).await {
        heard.push(notice);
    }
    heard
}

/// Waits until this is heard, or that something was missed.
pub(crate) async fn hears(subscription: &mut Subscription, payload: &[u8]) {
    let heard = async {
        loop {
            match subscription.next().await {
                Notice::Message(heard) if &*heard == payload => return,
                Notice::Message(_) => {}
                Notice::Missed => return,
            }
        }
    };
    soon("word of what was published", heard).await;
}

async fn what_one_publishes_the_others_hear(events: Two<dyn Events>) {
    let (topic, other) = (name("topic"), name("other"));
    let mut bob = events.bob.subscribe(&topic);
    let mut elsewhere = events.bob.subscribe(&other);
    drain(&mut bob).await;
    drain(&mut elsewhere).await;
    events.ann.publish(&topic, b"one");
    hears(&mut bob, b"one").await;
    assert!(not_yet(elsewhere.next()).await, "a topic is one of many");
    let mut late = events.bob.subscribe(&other);
    drain(&mut late).await;
    events.ann.publish(&other, b"two");
    hears(&mut late, b"two").await;
    hears(&mut elsewhere, b"two").await;
}

async fn what_is_too_long_is_missed(events: Two<dyn Events>) {
    let topic = name("topic");
    let mut bob = events.bob.subscribe(&topic);
    drain(&mut bob).await;
    events.ann.publish(&topic, &[7; PAYLOAD_MAX + 1]);
    let heard = soon("word of it", bob.next()).await;
    assert_eq!(heard, Notice::Missed);
}

async fn of_a_flood_each_is_heard_or_some_were_missed(events: Two<dyn Events>) {
    const FLOOD: u32 = 5_000;
    let topic = name("topic");
    let mut bob = events.bob.subscribe(&topic);
    drain(&mut bob).await;
    for number in 0..FLOOD {
        events.ann.publish(&topic, &number.to_be_bytes());
    }
    let (mut heard, mut missed) = (BTreeSet::new(), false);
    let all = async {
        while heard.len() < FLOOD as usize && !missed {
            match bob.next().await {
                Notice::Message(message) => {
                    let message: [u8; 4] = message[..].try_into().unwrap();
                    assert!(heard.insert(u32::from_be_bytes(message)), "heard once");
                }
                Notice::Missed => missed = true,
            }
        }
    };
    soon("all of it, or that some were missed", all).await;
    drain(&mut bob).await;
    events.ann.publish(&topic, b"more");
    hears(&mut bob, b"more").await;
}

async fn it_says_what_it_is(events: Two<dyn Events>, says: &str) {
    let said = events.ann.check().await.unwrap();
    assert!(said.contains(says), "{said}");
}

macro_rules! suite {
    ($kind:ident, $start:ident, $says:literal) => {
        mod $kind {
            use crate::parties::$start;

            #[tokio::test]
            async fn what_one_publishes_the_others_hear() {
                super::what_one_publishes_the_others_hear($start().await).await;
            }

            #[tokio::test]
            async fn what_is_too_long_is_missed() {
                super::what_is_too_long_is_missed($start().await).await;
            }

            #[tokio::test]
            async fn of_a_flood_each_is_heard_or_some_were_missed() {
                super::of_a_flood_each_is_heard_or_some_were_missed($start().await).await;
            }

            #[tokio::test]
            async fn it_says_what_it_is() {
                super::it_says_what_it_is($start().await, $says).await;
            }
        }
    };
}

suite!(local, local_events, "this process");
suite!(sql, sql_events, "the store");
suite!(redis, redis_events, "Redis 7.");
