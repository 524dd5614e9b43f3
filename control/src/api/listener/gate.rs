//! What a listener lets through: so many requests a second, of one address and of all, and so many at
//! once. What is refused costs no look at the token and nothing of the store.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, NotUntil, Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ListenerConfig;
use crate::api::problem::{ApiError, Kind};

/// Who is refused because too many requests are under way asks again after this.
const ROOM_AFTER: Duration = Duration::from_secs(1);

/// A limit of a listener; the name is its key in the configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Limit {
    /// Requests a second of all clients.
    Rate,
    /// Requests a second of one address.
    AddressRate,
    /// Requests at once.
    AtOnce,
}

impl Limit {
    pub(super) const ALL: [Self; 3] = [Self::Rate, Self::AddressRate, Self::AtOnce];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rate => "requests_per_second",
            Self::AddressRate => "address_requests_per_second",
            Self::AtOnce => "concurrent_requests",
        }
    }
}

/// Counts and limits the requests of one listener.
pub(super) struct Gate {
    listener: &'static str,
    config: ListenerConfig,
    rate: Option<DefaultDirectRateLimiter>,
    by_address: Option<DefaultKeyedRateLimiter<IpAddr>>,
    places: Arc<Semaphore>,
    requests: AtomicU64,
    refused: [AtomicU64; Limit::ALL.len()],
}

impl Gate {
    pub(super) fn new(listener: &'static str, config: &ListenerConfig) -> Self {
        let quota = |rate: NonZeroU32, burst: Option<NonZeroU32>| {
            Quota::per_second(rate).allow_burst(burst.unwrap_or(rate))
        };
        Self {
            listener,
            rate: config
                .requests_per_second
                .map(|rate| RateLimiter::direct(quota(rate, config.burst))),
            by_address: config
                .address_requests_per_second
                .map(|rate| RateLimiter::keyed(quota(rate, None))),
            places: Arc::new(Semaphore::new(config.concurrent_requests.get() as usize)),
            requests: AtomicU64::new(0),
            refused: Default::default(),
            config: config.clone(),
        }
    }

    /// A place for a request from `remote`, or why there is none.
    ///
    /// # Errors
    /// 429 with the limit that is exhausted and when to come again.
    pub(super) fn enter(&self, remote: IpAddr) -> Result<OwnedSemaphorePermit, ApiError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        // The address first: who is over its own rate takes nothing of what is everybody's.
        if let Some(by_address) = &self.by_address
            && let Err(denied) = by_address.check_key(&network(remote))
        {
            return Err(self.refuse(Limit::AddressRate, wait(&denied)));
        }
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| self.refuse(Limit::AtOnce, ROOM_AFTER))?;
        if let Some(rate) = &self.rate
            && let Err(denied) = rate.check()
        {
            return Err(self.refuse(Limit::Rate, wait(&denied)));
        }
        Ok(place)
    }

    fn refuse(&self, limit: Limit, wait: Duration) -> ApiError {
        self.refused[limit as usize].fetch_add(1, Ordering::Relaxed);
        let listener = self.listener;
        let rate = |rate: Option<NonZeroU32>| rate.map_or(0, NonZeroU32::get);
        let detail = match limit {
            Limit::Rate => format!(
                "The listener `{listener}` takes {} requests a second of all its clients together; come \
                 again later, or send process batches.",
                rate(self.config.requests_per_second)
            ),
            Limit::AddressRate => format!(
                "The listener `{listener}` takes {} requests a second of one address; slow down, or send \
                 process batches.",
                rate(self.config.address_requests_per_second)
            ),
            Limit::AtOnce => format!(
                "The listener `{listener}` works on {} requests at once and has no place for another; come \
                 again later.",
                self.config.concurrent_requests
            ),
        };
        let limit = format!("api.{listener}.{}", limit.name());
        ApiError::new(Kind::TooManyRequests, detail)
            .over(limit)
            .retry_after(wait)
    }

    /// Forgets addresses that have been quiet. Called once in a while.
    pub(super) fn settle(&self) {
        if let Some(by_address) = &self.by_address {
            by_address.retain_recent();
        }
    }

    /// Requests since the start, with those that were refused.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Requests that this limit has refused.
    pub(super) fn refused(&self, limit: Limit) -> u64 {
        self.refused[limit as usize].load(Ordering::Relaxed)
    }

    /// Requests under way.
    pub(super) fn under_way(&self) -> u64 {
        let most = u64::from(self.config.concurrent_requests.get());
        most - (self.places.available_permits() as u64).min(most)
    }
}

fn wait(denied: &NotUntil<<DefaultClock as Clock>::Instant>) -> Duration {
    denied.wait_time_from(DefaultClock::default().now())
}

/// IPv6 hosts own whole /64 networks: count those as one. IPv4 in IPv6's clothes stays IPv4.
pub(in crate::api) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn per_second(rate: u32) -> Option<NonZeroU32> {
        NonZeroU32::new(rate)
    }

    fn client(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn refused_by(gate: &Gate, from: IpAddr) -> Option<String> {
        gate.enter(from).err()?.into_problem().limit
    }

    #[test]
    fn each_limit_refuses_by_its_own_name_and_is_counted() {
        let config = ListenerConfig {
            requests_per_second: per_second(3),
            burst: per_second(3),
            address_requests_per_second: per_second(2),
            concurrent_requests: NonZeroU32::new(2).unwrap(),
            ..ListenerConfig::default()
        };
        let gate = Gate::new("public", &config);
        let first = gate.enter(client(1)).unwrap();
        let second = gate.enter(client(1)).unwrap();
        assert_eq!(gate.under_way(), 2);
        let over = refused_by(&gate, client(1)).unwrap();
        assert_eq!(over, "api.public.address_requests_per_second");
        let over = refused_by(&gate, client(2)).unwrap();
        assert_eq!(over, "api.public.concurrent_requests");
        drop((first, second));
        assert_eq!(refused_by(&gate, client(2)), None, "the third of three");
        let over = refused_by(&gate, client(3)).unwrap();
        assert_eq!(over, "api.public.requests_per_second");
        assert_eq!(Limit::ALL.map(|limit| gate.refused(limit)), [1, 1, 1]);
        assert_eq!((gate.requests(), gate.under_way()), (6, 0));
    }

    #[test]
    fn without_a_rate_only_requests_at_once_are_limited() {
        let gate = Gate::new("ui", &ListenerConfig::default());
        for _ in 0..100_000 {
            drop(gate.enter(client(1)).unwrap());
        }
    }

    #[test]
    fn a_network_of_ipv6_is_one_client_and_ipv4_never_is() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("::ffff:192.0.2.1"), of("::ffff:192.0.2.2"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
