#![no_main]

//! The input is a script: a limit, then pieces of a stream, each led by its length.

use libfuzzer_sys::fuzz_target;
use protocol::frame::{DecodeError, FrameBuffer};

/// The model: the next frame of everything that has arrived and was not taken.
fn expected(stream: &[u8], max: usize) -> Result<Option<&[u8]>, usize> {
    let Some((prefix, rest)) = stream.split_first_chunk() else {
        return Ok(None);
    };
    let len = u32::from_le_bytes(*prefix) as usize;
    if len > max {
        Err(len)
    } else {
        Ok(rest.get(..len))
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&max, mut script)) = bytes.split_first() else {
        return;
    };
    let max = usize::from(max) * 16;
    let (mut buffer, mut stream) = (FrameBuffer::default(), Vec::new());
    while let Some((&len, rest)) = script.split_first() {
        let (piece, after) = rest.split_at(usize::from(len & 0x7f).min(rest.len()));
        script = after;
        buffer.push(piece);
        stream.extend_from_slice(piece);
        assert_eq!(buffer.buffered(), stream.len());
        if len & 0x80 != 0 {
            continue; // not taken out yet
        }
        loop {
            match (buffer.next_frame(max), expected(&stream, max)) {
                (Ok(Some(frame)), Ok(Some(body))) => {
                    assert_eq!(frame, body);
                    let taken = 4 + frame.len();
                    stream.drain(..taken);
                }
                (Ok(None), Ok(None)) => break,
                (Err(DecodeError::TooLarge { bytes, .. }), Err(len)) if bytes == len => return,
                (got, expected) => panic!("{got:?} instead of {expected:?}"),
            }
        }
        assert_eq!(buffer.buffered(), stream.len());
    }
});
