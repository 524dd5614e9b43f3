#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::enrol::JoinToken;
use protocol::frame::check_address;
use protocol::identity::SpiffeId;
use protocol::ids::{AgentId, OperationId};

fuzz_target!(|text: &str| {
    drover_protocol_fuzz::text::<JoinToken>(text);
    drover_protocol_fuzz::text::<SpiffeId>(text);
    drover_protocol_fuzz::text::<OperationId>(text);
    drover_protocol_fuzz::text::<AgentId>(text);
    if check_address(text).is_ok() {
        assert!(
            text.rsplit_once(':')
                .is_some_and(|(_, port)| port.parse() != Ok(0u16))
        );
    }
});
