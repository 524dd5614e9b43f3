//! Other servers on the same store, in whose way a server of profile `all` must not get: one that has its agent server
//! to itself takes all groups for it.

use control::store::{Neighbours, Store};

use crate::config::Config;
use crate::fault::{Fault, chain};

/// Refuses to start where groups would be taken from somebody who goes on without knowing. It waits up to five seconds
/// where a server was alive a moment ago.
pub(super) async fn check(config: &Config, store: &Store) -> Result<(), Fault> {
    let found = store.neighbours().await;
    let found = found.map_err(|error| Fault::new(chain(&error)))?;
    judge(found, config.link.connect.is_empty())
}

/// Whether a server may start beside those that were found. `alone`: it names no others in `link.connect`.
pub(crate) fn judge(found: Neighbours, alone: bool) -> Result<(), Fault> {
    match (found, alone) {
        (Neighbours::Nobody, _) | (Neighbours::OfRegistered, false) => Ok(()),
        (Neighbours::OfRegistered | Neighbours::OfTheirOwn, true) => Err(Fault::usage(
            "another server works on this store, and this one would take all agent groups for itself",
        )
        .advise(
            "set link.connect to HOST:PORT of every server's link.listen, the same list in each, and restart them; or \
             give this one a store of its own",
        )),
        (Neighbours::OfTheirOwn, false) => Err(Fault::usage(
            "a server on this store has all agent groups to itself, and does not know of others",
        )
        .advise(
            "stop it, set its link.connect to the same list as here, and start both",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_would_take_groups_from_others_is_told_what_to_set() {
        for alone in [true, false] {
            assert!(judge(Neighbours::Nobody, alone).is_ok());
        }
        assert!(judge(Neighbours::OfRegistered, false).is_ok());
        for (found, alone, words) in [
            (Neighbours::OfRegistered, true, "a store of its own"),
            (Neighbours::OfTheirOwn, true, "a store of its own"),
            (Neighbours::OfTheirOwn, false, "stop it"),
        ] {
            let fault = judge(found, alone).unwrap_err();
            let advice = fault.advice.unwrap();
            assert!(
                advice.contains(words) && advice.contains("link.connect"),
                "{advice}"
            );
        }
    }
}
