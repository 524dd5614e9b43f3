//! Steps: their numbers, and what is undone.

use protocol::operation::OutcomeStatus;

use super::State;

/// Steps of one process at most.
pub const STEPS_MAX: usize = 32;
/// A process is started over at most so often.
pub const RUN_MAX: u16 = 1023;

/// Set in the number of an operation that undoes a step.
const UNDO: u16 = 0x8000;
/// The part of a number that names the step.
const INDEX: u16 = 0x001f;
const RUN_SHIFT: u16 = 5;

/// A step as its operation's id numbers it: the index from 0, `0x8000` for what undoes it, and how
/// often the process was started over. What has been started over is another operation to the agent
/// than before: an answer that it still holds about the earlier one cannot be taken for the new one's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug)]
pub struct StepId(pub u16);

impl StepId {
    /// The step with this index (at most 31), in the run with this number (at most [`RUN_MAX`]).
    pub fn forward(index: u16, run: u16) -> Self {
        Self((index & INDEX) | (run.min(RUN_MAX) << RUN_SHIFT))
    }

    /// What undoes the step with this index.
    pub fn undo(index: u16, run: u16) -> Self {
        Self(UNDO | Self::forward(index, run).0)
    }

    /// The step's index, from 0.
    pub fn index(self) -> u16 {
        self.0 & INDEX
    }

    /// Whether it undoes the step.
    pub fn undoes(self) -> bool {
        self.0 & UNDO != 0
    }

    /// How often the process was started over before.
    pub fn run(self) -> u16 {
        (self.0 & !UNDO) >> RUN_SHIFT
    }

    /// Its row in the plan: the number without the run.
    pub fn row(self) -> u16 {
        self.0 & (UNDO | INDEX)
    }
}

/// How many steps a process has, and which of them can be undone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    steps: u16,
    undo: u32,
}

impl Shape {
    /// One step, which nothing undoes: a process whose kind is the name of a driver.
    pub const ONE: Self = Self { steps: 1, undo: 0 };

    /// `steps` (1 to [`STEPS_MAX`]; others become the nearest), of which those can be undone whose
    /// bit is set in `undo`.
    pub fn new(steps: u16, undo: u32) -> Self {
        Self {
            steps: steps.clamp(1, INDEX + 1),
            undo,
        }
    }

    /// How many steps.
    pub fn steps(self) -> u16 {
        self.steps
    }

    /// Bit n: step n can be undone.
    pub fn undo_bits(self) -> u32 {
        self.undo
    }

    /// Whether no step comes after this index.
    pub(super) fn is_last(self, index: u16) -> bool {
        index.saturating_add(1) >= self.steps
    }

    /// The last step before `below` that can be undone.
    pub(super) fn last_to_undo(self, below: u16) -> Option<u16> {
        (0..below.min(self.steps))
            .rev()
            .find(|at| self.undoable(*at))
    }

    /// Those that can be undone, from `from` to before `below`, last first: "3, 1", counted from 1
    /// as people do.
    pub(super) fn undone(self, from: u16, below: u16) -> String {
        let steps = (from..below.min(self.steps)).rev();
        let steps = steps.filter(|at| self.undoable(*at));
        let steps: Vec<String> = steps.map(|at| (at + 1).to_string()).collect();
        steps.join(", ")
    }

    fn undoable(self, index: u16) -> bool {
        self.undo & 1_u32.checked_shl(u32::from(index)).unwrap_or(0) != 0
    }
}

/// What a process that is undone will end as, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fate {
    /// `Failed` or `Cancelled`.
    pub end: State,
    /// How the step ended that led to it.
    pub status: OutcomeStatus,
    /// Its program's exit status, if there was one.
    pub exit_code: Option<i32>,
    /// Its message.
    pub message: String,
    /// Steps from here on were not done.
    pub below: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_says_step_direction_and_run_and_the_first_run_is_as_in_the_protocol() {
        assert_eq!(StepId::forward(3, 0), StepId(3));
        assert_eq!(StepId::undo(3, 0), StepId(0x8003));
        for index in 0..32 {
            for run in [0, 1, 500, RUN_MAX] {
                for step in [StepId::forward(index, run), StepId::undo(index, run)] {
                    assert_eq!((step.index(), step.run()), (index, run));
                    assert_eq!(step.row() & !UNDO, index);
                }
                assert!(StepId::undo(index, run).undoes());
                assert!(!StepId::forward(index, run).undoes());
            }
        }
    }

    #[test]
    fn what_can_be_undone_is_found_in_reverse() {
        let shape = Shape::new(4, 0b0101);
        assert_eq!(shape.last_to_undo(4), Some(2));
        assert_eq!(shape.last_to_undo(2), Some(0));
        assert_eq!(shape.last_to_undo(0), None);
        assert_eq!(shape.undone(0, 4), "3, 1");
        assert_eq!(Shape::ONE.last_to_undo(1), None);
        assert!(Shape::new(32, u32::MAX).last_to_undo(32) == Some(31));
        assert_eq!(
            (Shape::new(0, 0).steps(), Shape::new(99, 0).steps()),
            (1, 32)
        );
    }
}
