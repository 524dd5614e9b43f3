#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::frame::{
    decode_enrol_reply, decode_enrol_request, encode_enrol_reply, encode_enrol_request,
};

fuzz_target!(|bytes: &[u8]| {
    drover_protocol_fuzz::frame(bytes, encode_enrol_request, decode_enrol_request);
    drover_protocol_fuzz::frame(bytes, encode_enrol_reply, decode_enrol_reply);
});
