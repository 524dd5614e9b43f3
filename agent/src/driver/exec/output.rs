//! A program's output: passed on piece by piece, and its end kept.

use bytes::Bytes;
use protocol::limits::OUTPUT_BYTES_MAX;
use protocol::operation::{Channel, Progress};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::driver::ProgressSink;

/// The last bytes of a stream, at most `OUTPUT_BYTES_MAX`.
#[derive(Debug, Default)]
pub(super) struct Tail(Vec<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(OUTPUT_BYTES_MAX)..];
        let excess = (self.0.len() + bytes.len()).saturating_sub(OUTPUT_BYTES_MAX);
        self.0.drain(..excess.min(self.0.len()));
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn into_bytes(self) -> Bytes {
        self.0.into()
    }

    /// The last line with words in it.
    pub(super) fn last_line(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.0);
        let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
        Some(line.trim().to_owned())
    }
}

/// Reads to the end. A piece is only read when the one before has left, so that a program that
/// writes faster than the network fills its pipe and waits.
pub(super) async fn pass_on(
    pipe: Option<impl AsyncRead + Unpin>,
    channel: Channel,
    progress: &ProgressSink,
    tail: &mut Tail,
) {
    let Some(mut pipe) = pipe else {
        return;
    };
    let mut buffer = vec![0; OUTPUT_BYTES_MAX];
    // An error on a pipe is its end.
    while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
        tail.push(&buffer[..length]);
        let piece = Progress {
            sequence: 0,
            percent: None,
            message: String::new(),
            channel,
            output: Bytes::copy_from_slice(&buffer[..length]),
        };
        progress.send(piece).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_keeps_the_last_bytes_whatever_the_pieces() {
        for piece in [
            1,
            7,
            OUTPUT_BYTES_MAX - 1,
            OUTPUT_BYTES_MAX,
            3 * OUTPUT_BYTES_MAX,
        ] {
            let all: Vec<u8> = (0..4 * OUTPUT_BYTES_MAX)
                .map(|n| n.to_le_bytes()[0])
                .collect();
            let mut tail = Tail::default();
            all.chunks(piece).for_each(|piece| tail.push(piece));
            assert_eq!(tail.into_bytes(), all[3 * OUTPUT_BYTES_MAX..]);
        }
    }

    #[test]
    fn the_last_line_is_the_last_one_with_words() {
        let mut tail = Tail::default();
        assert_eq!(tail.last_line(), None);
        tail.push(b"one\n  two \n\n");
        assert_eq!(tail.last_line().as_deref(), Some("two"));
    }
}
