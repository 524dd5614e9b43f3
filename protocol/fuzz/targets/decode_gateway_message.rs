#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::frame::{decode_gateway_message, encode_gateway_message};

fuzz_target!(|bytes: &[u8]| drover_protocol_fuzz::frame(
    bytes,
    encode_gateway_message,
    decode_gateway_message
));
