//! Agent servers on machines of their own: their leases, and which groups they own.

use protocol::ids::{Epoch, GatewayId, GroupId, Slot};

use super::groups::Group;
use super::sql::{self, Row};
use super::{Connection, Store, StoreError, from_sql, id_bytes, to_sql};
use crate::clock::UnixMs;
use crate::gateways::{AgentServer, Gift, LEASE, Placed, Registered};

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
        self.write(move |db| {
            Box::pin(async move {
                for server in &reached {
                    renew(db, server, now).await?;
                }
                Ok(())
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

    /// All that are registered, by their links.
    ///
    /// # Errors
    /// The store failed.
    pub async fn agent_servers(&self, now: UnixMs) -> Result<Vec<Registered>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sql::query(
            "SELECT run, link, addresses, shards, renewed_at, draining FROM agent_server ORDER BY link",
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

    /// All groups with their owners, by name.
    ///
    /// # Errors
    /// The store failed.
    pub async fn placed_groups(&self) -> Result<Vec<Placed>, StoreError> {
        let mut reader = self.reader().await?;
        let rows = sql::query(
            "SELECT g.id, g.name, g.slot, g.automatic, g.created_at, g.admitted, o.epoch, o.owner_id,
                    p.link AS pin
             FROM agent_group g JOIN group_owner o ON o.group_id = g.id
             LEFT JOIN group_pin p ON p.group_id = g.id ORDER BY g.name",
        )
        .fetch_all(&mut reader)
        .await?;
        rows.iter().map(read_placed).collect()
    }

    /// Pins a group to the agent server at a link, or to none. Replaces.
    ///
    /// # Errors
    /// The store failed; nothing was written.
    pub async fn pin_group(&self, group: GroupId, link: Option<String>) -> Result<(), StoreError> {
        self.write(move |db| {
            Box::pin(async move {
                sql::query("DELETE FROM group_pin WHERE group_id = $1")
                    .bind(group.to_bytes().to_vec())
                    .execute(&mut *db)
                    .await?;
                if let Some(link) = link {
                    sql::query("INSERT INTO group_pin (group_id, link) VALUES ($1, $2)")
                        .bind(group.to_bytes().to_vec())
                        .bind(link)
                        .execute(&mut *db)
                        .await?;
                }
                Ok(())
            })
        })
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

async fn renew(db: &mut Connection, server: &AgentServer, now: UnixMs) -> Result<(), StoreError> {
    let run = server.run.to_bytes().to_vec();
    sql::query("DELETE FROM agent_server WHERE link = $1 AND run <> $2")
        .bind(&server.link)
        .bind(&run)
        .execute(&mut *db)
        .await?;
    let addresses = serde_json::json!(server.addresses).to_string();
    let changed = sql::query(
        "UPDATE agent_server SET link = $2, addresses = $3, shards = $4, renewed_at = $5 WHERE run = $1",
    )
    .bind(&run)
    .bind(&server.link)
    .bind(&addresses)
    .bind(i64::from(server.shards))
    .bind(now.to_sql())
    .execute(&mut *db)
    .await?;
    if changed.rows_affected() == 0 {
        sql::query(
            "INSERT INTO agent_server (run, link, addresses, shards, renewed_at)
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(&run)
        .bind(&server.link)
        .bind(&addresses)
        .bind(i64::from(server.shards))
        .bind(now.to_sql())
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
    let renewed_at = UnixMs::from_sql(row.try_get("renewed_at")?);
    Ok(Registered {
        server: AgentServer {
            run: GatewayId::from_bytes(id_bytes(row.try_get("run")?)?),
            link: row.try_get("link")?,
            addresses,
            shards: u16::try_from(shards)
                .map_err(|_| StoreError::BadRow(format!("{shards} shards")))?,
        },
        alive: now < renewed_at.plus(LEASE),
        draining: row.try_get("draining")?,
        renewed_at,
    })
}

fn read_placed(row: &Row) -> Result<Placed, StoreError> {
    let slot: i64 = row.try_get("slot")?;
    let owner: Option<Vec<u8>> = row.try_get("owner_id")?;
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
        pin: row.try_get("pin")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(run: u8, link: &str) -> AgentServer {
        AgentServer {
            run: GatewayId::from_bytes([run; 16]),
            link: link.to_owned(),
            addresses: vec![format!("{link}3")],
            shards: 2,
        }
    }

    #[tokio::test]
    async fn a_lease_runs_out_and_a_later_run_ends_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open("sqlite:", directory.path()).await.unwrap();
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
        store.forget_agent_servers(vec![again.run]).await.unwrap();
        assert_eq!(drains().await.len(), 1);
    }

    #[tokio::test]
    async fn a_group_is_given_once_by_whoever_read_its_epoch() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open("sqlite:", directory.path()).await.unwrap();
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
        let placed = store.placed_groups().await.unwrap();
        let [placed] = &placed[..] else {
            panic!("{placed:?}");
        };
        assert_eq!((placed.owner, placed.group.epoch), (Some(first), Epoch(1)));
        assert_eq!((placed.agents, &placed.group.name), (0, &group.name));
        let pins = async |link: Option<&str>| {
            let link = link.map(str::to_owned);
            store.pin_group(group.id, link).await.unwrap();
            store.placed_groups().await.unwrap()[0].pin.clone()
        };
        assert_eq!(pins(Some("a:1")).await.as_deref(), Some("a:1"));
        assert_eq!(pins(Some("b:1")).await.as_deref(), Some("b:1"));
        assert_eq!(pins(None).await, None);
    }
}
