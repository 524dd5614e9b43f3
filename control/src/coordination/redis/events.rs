//! Events of a Redis: publish and subscribe.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::timeout;
use uuid::Uuid;

use super::super::figures::Figures;
use super::super::topics::{Notice, Subscription};
use super::super::url::RedisTarget;
use super::super::{CoordinationError, Events, Name, PAYLOAD_MAX};
use super::Wire;

/// Messages that wait to be published; what is more becomes a gap.
const WAITING_MAX: usize = 1024;
/// A gap is told again after this while the service is away.
const RETRY: Duration = Duration::from_millis(500);

/// What a message begins with: a message, or "you may have missed some".
const MESSAGE: u8 = 0;
const GAP: u8 = 1;
/// Then who has published it.
const HEAD: usize = 1 + 16;

/// Events of a Redis.
pub(super) struct RedisEvents {
    wire: Arc<Wire>,
    waiting: mpsc::Sender<(Name, Vec<u8>)>,
    gaps: Arc<Gaps>,
    /// Among all that publish: nobody hears itself.
    origin: Uuid,
}

/// Topics whose others have missed something.
#[derive(Default)]
struct Gaps(Mutex<BTreeSet<Name>>);

impl Gaps {
    fn note(&self, topic: &Name) {
        self.lock().insert(topic.clone());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<Name>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RedisEvents {
    pub(super) fn new(target: &RedisTarget) -> Result<Self, CoordinationError> {
        let origin = Uuid::new_v4();
        let read = move |message: &[u8]| read(origin, message);
        let wire = Arc::new(Wire::new(target, "event", Box::new(read))?);
        let (waiting, queue) = mpsc::channel(WAITING_MAX);
        let gaps = Arc::<Gaps>::default();
        tokio::spawn(publish(Arc::clone(&wire), queue, Arc::clone(&gaps), origin));
        Ok(Self {
            wire,
            waiting,
            gaps,
            origin,
        })
    }
}

impl Events for RedisEvents {
    fn publish(&self, topic: &Name, payload: &[u8]) {
        let message = match payload.len() <= PAYLOAD_MAX {
            true => write(MESSAGE, self.origin, payload),
            false => write(GAP, self.origin, &[]),
        };
        // Whoever publishes waits for nobody: the queue being full, it is not empty, and its end looks at gaps.
        if self.waiting.try_send((topic.clone(), message)).is_err() {
            self.gaps.note(topic);
        }
    }

    fn subscribe(&self, topic: &Name) -> Subscription {
        self.wire.subscribe(topic)
    }

    fn check(&self) -> BoxFuture<'_, Result<String, CoordinationError>> {
        self.wire.check().boxed()
    }

    fn figures(&self) -> Option<Arc<Figures>> {
        Some(Arc::clone(&self.wire.shared.figures))
    }
}

/// Publishes what waits, until nobody can publish any more.
async fn publish(
    wire: Arc<Wire>,
    mut queue: mpsc::Receiver<(Name, Vec<u8>)>,
    gaps: Arc<Gaps>,
    origin: Uuid,
) {
    loop {
        let next = if gaps.lock().is_empty() {
            queue.recv().await.map(Some)
        } else {
            timeout(RETRY, queue.recv())
                .await
                .map_or(Some(None), |next| next.map(Some))
        };
        let Some(next) = next else {
            return;
        };
        let behind = gaps.lock().clone();
        for topic in behind {
            if tell(&wire, &topic, &write(GAP, origin, &[])).await {
                gaps.lock().remove(&topic);
            }
        }
        if let Some((topic, message)) = next
            && !tell(&wire, &topic, &message).await
        {
            gaps.note(&topic);
        }
    }
}

/// Whether the service has taken it.
async fn tell(wire: &Wire, topic: &Name, message: &[u8]) -> bool {
    let told = async {
        let mut connection = wire.connection().await?;
        let told = ::redis::cmd("PUBLISH")
            .arg(wire.channel(topic))
            .arg(message)
            .exec_async(&mut connection)
            .await;
        told.map_err(|error| wire.shared.failed(&error))
    };
    let told = told.await;
    wire.shared.figures.called(&told);
    if told.is_ok() {
        wire.shared.figures.sent();
    }
    told.is_ok()
}

fn write(kind: u8, origin: Uuid, payload: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEAD + payload.len());
    message.push(kind);
    message.extend_from_slice(origin.as_bytes());
    message.extend_from_slice(payload);
    message
}

/// What a message says; nothing, if it is our own.
fn read(origin: Uuid, message: &[u8]) -> Option<Notice> {
    let Some((head, payload)) = message.split_at_checked(HEAD) else {
        // Not one of ours, but something was said.
        return Some(Notice::Missed);
    };
    match head {
        [_, from @ ..] if from == origin.as_bytes() => None,
        [MESSAGE, ..] if payload.len() <= PAYLOAD_MAX => Some(Notice::Message(payload.into())),
        _ => Some(Notice::Missed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_by_others_and_whatever_else_is_a_gap() {
        let (ann, bob) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let message = write(MESSAGE, ann, b"hello");
        assert_eq!(
            read(bob, &message),
            Some(Notice::Message((*b"hello").into()))
        );
        assert_eq!(read(ann, &message), None);
        assert_eq!(read(ann, &write(GAP, ann, b"")), None);
        let empty = write(MESSAGE, ann, b"");
        assert_eq!(read(bob, &empty), Some(Notice::Message([].into())));
        let long = write(MESSAGE, ann, &[0; PAYLOAD_MAX + 1]);
        let unknown = write(7, ann, b"hello");
        for gap in [&write(GAP, ann, b"")[..], b"", b"junk", &long, &unknown] {
            assert_eq!(read(bob, gap), Some(Notice::Missed));
        }
    }
}
