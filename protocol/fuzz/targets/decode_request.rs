#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::frame::{decode_request, encode_request};

fuzz_target!(|bytes: &[u8]| drover_protocol_fuzz::frame(bytes, encode_request, decode_request));
