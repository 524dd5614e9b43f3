//! What a process does, step by step: fixed when it is created.

use std::time::Duration;

use super::Shape;

/// The version of the plans that this build writes.
pub const PLAN_VERSION: u16 = 1;

/// The steps of a process, resolved: nothing of it depends on the configuration any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// 1 to [`super::STEPS_MAX`].
    pub steps: Vec<PlanStep>,
}

/// One step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlanStep {
    /// For people.
    pub name: String,
    /// What is done.
    pub work: PlanOperation,
    /// What it weighs on the agent: a class of its limits, such as `light`.
    pub class: Option<String>,
    /// Shared things that it uses, such as `pool/ssd`: each may have a limit of its own.
    pub resources: Vec<String>,
    /// What undoes it.
    pub undo: Option<PlanOperation>,
}

/// One operation of an agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlanOperation {
    /// The driver.
    pub operation: String,
    /// The driver's input: JSON text.
    pub input: String,
    /// It has so long, from its claim.
    pub timeout: Duration,
}

impl Plan {
    /// How many steps, and which of them can be undone.
    pub fn shape(&self) -> Shape {
        let undo = self.steps.iter().enumerate().fold(0, |bits, (at, step)| {
            let bit = u32::try_from(at).ok().and_then(|at| 1_u32.checked_shl(at));
            bits | bit.filter(|_| step.undo.is_some()).unwrap_or(0)
        });
        Shape::new(u16::try_from(self.steps.len()).unwrap_or(u16::MAX), undo)
    }
}
