//! `FrameBuffer` against the plainest model: all bytes in one vector, frames cut off its front.

use proptest::collection::vec;
use proptest::prelude::*;
use protocol::frame::{DecodeError, FrameBuffer};

fn framed(body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("short");
    [&len.to_le_bytes(), body].concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut(
        bodies in vec(vec(any::<u8>(), 0..50), 0..20),
        cuts in vec(0usize..60, 1..40),
        pull_every in 1usize..5,
    ) {
        let stream: Vec<u8> = bodies.iter().flat_map(|body| framed(body)).collect();
        let mut buffer = FrameBuffer::default();
        let mut got = Vec::new();
        let mut taken = 0;
        let mut rest = &stream[..];
        for (turn, &cut) in cuts.iter().cycle().take(1000).enumerate() {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            buffer.push(piece);
            rest = after;
            if turn % pull_every == 0 {
                while let Some(frame) = buffer.next_frame(1 << 10)? {
                    taken += 4 + frame.len();
                    got.push(frame.to_vec());
                }
            }
            prop_assert_eq!(buffer.buffered(), stream.len() - rest.len() - taken);
        }
        buffer.push(rest);
        while let Some(frame) = buffer.next_frame(1 << 10)? {
            got.push(frame.to_vec());
        }
        prop_assert_eq!(got, bodies);
        prop_assert_eq!(buffer.buffered(), 0);
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_from_its_prefix_alone(
        len in 11u32.., max in 0usize..=10, before in vec(any::<u8>(), 0..10),
    ) {
        let mut buffer = FrameBuffer::default();
        buffer.push(&framed(&before));
        buffer.push(&len.to_le_bytes());
        if before.len() > max {
            prop_assert!(buffer.next_frame(max).is_err());
        } else {
            let first = buffer.next_frame(max)?;
            prop_assert_eq!(first.as_deref(), Some(&before[..]));
            let refused = DecodeError::TooLarge { bytes: len as usize, max };
            prop_assert_eq!(buffer.next_frame(max), Err(refused));
        }
    }

    #[test]
    fn three_bytes_of_a_prefix_say_nothing(bytes in vec(any::<u8>(), 0..4)) {
        let mut buffer = FrameBuffer::default();
        buffer.push(&bytes);
        prop_assert_eq!(buffer.next_frame(0)?, None);
        prop_assert_eq!(buffer.buffered(), bytes.len());
    }
}
