//! Processes with steps, against the same faults: every step's effect at most once, and whatever
//! cannot be finished undone.

use std::collections::BTreeSet;

use control::dispatch::{Order, Ordered};
use control::process::pause::{PauseKey, PauseScope};
use control::process::{Plan, PlanOperation, PlanStep, StepId};
use control::store::pauses::{Pause, PauseAdded};
use control::store::processes::Actor;
use control::store::queries::ProcessRecord;

use super::*;

/// So many steps, each of which can be undone; the one with the index `fails` fails for good.
fn plan(steps: usize, fails: Option<usize>) -> Plan {
    let operation = |kind: &str| PlanOperation {
        operation: kind.to_owned(),
        input: "{}".to_owned(),
        timeout: Duration::from_secs(600),
    };
    let steps = (0..steps).map(|at| PlanStep {
        name: format!("s{at}"),
        work: operation(if fails == Some(at) {
            "fails"
        } else {
            "simulated"
        }),
        // Steps of several lines wait at each agent.
        class: (at % 2 == 0).then(|| "build".to_owned()),
        resources: vec![format!("pool/{}", at % 3)],
        undo: Some(operation("undo")),
    });
    Plan {
        steps: steps.collect(),
    }
}

impl World {
    async fn create_planned(&self, agent: usize, key: &str, plan: Plan) -> Option<ProcessId> {
        self.create(NewProcess {
            kind: "life".to_owned(),
            plan: Some(plan),
            ..self.new_process(agent, key)
        })
        .await
    }

    async fn shown(&self, id: ProcessId) -> ProcessRecord {
        self.store().process(id).await.unwrap().unwrap()
    }

    async fn until(&self, id: ProcessId, state: State) -> ProcessRecord {
        for _ in 0..3000 {
            let record = self.shown(id).await;
            if record.state == state {
                return record;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never {state}: {:?}", self.shown(id).await);
    }

    async fn order(&self, id: ProcessId, order: Order) -> Ordered {
        let actor = Actor {
            by: "ann".to_owned(),
            reason: Some("a test".to_owned()),
        };
        self.engine().order(id, order, Some(actor)).await.unwrap()
    }

    /// Each operation had its effect at most once; who succeeded did every step, and of who did not
    /// nothing is left.
    async fn check_steps(&self, expected: usize) {
        let list = self
            .store()
            .processes(&ProcessFilter::default(), None, 1000)
            .await
            .unwrap();
        assert_eq!(list.len(), expected);
        let effects = self.fleet.step_effects();
        for process in list {
            let own = effects.iter().filter(|(of, _)| of.process == process.id);
            let mut there = BTreeSet::new();
            let mut undone = BTreeSet::new();
            for (operation, count) in own {
                assert_eq!(
                    *count, 1,
                    "{operation} had its effect {count} times: {process:?}"
                );
                let step = StepId(operation.step);
                match step.undoes() {
                    true => undone.insert(step.index()),
                    false => there.insert(step.index()),
                };
            }
            assert!(!process.needs_attention, "{process:?}");
            if process.state == State::Succeeded {
                assert_eq!(there, (0..process.steps).collect(), "{process:?}");
                assert!(undone.is_empty(), "{process:?}");
            } else {
                assert_eq!(there, undone, "something was left: {process:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_are_done_in_order_and_their_agent_forgets_each() {
    let world = World::new(1, 21, Faults::NONE).await;
    let id = world.create_planned(0, "a", plan(4, None)).await.unwrap();
    world.settle().await;
    let record = world.shown(id).await;
    assert_eq!((record.state, record.step.index()), (State::Succeeded, 3));
    let history = world.store().history(id, 0, 100).await.unwrap();
    let started: Vec<u64> = history
        .iter()
        .filter(|row| row.data["to"] == "leased")
        .map(|row| row.data["step"].as_u64().unwrap())
        .collect();
    assert_eq!(started, [0, 1, 2, 3]);
    world.check_steps(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_fails_for_good_undoes_those_before_it() {
    let world = World::new(1, 22, Faults::NONE).await;
    let id = world
        .create_planned(0, "a", plan(3, Some(2)))
        .await
        .unwrap();
    world.settle().await;
    let record = world.shown(id).await;
    assert_eq!(record.state, State::Failed);
    let message = record.outcome.unwrap().message;
    assert!(message.ends_with("undone: steps 2, 1"), "{message}");
    world.check_steps(1).await;
    // A retry begins at the beginning, with operations of its own, and comes to the same end.
    let state = world.order(id, Order::Retry).await;
    assert_eq!(state, Ordered::State(State::Ready));
    world.settle().await;
    assert_eq!(world.shown(id).await.state, State::Failed);
    assert_eq!(
        world.fleet.step_effects().len(),
        8,
        "twice two steps, done and undone"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_in_the_middle_undoes_and_force_does_not_wait() {
    let stuck = Faults {
        stuck: true,
        ..Faults::NONE
    };
    let world = World::new(1, 23, Faults::NONE).await;
    let id = world.create_planned(0, "a", plan(32, None)).await.unwrap();
    for _ in 0..3000 {
        if world.shown(id).await.step.index() > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.order(id, Order::Cancel).await;
    world.settle().await;
    let record = world.shown(id).await;
    // It may have been quicker than the cancel; then it has succeeded.
    assert_eq!(record.state, State::Cancelled);
    world.check_steps(1).await;

    world.fleet.set_faults(stuck);
    let id = world.create_planned(0, "b", plan(2, None)).await.unwrap();
    world.until(id, State::Running).await;
    let state = world.order(id, Order::Force).await;
    assert_eq!(state, Ordered::State(State::Cancelled));
    let record = world.shown(id).await;
    assert!(record.needs_attention);
    assert!(matches!(
        world.order(id, Order::Force).await,
        Ordered::Refused(_)
    ));
    let history = world.store().history(id, 0, 100).await.unwrap();
    let last = history
        .iter()
        .find(|row| row.kind == "process.finished")
        .unwrap();
    assert_eq!(
        (&last.data["actor"], &last.data["reason"]),
        (&"ann".into(), &"a test".into())
    );
    // Its agent is told all the same, and what it says then settles the matter.
    world.fleet.set_faults(Faults::NONE);
    world.settle().await;
    let history = world.store().history(id, 0, 100).await.unwrap();
    let note = history.last().unwrap().data["note"].as_str().unwrap();
    assert!(note.contains("after all"), "{note}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_ends_a_wait_and_meets_no_running_process() {
    let offline = Faults {
        offline: true,
        ..Faults::NONE
    };
    let world = World::new(1, 24, offline).await;
    let id = world.create_planned(0, "a", plan(2, None)).await.unwrap();
    let refused = world.order(id, Order::Replay(1)).await;
    assert!(matches!(refused, Ordered::Refused(why) if why.ends_with("replay it from step 0")));
    let state = world.order(id, Order::Replay(0)).await;
    assert_eq!(state, Ordered::State(State::Ready));
    world.fleet.set_faults(Faults::NONE);
    world.settle().await;
    assert_eq!(world.shown(id).await.state, State::Succeeded);
    let effects = world.fleet.step_effects().len();
    let state = world.order(id, Order::Replay(1)).await;
    assert_eq!(state, Ordered::State(State::Ready));
    world.settle().await;
    let more = world.fleet.step_effects();
    assert_eq!(more.len(), effects + 1, "only the second step: {more:?}");
    assert_eq!(world.shown(id).await.state, State::Succeeded);
    assert!(matches!(
        world.order(id, Order::Retry).await,
        Ordered::Refused(_)
    ));
    let stuck = Faults {
        stuck: true,
        ..Faults::NONE
    };
    world.fleet.set_faults(stuck);
    let state = world.order(id, Order::Replay(0)).await;
    assert_eq!(state, Ordered::State(State::Ready));
    world.until(id, State::Running).await;
    let refused = world.order(id, Order::Replay(0)).await;
    assert!(matches!(refused, Ordered::Refused(why) if why.contains("cancel it first")));
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_hold_whatever_the_gateway_the_agents_and_the_server_do() {
    let mut world = World::new(6, 25, Faults::ALL).await;
    let total = 60;
    let mut ids = Vec::new();
    for round in 0..4_u64 {
        while ids.len() < total * (usize::try_from(round).unwrap() + 1) / 4 {
            let n = ids.len();
            let fails = (n % 3 == 0).then_some(n % 4);
            let key = format!("s{n}");
            ids.extend(world.create_planned(n % 6, &key, plan(4, fails)).await);
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
        for id in ids.iter().skip(usize::try_from(round).unwrap()).step_by(7) {
            // The server may be too busy to listen: then it is not cancelled.
            drop(world.engine().cancel(*id).await);
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
        world.kill().await;
        world.start().await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    world.fleet.set_faults(Faults::NONE);
    world.settle().await;
    assert!(world.fleet.faults_made() > 30, "{}", world.fleet.describe());
    world.check_steps(total).await;
    assert!(world.count(State::Succeeded).await > 0);
    assert!(world.count(State::Failed).await > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_paused_is_not_started_and_goes_on_when_the_pause_ends() {
    let world = World::new(2, 26, Faults::NONE).await;
    let agent = world.fleet.targets()[0].agent;
    let pause = |key: PauseKey| Pause {
        key,
        by: "ann".to_owned(),
        reason: "maintenance".to_owned(),
        at: clock::now(),
    };
    let keys = [
        PauseKey::of_id(PauseScope::Agent, agent.0),
        PauseKey::of_id(PauseScope::Group, world.fleet.targets()[0].group.0),
        PauseKey::of_name(PauseScope::Tenant, "default"),
        PauseKey::of_name(PauseScope::Kind, "simulated"),
    ];
    for (n, key) in keys.into_iter().enumerate() {
        let added = world.engine().pause(pause(key.clone())).await.unwrap();
        assert!(matches!(added, PauseAdded::New(_)));
        let id = world
            .create(world.new_process(0, &format!("p{n}")))
            .await
            .unwrap();
        let other = NewProcess {
            tenant: "other".to_owned(),
            kind: "other".to_owned(),
            ..world.new_process(1, &format!("o{n}"))
        };
        let other = world.create(other).await.unwrap();
        if key.scope() != PauseScope::Group {
            world.until(other, State::Succeeded).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let record = world.shown(id).await;
        assert_eq!(
            (record.state, record.paused.as_ref()),
            (State::Ready, Some(&key))
        );
        let resumed = world
            .engine()
            .resume(key, clock::now(), "ann".to_owned(), String::new());
        assert!(resumed.await.unwrap());
        world.until(id, State::Succeeded).await;
        world.until(other, State::Succeeded).await;
    }
    // One process among others of its queue.
    let stuck = Faults {
        offline: true,
        ..Faults::NONE
    };
    world.fleet.set_faults(stuck);
    let mut ids = Vec::new();
    for n in 0..5 {
        let process = world.new_process(0, &format!("one{n}"));
        ids.push(world.create(process).await.unwrap());
    }
    let key = PauseKey::of_id(PauseScope::Process, ids[0].0);
    world.engine().pause(pause(key.clone())).await.unwrap();
    world.fleet.set_faults(Faults::NONE);
    for id in &ids[1..] {
        world.until(*id, State::Succeeded).await;
    }
    assert_eq!(world.shown(ids[0]).await.state, State::Ready);
    let resumed = world
        .engine()
        .resume(key, clock::now(), "ann".to_owned(), String::new());
    assert!(resumed.await.unwrap());
    world.settle().await;
    world.check(13).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_outlives_the_server() {
    let mut world = World::new(1, 27, Faults::NONE).await;
    let key = PauseKey::of_name(PauseScope::Tenant, "default");
    let pause = Pause {
        key: key.clone(),
        by: "ann".to_owned(),
        reason: "maintenance".to_owned(),
        at: clock::now(),
    };
    world.engine().pause(pause).await.unwrap();
    let id = world.create(world.new_process(0, "a")).await.unwrap();
    world.kill().await;
    world.start().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.shown(id).await.state, State::Ready);
    let resumed = world
        .engine()
        .resume(key, clock::now(), "ann".to_owned(), String::new());
    assert!(resumed.await.unwrap());
    world.settle().await;
    world.check(1).await;
}
