#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::frame::{decode_event, encode_event};

fuzz_target!(|bytes: &[u8]| drover_protocol_fuzz::frame(bytes, encode_event, decode_event));
