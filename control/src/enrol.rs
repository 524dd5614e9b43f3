//! Enrolment: how a machine with a join token becomes an agent.
//!
//! ```text
//!   gateway ── Enrol ──▶ look at the token ─▶ check the request, make the certificate
//!                         ─▶ use the token up: agent, key and event in one commit (one winner)
//!                         ─▶ AdmitAgent to every shard ─▶ EnrolReply       (in this order)
//! ```
//!
//! The order matters: an agent that has its certificate is already known to every shard. A request
//! that cannot be used does not cost its token. If the server dies between the commit and the
//! reply, the token is spent and an agent is left that never connects: revoke it, make a new token.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use protocol::enrol::{EnrolRefusal, EnrolReply, Enrolment};
use protocol::ids::AgentId;
use protocol::limits::{ADDRESSES_MAX, NAME_BYTES_MAX};
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use uuid::Uuid;

use crate::clock;
use crate::dispatch::{Engine, EngineError, EnrolmentAsked};
use crate::identity::{Identity, IssueError};
use crate::store::tokens::{Consume, ConsumeError, SecretHash};
use crate::store::{Store, StoreError};
use crate::telemetry::metrics::{Family, Kind, Value};

/// Enrolments that are worked on at once; more wait in their queue. Enough to fill commits.
const AT_ONCE: usize = 64;
/// Refusals that are stored as events, per second; all are counted and logged.
const STORED_REFUSALS: NonZeroU32 = NonZeroU32::new(5).unwrap();
/// How long to go on trying to tell a gateway about a new agent while the way there is full.
const TELL_FOR: Duration = Duration::from_secs(5);
const TELL_AGAIN: Duration = Duration::from_millis(10);

/// What new agents are told and given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EnrolConfig {
    /// `host:port` of gateways; may be empty: agents go on with the address that they joined at.
    pub addresses: Vec<String>,
    /// How long agent certificates live.
    pub certificate_life: Duration,
}

/// Why an enrolment was refused, as the log and the record name it.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Token(#[from] ConsumeError),
    #[error(transparent)]
    Certificate(#[from] IssueError),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl Refused {
    /// What the machine is told.
    fn refusal(&self) -> EnrolRefusal {
        match self {
            // A revoked agent's token is as good as none: nothing is said about the agent.
            Self::Token(ConsumeError::Unknown | ConsumeError::AgentRevoked) => {
                EnrolRefusal::UnknownToken
            }
            Self::Token(ConsumeError::Used) => EnrolRefusal::UsedToken,
            Self::Token(ConsumeError::Expired) => EnrolRefusal::ExpiredToken,
            Self::Token(ConsumeError::KeyInUse) | Self::Certificate(IssueError::Csr(_)) => {
                EnrolRefusal::BadRequest
            }
            Self::Token(ConsumeError::Store(StoreError::Busy)) => EnrolRefusal::Busy,
            Self::Token(ConsumeError::Store(_) | ConsumeError::NoGroup)
            | Self::Certificate(_)
            | Self::Engine(_) => EnrolRefusal::Unavailable,
        }
    }

    /// Whether somebody tried what they may not, rather than we failed.
    fn is_theirs(&self) -> bool {
        !matches!(
            self.refusal(),
            EnrolRefusal::Busy | EnrolRefusal::Unavailable
        )
    }
}

/// Counters since the start.
#[derive(Debug, Default)]
pub struct EnrolStats {
    enrolled: AtomicU64,
    unknown_token: AtomicU64,
    used_token: AtomicU64,
    expired_token: AtomicU64,
    bad_request: AtomicU64,
    failed: AtomicU64,
}

impl EnrolStats {
    fn count_refusal(&self, refusal: EnrolRefusal) {
        let counter = match refusal {
            EnrolRefusal::UnknownToken => &self.unknown_token,
            EnrolRefusal::UsedToken => &self.used_token,
            EnrolRefusal::ExpiredToken => &self.expired_token,
            EnrolRefusal::BadRequest => &self.bad_request,
            EnrolRefusal::Busy | EnrolRefusal::Unavailable => &self.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The figures for `/metrics`.
    pub fn family(&self) -> Family {
        let mut family = Family::new(
            Kind::Counter,
            "drover_enrolments_total",
            "Enrolments, by how they ended.",
        );
        for (result, counter) in [
            ("enrolled", &self.enrolled),
            ("unknown_token", &self.unknown_token),
            ("used_token", &self.used_token),
            ("expired_token", &self.expired_token),
            ("bad_request", &self.bad_request),
            ("failed", &self.failed),
        ] {
            let count = Value::Number(counter.load(Ordering::Relaxed));
            family = family.with(vec![("result", result.to_owned())], count);
        }
        family
    }
}

/// Answers enrolments. Clones share it.
#[derive(Clone)]
pub struct Enroller {
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    engine: Engine,
    identity: Arc<Identity>,
    config: EnrolConfig,
    stats: EnrolStats,
    stored_refusals: DefaultDirectRateLimiter,
}

impl Enroller {
    /// Answers nothing yet; see [`Enroller::run`].
    pub fn new(
        store: Store,
        engine: Engine,
        identity: Arc<Identity>,
        mut config: EnrolConfig,
    ) -> Self {
        config.addresses.truncate(ADDRESSES_MAX);
        Self {
            shared: Arc::new(Shared {
                store,
                engine,
                identity,
                config,
                stats: EnrolStats::default(),
                stored_refusals: RateLimiter::direct(Quota::per_second(STORED_REFUSALS)),
            }),
        }
    }

    /// The counters.
    pub fn stats(&self) -> &EnrolStats {
        &self.shared.stats
    }

    /// Answers every enrolment that is asked for, until nobody can ask any more.
    pub async fn run(self, mut asked: mpsc::Receiver<EnrolmentAsked>) {
        let permits = Arc::new(Semaphore::new(AT_ONCE));
        while let Some(asked) = asked.recv().await {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                return;
            };
            let shared = Arc::clone(&self.shared);
            tokio::spawn(async move {
                shared.answer(asked).await;
                drop(permit);
            });
        }
    }
}

impl Shared {
    async fn answer(&self, asked: EnrolmentAsked) {
        let (shard, ticket, remote) = (asked.shard, asked.ticket, asked.remote);
        let reply = match self.enrol(&asked).await {
            Ok(enrolment) => {
                self.stats.enrolled.fetch_add(1, Ordering::Relaxed);
                tracing::info!(agent = %enrolment.agent, group = %enrolment.group, %remote, "enrolled");
                EnrolReply::Enrolled(Box::new(enrolment))
            }
            Err(refused) => {
                let refusal = refused.refusal();
                self.stats.count_refusal(refusal);
                tracing::warn!(%remote, reason = %refused, "an enrolment was refused");
                if refused.is_theirs() {
                    self.store_refusal(&asked, &refused).await;
                }
                EnrolReply::Refused(refusal)
            }
        };
        if let Err(error) = self.engine.answer_enrolment(shard, ticket, reply) {
            tracing::warn!(%remote, %error, "an enrolment's answer was not sent; the agent asks again");
        }
    }

    async fn enrol(&self, asked: &EnrolmentAsked) -> Result<Enrolment, Refused> {
        let now = clock::now();
        let request = &asked.request;
        let secret = SecretHash::of(&request.secret);
        let rekeys = self.store.look_at_token(secret, now).await?;
        let agent = rekeys.unwrap_or_else(|| AgentId(Uuid::now_v7()));
        let certificate =
            self.identity
                .issue_agent(agent, &request.csr, self.config.certificate_life, now)?;
        let admission = self
            .store
            .consume_token(Consume {
                secret,
                agent,
                key: certificate.key,
                hostname: name(&request.hostname),
                software: name(&request.software),
                remote: asked.remote,
                now,
            })
            .await?;
        self.tell(|| {
            self.engine
                .admit_agent(admission.target, admission.keys.clone())
        })
        .await?;
        Ok(Enrolment {
            agent,
            group: admission.target.group,
            slot: admission.target.slot,
            domain: self.identity.domain().to_owned(),
            chain: certificate.chain,
            roots: vec![self.identity.root().to_vec()],
            addresses: self.config.addresses.clone(),
        })
    }

    /// The agent exists from here on: a full queue is waited out rather than told.
    async fn tell(&self, send: impl Fn() -> Result<(), EngineError>) -> Result<(), EngineError> {
        let began = clock::monotonic();
        loop {
            match send() {
                Err(EngineError::Busy) if clock::monotonic() - began < TELL_FOR => {
                    tokio::time::sleep(TELL_AGAIN).await;
                }
                result => return result,
            }
        }
    }

    async fn store_refusal(&self, asked: &EnrolmentAsked, refused: &Refused) {
        if self.stored_refusals.check().is_err() {
            return;
        }
        let data = json!({
            "remote": asked.remote,
            "hostname": name(&asked.request.hostname),
            "reason": refused.to_string(),
        });
        let kind = "security.enrolment_refused";
        if let Err(error) = self
            .store
            .record_event(clock::now(), kind, None, data)
            .await
        {
            tracing::warn!(%error, "a refused enrolment was not stored");
        }
    }
}

/// A stranger's text as a name: no control characters, not too long.
fn name(text: &str) -> String {
    let mut name: String = text.chars().filter(|c| !c.is_control()).collect();
    let mut end = name.len().min(NAME_BYTES_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.truncate(end);
    name
}
