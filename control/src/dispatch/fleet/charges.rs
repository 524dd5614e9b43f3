//! What operations hold that may be under way, for gateways that do not know it.

use protocol::limits::CHARGES_PER_FRAME_MAX;
use protocol::link::Request;

use super::Fleet;
use crate::dispatch::core::operation;

impl Fleet {
    /// Every operation that agents may know something about, with its line.
    pub(in crate::dispatch) fn charges(&self) -> Vec<Request> {
        let mut requests = Vec::new();
        for member in self.members.values() {
            let all: Vec<_> = member
                .active()
                .iter()
                .filter_map(|(process, active)| {
                    let line = self.lines.get(active.line)?;
                    Some((operation(*process, active.step), (**line).clone()))
                })
                .collect();
            let pieces = all.chunks(CHARGES_PER_FRAME_MAX);
            requests.extend(pieces.map(|piece| Request::Charge {
                target: member.target,
                operations: piece.to_vec(),
            }));
        }
        requests
    }
}
