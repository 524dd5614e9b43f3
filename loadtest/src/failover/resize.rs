//! 64 groups over 1 → 2 → 3 → 2 agent servers.

use std::collections::BTreeMap;

use serde::Serialize;
use uuid::Uuid;

use super::Failover;
use super::scene::{Scene, float};
use crate::clock;

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Resized {
    /// Groups.
    pub groups: usize,
    /// Agents.
    pub agents: usize,
    /// Each change.
    pub steps: Vec<Step>,
}

/// A change of how many agent servers there are.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// So many from then on.
    pub servers: usize,
    /// Sessions of each, in the end.
    pub sessions: Vec<usize>,
    /// The largest difference from the even share, as a part of it.
    pub uneven: f64,
    /// How often groups changed hands.
    pub moves: u64,
    /// How often they had to.
    pub needed: u64,
    /// Until nothing moved any more and all were there, seconds.
    pub seconds: f64,
}

/// Runs it, on the store alone.
pub(super) async fn run(failover: &Failover) -> anyhow::Result<Resized> {
    let mut scene = Box::pin(Scene::open(failover, 3, None, "resize")).await?;
    for number in [1, 2] {
        scene.server(number).kill().await?;
        scene.until_owned_elsewhere(number, clock::now()).await?;
    }
    scene.until_spread(1).await?;
    let mut steps = Vec::new();
    let groups = scene.api().groups().await?.len();
    for (servers, newcomer) in [(2, 1), (3, 2)] {
        let before = epochs(&scene).await?;
        let began = clock::now();
        scene.server(newcomer).restart().await?;
        let needed = (groups / servers) as u64;
        steps.push(step(&scene, servers, needed, (before, began)).await?);
    }
    let before = epochs(&scene).await?;
    let needed = scene.owned().await?[2].len() as u64;
    let began = clock::now();
    let link = scene.link(2).to_owned();
    scene.api().drain_agent_server(&link).await?;
    scene.until_owned_elsewhere(2, began).await?;
    steps.push(step(&scene, 2, needed, (before, began)).await?);
    scene.stop().await?;
    Ok(Resized {
        groups,
        agents: failover.agents,
        steps,
    })
}

type Epochs = BTreeMap<Uuid, u64>;

async fn epochs(scene: &Scene) -> anyhow::Result<Epochs> {
    let groups = scene.api().groups().await?.into_iter();
    Ok(groups.map(|group| (group.id, group.epoch)).collect())
}

/// Waits until the sessions are spread and nothing has moved for a while.
async fn step(
    scene: &Scene,
    servers: usize,
    needed: u64,
    (before, began): (Epochs, std::time::Instant),
) -> anyhow::Result<Step> {
    let mut now = epochs(scene).await?;
    let ended = loop {
        scene.until_spread(servers).await?;
        let ended = clock::now();
        tokio::time::sleep(super::STANDSTILL / 2).await;
        let later = epochs(scene).await?;
        if std::mem::replace(&mut now, later) == now {
            break ended;
        }
    };
    let raised = now
        .iter()
        .map(|(group, epoch)| epoch.saturating_sub(before.get(group).copied().unwrap_or(*epoch)));
    let moves = raised.sum();
    let owned = scene.owned().await?;
    let sessions = owned.iter().take(servers);
    let sessions = sessions.map(|groups| groups.iter().map(|group| group.connected).sum());
    let sessions: Vec<usize> = sessions.collect();
    let even = float(sessions.iter().sum()) / float(servers);
    let uneven = sessions
        .iter()
        .map(|count| (float(*count) - even).abs() / even);
    let step = Step {
        servers,
        uneven: uneven.fold(0.0, f64::max),
        moves,
        needed,
        seconds: ended.duration_since(began).as_secs_f64(),
        sessions,
    };
    println!(
        "{} agent servers: sessions {:?}, {} moves of {} needed, {:.0} s",
        step.servers, step.sessions, step.moves, step.needed, step.seconds
    );
    Ok(step)
}
