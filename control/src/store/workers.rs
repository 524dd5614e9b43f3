//! Process servers on one store: heartbeats, and whose claims are whose.
//!
//! ```text
//!   every 2 s    beat ─▶ who is alive? ─▶ one of these has the duty to sweep (compare-and-set), and keeps it
//!   the sweeper  looks at timers that are due; takes over what servers that are gone had claimed
//!   after 10 s   without a beat a server is gone, at once if its end was seen
//!                (5 s, if a lock service says so too: it cannot say so of one that beats)
//!                both count from when the store is back, if it was away: nobody could beat (`workers/living.rs`)
//!   while limits that span homes are set: one server has the duty to lend them, until it is gone
//! ```
//!
//! When a server has beaten is in the database's time, whatever its own clock says (`server_clock.rs`).
//!
//! One row a server, never one a process. A server that was only slow and comes back goes on: what
//! it still believes to be its own is decided by fences, as everything is. The row of one that is gone is kept
//! for a while: what it had on its way to the store may be committed after its claims were taken over.

mod living;

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use protocol::ids::{AgentId, Fence, ProcessId};
use serde_json::Value;
use uuid::Uuid;

use self::living::{ENDED, Living};
use super::limits::LimitTable;
use super::pauses::PauseTable;
use super::pen;
use super::processes::{self, Applied, Batch, Happened};
use super::recovery::Lease;
use super::tally::News;
use super::{Connection, Store, StoreError, id_bytes, lines, recovery};
use crate::clock::UnixMs;
use crate::process::{Input, State};
use crate::store::sql;

/// How often a process server says that it is alive.
pub(crate) const BEAT_EVERY: Duration = Duration::from_secs(2);
/// A process server that has said nothing for so long is gone.
pub(crate) const BEAT_EXPIRY: Duration = Duration::from_secs(10);

/// One of whom a lock service says that it is gone has said nothing for so long: two beats were missed.
pub(crate) const SUSPECT_EXPIRY: Duration = Duration::from_secs(5);

/// Claims that one transaction takes over from one server.
pub(crate) const TAKE_OVER_STEP: u32 = if cfg!(test) { 4 } else { 500 };
/// For so long what a server that is gone may still have had on its way is looked for.
const MOURNED: Duration = Duration::from_secs(600);
/// For so long what a server that is gone may have left without an owner is looked for.
const BEREFT: Duration = Duration::from_secs(60);
/// Claims that are looked at with one beat for whether they are still held.
pub(crate) const BELIEVED_MAX: usize = 4096;

/// What a beat has found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Beat {
    /// Process servers that may be alive, this one among them.
    pub(crate) live: u32,
    /// Others that may be alive by their beats, also if they are suspected and taken for gone: locks of these are
    /// watched.
    pub(crate) peers: BTreeSet<Uuid>,
    /// One of these is suspected, and is gone if it does not beat within this: the next beat is due then.
    pub(crate) look_in: Option<Duration>,
    /// This one sweeps: timers as well.
    pub(crate) sweeps: bool,
    /// It sweeps, and some server has gone lately.
    bereft: bool,
    /// There are more claims to take over than one beat takes: the next one is due at once.
    pub(crate) more: bool,
    /// This one lends limits that span homes, in this term: higher with every server that takes the duty.
    pub(crate) lends: Option<u32>,
    /// Claims of servers that are gone: this one's now, and to be asked for.
    pub(crate) adopted: Vec<Lease>,
    /// With several servers: what others may have changed, if anything was written since the last look.
    pub(crate) shared: Option<Shared>,
    /// For the next beat: how far this one has looked.
    pub(crate) looked: Looked,
    /// What became of the claims that were taken over.
    applied: Applied,
}

/// How far a process server has looked at what others write, and how many lived then. With SQLite all of them
/// are in this process, so the store knows whether anything was written.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Looked(Option<Sight>);

/// What there was to be seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Sight {
    live: u32,
    writes: u64,
    /// Of these: to what operators set.
    orders: u64,
}

/// What a beat is for, beside being alive.
#[derive(Clone, Default, Debug)]
pub(crate) struct Asks {
    /// This server would lend limits that span homes.
    pub(crate) lends: bool,
    /// From the last beat.
    pub(crate) looked: Looked,
    /// What this server believes to have claimed; [`BELIEVED_MAX`] of it.
    pub(crate) believed: Vec<Believed>,
    /// Process servers of which a lock service says that they are gone.
    pub(crate) suspects: BTreeSet<Uuid>,
}

/// What several process servers have in common, beside what [`Store::news`] counts.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    /// What operators have set, if that may have changed.
    pub(crate) orders: Option<(PauseTable, LimitTable)>,
    /// Resources that somebody waits for and nobody holds: their holder's server is gone.
    pub(crate) resources: Vec<String>,
    /// Of what this one believed to have claimed: what it has not, or no longer.
    pub(crate) not_held: Vec<Believed>,
}

/// What a process server believes to have claimed: at which agent, and under which fence.
pub(crate) type Believed = (AgentId, ProcessId, Fence);

impl Store {
    /// A process server begins: those of earlier processes on this store are gone. It takes over what servers
    /// that are gone had claimed, as the sweeper would ([`Store::beat`]); its agents are to be asked for all of it.
    ///
    /// On a store that is open to others nobody is missed before [`BEAT_EXPIRY`] is over where none has beaten
    /// lately: it cannot be told whether they have died or the store was away.
    pub(crate) async fn begin_worker(&self, worker: Uuid, now: UnixMs) -> Result<(), StoreError> {
        let instance = self.instance();
        let alone = !self.is_open_to_others();
        self.compare_clocks().await;
        let beat_at = self.in_common(now);
        self.write(move |db| {
            Box::pin(async move {
                if alone {
                    // The file's lock is held by this process: nobody else is alive on it.
                    sql::query("DELETE FROM worker WHERE instance <> $1")
                        .bind(instance.into_bytes().to_vec())
                        .execute(&mut *db)
                        .await?;
                }
                enter(db, worker, instance, beat_at).await?;
                Ok::<_, StoreError>(())
            })
        })
        .await?;
        loop {
            let committed = self.clone();
            let taken = self
                .writer
                .write_and(
                    move |db| {
                        Box::pin(async move {
                            let living = Living::read(db, beat_at).await?;
                            let gone = gone_with_claims(db, &living).await?;
                            take_over(db, worker, &gone, now).await
                        })
                    },
                    move |taken: &TakenOver| {
                        committed.committed(Some(worker), &taken.applied, false);
                    },
                )
                .await?;
            self.wrote();
            if !taken.more {
                break;
            }
        }
        // Timers that nobody has set since the store was opened.
        self.shared.timers.note(self.earliest_timer().await?);
        Ok(())
    }

    /// A process server is alive. If it has the duty to, it takes over what those that are gone had
    /// claimed; and the duty to lend, if it wants to and nobody living has it.
    pub(crate) async fn beat(
        &self,
        worker: Uuid,
        now: UnixMs,
        asks: Asks,
    ) -> Result<Beat, StoreError> {
        let instance = self.instance();
        let Asks {
            lends,
            looked,
            believed,
            suspects,
        } = asks;
        let committed = self.clone();
        self.compare_clocks().await;
        let beat_at = self.in_common(now);
        let mut beat: Beat = self
            .writer
            .write_and(
                move |db| {
                    Box::pin(async move {
                        let living = enter(db, worker, instance, beat_at).await?;
                        let mut beat =
                            sweep(db, worker, &living, (beat_at, now), &suspects).await?;
                        if lends {
                            beat.lends = take_lending(db, worker, &living, beat_at).await?;
                        }
                        Ok::<_, StoreError>(beat)
                    })
                },
                move |beat: &Beat| committed.committed(Some(worker), &beat.applied, false),
            )
            .await?;
        if !beat.adopted.is_empty() {
            self.wrote();
        }
        match self.look(&beat, worker, looked, believed).await {
            Ok((looked, shared)) => (beat.looked, beat.shared) = (looked, shared),
            // What was taken over must be known all the same: nobody takes it over again.
            Err(error) => {
                beat.looked = looked;
                tracing::warn!(%error, "what other process servers have changed was not read; the next beat does it");
            }
        }
        Ok(beat)
    }

    /// What a beat would find, for one that is no process server: it says nothing of itself, and takes over nothing.
    pub(crate) async fn observe(
        &self,
        observer: Uuid,
        now: UnixMs,
        looked: Looked,
    ) -> Result<Beat, StoreError> {
        self.compare_clocks().await;
        let live = sql::query_scalar("SELECT count(*) FROM worker WHERE beat_at > $1")
            .bind(self.in_common(now).minus(BEAT_EXPIRY).to_sql())
            .fetch_one(&mut *self.reader().await?)
            .await?;
        let beat = Beat {
            live,
            ..Beat::default()
        };
        let (looked, shared) = self.look(&beat, observer, looked, Vec::new()).await?;
        Ok(Beat {
            looked,
            shared,
            ..beat
        })
    }

    /// Looks at what others may have changed, where there is reason to, since `looked`; how far this goes.
    async fn look(
        &self,
        beat: &Beat,
        worker: Uuid,
        looked: Looked,
        believed: Vec<Believed>,
    ) -> Result<(Looked, Option<Shared>), StoreError> {
        let open = self.is_open_to_others();
        if open || (beat.live > 1 && !self.tally().has_begun()) {
            self.count_tally().await?;
        }
        if open && beat.sweeps {
            // Others may have set an earlier one.
            self.shared.timers.note(self.earliest_timer().await?);
        }
        // Before the reads: what is written meanwhile is looked at next time.
        let sight = Sight {
            live: beat.live,
            writes: self.writes(),
            orders: match open {
                true => pen::orders(&mut *self.reader().await?).await?,
                false => self.orders(),
            },
        };
        let (seen, now) = (looked.0, Looked(Some(sight)));
        // Also the one that is left alone looks once more: what the other has left belongs to nobody now.
        let company = beat.live > 1 || beat.bereft || seen.is_some_and(|seen| seen.live > 1);
        // Whether others have written is not known of a store that is open to them.
        if !open && beat.adopted.is_empty() && (!company || now == looked) {
            return Ok((now, None));
        }
        let shared = Shared {
            orders: match seen.is_some_and(|seen| seen.orders == sight.orders) {
                true => None,
                false => Some((self.pauses().await?, self.limits().await?)),
            },
            resources: match beat.bereft {
                true => self.free_resources().await?,
                false => Vec::new(),
            },
            not_held: self.not_held(worker, believed).await?,
        };
        Ok((now, Some(shared)))
    }

    /// What others have changed since `since` (everything, since nothing), as `worker` sees it. Nothing, while
    /// there is only one process server.
    ///
    /// What `worker` has written itself is in it as soon as that is committed, so it must have been told of its
    /// own last commit, and have none on its way, or it counts that twice.
    pub(crate) fn news(&self, worker: Uuid, since: Option<u64>) -> Option<News> {
        self.tally().news(worker, since)
    }

    /// Operations that an agent may know something about, whichever process server has claimed them. Nothing,
    /// while there is only one: that knows it itself.
    pub(crate) fn in_use(&self, agent: AgentId) -> Option<u32> {
        self.tally().in_use(agent)
    }

    /// Counts what several process servers have in common, at first and, where other processes write too, again.
    async fn count_tally(&self) -> Result<(), StoreError> {
        let committed = self.clone();
        self.writer
            .write_and(
                |db| {
                    Box::pin(async move {
                        let ready = lines::ready_counts(db).await?;
                        let waiting = recovery::waiting_by_state(db).await?;
                        let claimed = claimed_by_state(db).await?;
                        Ok::<_, StoreError>((ready, waiting, claimed))
                    })
                },
                move |(ready, waiting, claimed)| committed.tally().count(ready, waiting, claimed),
            )
            .await?;
        Ok(())
    }

    /// Of these claims: those that are not `worker`'s.
    async fn not_held(
        &self,
        worker: Uuid,
        believed: Vec<Believed>,
    ) -> Result<Vec<Believed>, StoreError> {
        let ids = believed.iter().map(|(_, id, _)| id.0.simple().to_string());
        let ids = Value::Array(ids.map(Value::from).collect());
        let mut reader = self.reader().await?;
        let held: Vec<Vec<u8>> = sql::query_scalar(
            "SELECT l.process_id FROM EACH($1: id hex) AS j
             CROSS JOIN process_lease AS l ON l.process_id = j.id
             WHERE l.worker_id = $2",
        )
        .bind(ids.to_string())
        .bind(worker.into_bytes().to_vec())
        .fetch_all(&mut reader)
        .await?;
        let held: HashSet<Vec<u8>> = held.into_iter().collect();
        let is_held = |(_, id, _): &Believed| held.contains(&id.to_bytes()[..]);
        Ok(believed.into_iter().filter(|one| !is_held(one)).collect())
    }

    /// A process server has ended: whoever sweeps takes over what it leaves, at once. Also what it has claimed
    /// since it was forgotten; nobody would look for that otherwise.
    pub(crate) async fn end_worker(&self, worker: Uuid, now: UnixMs) -> Result<(), StoreError> {
        let instance = self.instance();
        let now = self.in_common(now);
        self.write(move |db| {
            Box::pin(async move {
                // As if it had been silent for so long: it is mourned like any other.
                sql::query(
                    "INSERT INTO worker (id, instance, epoch, started_at, beat_at)
                     VALUES ($1, $2, 1, $4, $3)
                     ON CONFLICT (id) DO UPDATE SET started_at = excluded.started_at,
                        beat_at = LEAST(worker.beat_at, excluded.beat_at)",
                )
                .bind(worker.into_bytes().to_vec())
                .bind(instance.into_bytes().to_vec())
                .bind(now.minus(BEAT_EXPIRY).to_sql())
                .bind(ENDED)
                .execute(&mut *db)
                .await?;
                Ok(())
            })
        })
        .await
    }
}

/// Writes the beat, and says who is known besides. A server that was taken for gone gets a later epoch. What is
/// called `started_at` is since when the server knows that the store was there.
async fn enter(
    db: &mut Connection,
    worker: Uuid,
    instance: Uuid,
    now: UnixMs,
) -> Result<Living, StoreError> {
    let mut living = Living::read(&mut *db, now).await?;
    sql::query(
        "INSERT INTO worker (id, instance, epoch, started_at, beat_at) VALUES ($1, $2, 1, $5, $3)
         ON CONFLICT (id) DO UPDATE SET
            epoch = worker.epoch + CASE WHEN worker.beat_at <= $4 THEN 1 ELSE 0 END,
            started_at = excluded.started_at,
            beat_at = excluded.beat_at",
    )
    .bind(worker.into_bytes().to_vec())
    .bind(instance.into_bytes().to_vec())
    .bind(now.to_sql())
    .bind(now.minus(BEAT_EXPIRY).to_sql())
    .bind(living.up_since().to_sql())
    .execute(db)
    .await?;
    living.beats(worker);
    Ok(living)
}

/// `now` is the database's time, in which beats are; what happens to processes happens at `at`.
async fn sweep(
    db: &mut Connection,
    worker: Uuid,
    living: &Living,
    (now, at): (UnixMs, UnixMs),
    suspects: &BTreeSet<Uuid>,
) -> Result<Beat, StoreError> {
    let lately = now.minus(BEAT_EXPIRY + BEREFT);
    let (mut beat, mut gone, mut bereft) = (Beat::default(), Vec::new(), false);
    for row in living.rows() {
        let (id, heard_at) = (row.id, living.heard_at(row));
        let suspected = suspects.contains(&id);
        // A lock service may have been away as well: it is believed no sooner after an outage than ever.
        let expiry = if suspected {
            SUSPECT_EXPIRY
        } else {
            BEAT_EXPIRY
        };
        if id != worker && living.lives(id) {
            beat.peers.insert(id);
        }
        if heard_at > now.minus(expiry) {
            beat.live += 1;
            if suspected {
                let left = now.until(heard_at.plus(expiry));
                beat.look_in = Some(beat.look_in.map_or(left, |known| known.min(left)));
            }
        } else {
            gone.push(Some(id));
            bereft |= heard_at > lately;
        }
    }
    beat.sweeps = take_duty(db, worker, now, &gone).await?;
    if beat.sweeps {
        beat.bereft = bereft;
        let taken = take_over(db, worker, &gone, at).await?;
        (beat.adopted, beat.applied, beat.more) = (taken.leases, taken.applied, taken.more);
        if !living.spares() {
            forget(db, now).await?;
        }
    }
    Ok(beat)
}

/// Takes the duty to sweep, or keeps it. Whoever has it keeps it until its time is over, or it is gone.
async fn take_duty(
    db: &mut Connection,
    worker: Uuid,
    now: UnixMs,
    gone: &[Option<Uuid>],
) -> Result<bool, StoreError> {
    let duty = sql::query("SELECT epoch, worker_id FROM worker_duty WHERE name = 'sweep'")
        .fetch_one(&mut *db)
        .await?;
    let (epoch, holder): (i64, Option<&[u8]>) = (duty.try_get(0)?, duty.try_get(1)?);
    let holder = holder.map(id_bytes).transpose()?.map(Uuid::from_bytes);
    // Of one that is suspected and gone no beat counts.
    let alive_after = match holder.is_some() && gone.contains(&holder) {
        true => i64::MAX,
        false => now.minus(BEAT_EXPIRY).to_sql(),
    };
    let taken = sql::query(
        "UPDATE worker_duty SET worker_id = $1, epoch = epoch + 1, until = $3
         WHERE name = 'sweep' AND epoch = $4
           AND (worker_id IS NULL OR worker_id = $1 OR until <= $2
                OR worker_id NOT IN (SELECT id FROM worker WHERE beat_at > $5))",
    )
    .bind(worker.into_bytes().to_vec())
    .bind(now.to_sql())
    .bind(now.plus(BEAT_EXPIRY).to_sql())
    .bind(epoch)
    .bind(alive_after)
    .execute(&mut *db)
    .await?;
    Ok(taken.rows_affected() == 1)
}

/// Takes the duty to lend, or keeps it: its term. Whoever has it keeps it while it lives, so that it moves
/// as seldom as can be: each move costs all homes the time of a lease. After an outage of the store its holder has as
/// long as anybody to come back to it.
async fn take_lending(
    db: &mut Connection,
    worker: Uuid,
    living: &Living,
    now: UnixMs,
) -> Result<Option<u32>, StoreError> {
    // Whoever is first has term 1.
    sql::query(
        "INSERT INTO worker_duty (name, worker_id, epoch, until) VALUES ('lend', NULL, 0, 0)
         ON CONFLICT (name) DO NOTHING",
    )
    .execute(db)
    .await?;
    let duty = sql::query("SELECT epoch, worker_id, until FROM worker_duty WHERE name = 'lend'")
        .fetch_one(db)
        .await?;
    let (epoch, owner): (i64, Option<&[u8]>) = (duty.try_get(0)?, duty.try_get(1)?);
    let owner = owner.map(id_bytes).transpose()?.map(Uuid::from_bytes);
    let over = UnixMs::from_sql(duty.try_get(2)?) <= now;
    let others = owner.filter(|owner| *owner != worker);
    let kept = |owner| living.lives(owner) && (!over || living.is_spared(owner));
    if others.is_some_and(kept) {
        return Ok(None);
    }
    let term = epoch + i64::from(owner != Some(worker));
    let taken = sql::query(
        "UPDATE worker_duty SET worker_id = $1, epoch = $2, until = $3
         WHERE name = 'lend' AND epoch = $4",
    )
    .bind(worker.into_bytes().to_vec())
    .bind(term)
    .bind(now.plus(BEAT_EXPIRY).to_sql())
    .bind(epoch)
    .execute(db)
    .await?;
    let term = u32::try_from(term).ok();
    Ok(term.filter(|_| taken.rows_affected() == 1))
}

/// What was taken over from servers that are gone.
#[derive(Default)]
struct TakenOver {
    leases: Vec<Lease>,
    /// What became of these.
    applied: Applied,
    /// One of them had more than one transaction takes over.
    more: bool,
}

/// Claims of no living server: whose they were. `None`: nobody's.
async fn gone_with_claims(
    db: &mut Connection,
    living: &Living,
) -> Result<Vec<Option<Uuid>>, StoreError> {
    let rows = sql::query("SELECT DISTINCT worker_id FROM process_lease")
        .fetch_all(&mut *db)
        .await?;
    let owners = rows.iter().map(|row| {
        let owner: Option<&[u8]> = row.try_get(0)?;
        let owner = owner.map(id_bytes).transpose()?;
        Ok(owner.map(Uuid::from_bytes))
    });
    let mut owners = owners.collect::<Result<Vec<_>, StoreError>>()?;
    owners.retain(|owner| owner.is_none_or(|owner| !living.lives(owner)));
    Ok(owners)
}

/// Takes over what servers that are gone had claimed: never sent again, always asked for.
async fn take_over(
    db: &mut Connection,
    worker: Uuid,
    gone: &[Option<Uuid>],
    now: UnixMs,
) -> Result<TakenOver, StoreError> {
    let mut taken = TakenOver::default();
    for dead in gone {
        let inputs = take_claims(db, worker, *dead).await?;
        let count = inputs.len();
        if count == 0 {
            continue;
        }
        taken.more |= count >= TAKE_OVER_STEP as usize;
        let batch = Batch {
            at: now,
            inputs,
            ..Batch::default()
        };
        let applied = processes::apply_within(db, batch).await?;
        let server = dead.map_or_else(|| "unknown".to_owned(), |dead| dead.to_string());
        tracing::warn!(%worker, server, count, "a process server is gone; its agents are asked");
        record(db, now, worker, server, count).await?;
        let leases = applied.steps.iter().filter_map(|effect| {
            let now = effect.now.filter(|now| now.state.is_active())?;
            Some(Lease {
                process: effect.process,
                agent: now.target,
                fence: now.fence,
                step: now.step,
                state: now.state,
                deadline_at: now.deadline_at,
                line: Arc::clone(&effect.names.as_ref()?.line),
            })
        });
        taken.leases.extend(leases);
        taken.applied.steps.extend(applied.steps);
    }
    Ok(taken)
}

/// Makes claims of `dead` those of `worker`, [`TAKE_OVER_STEP`] at most: what has happened to them.
async fn take_claims(
    db: &mut Connection,
    worker: Uuid,
    dead: Option<Uuid>,
) -> Result<Vec<Happened>, StoreError> {
    let found: Vec<Vec<u8>> = sql::query_scalar(
        "SELECT process_id FROM process_lease WHERE worker_id IS NOT DISTINCT FROM $1 LIMIT $2",
    )
    .bind(dead.map(|dead| dead.into_bytes().to_vec()))
    .bind(TAKE_OVER_STEP)
    .fetch_all(db)
    .await?;
    let ids = found
        .iter()
        .map(|id| Ok(ProcessId::from_bytes(id_bytes(id)?)));
    let ids: Vec<ProcessId> = ids.collect::<Result<_, StoreError>>()?;
    if !ids.is_empty() {
        let list = ids.iter().map(|id| Value::from(id.0.simple().to_string()));
        sql::query(
            "UPDATE process_lease SET worker_id = $1 FROM EACH($2: id hex) AS j
             WHERE process_lease.process_id = j.id",
        )
        .bind(worker.into_bytes().to_vec())
        .bind(Value::Array(list.collect()).to_string())
        .execute(db)
        .await?;
    }
    let claims = ids.into_iter().map(|id| Happened::new(id, Input::Orphaned));
    Ok(claims.collect())
}

/// Forgets servers that have been gone for long.
async fn forget(db: &mut Connection, now: UnixMs) -> Result<(), StoreError> {
    sql::query(
        "DELETE FROM worker WHERE beat_at <= $1
           AND NOT EXISTS (SELECT 1 FROM process_lease AS l WHERE l.worker_id = worker.id)",
    )
    .bind(now.minus(MOURNED).to_sql())
    .execute(&mut *db)
    .await?;
    Ok(())
}

/// How many processes each agent may know something about, by state.
async fn claimed_by_state(db: &mut Connection) -> Result<Vec<(AgentId, State, u32)>, StoreError> {
    let rows = sql::query(
        "SELECT p.target_id, p.state, count(*)
         FROM process_lease AS l CROSS JOIN process AS p ON p.id = l.process_id
         GROUP BY p.target_id, p.state",
    )
    .fetch_all(&mut *db)
    .await?;
    rows.iter()
        .map(|row| {
            let agent = AgentId::from_bytes(id_bytes(row.try_get(0)?)?);
            Ok((agent, recovery::state(row, 1)?, row.try_get(2)?))
        })
        .collect()
}

async fn record(
    db: &mut Connection,
    now: UnixMs,
    worker: Uuid,
    server: String,
    count: usize,
) -> Result<(), StoreError> {
    let data = serde_json::json!({
        "server": server,
        "taken_over_by": worker.to_string(),
        "claims": Value::from(count),
    });
    super::audit::record(db, now, "server.gone", None, &data).await
}

#[cfg(test)]
pub(in crate::store) mod tests;
