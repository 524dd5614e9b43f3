//! Random lives of one agent: commands, cancels, full disks, reconnects and crashes in any order.

use super::*;

/// One event of a random life.
#[derive(Clone, Debug)]
enum Event {
    Command { n: u128, fence: u64, epoch: u64 },
    Query { n: u128, fence: u64 },
    Cancel { n: u128, fence: u64 },
    Forget { n: u128 },
    Finish { n: u128, status: usize },
    Persist,
    DiskFull(bool),
    Reconnect,
    Crash,
}

fn any_event() -> impl Strategy<Value = Event> {
    let (n, fence) = (0..3_u128, 1..5_u64);
    prop_oneof![
        6 => (n.clone(), fence.clone(), 1..3_u64)
            .prop_map(|(n, fence, epoch)| Event::Command { n, fence, epoch }),
        1 => (n.clone(), fence.clone()).prop_map(|(n, fence)| Event::Query { n, fence }),
        1 => (n.clone(), fence).prop_map(|(n, fence)| Event::Cancel { n, fence }),
        1 => n.clone().prop_map(|n| Event::Forget { n }),
        4 => (n, 0..3_usize).prop_map(|(n, status)| Event::Finish { n, status }),
        6 => Just(Event::Persist),
        1 => any::<bool>().prop_map(Event::DiskFull),
        1 => Just(Event::Reconnect),
        1 => Just(Event::Crash),
    ]
}

/// What an outside observer knows: the promises that were made, and the effects that happened.
#[derive(Default)]
struct Model {
    /// Runs going on in this process.
    running: HashMap<OperationId, Fence>,
    /// Effects since the operation was last forgotten.
    effects: HashMap<OperationId, u32>,
    /// The highest fence for which "never seen" was said.
    never_seen: HashMap<OperationId, Fence>,
}

impl Model {
    /// Checks everything that was said and started since the last look.
    fn look(&mut self, stage: &mut Stage) -> Result<(), TestCaseError> {
        stage.collect();
        for message in std::mem::take(&mut stage.said) {
            match message {
                AgentMessage::Accepted { operation, .. } => {
                    let known = stage.disk.entry(operation).map(|entry| &entry.body);
                    prop_assert!(matches!(known, Some(Body::Open(_) | Body::Finished(_))));
                }
                AgentMessage::Finished { operation, .. } => {
                    let known = stage.disk.entry(operation).map(|entry| &entry.body);
                    prop_assert!(matches!(known, Some(Body::Finished(_))));
                }
                AgentMessage::Report {
                    operation,
                    fence,
                    state: OperationState::NeverSeen,
                } => {
                    let known = stage.disk.entry(operation).map(|entry| &entry.body);
                    let buried = matches!(known, Some(Body::Tombstone { .. }));
                    prop_assert!(buried);
                    self.never_seen.insert(operation, fence);
                }
                _ => {}
            }
        }
        for output in std::mem::take(&mut stage.outputs) {
            match output {
                Output::Start(command) => {
                    let id = command.operation;
                    prop_assert!(!self.running.contains_key(&id), "{id} is started twice");
                    prop_assert_eq!(self.effects.get(&id), None, "{} has its effect", id);
                    let told = self.never_seen.get(&id);
                    prop_assert!(told.is_none_or(|told| *told < command.fence));
                    self.running.insert(id, command.fence);
                }
                Output::Recover(command) => {
                    // The world's truth: the effect is there, or it certainly is not.
                    let id = command.operation;
                    let recovered = match self.effects.contains_key(&id) {
                        true => Recovered::Finished(success()),
                        false => Recovered::Restart,
                    };
                    stage.session.handle_recovered(id, recovered);
                }
                Output::Forgotten(id) => {
                    self.effects.remove(&id);
                    self.never_seen.remove(&id);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn finish(&mut self, stage: &mut Stage, id: OperationId, status: usize) {
        if self.running.remove(&id).is_some() {
            let (status, effect) = [
                (OutcomeStatus::Succeeded, true),
                (OutcomeStatus::FailedTransient, false),
                (OutcomeStatus::Cancelled, true),
            ][status];
            if effect {
                *self.effects.entry(id).or_default() += 1;
            }
            stage.session.handle_outcome(id, bare_outcome(status, ""));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever comes in whatever order, with crashes and full disks in between: what is said is on
    /// the disk, no operation runs twice at once or after its effect, and "never seen" stays true.
    #[test]
    fn promises_are_kept_through_crashes(events in prop::collection::vec(any_event(), 1..120)) {
        let mut stage = Stage::new();
        let mut model = Model::default();
        let mut link = stage.connect();
        for event in events {
            match event {
                Event::Command { n, fence, epoch } => {
                    stage.send(link, epoch, command(n, fence));
                }
                Event::Query { n, fence } => stage.session.handle_control(link, query(n, fence)),
                Event::Cancel { n, fence } => {
                    stage.session.handle_control(link, cancel(n, fence, 2));
                }
                Event::Forget { n } => {
                    let operations = vec![operation(n)];
                    // Only what is durable is forgotten: the gateway was told of it.
                    if matches!(stage.disk.entry(operation(n)), Some(e) if matches!(e.body, Body::Finished(_)))
                        && !stage.disk_full
                    {
                        stage.session.handle_control(link, GatewayMessage::Forget { operations });
                    }
                }
                Event::Finish { n, status } => model.finish(&mut stage, operation(n), status),
                Event::Persist => drop(stage.persist()),
                Event::DiskFull(full) => {
                    stage.disk_full = full;
                    stage.now += Duration::from_secs(2);
                    stage.session.handle_timeout(stage.now);
                }
                Event::Reconnect => {
                    stage.session.handle_disconnected(link);
                    model.look(&mut stage)?;
                    link = stage.connect();
                }
                Event::Crash => {
                    stage.crash();
                    model.running.clear();
                    model.look(&mut stage)?;
                    link = stage.connect();
                }
            }
            model.look(&mut stage)?;
        }
        // With room on the disk everything settles, and nothing that ran is forgotten about.
        stage.disk_full = false;
        for n in 0..3 {
            model.finish(&mut stage, operation(n), 0);
        }
        for _ in 0..3 {
            stage.now += Duration::from_secs(2);
            stage.session.handle_timeout(stage.now);
            stage.settle();
            model.look(&mut stage)?;
            for n in 0..3 {
                model.finish(&mut stage, operation(n), 0);
            }
        }
        stage.settle();
        prop_assert!(stage.session.runs.is_empty(), "{:?}", stage.session.runs);
        for (_, entry) in stage.disk.entries() {
            prop_assert!(!matches!(entry.body, Body::Open(_)));
        }
    }
}
