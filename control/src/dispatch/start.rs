//! Starts the process server: takes the groups, finds out what was on its way, tells the gateway.

use std::sync::Arc;
use std::time::Duration;

use protocol::ids::ProcessId;
use protocol::link::Request;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::core::{Core, Moment, Recovered};
use super::driver::Driver;
use super::handle::{COMMANDS_MAX, ENROLMENTS_MAX, Engine, EnrolmentAsked};
use super::telemetry::Telemetry;
use crate::clock;
use crate::downlink::{End, Link, LinkFull};
use crate::process::{Input, State};
use crate::store::processes::{Batch, Happened};
use crate::store::recovery::Lease;
use crate::store::workers::Looked;
use crate::store::{Store, StoreError};

/// Rows that one step of the recovery changes.
const RECOVERY_STEP: usize = 2000;
/// A gateway without room is tried again after this.
const LINK_RETRY: Duration = Duration::from_millis(2);

/// A gateway that takes nothing for so long does not work.
const LINK_PATIENCE: Duration = Duration::from_secs(60);

/// Why a process server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The gateway takes nothing.
    #[error("the gateway has taken no request for {} s; is it running?", LINK_PATIENCE.as_secs())]
    Gateway,
}

/// A process server that runs.
pub struct Started {
    /// Its front door.
    pub engine: Engine,
    /// Enrolments that gateways pass on.
    pub enrolments: mpsc::Receiver<EnrolmentAsked>,
    /// Changes after every batch that may have recorded events.
    pub recorded: watch::Receiver<u64>,
    /// Ends when it has stopped; with an error if it panicked.
    pub task: JoinHandle<()>,
    /// Cancel it to drain: no further claims; the task ends when everything heard is durable.
    pub drain: CancellationToken,
    /// Cancel it to stop at once; nothing that was accepted is lost.
    pub stop: CancellationToken,
}

/// Starts a process server on the store and the gateway.
///
/// Before it returns, the gateway owns every group (epoch + 1 where another run of a gateway owned it) and
/// knows every agent, and every operation that was on its way when the last server stopped is `unknown`,
/// to be asked for when its agent is back.
///
/// May be called several times with one store, each time with an end of its own of the gateway: the servers
/// share what is ready, and follow each other when one ends (`store/workers.rs`).
///
/// # Errors
/// [`StartError`]; calling again is harmless.
pub async fn start(store: Store, end: End) -> Result<Started, StartError> {
    let worker = Uuid::new_v4();
    let link = &end.link;
    store.ensure_automatic_groups(clock::now()).await?;
    let groups = store.take_groups(link.gateway().0).await?;
    store.begin_worker(worker, clock::now()).await?;
    let active = orphan(&store, store.leases(worker).await?).await?;
    let admissions = store.admissions().await?;
    let recovered = Recovered {
        targets: admissions
            .iter()
            .map(|admission| admission.target)
            .collect(),
        waiting: store.waiting_by_state().await?,
        ready: store.ready_counts().await?,
        pauses: store.pauses().await?,
        limits: store.limits().await?,
        active,
        resources: store.free_resources().await?,
        abandoned: store.revoked_with_work().await?,
        next_due: store.earliest_timer().await?,
    };
    // Agents first: a group without its agents would turn them away as strangers.
    for admission in admissions {
        tell(
            &**link,
            Request::AdmitAgent {
                target: admission.target,
                keys: admission.keys,
            },
        )
        .await?;
    }
    // Limits as well: nothing is granted that they do not permit. And what may be under way counts against
    // them from the first report of a home on, which is after the first group.
    let limits = recovered.limits.on_the_wire();
    let counts = !limits.is_empty();
    tell(&**link, Request::SetLimits { limits }).await?;
    let now = Moment {
        mono: clock::monotonic(),
        wall: clock::now(),
    };
    let core = Core::new(now, (end.server, worker), recovered);
    for charge in core.charges().into_iter().filter(|_| counts) {
        tell(&**link, charge).await?;
    }
    for group in &groups {
        tell(
            &**link,
            Request::AssignGroup {
                group: group.id,
                slot: group.slot,
                epoch: group.epoch,
            },
        )
        .await?;
    }
    Ok(spawn(store, end, worker, core))
}

fn spawn(store: Store, end: End, worker: Uuid, core: Core) -> Started {
    let owner = end.link.gateway().0;
    let (commands, command_queue) = mpsc::channel(COMMANDS_MAX);
    let (enrolments, enrolment_queue) = mpsc::channel(ENROLMENTS_MAX);
    let (recorded, recorded_watch) = watch::channel(0);
    let telemetry = Arc::new(Telemetry::new());
    let drain = CancellationToken::new();
    let stop = CancellationToken::new();
    let driver = Driver {
        core,
        store: store.clone(),
        worker,
        looked: Looked::default(),
        seen: None,
        link: end.link,
        wake: end.wake,
        commands: command_queue,
        enrolments,
        telemetry: Arc::clone(&telemetry),
        recorded,
        drain: drain.clone(),
        stop: stop.clone(),
    };
    Started {
        engine: Engine {
            commands,
            telemetry,
            store,
            owner,
            beside: Arc::default(),
        },
        enrolments: enrolment_queue,
        recorded: recorded_watch,
        task: tokio::spawn(driver.run()),
        drain,
        stop,
    }
}

/// Whatever was leased or running is unknown now.
async fn orphan(store: &Store, mut leases: Vec<Lease>) -> Result<Vec<Lease>, StoreError> {
    for step in leases.chunks_mut(RECOVERY_STEP) {
        let lost: Vec<ProcessId> = step
            .iter()
            .filter(|lease| matches!(lease.state, State::Leased | State::Running))
            .map(|lease| lease.process)
            .collect();
        if lost.is_empty() {
            continue;
        }
        let inputs = lost
            .iter()
            .map(|process| Happened::new(*process, Input::Orphaned));
        let batch = Batch {
            at: clock::now(),
            inputs: inputs.collect(),
            ..Batch::default()
        };
        store.apply(batch).await?;
        for lease in step {
            if matches!(lease.state, State::Leased | State::Running) {
                lease.state = State::Unknown;
            }
        }
    }
    Ok(leases)
}

async fn tell(link: &dyn Link, mut request: Request) -> Result<(), StartError> {
    let patience = clock::monotonic() + LINK_PATIENCE;
    while let Err(LinkFull(refused)) = link.send(request) {
        if clock::monotonic() >= patience {
            return Err(StartError::Gateway);
        }
        request = *refused;
        tokio::time::sleep(LINK_RETRY).await;
    }
    Ok(())
}
