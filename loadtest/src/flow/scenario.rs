//! What is simulated: hosts, load, servers, network, and what changes when.

use gateway::flow::fair::Class;

/// A kind of operation.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Kind {
    /// Mean seconds of work.
    pub mean: f64,
    /// Share of all operations.
    pub share: f64,
}

/// Who starts operations.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Tenant {
    /// Share of the backlog.
    pub share: f64,
    /// Weight: what share of the service it should get.
    pub weight: u32,
}

/// Something that happens at a time.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Change {
    /// Every host has so many slots from now on.
    Slots(f64),
    /// Every operation takes so many times as long, for a reason of its own.
    Slow(f64),
    /// Of the attempts that end this share fails in passing. Only Drover's rule has a notion of it.
    Failing(f64),
    /// A fault; rules without a notion of it are not told.
    Fault(Fault),
}

/// What breaks, and for how long in seconds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Fault {
    /// A process server dies and comes back without memory.
    ServerCrash(usize, f64),
    /// A process server stands still.
    ServerPause(usize, f64),
    /// The owner of the groups dies; another takes over.
    OwnerCrash(f64),
    /// The owner stands still, is replaced, and wakes up without knowing.
    OwnerPause(f64),
    /// A host's agent is cut off (or dies and comes back: its operations go on either way).
    LinkDown(usize, f64),
}

/// One simulation. The defaults are those of the table that the design was chosen by.
#[derive(Clone, PartialEq, Debug)]
pub struct Scenario {
    /// Seed of everything random.
    pub seed: u64,
    /// Hosts.
    pub hosts: usize,
    /// What each does at once at full speed.
    pub slots: f64,
    /// The thrash factor above that.
    pub gamma: f64,
    /// A host refuses the operation that would be one more than this.
    pub refuse_at: usize,
    /// Seconds of a host's work that a refusal costs.
    pub refusal_cost: f64,
    /// Kinds of operations.
    pub kinds: Vec<Kind>,
    /// Coefficient of variation of the work within a kind (log-normal).
    pub variation: f64,
    /// After so many seconds a sender gives up, and a success does not count.
    pub timeout: f64,
    /// Process servers.
    pub servers: usize,
    /// Operations that each has out at once at most.
    pub workers: u32,
    /// Processes that are not finished, all the time.
    pub outstanding: usize,
    /// Each process that ends is followed by a new one.
    pub endless: bool,
    /// Who they belong to.
    pub tenants: Vec<Tenant>,
    /// Share of each class in the backlog.
    pub classes: Vec<(Class, f64)>,
    /// A message takes between so many seconds and so many.
    pub delay: (f64, f64),
    /// Hosts behind one storage device, and how many operations it takes at full speed.
    pub storage: Option<(usize, f64)>,
    /// What happens at which second.
    pub changes: Vec<(f64, Change)>,
    /// Seconds before anything counts.
    pub warm_up: f64,
    /// Seconds that count.
    pub measured: f64,
    /// How long a process server may be silent before others take its processes, in seconds.
    pub server_lease: f64,
    /// How long until a session that is cut off is noticed, in seconds.
    pub silence: f64,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            seed: 1,
            hosts: 16,
            slots: 8.0,
            gamma: 0.05,
            refuse_at: 32,
            refusal_cost: 0.02,
            kinds: vec![Kind {
                mean: 2.0,
                share: 1.0,
            }],
            variation: 0.5,
            timeout: 45.0,
            servers: 4,
            workers: 35,
            outstanding: 4000,
            endless: true,
            tenants: vec![Tenant {
                share: 1.0,
                weight: 1,
            }],
            classes: vec![(Class::Normal, 1.0)],
            delay: (0.001, 0.05),
            storage: None,
            changes: Vec::new(),
            warm_up: 200.0,
            measured: 300.0,
            server_lease: 10.0,
            silence: 30.0,
        }
    }
}

impl Scenario {
    /// Mean seconds of work of an operation.
    pub fn mean_work(&self) -> f64 {
        self.kinds.iter().map(|kind| kind.mean * kind.share).sum()
    }

    /// When it is over, in seconds.
    pub fn end(&self) -> f64 {
        self.warm_up + self.measured
    }
}
