//! The earliest timer of the store, kept up with every commit, for all process servers on it: whoever has the
//! duty to sweep hears at once of a timer that another one has set. The embedded store has one process, so that
//! all its writes pass here; what other processes set on a server's store is read with each beat of the sweeper.

use tokio::sync::watch;

use super::processes::{Applied, Creation};
use crate::clock::UnixMs;

/// When the earliest timer is due; `None`: there is none.
#[derive(Default)]
pub(super) struct Timers(watch::Sender<Option<UnixMs>>);

impl Timers {
    /// To be told when an earlier one is set than was known.
    pub(super) fn watch(&self) -> watch::Receiver<Option<UnixMs>> {
        self.0.subscribe()
    }

    /// Takes what a commit has done; `swept`: it has looked at timers, and knows the next. To be called in the
    /// order of commits: what is set after the look is not in it.
    pub(super) fn take(&self, applied: &Applied, swept: bool) {
        let steps = applied.steps.iter();
        let steps = steps.filter_map(|effect| effect.now?.due_at);
        let made = applied
            .creations
            .iter()
            .filter_map(|creation| match creation {
                Creation::Created(record) => record.due_at,
                _ => None,
            });
        let set = steps.chain(made).min();
        if swept {
            self.0.send_if_modified(|earliest| {
                *earliest = applied.next_due;
                false
            });
        }
        self.note(set);
    }

    /// There is a timer that is due then.
    pub(super) fn note(&self, due: Option<UnixMs>) {
        let Some(due) = due else { return };
        self.0.send_if_modified(|earliest| {
            let sooner = earliest.is_none_or(|earliest| due < earliest);
            if sooner {
                *earliest = Some(due);
            }
            sooner
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swept(next: Option<u64>) -> Applied {
        Applied {
            next_due: next.map(UnixMs),
            ..Applied::default()
        }
    }

    #[test]
    fn an_earlier_timer_wakes_and_a_look_knows_the_next() {
        let timers = Timers::default();
        let mut watch = timers.watch();
        timers.note(Some(UnixMs(50)));
        assert!(watch.has_changed().unwrap());
        assert_eq!(*watch.borrow_and_update(), Some(UnixMs(50)));
        timers.note(Some(UnixMs(60)));
        timers.note(None);
        assert!(!watch.has_changed().unwrap(), "that is no news");
        timers.take(&swept(Some(60)), true);
        assert!(!watch.has_changed().unwrap(), "nobody need hurry for that");
        assert_eq!(*watch.borrow_and_update(), Some(UnixMs(60)));
        // A commit that has not looked knows nothing of others.
        timers.take(&swept(None), false);
        assert_eq!(*watch.borrow_and_update(), Some(UnixMs(60)));
        timers.take(&swept(None), true);
        assert_eq!(*watch.borrow_and_update(), None);
    }
}
