//! Two parties of each service, as two processes would be, and what they need to live.

use std::any::Any;
use std::sync::Arc;

use control::coordination::{self, Events, EventsUrl, LocalBus, Locks, LocksUrl};
use control::store::Store;
use testkit::{Redis, ZooKeeper};

/// Two that share a service.
pub(crate) struct Two<T: ?Sized> {
    pub(crate) ann: Arc<T>,
    pub(crate) bob: Arc<T>,
    /// The service: ends with them.
    _service: Box<dyn Any>,
}

impl<T: ?Sized> Two<T> {
    fn new(party: impl Fn() -> Arc<T>, service: impl Any) -> Self {
        Self {
            ann: party(),
            bob: party(),
            _service: Box::new(service),
        }
    }
}

pub(crate) async fn store() -> (Store, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (Store::open("sqlite:", folder.path()).await.unwrap(), folder)
}

/// Locks that a URL names. The store is there for `sql:` alone.
pub(crate) async fn locks_of(url: &str) -> Arc<dyn Locks> {
    let (store, _folder) = store().await;
    coordination::locks(&LocksUrl::parse(url).unwrap(), &store).unwrap()
}

/// Events that a URL names. The store is there for `sql:` alone.
pub(crate) async fn events_of(url: &str) -> Arc<dyn Events> {
    let (store, _folder) = store().await;
    coordination::events(&EventsUrl::parse(url).unwrap(), &store).unwrap()
}

pub(crate) async fn local_locks() -> Two<dyn Locks> {
    let bus = LocalBus::default();
    Two::new(|| bus.locks(), ())
}

pub(crate) async fn local_events() -> Two<dyn Events> {
    let bus = LocalBus::default();
    Two::new(|| bus.events(), ())
}

pub(crate) async fn sql_locks() -> Two<dyn Locks> {
    let (store, folder) = store().await;
    let party = || coordination::locks(&LocksUrl::Sql, &store).unwrap();
    Two::new(party, folder)
}

pub(crate) async fn sql_events() -> Two<dyn Events> {
    let (store, folder) = store().await;
    let party = || coordination::events(&EventsUrl::Sql, &store).unwrap();
    Two::new(party, folder)
}

pub(crate) async fn redis_locks() -> Two<dyn Locks> {
    let (store, _folder) = store().await;
    let redis = Redis::start().await.unwrap();
    let url = LocksUrl::parse(&redis.url()).unwrap();
    Two::new(|| coordination::locks(&url, &store).unwrap(), redis)
}

pub(crate) async fn redis_events() -> Two<dyn Events> {
    let (store, _folder) = store().await;
    let redis = Redis::start().await.unwrap();
    let url = EventsUrl::parse(&redis.url()).unwrap();
    Two::new(|| coordination::events(&url, &store).unwrap(), redis)
}

pub(crate) async fn zookeeper_locks() -> Two<dyn Locks> {
    let (store, _folder) = store().await;
    let zookeeper = ZooKeeper::start().await.unwrap();
    let url = LocksUrl::parse(&zookeeper.url()).unwrap();
    Two::new(|| coordination::locks(&url, &store).unwrap(), zookeeper)
}
