//! Transport parameters (RFC 9000 §18) with one of them left out and one added.
//!
//! Peers let each other keep spare connection ids, for a change of address; quinn issues four. Agents
//! do not change theirs (`migration` is off), and every spare id is a frame, a hash and an entry in
//! three tables for as long as the session lives. Without the parameter the limit is 2, the lowest
//! there is: one spare id.
//!
//! quinn-proto acknowledges after 25 ms at the latest, the default, which it does not write. Timers of a
//! shard lie on a grid and come up to [`GRID`] later, and agents must not take an acknowledgement
//! for lost meanwhile: so a server says more.

use std::io::Cursor;

use quinn_proto::coding::Codec as _;
use quinn_proto::transport_parameters::{Error, TransportParameters};
use quinn_proto::{Side, VarInt};

use crate::runtime::wheel::GRID;

/// `active_connection_id_limit`.
const SPARE_IDS: u64 = 0x0e;
/// `max_ack_delay`: id, length, 48 ms.
const ACK_DELAY: [u8; 3] = [0x0b, 1, 48];
const _: () = assert!(25 + GRID.as_millis() < 48);

/// What a server tells its peer.
pub(super) fn write(parameters: &TransportParameters) -> Vec<u8> {
    let mut bytes = Vec::new();
    parameters.write(&mut bytes);
    let mut bytes = without_spare_ids(&bytes).unwrap_or(bytes);
    bytes.extend(ACK_DELAY);
    bytes
}

/// What a client said, as far as a server goes along with it.
///
/// # Errors
/// When quinn refuses what was said.
pub(super) fn read(bytes: &[u8]) -> Result<TransportParameters, Error> {
    let parse = |bytes: &[u8]| TransportParameters::read(Side::Server, &mut Cursor::new(bytes));
    // All of it is checked, also what is left out.
    let said = parse(bytes)?;
    without_spare_ids(bytes).map_or(Ok(said), |rest| parse(&rest))
}

/// `None`: the parameter is not there, or the bytes are no parameters.
fn without_spare_ids(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let begin = bytes.len() - rest.len();
        let id = VarInt::decode(&mut rest).ok()?.into_inner();
        let length = usize::try_from(VarInt::decode(&mut rest).ok()?.into_inner()).ok()?;
        rest = rest.get(length..)?;
        if id == SPARE_IDS {
            let mut kept = bytes[..begin].to_vec();
            kept.extend_from_slice(rest);
            return Some(kept);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// max_idle_timeout, active_connection_id_limit, initial_max_data.
    const SAID: [u8; 11] = [0x01, 2, 0x40, 100, 0x0e, 1, 5, 0x04, 2, 0x44, 0];

    #[test]
    fn only_the_limit_of_spare_ids_is_left_out() {
        let kept = without_spare_ids(&SAID).unwrap();
        assert_eq!(kept, [0x01, 2, 0x40, 100, 0x04, 2, 0x44, 0]);
        assert_eq!(without_spare_ids(&kept), None);
        assert_eq!(read(&SAID), read(&kept));
    }

    #[test]
    fn a_limit_that_is_too_low_is_still_refused() {
        let mut said = SAID;
        said[6] = 1;
        assert!(read(&said).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_understood_as_quinn_does(bytes: Vec<u8>) {
            let quinn = TransportParameters::read(Side::Server, &mut Cursor::new(&bytes));
            prop_assert_eq!(read(&bytes).is_ok(), quinn.is_ok());
        }
    }
}
