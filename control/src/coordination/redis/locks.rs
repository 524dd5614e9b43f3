//! Locks of a Redis: a key with a time to live, whose value is its holder.

use std::sync::Arc;
use std::time::Duration;

use ::redis::{Script, ScriptInvocation};
use uuid::Uuid;

use super::super::figures::Figures;
use super::super::leases::Leases;
use super::super::topics::{Notice, Subscription};
use super::super::url::RedisTarget;
use super::super::{CoordinationError, Name};
use super::Wire;

/// Takes it if nobody has it, or if the holder already has.
const TAKE: &str = r"
    if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
    if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
    return 0";
/// Renews it if the holder has it.
const RENEW: &str = r"
    if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
    return 0";
/// Gives it back if the holder has it, and tells whoever waits.
const GIVE_BACK: &str = r"
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    redis.call('DEL', KEYS[1])
    redis.call('PUBLISH', ARGV[2], '')
    return 1";

/// A waiter looks again after so long, should it not be told.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Locks of a Redis.
pub(super) struct RedisLeases {
    wire: Wire,
    /// What every key begins with.
    prefix: String,
    lease: Duration,
    take: Script,
    renew: Script,
    give_back: Script,
}

impl RedisLeases {
    pub(super) fn new(target: &RedisTarget) -> Result<Self, CoordinationError> {
        Ok(Self {
            wire: Wire::new(target, "released", Box::new(|_| Some(Notice::Missed)))?,
            prefix: format!("{}:lock:", target.prefix),
            lease: target.lease,
            take: Script::new(TAKE),
            renew: Script::new(RENEW),
            give_back: Script::new(GIVE_BACK),
        })
    }

    async fn call(&self, call: &ScriptInvocation<'_>) -> Result<bool, CoordinationError> {
        let asked = async {
            let mut connection = self.wire.connection().await?;
            let answer = call.invoke_async::<i64>(&mut connection).await;
            answer.map_err(|error| self.wire.shared.failed(&error))
        };
        let answer = asked.await;
        self.figures().called(&answer);
        Ok(answer? == 1)
    }

    fn key(&self, name: &Name) -> String {
        format!("{}{name}", self.prefix)
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Leases for RedisLeases {
    async fn take(&self, name: &Name, holder: Uuid) -> Result<bool, CoordinationError> {
        let mut call = self.take.key(self.key(name));
        let call = call.arg(holder.to_string()).arg(self.millis());
        self.call(call).await
    }

    async fn renew(&self, name: &Name, holder: Uuid) -> Result<bool, CoordinationError> {
        let mut call = self.renew.key(self.key(name));
        let call = call.arg(holder.to_string()).arg(self.millis());
        self.call(call).await
    }

    async fn give_back(&self, name: &Name, holder: Uuid) -> Result<(), CoordinationError> {
        let mut call = self.give_back.key(self.key(name));
        let call = call.arg(holder.to_string()).arg(self.wire.channel(name));
        self.call(call).await.map(drop)
    }

    async fn remaining(&self, name: &Name) -> Result<Option<Duration>, CoordinationError> {
        let asked = async {
            let mut connection = self.wire.connection().await?;
            let left = ::redis::cmd("PTTL")
                .arg(self.key(name))
                .query_async::<i64>(&mut connection)
                .await;
            left.map_err(|error| self.wire.shared.failed(&error))
        };
        let left = asked.await;
        self.figures().called(&left);
        Ok(match left? {
            // Written by somebody else, and for good.
            -1 => Some(self.lease),
            left => u64::try_from(left).ok().map(Duration::from_millis),
        })
    }

    fn released(&self, name: &Name) -> Option<Subscription> {
        Some(self.wire.subscribe(name))
    }

    fn look_every(&self) -> Duration {
        LOOK_EVERY
    }

    async fn check(&self) -> Result<String, CoordinationError> {
        self.wire.check().await
    }

    fn lease(&self) -> Duration {
        self.lease
    }

    fn figures(&self) -> &Arc<Figures> {
        &self.wire.shared.figures
    }
}
