//! Agent groups: their slots, and who owns them.

use protocol::ids::{Epoch, GroupId, Slot};
use protocol::limits::GROUPS_MAX;
use uuid::Uuid;

use super::{Connection, Store, StoreError};
use crate::clock::UnixMs;
use crate::store::sql;

/// Automatic groups that a new deployment starts with: enough that a gateway of up to 64 shards
/// has one for each.
pub const AUTOMATIC_GROUPS: u16 = 64;
/// Slots that there are.
const SLOTS: u16 = 256;

/// An agent group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    /// The group.
    pub id: GroupId,
    /// Its name, unique.
    pub name: String,
    /// Its slot, which names the home shard.
    pub slot: Slot,
    /// Made by the system, for agents that enrol without a group.
    pub automatic: bool,
    /// Raised with every new owner; 0: never owned.
    pub epoch: Epoch,
    /// When it was made.
    pub created_at: UnixMs,
}

/// Why a group was not made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CreateGroupError {
    /// There is one of that name.
    #[error("there is a group `{0}` already; choose another name")]
    NameTaken(String),
    /// There are as many as a gateway knows.
    #[error("there are {GROUPS_MAX} groups already, the limit; use one of them")]
    TooMany,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How far an epoch is raised at once: further than any backup is behind, and too little for an
/// agent that lies to use the numbers up.
const EPOCH_LEAP_MAX: u64 = 1 << 20;

const SELECT: &str = "SELECT g.id, g.name, g.slot, g.automatic, o.epoch, g.created_at
     FROM agent_group g JOIN group_owner o ON o.group_id = g.id";

impl Store {
    /// Every group, by name.
    ///
    /// # Errors
    /// The store failed.
    pub async fn groups(&self) -> Result<Vec<Group>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sql::query(format!("{SELECT} ORDER BY g.name"))
            .fetch_all(&mut reader)
            .await?;
        rows.iter().map(read).collect()
    }

    /// One group.
    ///
    /// # Errors
    /// The store failed.
    pub async fn group(&self, id: GroupId) -> Result<Option<Group>, StoreError> {
        let mut reader = self.reader().await?;
        let row = sql::query(format!("{SELECT} WHERE g.id = $1"))
            .bind(id.to_bytes().to_vec())
            .fetch_optional(&mut reader)
            .await?;
        row.as_ref().map(read).transpose()
    }

    /// Makes a group on the slot with the fewest groups. Owned by nobody yet: hand it to
    /// [`crate::dispatch::Engine::adopt_group`].
    ///
    /// # Errors
    /// The name is taken, or the store failed.
    pub async fn create_group(&self, name: &str, now: UnixMs) -> Result<Group, CreateGroupError> {
        let name = name.to_owned();
        self.write(move |db| Box::pin(async move { create(db, name, false, now).await }))
            .await
    }

    /// Makes the automatic groups of a new deployment, once.
    ///
    /// # Errors
    /// The store failed.
    pub async fn ensure_automatic_groups(&self, now: UnixMs) -> Result<(), StoreError> {
        self.write(move |db| Box::pin(async move { ensure_automatic(db, now).await }))
            .await
    }

    /// Takes every group for `owner`, by compare-and-set: epoch + 1 where another one owned it, so that
    /// several process servers of one gateway take nothing from each other. Returns them with their
    /// epochs; a group that another owner took meanwhile is left out.
    ///
    /// # Errors
    /// The store failed; nothing was taken.
    pub async fn take_groups(&self, owner: Uuid) -> Result<Vec<Group>, StoreError> {
        let groups = self.groups().await?;
        self.write(move |db| Box::pin(async move { take(db, groups, owner).await }))
            .await
    }

    /// Takes one group; see [`Store::take_groups`].
    ///
    /// # Errors
    /// The store failed; nothing was taken.
    pub async fn take_group(&self, group: Group, owner: Uuid) -> Result<Option<Group>, StoreError> {
        let taken = self
            .write(move |db| Box::pin(async move { take(db, vec![group], owner).await }))
            .await?;
        Ok(taken.into_iter().next())
    }

    /// Raises the epochs of groups that `owner` still owns above what agents have seen, by
    /// compare-and-set. Returns those that changed; a group that has such an epoch already, or that
    /// another server took, is left out. An absurd claim is followed a step at a time.
    pub(crate) async fn raise_epochs(
        &self,
        seen: Vec<(GroupId, Epoch)>,
        owner: Uuid,
    ) -> Result<Vec<Group>, StoreError> {
        self.write(move |db| Box::pin(async move { raise(db, seen, owner).await }))
            .await
    }
}

async fn create(
    db: &mut Connection,
    name: String,
    automatic: bool,
    now: UnixMs,
) -> Result<Group, CreateGroupError> {
    let (slot, groups) = emptiest_slot(db).await?;
    if groups >= GROUPS_MAX {
        return Err(CreateGroupError::TooMany);
    }
    let group = Group {
        id: GroupId(Uuid::new_v4()),
        name,
        slot,
        automatic,
        epoch: Epoch(0),
        created_at: now,
    };
    let inserted = sql::query(
        "INSERT INTO agent_group (id, name, slot, automatic, created_at)
         VALUES ($1, $2, $3, $4, $5) ON CONFLICT (name) DO NOTHING",
    )
    .bind(group.id.to_bytes().to_vec())
    .bind(&group.name)
    .bind(i64::from(group.slot.0))
    .bind(group.automatic)
    .bind(now.to_sql())
    .execute(&mut *db)
    .await
    .map_err(StoreError::from)?;
    if inserted.rows_affected() == 0 {
        return Err(CreateGroupError::NameTaken(group.name));
    }
    sql::query("INSERT INTO group_owner (group_id, epoch, lease_until) VALUES ($1, 0, 0)")
        .bind(group.id.to_bytes().to_vec())
        .execute(&mut *db)
        .await
        .map_err(StoreError::from)?;
    Ok(group)
}

/// The slot with the fewest groups; among equals the lowest, so that slots count up and spread
/// evenly over any number of shards. Next to it, how many groups there are.
async fn emptiest_slot(db: &mut Connection) -> Result<(Slot, usize), StoreError> {
    let rows = sql::query("SELECT slot, count(*) FROM agent_group GROUP BY slot")
        .fetch_all(&mut *db)
        .await?;
    let mut load = [0_i64; SLOTS as usize];
    for row in rows {
        let slot: i64 = row.try_get(0)?;
        if let Some(count) = usize::try_from(slot).ok().and_then(|at| load.get_mut(at)) {
            *count = row.try_get(1)?;
        }
    }
    let emptiest = (0_u8..=u8::MAX).min_by_key(|slot| load[usize::from(*slot)]);
    let groups: i64 = load.iter().sum();
    let groups = usize::try_from(groups).unwrap_or(usize::MAX);
    Ok((Slot(emptiest.unwrap_or(0)), groups))
}

async fn ensure_automatic(db: &mut Connection, now: UnixMs) -> Result<(), StoreError> {
    let present: i64 = sql::query_scalar("SELECT count(*) FROM agent_group WHERE automatic = 1")
        .fetch_one(&mut *db)
        .await?;
    if present > 0 {
        return Ok(());
    }
    for number in 0..AUTOMATIC_GROUPS {
        match create(db, format!("auto-{number:02}"), true, now).await {
            // An operator's group of that name stands where ours would: one less is no harm.
            Ok(_) | Err(CreateGroupError::NameTaken(_) | CreateGroupError::TooMany) => {}
            Err(CreateGroupError::Store(error)) => return Err(error),
        }
    }
    Ok(())
}

async fn take(
    db: &mut Connection,
    groups: Vec<Group>,
    owner: Uuid,
) -> Result<Vec<Group>, StoreError> {
    let mut taken = Vec::with_capacity(groups.len());
    for mut group in groups {
        let owned: Option<Option<Vec<u8>>> = sql::query_scalar(
            "SELECT owner_id FROM group_owner WHERE group_id = $1 AND epoch = $2",
        )
        .bind(group.id.to_bytes().to_vec())
        .bind(super::to_sql(group.epoch.0))
        .fetch_optional(&mut *db)
        .await?;
        let Some(before) = owned else { continue };
        if before.as_deref() == Some(owner.as_bytes()) {
            taken.push(group);
            continue;
        }
        let changed = sql::query(
            "UPDATE group_owner SET epoch = epoch + 1, owner_id = $3
             WHERE group_id = $1 AND epoch = $2",
        )
        .bind(group.id.to_bytes().to_vec())
        .bind(super::to_sql(group.epoch.0))
        .bind(owner.into_bytes().to_vec())
        .execute(&mut *db)
        .await?;
        if changed.rows_affected() == 1 {
            group.epoch = Epoch(group.epoch.0 + 1);
            taken.push(group);
        }
    }
    Ok(taken)
}

async fn raise(
    db: &mut Connection,
    seen: Vec<(GroupId, Epoch)>,
    owner: Uuid,
) -> Result<Vec<Group>, StoreError> {
    let mut raised = Vec::new();
    for (group, seen) in seen {
        let changed = sql::query(
            "UPDATE group_owner SET epoch = LEAST($2, epoch + $4) + 1
             WHERE group_id = $1 AND owner_id = $3 AND epoch <= $2",
        )
        .bind(group.to_bytes().to_vec())
        .bind(super::to_sql(seen.0))
        .bind(owner.into_bytes().to_vec())
        .bind(super::to_sql(EPOCH_LEAP_MAX))
        .execute(&mut *db)
        .await?;
        if changed.rows_affected() == 1 {
            let row = sql::query(format!("{SELECT} WHERE g.id = $1"))
                .bind(group.to_bytes().to_vec())
                .fetch_one(&mut *db)
                .await?;
            raised.push(read(&row)?);
        }
    }
    Ok(raised)
}

fn read(row: &sql::Row) -> Result<Group, StoreError> {
    let slot: i64 = row.try_get("slot")?;
    Ok(Group {
        id: GroupId::from_bytes(super::id_bytes(row.try_get("id")?)?),
        name: row.try_get("name")?,
        slot: Slot(u8::try_from(slot).map_err(|_| StoreError::BadRow(format!("slot {slot}")))?),
        automatic: row.try_get("automatic")?,
        epoch: Epoch(super::from_sql(row.try_get("epoch")?)),
        created_at: UnixMs::from_sql(row.try_get("created_at")?),
    })
}
