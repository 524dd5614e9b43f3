//! Webhooks: other people's programs are told what happens, by HTTP (Standard Webhooks 1.0).
//!
//! ```text
//!   process_event ─▶ courier ─ plan (pure) ─▶ client ─▶ connect ─▶ receivers
//!        the log        │                     signs      checks the address
//!                       ▼
//!         cursor and rows of deliveries, in groups
//! ```
//!
//! A delivery follows the durable log with a cursor for each webhook: at least once, first attempts
//! in the log's order. `docs/WEBHOOKS.md` has what receivers must know.

mod address;
mod client;
mod connect;
mod courier;
mod events;
mod plan;
mod sign;
mod stats;
mod target;
mod verdict;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::sync::Semaphore;

use self::address::Policy;
use self::client::Client;
use self::courier::{Changes, Courier};
pub(crate) use self::events::{Logged, PATTERNS_MAX, check_pattern};
pub(crate) use self::plan::Known;
use self::plan::Receiver;
pub(crate) use self::sign::{SECRET_BYTES, message_id};
pub use self::sign::{Secret, SecretError};
use self::stats::Stats;
use self::target::TargetError;
pub use self::verdict::Timing;
use crate::clock;
use crate::store::Store;
use crate::store::webhooks::WebhookRow;
use crate::telemetry::metrics::Family;

/// Tests of webhooks under way.
const TESTS_MAX: usize = 4;

/// How webhooks are delivered.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct WebhooksConfig {
    /// Permits `http://`, and addresses that are not public: for tests and labs. Whoever may make a
    /// webhook can then reach whatever the server can reach.
    pub allow_insecure: bool,
    /// Certificates (PEM) of authorities that are trusted on top of this machine's.
    pub ca_file: Option<PathBuf>,
    /// How long everything takes.
    pub timing: Timing,
}

/// Why webhooks cannot be delivered with this configuration.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file of certificates is not there, or is none.
    #[error("`webhooks.ca_file`: {path} cannot be used: {words}; give a file of PEM certificates")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        words: String,
    },
}

/// What the API needs of webhooks. Clones share it.
#[derive(Clone)]
pub struct Webhooks {
    client: Arc<Client>,
    changes: Arc<Changes>,
    stats: Arc<Stats>,
    tests: Arc<Semaphore>,
}

/// What came of a test.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Tested {
    /// The status of the answer, or why there was none.
    pub(crate) result: Result<u16, String>,
    /// How long it took.
    pub(crate) took: Duration,
}

/// Makes the deliverer; the second half is its task.
pub(crate) fn new(
    config: &WebhooksConfig,
    store: Store,
) -> Result<(Webhooks, Courier), StartError> {
    let policy = if config.allow_insecure {
        tracing::warn!(
            "webhooks may use http:// and addresses that are not public (`webhooks.allow_insecure`)"
        );
        Policy::Anything
    } else {
        Policy::Public
    };
    let roots = match &config.ca_file {
        Some(path) => read_roots(path)?,
        None => Vec::new(),
    };
    let client = Arc::new(Client::new(policy, roots, config.timing.timeout));
    let changes = Arc::new(Changes::default());
    let stats = Arc::new(Stats::new());
    let courier = Courier::new(
        store,
        Arc::clone(&client),
        Arc::clone(&changes),
        Arc::clone(&stats),
        config.timing,
    );
    let webhooks = Webhooks {
        client,
        changes,
        stats,
        tests: Arc::new(Semaphore::new(TESTS_MAX)),
    };
    Ok((webhooks, courier))
}

fn read_roots(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, StartError> {
    let wrong = |words: String| StartError::CaFile {
        path: path.to_owned(),
        words,
    };
    let read = CertificateDer::pem_file_iter(path);
    let read = read.and_then(|all| all.collect::<Result<Vec<_>, _>>());
    match read {
        Ok(roots) if roots.is_empty() => Err(wrong("it holds no certificate".to_owned())),
        Ok(roots) => Ok(roots),
        Err(error) => Err(wrong(error.to_string())),
    }
}

impl Webhooks {
    /// A webhook was made, changed or taken away. No attempt that begins after this call knows it as
    /// it was before.
    pub(crate) fn changed(&self) {
        self.changes.tell();
    }

    /// Whether this can be a webhook's URL.
    pub(crate) fn check_url(&self, url: &str) -> Result<(), TargetError> {
        target::parse(url, self.client.policy()).map(drop)
    }

    /// Sends a `webhook.test` and waits for the answer. `None`: too many tests are under way.
    pub(crate) async fn test(&self, row: &WebhookRow) -> Option<Tested> {
        let _place = self.tests.try_acquire().ok()?;
        let now = clock::now();
        let receiver = Receiver {
            webhook: row.id,
            url: row.url.clone(),
            secret: row.secret.clone(),
            old: row.old_secret.clone(),
        };
        let message = events::test_message(row.id, now);
        let id = format!("msg_{}_test_{now}", row.id.simple());
        let ended = self.client.send(&receiver, &id, message.body).await;
        Some(Tested {
            result: ended.result,
            took: ended.took,
        })
    }

    /// The figures for `/metrics`.
    pub(crate) fn families(&self) -> [Family; 6] {
        self.stats.families()
    }
}
