//! The suite that every kind of locks passes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use control::coordination::{Hold, Locks};

use crate::parties::Two;
use crate::{name, not_yet, soon};

async fn one_at_a_time(locks: Two<dyn Locks>) {
    let (here, there) = (name("here"), name("there"));
    let held = locks.ann.try_acquire(&here).await.unwrap().unwrap();
    assert_eq!(held.state(), Hold::Held);
    for party in [&locks.ann, &locks.bob] {
        assert!(party.try_acquire(&here).await.unwrap().is_none());
    }
    let other = locks.bob.try_acquire(&there).await.unwrap();
    assert!(other.is_some(), "a lock is one of many");
    soon("a release", held.release()).await;
    let held = locks.bob.try_acquire(&here).await.unwrap();
    assert!(held.is_some(), "given back is free at once");
}

async fn whoever_waits_is_told(locks: Two<dyn Locks>) {
    let lock = name("lock");
    soon("a look", locks.bob.vacant(&lock)).await.unwrap();
    let held = locks.ann.try_acquire(&lock).await.unwrap().unwrap();
    {
        let mut vacant = locks.bob.vacant(&lock);
        assert!(not_yet(&mut vacant).await, "it is held");
        soon("a release", held.release()).await;
        soon("word of it", vacant).await.unwrap();
    }
    let held = locks.bob.try_acquire(&lock).await.unwrap().unwrap();
    let mut acquire = Box::pin(locks.ann.acquire(&lock));
    assert!(not_yet(&mut acquire).await);
    // Given back by being dropped: nobody waits for that.
    drop(held);
    let held = soon("a lock that was dropped", acquire).await.unwrap();
    assert_eq!(held.state(), Hold::Held);
}

async fn whoever_gives_up_leaves_nothing_behind(locks: Two<dyn Locks>) {
    let lock = name("lock");
    let held = locks.ann.try_acquire(&lock).await.unwrap().unwrap();
    for party in [&locks.ann, &locks.bob] {
        assert!(not_yet(party.acquire(&lock)).await);
    }
    soon("a release", held.release()).await;
    soon("a look", locks.bob.vacant(&lock)).await.unwrap();
    let held = soon("the lock", locks.bob.acquire(&lock)).await.unwrap();
    assert_eq!(held.state(), Hold::Held);
}

/// Whoever asks may be gone at any moment: before it has asked, before it is answered, with the lock.
async fn whoever_is_gone_while_it_asks_leaves_nothing_behind(locks: Two<dyn Locks>) {
    for micros in (0..4_000).step_by(100) {
        let lock = name(&format!("lock.{micros}"));
        let ask = locks.ann.try_acquire(&lock);
        drop(tokio::time::timeout(Duration::from_micros(micros), ask).await);
    }
    for micros in (0..4_000).step_by(100) {
        let lock = name(&format!("lock.{micros}"));
        let held = soon("what is nobody's", locks.bob.acquire(&lock))
            .await
            .unwrap();
        assert_eq!(held.state(), Hold::Held);
    }
}

async fn it_stays_held_for_longer_than_its_lease(locks: Two<dyn Locks>) {
    let lock = name("lock");
    let mut held = locks.ann.try_acquire(&lock).await.unwrap().unwrap();
    let until = tokio::time::sleep(locks.ann.lease() * 3 / 2);
    tokio::select! {
        () = held.lost() => panic!("it was lost"),
        () = until => {}
    }
    assert_eq!(held.state(), Hold::Held);
    assert!(locks.bob.try_acquire(&lock).await.unwrap().is_none());
}

/// While nothing is amiss, it excludes; what it does else is in the tests of faults.
async fn contenders_follow_each_other(locks: Two<dyn Locks>) {
    let inside = Arc::new(AtomicU32::new(0));
    let contend = |party: &Arc<dyn Locks>| {
        let (party, inside) = (Arc::clone(party), Arc::clone(&inside));
        tokio::spawn(async move {
            let lock = name("lock");
            for _ in 0..3 {
                let held = party.acquire(&lock).await.unwrap();
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
                held.release().await;
            }
        })
    };
    let contenders = [&locks.ann, &locks.bob, &locks.ann, &locks.bob].map(contend);
    for contender in contenders {
        soon("all turns", contender).await.unwrap();
    }
}

async fn it_says_what_it_is(locks: Two<dyn Locks>, says: &str) {
    let said = locks.ann.check().await.unwrap();
    assert!(said.contains(says), "{said}");
}

macro_rules! suite {
    ($kind:ident, $start:ident, $says:literal) => {
        mod $kind {
            use crate::parties::$start;

            #[tokio::test]
            async fn one_at_a_time() {
                super::one_at_a_time($start().await).await;
            }

            #[tokio::test]
            async fn whoever_waits_is_told() {
                super::whoever_waits_is_told($start().await).await;
            }

            #[tokio::test]
            async fn whoever_gives_up_leaves_nothing_behind() {
                super::whoever_gives_up_leaves_nothing_behind($start().await).await;
            }

            #[tokio::test]
            async fn whoever_is_gone_while_it_asks_leaves_nothing_behind() {
                super::whoever_is_gone_while_it_asks_leaves_nothing_behind($start().await).await;
            }

            #[tokio::test]
            async fn it_stays_held_for_longer_than_its_lease() {
                super::it_stays_held_for_longer_than_its_lease($start().await).await;
            }

            #[tokio::test]
            async fn contenders_follow_each_other() {
                super::contenders_follow_each_other($start().await).await;
            }

            #[tokio::test]
            async fn it_says_what_it_is() {
                super::it_says_what_it_is($start().await, $says).await;
            }
        }
    };
}

suite!(local, local_locks, "this process");
suite!(sql, sql_locks, "the store");
suite!(redis, redis_locks, "Redis 7.");
suite!(zookeeper, zookeeper_locks, "ZooKeeper, sessions of 3000 ms");
