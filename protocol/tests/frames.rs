//! Every kind of frame: what is written can be read, and nothing that arrives can do harm.

#[path = "support/values.rs"]
mod values;

use std::fmt::Debug;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use protocol::frame::{self, DecodeError, EncodeError};

type Encode<T> = fn(&T, &mut Vec<u8>) -> Result<(), EncodeError>;
type Decode<T> = fn(&[u8]) -> Result<T, DecodeError>;

const PREFIX: usize = 4;

/// Written and read again it is the same, and the prefix says how long it is.
fn round_trip<T: PartialEq + Debug>(
    value: &T,
    encode: Encode<T>,
    decode: Decode<T>,
) -> Result<Vec<u8>, TestCaseError> {
    let mut out = b"before".to_vec();
    encode(value, &mut out).map_err(|e| TestCaseError::fail(e.to_string()))?;
    let framed = out.strip_prefix(b"before").expect("appends only").to_vec();
    let (prefix, frame) = framed.split_at(PREFIX);
    let announced = u32::from_le_bytes(prefix.try_into().expect("four bytes"));
    prop_assert_eq!(announced as usize, frame.len());
    let read = decode(frame).map_err(|e| TestCaseError::fail(e.to_string()))?;
    prop_assert_eq!(&read, value);
    Ok(frame.to_vec())
}

/// Whatever is readable can be written, and reads the same then.
fn stays_readable<T: PartialEq + Debug>(
    bytes: &[u8],
    encode: Encode<T>,
    decode: Decode<T>,
) -> Result<(), TestCaseError> {
    match decode(bytes) {
        Ok(value) => round_trip(&value, encode, decode).map(drop),
        Err(_) => Ok(()),
    }
}

/// Cuts the frame at every length and damages single bytes.
fn survives_damage<T: PartialEq + Debug>(
    frame: &[u8],
    damage: &[(usize, u8)],
    encode: Encode<T>,
    decode: Decode<T>,
) -> Result<(), TestCaseError> {
    for len in 0..frame.len() {
        stays_readable(&frame[..len], encode, decode)?;
    }
    let mut bytes = frame.to_vec();
    for (at, flip) in damage {
        let at = at % frame.len();
        bytes[at] ^= flip;
        stays_readable(&bytes, encode, decode)?;
        bytes[at] = frame[at];
    }
    Ok(())
}

macro_rules! frame_properties {
    ($($name:ident: $strategy:path, $encode:path, $decode:path;)*) => { $(
        mod $name {
            use super::*;

            proptest! {
                #![proptest_config(ProptestConfig::with_cases(96))]

                #[test]
                fn read_again_is_what_was_written(value in $strategy()) {
                    round_trip(&value, $encode, $decode)?;
                }
            }

            proptest! {
                #![proptest_config(ProptestConfig::with_cases(24))]

                #[test]
                fn damaged_is_refused_or_still_valid(
                    value in $strategy(),
                    damage in proptest::collection::vec((any::<usize>(), 1u8..), 200),
                ) {
                    let frame = round_trip(&value, $encode, $decode)?;
                    survives_damage(&frame, &damage, $encode, $decode)?;
                }

                #[test]
                fn noise_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
                    prop_assert!($decode(&bytes).is_err());
                }
            }

            #[test]
            fn too_large_is_refused_unread() {
                let bytes = vec![0; (1 << 20) + 1];
                assert!(matches!($decode(&bytes), Err(DecodeError::TooLarge { .. })));
            }
        }
    )* };
}

frame_properties! {
    agent_message: values::agent_message,
        frame::encode_agent_message, frame::decode_agent_message;
    gateway_message: values::gateway_message,
        frame::encode_gateway_message, frame::decode_gateway_message;
    enrol_request: values::enrol_request,
        frame::encode_enrol_request, frame::decode_enrol_request;
    enrol_reply: values::enrol_reply, frame::encode_enrol_reply, frame::decode_enrol_reply;
    request: values::request, frame::encode_request, frame::decode_request;
    event: values::event, frame::encode_event, frame::decode_event;
    server_word: values::words::server_word, frame::encode_server_word, frame::decode_server_word;
    gateway_word: values::words::gateway_word, frame::encode_gateway_word, frame::decode_gateway_word;
}
