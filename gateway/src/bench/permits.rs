//! Permits of one agent at its home shard.

use std::time::Instant;

use protocol::flow::Demand;
use protocol::ids::{GrantId, ServerId, SessionId, ShardId};
use protocol::link::{Event, Request, SessionUp};

use super::{CAPACITY, EPOCH, FENCE, command, operation, outcome, target};
use crate::group::{Home, HomeConfig, HomeOutput, Location, OperationEvent};
use crate::runtime::clock;

const AGENT: u16 = 1;

/// A home shard whose one agent is up and idle.
pub struct Permits {
    home: Home,
    now: Instant,
    location: Location,
    requests: Vec<Request>,
}

impl Permits {
    /// Prepares so many operations.
    pub fn new(operations: u16) -> Self {
        let (now, shard) = (clock::now(), ShardId(0));
        let mut home = Home::new(now, shard, 1, HomeConfig::default());
        let location = Location {
            shard,
            index: 0,
            session: SessionId(1),
        };
        let assign = Request::AssignGroup {
            group: target(AGENT).group,
            slot: target(AGENT).slot,
            epoch: EPOCH,
        };
        home.handle_request(now, assign);
        let up = SessionUp {
            target: target(AGENT),
            session: location.session,
            shard,
            at_home: true,
            remote: ([127, 0, 0, 1], 9).into(),
            capacity: CAPACITY,
            kinds: Vec::new(),
            open: Vec::new(),
            hostname: String::new(),
            software: String::new(),
            labels: Vec::new(),
        };
        home.handle_session_up(now, location, Box::new(up), 1);
        while home.poll_output().is_some() {}
        let dispatch = |n| Request::Dispatch {
            target: target(AGENT),
            grant: GrantId(0),
            epoch: EPOCH,
            command: command(n),
        };
        Self {
            home,
            now,
            location,
            requests: (0..operations).map(dispatch).collect(),
        }
    }

    /// Each operation in turn: demand, grant, dispatch, end. Answers how many permits were granted.
    pub fn run(&mut self) -> u32 {
        let mut granted = 0;
        for (n, mut request) in (0..).zip(std::mem::take(&mut self.requests)) {
            let demand = Request::Demand {
                target: target(AGENT),
                server: ServerId(1),
                lines: vec![Demand::of("exec", 1)],
            };
            self.home.handle_request(self.now, demand);
            while let Some(output) = self.home.poll_output() {
                if let (
                    HomeOutput::Event(Event::Granted { grant, permits, .. }),
                    Request::Dispatch { grant: wanted, .. },
                ) = (output, &mut request)
                {
                    *wanted = grant;
                    granted += permits;
                }
            }
            self.home.handle_request(self.now, request);
            while self.home.poll_output().is_some() {}
            let end = OperationEvent::Finished {
                operation: operation(n),
                fence: FENCE,
                outcome: outcome(),
            };
            self.home
                .handle_operation(self.now, self.location, target(AGENT).agent, end);
            while self.home.poll_output().is_some() {}
        }
        granted
    }
}
