//! Drives the process server: moves values between the gateway, the store and [`Core`].
//!
//! One task. It waits for nothing but its queues and the store, and every queue is bounded: when
//! the store is slow, nothing more is read from the gateway, which then reads nothing more from
//! agents.

use std::collections::BTreeMap;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use protocol::ids::GatewayId;
use protocol::link::Event;
use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::core::{Core, Moment, TICK};
use super::handle::{Command, EnrolmentAsked};
use super::rhythm::Rhythm;
use super::telemetry::Telemetry;
use crate::clock::{self, UnixMs};
use crate::coordination::Presence;
use crate::downlink::{Link, LinkFull, Wake};
use crate::store::groups::Group;
use crate::store::lines::Found;
use crate::store::processes::Applied;
use crate::store::workers::{Asks, BEAT_EVERY, Beat, Looked};
use crate::store::{Store, StoreError};

/// Events taken from the gateway in one turn.
const EVENTS_PER_TURN: usize = 1024;
/// Commands taken in one turn.
const COMMANDS_PER_TURN: usize = 256;
/// A batch of this size does not wait for its time.
const GATHER_ENOUGH: usize = 256;
/// While the store's server does not answer, it is asked this often by a beat whether it is back. As each process
/// server beats, somebody always waits for the writer, and it need not connect by itself.
const BEAT_AGAIN: Duration = Duration::from_millis(500);
/// A gateway without room is tried again after this.
pub(super) const LINK_RETRY: Duration = Duration::from_millis(2);

type Refill = Result<Vec<Found>, StoreError>;

/// The task's belongings.
pub(super) struct Driver {
    pub(super) core: Core,
    pub(super) store: Store,
    /// Who we are to the store.
    pub(super) worker: Uuid,
    /// How far the last beat has looked at what others write.
    pub(super) looked: Looked,
    /// Up to when what they have changed in their lines was taken.
    pub(super) seen: Option<u64>,
    /// The store's earliest timer.
    pub(super) timers: watch::Receiver<Option<UnixMs>>,
    pub(super) link: Arc<dyn Link>,
    pub(super) wake: Wake,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) enrolments: mpsc::Sender<EnrolmentAsked>,
    pub(super) telemetry: Arc<Telemetry>,
    /// Rung after every batch that may have recorded events.
    pub(super) recorded: watch::Sender<u64>,
    /// What a lock service tells of the others; `None`: there is none that is quicker than beats.
    pub(super) presence: Option<Presence>,
    /// Changes when another process has written something.
    pub(super) nudges: watch::Receiver<u64>,
    /// It is none of the store's process servers.
    pub(super) observes: bool,
    pub(super) drain: CancellationToken,
    pub(super) stop: CancellationToken,
}

/// A beat, and when it began.
type Beaten = (Moment, Result<Beat, StoreError>);

/// What the task waits for from the store; each is there at most once.
#[derive(Default)]
struct Waits {
    batch: Option<BoxFuture<'static, Result<Applied, StoreError>>>,
    refill: Option<BoxFuture<'static, Refill>>,
    notes: Option<BoxFuture<'static, Result<(), StoreError>>>,
    raise: Option<BoxFuture<'static, Result<Vec<Group>, StoreError>>>,
    beat: Option<BoxFuture<'static, Beaten>>,
    /// Beats that have failed since the last one that was written.
    missed: u32,
}

impl Driver {
    /// Runs until it is told to stop, or has drained.
    pub(super) async fn run(mut self) {
        let mut waits = Waits::default();
        let mut events = Vec::with_capacity(EVENTS_PER_TURN);
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut beats = interval(BEAT_EVERY);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rhythm = Rhythm::new(clock::monotonic());
        loop {
            // Under load something is always ready below, and none of it counts against tokio's
            // budget: without this the store's writer might never get a turn on this thread.
            tokio::task::yield_now().await;
            self.note_present();
            let more = self.take_events(&mut events);
            self.take_news();
            self.start_batch(&mut waits, &mut rhythm);
            let blocked = self.flush();
            self.start_reads(&mut waits);
            self.pass_enrolments();
            if self.drain.is_cancelled() && self.core.is_idle() && !more {
                break;
            }
            let alarm = self.alarm(&rhythm, waits.batch.is_some(), blocked);
            tokio::select! {
                () = self.wake.rung(), if !more && self.core.event_room() > 0 => {}
                () = std::future::ready(()), if more => {}
                // Another process server has set a timer. The sender lives as long as the store.
                Ok(()) = self.timers.changed() => {}
                Some(command) = self.commands.recv(), if self.core.command_room() => {
                    self.take_commands(command);
                }
                applied = wait(&mut waits.batch) => {
                    waits.batch = None;
                    self.core.handle_applied(moment(), applied);
                    self.recorded.send_modify(|batches| *batches += 1);
                }
                found = wait(&mut waits.refill) => {
                    waits.refill = None;
                    self.take_refill(found);
                }
                noted = wait(&mut waits.notes) => {
                    waits.notes = None;
                    take_noted(noted);
                }
                raised = wait(&mut waits.raise) => {
                    waits.raise = None;
                    self.take_raised(raised);
                }
                (began, beat) = wait(&mut waits.beat) => {
                    waits.beat = None;
                    self.take_beat(began, beat, &mut beats, &mut waits.missed);
                }
                () = hint(&mut self.presence, &mut self.nudges) => beats.reset_immediately(),
                _ = beats.tick(), if waits.beat.is_none() => {
                    waits.beat = Some(self.beat());
                }
                _ = ticks.tick() => self.tick(),
                () = sleep_until(alarm.into()) => {}
                () = self.drain.cancelled(), if !self.core.is_draining() => {
                    self.core.drain();
                    self.link.drain();
                }
                () = self.stop.cancelled() => break,
            }
        }
        self.tick();
        if !self.stop.is_cancelled()
            && !self.observes
            && let Err(error) = self.store.end_worker(self.worker, clock::now()).await
        {
            // The others find out by themselves.
            tracing::warn!(%error, "the process server's end was not written");
        }
    }

    /// What time it is, and when timers are due.
    fn note_present(&mut self) {
        self.core.note_time(moment());
        self.core.set_next_due(*self.timers.borrow_and_update());
    }

    /// Says that this server is alive; one that observes only looks.
    fn beat(&mut self) -> BoxFuture<'static, Beaten> {
        let (store, worker) = (self.store.clone(), self.worker);
        let began = moment();
        if self.observes {
            let looked = self.looked;
            return async move { (began, store.observe(worker, began.wall, looked).await) }.boxed();
        }
        let asks = Asks {
            lends: self.core.wants_to_lend(),
            looked: self.looked,
            believed: self.core.believed(),
            suspects: self
                .presence
                .as_ref()
                .map(Presence::suspects)
                .unwrap_or_default(),
        };
        async move { (began, store.beat(worker, began.wall, asks).await) }.boxed()
    }

    fn tick(&mut self) {
        self.core.handle_tick(moment());
        self.core.refresh_stats();
        self.telemetry.publish(&self.core.stats);
    }

    /// Takes what other process servers have changed, if it is time.
    fn take_news(&mut self) {
        if self.core.wants_news() {
            let news = self.store.news(self.worker, self.seen);
            self.seen = news.as_ref().map(|news| news.clock);
            self.core.handle_news(moment(), news);
        }
    }

    /// Takes what the gateway has; says whether there may be more.
    fn take_events(&mut self, events: &mut Vec<Event>) -> bool {
        // Also without room: whoever does not come is taken for hung.
        let room = self.core.event_room().min(EVENTS_PER_TURN);
        let taken = self.link.receive(events, room);
        self.core.set_leads(self.link.leads());
        let now = moment();
        for event in events.drain(..) {
            self.core.handle_event(now, event);
        }
        taken > 0 && taken >= room && self.core.event_room() > 0
    }

    fn take_commands(&mut self, first: Command) {
        let now = moment();
        self.core.handle_command(now, first);
        for _ in 1..COMMANDS_PER_TURN {
            if !self.core.command_room() {
                break;
            }
            match self.commands.try_recv() {
                Ok(command) => self.core.handle_command(now, command),
                Err(_) => break,
            }
        }
    }

    fn start_batch(&mut self, waits: &mut Waits, rhythm: &mut Rhythm) {
        let now = moment();
        let gathered = now.mono >= rhythm.next(self.core.stats.servers)
            || self.core.gathered() >= GATHER_ENOUGH;
        if waits.batch.is_some() || !gathered {
            return;
        }
        if let Some(batch) = self.core.poll_batch(now, rand::random()) {
            rhythm.began(now.mono);
            let store = self.store.clone();
            waits.batch = Some(async move { store.apply(batch).await }.boxed());
        }
    }

    /// Hands requests to the gateway; says whether it had no room for one.
    fn flush(&mut self) -> bool {
        while let Some(request) = self.core.poll_request() {
            if let Err(LinkFull(request)) = self.link.send(request) {
                self.core.unsent(*request);
                return true;
            }
        }
        false
    }

    fn start_reads(&mut self, waits: &mut Waits) {
        if waits.refill.is_none()
            && let Some(wants) = self.core.poll_refill(moment())
        {
            let (store, pauses) = (self.store.clone(), self.core.pauses().clone());
            waits.refill = Some(async move { store.ready_of(&wants, &pauses).await }.boxed());
        }
        if waits.notes.is_none()
            && let Some(notes) = self.core.take_notes()
        {
            let store = self.store.clone();
            let write = async move {
                if !notes.inventories.is_empty() {
                    store.note_inventories(notes.inventories).await?;
                }
                if !notes.last_seen.is_empty() {
                    store.note_last_seen(notes.last_seen).await?;
                }
                Ok(())
            };
            waits.notes = Some(write.boxed());
        }
        if waits.raise.is_none()
            && let Some(seen) = self.core.poll_outdated(moment())
        {
            let mut by_owner: BTreeMap<GatewayId, Vec<_>> = BTreeMap::new();
            for (group, epoch) in seen {
                let owner = self.link.owner(group);
                by_owner.entry(owner).or_default().push((group, epoch));
            }
            let store = self.store.clone();
            let raise = async move {
                let mut raised = Vec::new();
                for (owner, seen) in by_owner {
                    raised.extend(store.raise_epochs(seen, owner.0).await?);
                }
                Ok(raised)
            };
            waits.raise = Some(raise.boxed());
        }
    }

    fn take_refill(&mut self, found: Refill) {
        match found {
            Ok(found) => self.core.handle_refill(found),
            Err(error) => {
                tracing::debug!(%error, "ready processes could not be read; it is tried again");
                self.core.refill_failed(moment());
            }
        }
    }

    fn take_raised(&mut self, raised: Result<Vec<Group>, StoreError>) {
        match raised {
            Ok(groups) => self.core.handle_raised(groups),
            // The agents refuse again, and it is tried again.
            Err(error) => tracing::warn!(%error, "epochs were not raised"),
        }
    }

    /// Takes what a beat has found; the next one may be due before its time.
    fn take_beat(
        &mut self,
        began: Moment,
        beat: Result<Beat, StoreError>,
        beats: &mut Interval,
        missed: &mut u32,
    ) {
        match beat {
            // What it allows counts from when it was asked.
            Ok(mut beat) => {
                let missed = std::mem::take(missed);
                if missed > 0 {
                    tracing::info!(missed, "the process server's beats are written again");
                }
                self.looked = beat.looked;
                if let Some(presence) = &self.presence {
                    presence.set_peers(std::mem::take(&mut beat.peers));
                }
                if beat.more {
                    beats.reset_immediately();
                } else if let Some(within) = beat.look_in.filter(|within| *within < BEAT_EVERY) {
                    beats.reset_after(within);
                }
                self.core.handle_beat(began, beat);
            }
            Err(error) => {
                if matches!(error, StoreError::Unreachable) {
                    beats.reset_after(BEAT_AGAIN);
                }
                // The log says so once, and not twice a second.
                match *missed {
                    0 => tracing::warn!(%error, "the process server's beat was not written"),
                    _ => tracing::debug!(%error, "the process server's beat was not written"),
                }
                *missed = missed.saturating_add(1);
            }
        }
    }

    fn pass_enrolments(&mut self) {
        while let Some(asked) = self.core.poll_enrolment() {
            if let Err(refused) = self.enrolments.try_send(asked) {
                self.core.refuse_enrolment(&refused.into_inner());
            }
        }
    }

    /// When the next turn is due if nothing happens.
    fn alarm(&self, rhythm: &Rhythm, writing: bool, blocked: bool) -> Instant {
        let now = moment();
        let mut alarm = now.mono + TICK;
        if blocked {
            alarm = alarm.min(now.mono + LINK_RETRY);
        }
        if let Some(at) = self.core.refill_due() {
            alarm = alarm.min(at);
        }
        if writing {
            return alarm;
        }
        let mut batch_at = None;
        let next = rhythm.next(self.core.stats.servers);
        if self.core.wants_batch() {
            batch_at = Some(next);
        } else if let Some(due) = self.core.next_due() {
            batch_at = Some((now.mono + now.wall.until(due)).max(next));
        }
        if let Some(batch_at) = batch_at {
            let allowed = self.core.not_before().unwrap_or(batch_at);
            alarm = alarm.min(batch_at.max(allowed));
        }
        alarm
    }
}

fn take_noted(noted: Result<(), StoreError>) {
    if let Err(error) = noted {
        tracing::warn!(%error, "what agents said about themselves was not noted");
    }
}

/// Waits until a lock service suspects others than before, or another process has written something.
async fn hint(presence: &mut Option<Presence>, nudges: &mut watch::Receiver<u64>) {
    let suspects = async {
        match presence {
            Some(presence) => presence.changed().await,
            None => pending().await,
        }
    };
    tokio::select! {
        () = suspects => {}
        Ok(()) = nudges.changed() => {}
    }
}

/// The answer of what is waited for; never, while nothing is.
async fn wait<T>(waiting: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>) -> T {
    match waiting {
        Some(future) => future.await,
        None => pending().await,
    }
}

fn moment() -> Moment {
    Moment {
        mono: clock::monotonic(),
        wall: clock::now(),
    }
}
