//! Limits that span homes: whether this server lends them, and what it sends.

use protocol::flow::Limit;
use protocol::link::Request;

use super::{Core, Moment, beats};
use crate::lending::Duty;

impl Core {
    /// Every operation that may be under way, with its line.
    pub(in crate::dispatch) fn charges(&self) -> Vec<Request> {
        self.fleet.charges()
    }

    /// The limits that operators set from now on. What runs is told with its line before they count:
    /// what came by an offer has none otherwise.
    pub(super) fn tell_limits(&mut self, now: Moment, limits: Vec<Limit>) {
        for charge in self.charges() {
            self.send(charge);
        }
        self.lender.set_limits(now.mono, &limits);
        self.send(Request::SetLimits { limits });
    }

    /// Whether this server wants to be the one that lends.
    pub(in crate::dispatch) fn wants_to_lend(&self) -> bool {
        self.lender.is_wanted()
    }

    /// A beat that began at this moment found that this server lends in this term, or that it does not.
    pub(super) fn take_duty(&mut self, began: Moment, term: Option<u32>) {
        let duty = term.map(|term| Duty {
            term,
            until: began.mono + beats::BELIEF,
        });
        self.lender.handle_duty(began.mono, duty);
    }

    /// Passes on what the lender says.
    pub(super) fn tell_lent(&mut self) {
        while let Some(request) = self.lender.poll_request() {
            self.send(request);
        }
    }
}
