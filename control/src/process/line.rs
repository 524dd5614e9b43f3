//! Which line a process waits in: what its step at hand needs permits of, and who goes first.
//!
//! Gateways give permits to lines (`protocol/src/flow.rs`). All of a line is fixed when a process is
//! created, so it can be worked out anew from a process and its plan at any time.

use protocol::flow::{Class as Urgency, Line};
use protocol::limits::{KIND_BYTES_MAX, RESOURCES_MAX};

use super::{Class, PlanStep, Process, StepId};

/// What a step needs besides its agent, as the plan says it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct StepNeeds {
    /// The step's name.
    pub name: String,
    /// What sort of work it is, such as `build`.
    pub class: Option<String>,
    /// Shared things that it uses.
    pub resources: Vec<String>,
}

impl StepNeeds {
    /// What this step needs; what undoes it needs the same.
    pub fn of(step: &PlanStep) -> Self {
        Self {
            name: step.name.clone(),
            class: step.class.clone(),
            resources: step.resources.clone(),
        }
    }
}

impl Process {
    /// The line of its step at hand; `needs`: of that step, if it has a plan.
    pub fn line(&self, needs: Option<&StepNeeds>) -> Line {
        line(&self.kind, &self.tenant, self.class, self.step, needs)
    }
}

/// The line of a step.
///
/// - *Kind*: durations are compared within it. Steps of declared kinds run few drivers, for seconds or
///   for minutes, so it is the process's kind and the step (`vm-create.define`); a process without a
///   plan has its driver. Names that are longer than a kind may be are cut off: what is then called the
///   same is compared with each other.
/// - *Urgency*: the process's class; what undoes a step goes before everything, as it makes room for
///   others.
/// - *Resources*: sorted, each once, at most [`RESOURCES_MAX`] (kinds declare no more).
pub fn line(
    kind: &str,
    tenant: &str,
    class: Class,
    step: StepId,
    needs: Option<&StepNeeds>,
) -> Line {
    let mut line = Line {
        class: urgency(class, step),
        tenant: tenant.to_owned(),
        kind: kind.to_owned(),
        ..Line::default()
    };
    let Some(needs) = needs else {
        return line;
    };
    line.kind = format!("{kind}.{}", needs.name);
    if step.undoes() {
        line.kind.push_str(".undo");
    }
    let end = line.kind.floor_char_boundary(KIND_BYTES_MAX);
    line.kind.truncate(end);
    line.work = needs.class.clone().unwrap_or_default();
    line.resources.clone_from(&needs.resources);
    line.resources.sort_unstable();
    line.resources.dedup();
    line.resources.truncate(RESOURCES_MAX);
    line
}

fn urgency(class: Class, step: StepId) -> Urgency {
    match class {
        _ if step.undoes() => Urgency::System,
        Class::Interactive => Urgency::Interactive,
        Class::Normal => Urgency::Normal,
        Class::Background => Urgency::Background,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(name: &str, resources: &[&str]) -> StepNeeds {
        StepNeeds {
            name: name.to_owned(),
            class: Some("build".to_owned()),
            resources: resources.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn a_driver_waits_in_a_line_that_needs_nothing_but_its_agent() {
        let line = line("exec", "acme", Class::Background, StepId::default(), None);
        assert_eq!(line.class, Urgency::Background);
        assert_eq!((line.tenant.as_str(), line.kind.as_str()), ("acme", "exec"));
        assert!(line.work.is_empty() && line.resources.is_empty());
    }

    #[test]
    fn a_step_waits_in_a_line_of_its_own_and_what_undoes_it_goes_first() {
        let needs = needs("define", &["pool/b", "pool/a", "pool/b"]);
        let of = |step| line("vm-create", "acme", Class::Normal, step, Some(&needs));
        let forward = of(StepId::forward(1, 7));
        assert_eq!(forward.kind, "vm-create.define");
        assert_eq!(forward.work, "build");
        assert_eq!(forward.resources, ["pool/a", "pool/b"]);
        assert_eq!(forward, of(StepId::forward(1, 8)), "a run is no line");
        let undo = of(StepId::undo(1, 7));
        assert_eq!(
            (undo.class, undo.kind.as_str()),
            (Urgency::System, "vm-create.define.undo")
        );
    }

    #[test]
    fn what_a_gateway_would_not_take_is_cut_off() {
        let long = needs(&"s".repeat(64), &["e", "d", "c", "b", "a"]);
        let line = line(
            &"k".repeat(64),
            "t",
            Class::Normal,
            StepId::default(),
            Some(&long),
        );
        assert_eq!(line.kind, "k".repeat(64));
        assert_eq!(line.resources, ["a", "b", "c", "d"]);
    }
}
