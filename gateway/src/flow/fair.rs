//! Who gets the next permit of one target: class, then tenants by weight, then kinds, then deadlines.
//!
//! - **Class.** Strict, but each class has an assured share of the target's service time; what a
//!   class does not use, the others may. `System` has the reserve beyond the limit besides.
//!   Whoever has waited for [`AGE_UP`] counts as one class higher.
//! - **Tenant, kind.** Start-time fair queuing (Goyal, Vin, Cheng, "Start-time Fair Queuing", 1996):
//!   each has a start tag, the lowest is served, and what was served moves it by cost / weight. The
//!   cost is an estimate when the permit is granted and is corrected by the measured service time
//!   at the end, so that a tenant of slow operations does not win.
//! - **Deadline.** Among queues of one tenant and kind the earliest first.
//! - **Server.** Process servers read one store, so each states the same processes: the demand of a
//!   queue is the *greatest* that any server states, and its grants go to the servers in turn.
//!
//! What waits is counted by queue, never listed by process. An idle target costs 8 bytes.

use std::time::{Duration, Instant};

mod one;
mod tree;

use one::One;
use tree::{Path, Tree};

/// A queue that waited this long counts as one class higher, but never as [`Class::System`].
pub const AGE_UP: Duration = Duration::from_secs(60);
/// Queues at one target at most.
pub const QUEUES_MAX: usize = 1024;
/// Servers that state demand for one queue at most.
pub const SERVERS_MAX: usize = 64;

/// Seconds that an operation of an unknown kind is thought to take.
const UNKNOWN_SECONDS: f64 = 1.0;
/// Kinds whose duration is remembered; others are [`UNKNOWN_SECONDS`].
const KINDS_MAX: usize = 16;
/// Assured shares of service time, by class. What is left goes to the highest class that waits.
const ASSURED: [f64; 4] = [1.0, 0.4, 0.3, 0.1];
/// A class is owed at most so many of its operations.
const OWED_MAX: f64 = 4.0;

/// Classes of work, the highest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Class {
    /// Reconnecting, fencing, cancelling: what makes room for others.
    System,
    /// Somebody waits for it.
    Interactive,
    /// The rest.
    Normal,
    /// Whenever there is room.
    Background,
}

impl Class {
    /// All, the highest first.
    pub const ALL: [Self; 4] = [
        Self::System,
        Self::Interactive,
        Self::Normal,
        Self::Background,
    ];

    fn place(self) -> usize {
        match self {
            Self::System => 0,
            Self::Interactive => 1,
            Self::Normal => 2,
            Self::Background => 3,
        }
    }

    /// The class that it counts as after waiting.
    fn aged(self, waited: Duration) -> Self {
        let steps = waited.as_secs() / AGE_UP.as_secs();
        let steps = usize::try_from(steps).unwrap_or(usize::MAX);
        match self {
            Self::System => Self::System,
            _ => Self::ALL[self.place().saturating_sub(steps).max(1)],
        }
    }
}

/// One queue. All but the class are numbers that the caller gave out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Flow {
    /// How urgent it is.
    pub class: Class,
    /// Whose it is.
    pub tenant: u32,
    /// What kind of operation.
    pub kind: u32,
    /// Which set of resources it needs besides the target.
    pub resources: u32,
}

/// What a server states for a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Demand {
    /// Processes that are ready; 0 takes the demand back. Absolute, so that repeating it is harmless.
    pub count: u32,
    /// The earliest deadline among them.
    pub deadline: Option<Instant>,
    /// The tenant's weight, at least 1; the last one stated counts.
    pub weight: u32,
}

impl Demand {
    /// So many, without a deadline, of weight 1.
    pub fn of(count: u32) -> Self {
        Self {
            count,
            deadline: None,
            weight: 1,
        }
    }
}

/// No more queues, or servers in a queue, are taken: state the demand again later.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "this target has {QUEUES_MAX} queues, or {SERVERS_MAX} servers in one, already: ask again later"
)]
pub struct Full;

/// Permits that the target has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// Below its limit.
    pub free: u32,
    /// Beyond it, for [`Class::System`] only.
    pub reserve: u32,
}

/// What the caller says of a queue whose turn it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fit {
    /// The permits were taken.
    Take,
    /// Another limit is used up: the queue is passed over until [`Queues::handle_wake`].
    Park,
    /// This server can use no permit now.
    OtherServer,
}

/// Seconds that a grant was charged with when it was given; keep it for the end.
#[derive(Clone, Copy, PartialEq, PartialOrd, Default, Debug)]
pub struct Cost(f32);

impl Cost {
    #[expect(clippy::cast_possible_truncation, reason = "seconds, to seven digits")]
    fn of(seconds: f64) -> Self {
        Self(seconds as f32)
    }
}

/// The next permit.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Grant {
    /// For this queue.
    pub flow: Flow,
    /// To this server.
    pub server: u32,
    /// Charged so far.
    pub cost: Cost,
}

/// What waits at one target. See the module.
#[derive(Default)]
pub struct Queues(Option<Box<Waiting>>);

/// At least one queue.
enum Waiting {
    One(One),
    Many(Inner),
}

#[derive(Default)]
struct Inner {
    tree: Tree,
    /// Seconds that each class is owed of its assured share.
    owed: [f64; 4],
    /// Mean seconds of a kind.
    kinds: Vec<(u32, f64)>,
}

impl Queues {
    /// Without demand. Allocates nothing.
    pub const fn new() -> Self {
        Self(None)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// A server states what it has ready for a queue.
    ///
    /// # Errors
    /// [`Full`]: the statement is dropped.
    pub fn handle_demand(
        &mut self,
        now: Instant,
        server: u32,
        flow: &Flow,
        demand: &Demand,
    ) -> Result<(), Full> {
        if demand.count == 0 {
            match self.0.as_deref_mut() {
                Some(Waiting::One(one)) if one.is(server, flow) => self.0 = None,
                Some(Waiting::Many(inner)) => {
                    inner.tree.remove_server(flow, server);
                    self.tidy();
                }
                _ => {}
            }
            return Ok(());
        }
        match self.0.as_deref_mut() {
            None => {
                let one = One::new(now, server, flow, demand);
                self.0 = Some(Box::new(Waiting::One(one)));
                Ok(())
            }
            Some(Waiting::One(one)) if one.is(server, flow) => {
                one.state(demand);
                Ok(())
            }
            Some(waiting) => waiting.many()?.tree.state(now, server, flow, demand),
        }
    }

    /// A server is gone, and its demand with it.
    pub fn handle_server_gone(&mut self, server: u32) {
        match self.0.as_deref_mut() {
            Some(Waiting::One(one)) if one.is_of(server) => self.0 = None,
            Some(Waiting::Many(inner)) => {
                inner.tree.remove_server_everywhere(server);
                self.tidy();
            }
            _ => {}
        }
    }

    /// A queue that was parked may be tried again.
    pub fn handle_wake(&mut self, flow: &Flow) {
        match self.0.as_deref_mut() {
            Some(Waiting::One(one)) => one.unpark(flow),
            Some(Waiting::Many(inner)) => inner.tree.unpark(flow),
            None => {}
        }
    }

    /// An operation ended after so long on the target, or its permit came back unused (no time).
    pub fn handle_end(&mut self, flow: &Flow, cost: Cost, service: Duration) {
        match self.0.as_deref_mut() {
            Some(Waiting::One(one)) => one.handle_end(flow, cost, service),
            Some(Waiting::Many(inner)) => inner.handle_end(flow, cost, service),
            None => {}
        }
    }

    /// The greatest demand that any server states for a queue.
    pub fn demand(&self, flow: &Flow) -> u32 {
        match self.0.as_deref() {
            Some(Waiting::One(one)) => one.demand(flow),
            Some(Waiting::Many(inner)) => inner.tree.demand(flow),
            None => 0,
        }
    }

    /// The next permit, if there is room and anybody can use it. `fits` is asked about queues and
    /// servers in their order.
    pub fn next(
        &mut self,
        now: Instant,
        room: Room,
        mut fits: impl FnMut(&Flow, u32) -> Fit,
    ) -> Option<Grant> {
        let grant = match self.0.as_deref_mut()? {
            Waiting::One(one) => one.next(now, room, &mut fits),
            Waiting::Many(inner) => inner.next(now, room, &mut fits),
        };
        self.tidy();
        grant
    }

    fn tidy(&mut self) {
        self.0.take_if(|waiting| match &**waiting {
            Waiting::One(one) => one.is_done(),
            Waiting::Many(inner) => inner.tree.is_empty(),
        });
    }
}

impl Waiting {
    /// The tree; there is one from now on.
    fn many(&mut self) -> Result<&mut Inner, Full> {
        if let Self::One(one) = self {
            *self = Self::Many(one.grow()?);
        }
        match self {
            Self::Many(inner) => Ok(inner),
            Self::One(_) => Err(Full),
        }
    }
}

impl Inner {
    fn handle_end(&mut self, flow: &Flow, cost: Cost, service: Duration) {
        let seconds = service.as_secs_f64();
        let off = seconds - f64::from(cost.0);
        self.tree.correct(flow, off);
        let class = flow.class.place();
        if self.owed[class] > 0.0 {
            self.owed[class] = (self.owed[class] - off).max(0.0);
        }
        if !service.is_zero() {
            self.learn(flow.kind, seconds);
        }
    }

    fn next(
        &mut self,
        now: Instant,
        room: Room,
        fits: &mut impl FnMut(&Flow, u32) -> Fit,
    ) -> Option<Grant> {
        let for_system = room.reserve > 0 && self.tree.has_class(Class::System);
        if room.free == 0 && !for_system {
            return None;
        }
        self.tree.begin_round();
        loop {
            let (path, costs) = self.pick(now, room)?;
            if let Some(server) = self.tree.ask(path, fits) {
                return Some(self.grant(now, path, server, costs));
            }
        }
    }

    /// Whose turn it is, and what the next operation of each class that waits would cost.
    fn pick(&self, now: Instant, room: Room) -> Option<(Path, [Option<f64>; 4])> {
        let ready = self.tree.candidates(now);
        let costs = ready.map(|path| Some(self.seconds(self.tree.flow(path?).kind)));
        if let Some(path) = ready[0]
            && (room.free > 0 || room.reserve > 0)
        {
            return Some((path, costs));
        }
        if room.free == 0 {
            return None;
        }
        let is_owed = |class: &usize| costs[*class].is_some_and(|cost| self.owed[*class] >= cost);
        let owed = (1..4).find(is_owed).and_then(|class| ready[class]);
        let path = owed.or_else(|| ready.into_iter().flatten().next())?;
        Some((path, costs))
    }

    fn grant(&mut self, now: Instant, path: Path, server: u32, costs: [Option<f64>; 4]) -> Grant {
        let flow = self.tree.flow(path);
        let seconds = self.seconds(flow.kind);
        for (class, cost) in costs.into_iter().enumerate().skip(1) {
            let owed = self.owed[class] + ASSURED[class] * seconds;
            // A class without work saves nothing up.
            self.owed[class] = cost.map_or(0.0, |cost| owed.min(OWED_MAX * cost));
        }
        let class = flow.class.place();
        self.owed[class] = (self.owed[class] - seconds).max(0.0);
        self.tree.take(now, path, server, seconds);
        let cost = Cost::of(seconds);
        Grant { flow, server, cost }
    }

    fn seconds(&self, kind: u32) -> f64 {
        let known = self.kinds.iter().find(|(known, _)| *known == kind);
        known.map_or(UNKNOWN_SECONDS, |(_, seconds)| *seconds)
    }

    fn learn(&mut self, kind: u32, seconds: f64) {
        let known = self.kinds.iter().position(|(known, _)| *known == kind);
        match known {
            Some(place) => self.kinds[place].1 = learned(self.kinds[place].1, seconds),
            None if self.kinds.len() < KINDS_MAX => self.kinds.push((kind, seconds)),
            None => {}
        }
    }
}

/// A mean duration after one more.
fn learned(mean: f64, seconds: f64) -> f64 {
    mean + 0.1 * (seconds - mean)
}

#[cfg(test)]
mod tests;
