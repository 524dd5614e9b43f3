#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::frame::{decode_agent_message, encode_agent_message};

fuzz_target!(|bytes: &[u8]| drover_protocol_fuzz::frame(
    bytes,
    encode_agent_message,
    decode_agent_message
));
