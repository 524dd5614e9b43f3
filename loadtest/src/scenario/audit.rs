//! What the store says in the end, held against what the API promised.

use std::collections::HashMap;

use protocol::ids::ProcessId;
use serde::Serialize;

use crate::ledger::End;

/// The store's account beside ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Audit {
    /// Processes in the store.
    pub stored: u64,
    /// Accepted, and not in the store.
    pub missing: u64,
    /// In the store, and never accepted: made twice of one request.
    pub unasked: u64,
    /// Ended otherwise there than the API had told, or not at all.
    pub otherwise: u64,
}

impl Audit {
    /// Compares what the API accepted, and told of each, with what is stored.
    pub(super) fn of(
        accepted: &HashMap<ProcessId, Option<End>>,
        stored: &[(ProcessId, Option<End>)],
    ) -> Self {
        let mut audit = Self {
            stored: stored.len() as u64,
            ..Self::default()
        };
        let mut found = 0;
        for (process, end) in stored {
            match accepted.get(process) {
                None => audit.unasked += 1,
                Some(told) => {
                    found += 1;
                    audit.otherwise += u64::from(told != end || end.is_none());
                }
            }
        }
        audit.missing = accepted.len() as u64 - found;
        audit
    }

    /// What does not fit, in words.
    pub(super) fn violations(&self) -> Vec<String> {
        let counts = [
            (self.missing, "accepted processes are not in the store"),
            (self.unasked, "processes in the store were never accepted"),
            (
                self.otherwise,
                "processes ended otherwise in the store than they were told",
            ),
        ];
        let wrong = counts.into_iter().filter(|(count, _)| *count > 0);
        wrong
            .map(|(count, what)| format!("{count} {what}"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn process(n: u128) -> ProcessId {
        ProcessId(Uuid::from_u128(n))
    }

    #[test]
    fn what_is_missing_unasked_or_otherwise_is_told() {
        let told = [
            (1, Some(End::Succeeded)),
            (2, Some(End::Succeeded)),
            (3, Some(End::Failed)),
            (4, None),
        ];
        let accepted = told.map(|(n, end)| (process(n), end)).into();
        let same = [(process(1), Some(End::Succeeded))];
        let one = HashMap::from(same);
        assert!(Audit::of(&one, &same).violations().is_empty());
        let stored = [
            (process(1), Some(End::Succeeded)),
            (process(2), Some(End::Failed)),
            (process(4), None),
            (process(5), Some(End::Succeeded)),
        ];
        let audit = Audit::of(&accepted, &stored);
        let expected = Audit {
            stored: 4,
            missing: 1,
            unasked: 1,
            otherwise: 2,
        };
        assert_eq!(audit, expected);
        assert_eq!(audit.violations().len(), 3);
    }
}
