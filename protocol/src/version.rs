//! Which version of the agent protocol a session speaks.

/// The versions of the agent protocol that one side speaks: every one from `oldest` to `newest`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VersionRange {
    /// The oldest version spoken.
    pub oldest: u16,
    /// The newest version spoken.
    pub newest: u16,
}

/// What this build speaks. The rule is n and n − 1: when `newest` is raised, `oldest` follows one
/// behind, so that either side of a fleet can be upgraded first.
pub const SUPPORTED: VersionRange = VersionRange {
    oldest: 1,
    newest: 1,
};

const _: () = assert!(
    1 <= SUPPORTED.oldest
        && SUPPORTED.oldest <= SUPPORTED.newest
        && SUPPORTED.newest <= SUPPORTED.oldest + 1
);

/// The two sides have no version in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "no common protocol version: this side speaks {}–{}, the other {}–{}; upgrade the older one",
    ours.oldest, ours.newest, theirs.oldest, theirs.newest
)]
pub struct NoCommonVersion {
    /// What the side that decided speaks.
    pub ours: VersionRange,
    /// What the other side announced.
    pub theirs: VersionRange,
}

impl VersionRange {
    /// The newest version that both sides speak.
    ///
    /// # Errors
    /// [`NoCommonVersion`] when the ranges do not meet or `theirs` is upside down.
    pub fn negotiate(self, theirs: VersionRange) -> Result<u16, NoCommonVersion> {
        let newest = self.newest.min(theirs.newest);
        let oldest = self.oldest.max(theirs.oldest);
        if theirs.oldest <= theirs.newest && oldest <= newest {
            Ok(newest)
        } else {
            Err(NoCommonVersion { ours: self, theirs })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_range() -> impl Strategy<Value = VersionRange> {
        // Narrow, so that ranges meet, touch and miss each other all the time.
        (0u16..12, 0u16..12).prop_map(|(oldest, newest)| range(oldest, newest))
    }

    fn range(oldest: u16, newest: u16) -> VersionRange {
        VersionRange { oldest, newest }
    }

    #[test]
    fn neighbours_agree_on_the_newest_common_version() {
        assert_eq!(range(2, 3).negotiate(range(1, 2)), Ok(2));
        assert_eq!(range(1, 2).negotiate(range(2, 3)), Ok(2));
        assert_eq!(SUPPORTED.negotiate(SUPPORTED), Ok(SUPPORTED.newest));
    }

    proptest! {
        #[test]
        fn both_sides_reach_the_same_answer(ours in any_range(), theirs in any_range()) {
            let (here, there) = (ours.negotiate(theirs), theirs.negotiate(ours));
            prop_assert_eq!(here.ok(), there.ok());
            if let Ok(version) = here {
                prop_assert!((ours.oldest..=ours.newest).contains(&version));
                prop_assert!((theirs.oldest..=theirs.newest).contains(&version));
            }
        }

        #[test]
        fn any_common_version_is_enough_and_the_newest_wins(
            ours in any_range(), theirs in any_range(), version: u16,
        ) {
            let in_both = |v| {
                (ours.oldest..=ours.newest).contains(&v)
                    && (theirs.oldest..=theirs.newest).contains(&v)
            };
            if in_both(version) {
                let agreed = ours.negotiate(theirs).expect("they have one in common");
                prop_assert!(version <= agreed);
            }
        }

        #[test]
        fn one_step_apart_always_works(newest in 2u16..u16::MAX) {
            let (old, new) = (range(newest - 1, newest), range(newest, newest + 1));
            prop_assert_eq!(old.negotiate(new), Ok(newest));
        }
    }

    #[test]
    fn versions_two_apart_and_nonsense_are_refused() {
        assert!(range(3, 4).negotiate(range(1, 2)).is_err());
        assert!(range(1, 2).negotiate(range(2, 1)).is_err());
    }
}
