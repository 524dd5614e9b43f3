//! What subscribers hear.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast::{self, error::RecvError};

use super::Name;

/// Notices that wait for a subscriber; one that does not come hears that it has missed some.
const WAITING_MAX: usize = 256;

/// What is heard of a topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// Somebody has published this.
    Message(Box<[u8]>),
    /// Messages may have been lost: look at everything. Also said when it begins, and as often as a service likes.
    Missed,
}

/// Hears one topic.
pub struct Subscription(broadcast::Receiver<Notice>);

impl Subscription {
    /// What comes next; waits for it.
    pub async fn next(&mut self) -> Notice {
        match self.0.recv().await {
            Ok(notice) => notice,
            Err(RecvError::Lagged(_)) => Notice::Missed,
            // The service is dropped: there is nothing to be heard.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Who hears what, in this process.
#[derive(Default)]
pub(super) struct Topics(Mutex<BTreeMap<Name, broadcast::Sender<Notice>>>);

impl Topics {
    pub(super) fn subscribe(&self, topic: &Name) -> Subscription {
        let mut topics = self.lock();
        let sender = topics
            .entry(topic.clone())
            .or_insert_with(|| broadcast::channel(WAITING_MAX).0);
        Subscription(sender.subscribe())
    }

    /// What is heard by anybody.
    pub(super) fn names(&self) -> Vec<Name> {
        let mut topics = self.lock();
        topics.retain(|_, sender| sender.receiver_count() > 0);
        topics.keys().cloned().collect()
    }

    pub(super) fn tell(&self, topic: &Name, notice: Notice) {
        if let Some(sender) = self.lock().get(topic) {
            // Nobody may hear it any more.
            sender.send(notice).ok();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, broadcast::Sender<Notice>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(number: usize) -> Notice {
        Notice::Message(number.to_string().into_bytes().into())
    }

    #[tokio::test]
    async fn whoever_does_not_come_hears_that_some_were_missed() {
        let (topics, topic) = (Topics::default(), Name::new("t").unwrap());
        topics.tell(&topic, message(0));
        let mut subscription = topics.subscribe(&topic);
        for number in 1..=WAITING_MAX {
            topics.tell(&topic, message(number));
        }
        assert_eq!(subscription.next().await, message(1));
        for number in 0..2 {
            topics.tell(&topic, message(WAITING_MAX + 1 + number));
        }
        assert_eq!(subscription.next().await, Notice::Missed);
        assert_eq!(subscription.next().await, message(3), "and goes on");
        drop(subscription);
        assert!(topics.names().is_empty());
    }
}
