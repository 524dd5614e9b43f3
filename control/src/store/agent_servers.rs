//! Agent servers on machines of their own: their leases, and which groups they own.

use std::time::Duration;

use protocol::ids::{Epoch, GatewayId, GroupId, Slot};

use super::groups::Group;
use super::sql::{self, Row};
use super::{Connection, Store, StoreError, from_sql, id_bytes, to_sql};
use crate::clock::UnixMs;
use crate::gateways::{AgentServer, Gift, LEASE, Pin, Placed, Registered};

/// One whose lease nobody has prolonged for so long is not listed any more: it was replaced under another address.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(7 * 86_400);

impl Store {
    /// Somebody reaches these now: registers them, and prolongs their leases. Another run at the same address is
    /// forgotten, since it is over.
    ///
    /// # Errors
    /// The store failed; nothing was written.
    pub async fn renew_agent_servers(
        &self,
        reached: Vec<AgentServer>,
        now: UnixMs,
    ) -> Result<(), StoreError> {
        if reached.is_empty() {
            return Ok(());
        }
        self.compare_clocks().await;
        let now = self.in_common(now);
        self.write(move |db| {
            Box::pin(async move {
                for server in &reached {
                    renew(db, server, now).await?;
                }
                forget_old(db, now).await
            })
        })
        .await
    }

    /// These runs are over, whatever is left of their leases.
    ///
    /// # Errors
    /// The store failed; nothing was written.
    pub async fn forget_agent_servers(&self, runs: Vec<GatewayId>) -> Result<(), StoreError> {
        self.write(move |db| {
            Box::pin(async move {
                for run in runs {
                    sql::query("DELETE FROM agent_server WHERE run = $1")
                        .bind(run.to_bytes().to_vec())
                        .execute(&mut *db)
                        .await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Ends the leases of these runs, each if it is still the one that was read: nobody has prolonged it meanwhile.
    /// Says which were ended.
    ///
    /// # Errors
    /// The store failed; nothing was written.
    pub(crate) async fn end_leases(
        &self,
        leases: Vec<(GatewayId, UnixMs)>,
    ) -> Result<Vec<GatewayId>, StoreError> {
        self.write(move |db| {
            Box::pin(async move {
                let mut ended = Vec::new();
                for (run, renewed_at) in leases {
                    // The row stays: it says whether it drains, should the run turn out to be alive.
                    let changed = sql::query(
                        "UPDATE agent_server SET renewed_at = $3 WHERE run = $1 AND renewed_at = $2",
                    )
                    .bind(run.to_bytes().to_vec())
                    .bind(renewed_at.to_sql())
                    .bind(renewed_at.minus(LEASE).to_sql())
                    .execute(&mut *db)
                    .await?;
                    if changed.rows_affected() > 0 {
                        ended.push(run);
                    }
                }
                Ok(ended)
            })
        })
        .await
    }

    /// All that are registered, by their links.
    ///
    /// # Errors
    /// The store failed.
    pub async fn agent_servers(&self, now: UnixMs) -> Result<Vec<Registered>, StoreError> {
        let now = self.in_common(now);
        let mut reader = self.reader().await?;
        let rows = sql::query(
            "SELECT run, link, addresses, shards, capacity, renewed_at, draining
             FROM agent_server ORDER BY link",
        )
        .fetch_all(&mut reader)
        .await?;
        rows.iter().map(|row| read_server(row, now)).collect()
    }

    /// Lets the agent server at this link give its groups away, or stops that. False: there is none.
    ///
    /// # Errors
    /// The store failed; nothing was written.
    pub async fn drain_agent_server(
        &self,
        link: String,
        draining: bool,
    ) -> Result<bool, StoreError> {
        self.write(move |db| {
            Box::pin(async move {
                let changed = sql::query("UPDATE agent_server SET draining = $2 WHERE link = $1")
                    .bind(&link)
                    .bind(draining)
                    .execute(&mut *db)
                    .await?;
                Ok(changed.rows_affected() > 0)
            })
        })
        .await
    }

    /// Lets these runs give their groups away, until they are over.
    ///
    /// # Errors
    /// The store failed; nothing was written.
    pub(crate) async fn drain_runs(&self, runs: Vec<GatewayId>) -> Result<(), StoreError> {
        self.write(move |db| {
            Box::pin(async move {
                for run in runs {
                    sql::query("UPDATE agent_server SET draining = $2 WHERE run = $1")
                        .bind(run.to_bytes().to_vec())
                        .bind(true)
                        .execute(&mut *db)
                        .await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// All groups with their owners and the pins that hold at `now`, by name.
    ///
    /// # Errors
    /// The store failed.
    pub async fn placed_groups(&self, now: UnixMs) -> Result<Vec<Placed>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sql::query(
            "SELECT g.id, g.name, g.slot, g.automatic, g.created_at, g.admitted, o.epoch, o.owner_id,
                    p.link AS pin, p.ends_at
             FROM agent_group g JOIN group_owner o ON o.group_id = g.id
             LEFT JOIN group_pin p ON p.group_id = g.id AND (p.ends_at IS NULL OR p.ends_at > $1)
             ORDER BY g.name",
        )
        .bind(self.in_common(now).to_sql())
        .fetch_all(&mut reader)
        .await?;
        rows.iter().map(read_placed).collect()
    }

    /// Pins groups, each to the agent server at a link. Replaces. A pin that ends by itself ends by this machine's clock
    /// as it is now, and is written in the time in which all judge it.
    ///
    /// # Errors
    /// The store failed; nothing was written.
    pub async fn pin_groups(&self, mut pins: Vec<(GroupId, Pin)>) -> Result<(), StoreError> {
        self.compare_clocks().await;
        for (_, pin) in &mut pins {
            pin.until = pin.until.map(|until| self.in_common(until));
        }
        self.write(move |db| {
            Box::pin(async move {
                for (group, pin) in pins {
                    unpin(db, group).await?;
                    sql::query(
                        "INSERT INTO group_pin (group_id, link, ends_at) VALUES ($1, $2, $3)",
                    )
                    .bind(group.to_bytes().to_vec())
                    .bind(pin.link)
                    .bind(pin.until.map(UnixMs::to_sql))
                    .execute(&mut *db)
                    .await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Lets a group go to any agent server again.
    ///
    /// # Errors
    /// The store failed; nothing was written.
    pub async fn unpin_group(&self, group: GroupId) -> Result<(), StoreError> {
        self.write(move |db| Box::pin(async move { unpin(db, group).await }))
            .await
    }

    /// Gives groups to new owners, by compare-and-set: epoch + 1 for each that nobody has given away since it was
    /// read. Says how many were given.
    ///
    /// # Errors
    /// The store failed; nothing was given.
    pub(crate) async fn give_groups(&self, gifts: Vec<Gift>) -> Result<u64, StoreError> {
        self.write(move |db| Box::pin(async move { give(db, &gifts).await }))
            .await
    }
}

async fn unpin(db: &mut Connection, group: GroupId) -> Result<(), StoreError> {
    sql::query("DELETE FROM group_pin WHERE group_id = $1")
        .bind(group.to_bytes().to_vec())
        .execute(&mut *db)
        .await?;
    Ok(())
}

async fn forget_old(db: &mut Connection, now: UnixMs) -> Result<(), StoreError> {
    sql::query("DELETE FROM agent_server WHERE renewed_at < $1")
        .bind(now.minus(FORGOTTEN_AFTER).to_sql())
        .execute(db)
        .await?;
    Ok(())
}

async fn renew(db: &mut Connection, server: &AgentServer, now: UnixMs) -> Result<(), StoreError> {
    let run = server.run.to_bytes().to_vec();
    sql::query("DELETE FROM agent_server WHERE link = $1 AND run <> $2")
        .bind(&server.link)
        .bind(&run)
        .execute(&mut *db)
        .await?;
    let addresses = serde_json::json!(server.addresses).to_string();
    // What somebody else has prolonged further is not shortened, and changes all the same, for who ends leases. A lease
    // that nobody can have given yet was given by a clock that was set back since.
    let changed = sql::query(
        "UPDATE agent_server SET link = $2, addresses = $3, shards = $4, capacity = $6,
            renewed_at = CASE WHEN renewed_at >= $5 AND renewed_at < $7 THEN renewed_at + 1 ELSE $5 END
         WHERE run = $1",
    )
    .bind(&run)
    .bind(&server.link)
    .bind(&addresses)
    .bind(i64::from(server.shards))
    .bind(now.to_sql())
    .bind(i64::from(server.capacity))
    .bind(now.plus(LEASE).to_sql())
    .execute(&mut *db)
    .await?;
    if changed.rows_affected() == 0 {
        sql::query(
            "INSERT INTO agent_server (run, link, addresses, shards, renewed_at, capacity)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(&run)
        .bind(&server.link)
        .bind(&addresses)
        .bind(i64::from(server.shards))
        .bind(now.to_sql())
        .bind(i64::from(server.capacity))
        .execute(&mut *db)
        .await?;
    }
    Ok(())
}

async fn give(db: &mut Connection, gifts: &[Gift]) -> Result<u64, StoreError> {
    let mut given = 0;
    for (group, owner) in gifts {
        let changed = sql::query(
            "UPDATE group_owner SET epoch = epoch + 1, owner_id = $3
             WHERE group_id = $1 AND epoch = $2",
        )
        .bind(group.id.to_bytes().to_vec())
        .bind(to_sql(group.epoch.0))
        .bind(owner.to_bytes().to_vec())
        .execute(&mut *db)
        .await?;
        given += changed.rows_affected();
    }
    Ok(given)
}

fn read_server(row: &Row, now: UnixMs) -> Result<Registered, StoreError> {
    let addresses: String = row.try_get("addresses")?;
    let addresses = serde_json::from_str(&addresses)
        .map_err(|error| StoreError::BadRow(format!("an agent server's addresses: {error}")))?;
    let shards: i64 = row.try_get("shards")?;
    let capacity: i64 = row.try_get("capacity")?;
    let renewed_at = UnixMs::from_sql(row.try_get("renewed_at")?);
    Ok(Registered {
        server: AgentServer {
            run: GatewayId::from_bytes(id_bytes(row.try_get("run")?)?),
            link: row.try_get("link")?,
            addresses,
            shards: u16::try_from(shards)
                .map_err(|_| StoreError::BadRow(format!("{shards} shards")))?,
            capacity: u32::try_from(capacity)
                .map_err(|_| StoreError::BadRow(format!("a capacity of {capacity}")))?,
        },
        alive: now < renewed_at.plus(LEASE),
        draining: row.try_get("draining")?,
        renewed_at,
    })
}

fn read_placed(row: &Row) -> Result<Placed, StoreError> {
    let slot: i64 = row.try_get("slot")?;
    let owner: Option<Vec<u8>> = row.try_get("owner_id")?;
    let link: Option<String> = row.try_get("pin")?;
    let ends_at: Option<i64> = row.try_get("ends_at")?;
    Ok(Placed {
        group: Group {
            id: GroupId::from_bytes(id_bytes(row.try_get("id")?)?),
            name: row.try_get("name")?,
            slot: Slot(u8::try_from(slot).map_err(|_| StoreError::BadRow(format!("slot {slot}")))?),
            automatic: row.try_get("automatic")?,
            epoch: Epoch(from_sql(row.try_get("epoch")?)),
            created_at: UnixMs::from_sql(row.try_get("created_at")?),
        },
        owner: owner
            .map(|id| id_bytes(&id))
            .transpose()?
            .map(GatewayId::from_bytes),
        agents: from_sql(row.try_get("admitted")?),
        pin: link.map(|link| Pin {
            link,
            until: ends_at.map(UnixMs::from_sql),
        }),
    })
}

#[cfg(test)]
pub(in crate::store) mod tests {
    use super::*;

    fn server(run: u8, link: &str) -> AgentServer {
        AgentServer {
            run: GatewayId::from_bytes([run; 16]),
            link: link.to_owned(),
            addresses: vec![format!("{link}3")],
            shards: 2,
            capacity: 100 * u32::from(run),
        }
    }

    #[tokio::test]
    async fn a_lease_runs_out_and_a_later_run_ends_the_one_before() {
        let (_directory, store) = crate::store::tests::fresh().await;
        let (a, b) = (server(1, "a:744"), server(2, "b:744"));
        let now = UnixMs(100_000);
        let reached = vec![a.clone(), b.clone()];
        store.renew_agent_servers(reached, now).await.unwrap();
        let later = now.plus(LEASE);
        store
            .renew_agent_servers(vec![b.clone()], later)
            .await
            .unwrap();
        let alive = |all: Vec<Registered>| -> Vec<_> {
            all.into_iter().map(|one| (one.server, one.alive)).collect()
        };
        let all = store.agent_servers(later).await.unwrap();
        assert_eq!(alive(all), [(a, false), (b.clone(), true)]);
        assert!(
            store
                .drain_agent_server("a:744".to_owned(), true)
                .await
                .unwrap()
        );
        assert!(
            !store
                .drain_agent_server("c:744".to_owned(), true)
                .await
                .unwrap()
        );
        let drains = async || -> Vec<_> {
            let all = store.agent_servers(later).await.unwrap().into_iter();
            all.map(|one| one.draining).collect()
        };
        assert_eq!(drains().await, [true, false]);
        let again = server(3, "a:744");
        store
            .renew_agent_servers(vec![again.clone()], later)
            .await
            .unwrap();
        let all = store.agent_servers(later).await.unwrap();
        assert_eq!(alive(all), [(again.clone(), true), (b, true)]);
        assert_eq!(drains().await, [false, false], "another run does not drain");
        // A lease is ended by whoever has read it last.
        let ended = async |renewed_at| {
            let leases = vec![(again.run, renewed_at)];
            store.end_leases(leases).await.unwrap()
        };
        assert_eq!(ended(now).await, []);
        assert_eq!(ended(later).await, [again.run]);
        assert_eq!(ended(later).await, []);
        let all = store.agent_servers(later).await.unwrap();
        assert_eq!((all[0].alive, all[1].alive), (false, true));
        store.forget_agent_servers(vec![again.run]).await.unwrap();
        assert_eq!(drains().await.len(), 1);
    }

    #[tokio::test]
    async fn a_group_is_given_once_by_whoever_read_its_epoch() {
        let (_directory, store) = crate::store::tests::fresh().await;
        let group = store.create_group("east", UnixMs(1)).await.unwrap();
        let (first, second) = (server(1, "a:1").run, server(2, "b:1").run);
        assert_eq!(
            store
                .give_groups(vec![(group.clone(), first)])
                .await
                .unwrap(),
            1
        );
        assert_eq!(
            store
                .give_groups(vec![(group.clone(), second)])
                .await
                .unwrap(),
            0
        );
        let placed = store.placed_groups(UnixMs(1)).await.unwrap();
        let [placed] = &placed[..] else {
            panic!("{placed:?}");
        };
        assert_eq!((placed.owner, placed.group.epoch), (Some(first), Epoch(1)));
        assert_eq!((placed.agents, &placed.group.name), (0, &group.name));
    }

    #[tokio::test]
    async fn a_pin_holds_until_it_is_replaced_removed_or_over() {
        let (_directory, store) = crate::store::tests::fresh().await;
        let group = store.create_group("east", UnixMs(1)).await.unwrap();
        let pin = async |link: &str, until: Option<UnixMs>| {
            let link = link.to_owned();
            let pin = (group.id, Pin { link, until });
            store.pin_groups(vec![pin]).await.unwrap();
        };
        let pinned = async |now| {
            let placed = store.placed_groups(UnixMs(now)).await.unwrap();
            placed[0].pin.clone().map(|pin| pin.link)
        };
        pin("a:1", None).await;
        assert_eq!(pinned(u64::MAX >> 1).await.as_deref(), Some("a:1"));
        pin("b:1", Some(UnixMs(50))).await;
        assert_eq!(pinned(49).await.as_deref(), Some("b:1"));
        assert_eq!(pinned(50).await, None);
        store.unpin_group(group.id).await.unwrap();
        assert_eq!(pinned(49).await, None);
    }

    crate::store::tests::conformance::suite! {
        a_lease_runs_out_and_a_later_run_ends_the_one_before,
        a_group_is_given_once_by_whoever_read_its_epoch,
        a_pin_holds_until_it_is_replaced_removed_or_over,
    }
}
