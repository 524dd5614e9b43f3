#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::frame::{
    decode_gateway_word, decode_server_word, encode_gateway_word, encode_server_word,
};

fuzz_target!(|bytes: &[u8]| {
    drover_protocol_fuzz::frame(bytes, encode_server_word, decode_server_word);
    drover_protocol_fuzz::frame(bytes, encode_gateway_word, decode_gateway_word);
});
