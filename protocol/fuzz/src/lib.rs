//! What every target asserts: nothing panics, and what could be read can be written and reads the
//! same again.

use std::fmt::Debug;
use std::fmt::Display;
use std::str::FromStr;

use protocol::frame::{DecodeError, EncodeError};

/// The property of a frame's codec.
pub fn frame<T: PartialEq + Debug>(
    bytes: &[u8],
    encode: fn(&T, &mut Vec<u8>) -> Result<(), EncodeError>,
    decode: fn(&[u8]) -> Result<T, DecodeError>,
) {
    let Ok(value) = decode(bytes) else { return };
    let mut out = Vec::new();
    encode(&value, &mut out).expect("what was read can be written");
    let (prefix, frame) = out.split_first_chunk().expect("a prefix");
    assert_eq!(u32::from_le_bytes(*prefix) as usize, frame.len());
    assert_eq!(decode(frame).expect("what was written can be read"), value);
}

/// The property of a text form.
pub fn text<T: FromStr + Display + PartialEq + Debug>(text: &str)
where
    T::Err: Debug + Display,
{
    match text.parse::<T>() {
        Ok(value) => {
            let again = value.to_string();
            assert_eq!(again.parse::<T>().expect("its own text form"), value);
        }
        Err(error) => assert!(error.to_string().len() < 2_000, "errors stay short"),
    }
}
