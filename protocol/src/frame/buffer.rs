//! From a stream's pieces to whole frames.

use bytes::Bytes;

use super::DecodeError;

/// The length of the size prefix.
const PREFIX_BYTES: usize = 4;

/// Collects bytes into frames. Holds no heap memory while empty. Never allocates for bytes that
/// are only announced: at most twice what has arrived, and no more than the frame needs.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    data: Vec<u8>,
    /// Bytes at the front of `data` that were handed out already.
    consumed: usize,
}

impl FrameBuffer {
    /// Adds bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let held = self.buffered();
        // Moving the rest to the front pays for itself: it is no more than what was handed out.
        if self.consumed >= held {
            self.data.copy_within(self.consumed.., 0);
            self.data.truncate(held);
            self.consumed = 0;
        }
        let len = self.data.len() + bytes.len();
        if len > self.data.capacity() {
            let whole_frame = self.announced().map_or(0, |n| {
                self.consumed.saturating_add(PREFIX_BYTES).saturating_add(n)
            });
            let doubled = self.data.capacity() * 2;
            let capacity = len.max(doubled.min(whole_frame));
            self.data.reserve_exact(capacity - self.data.len());
        }
        self.data.extend_from_slice(bytes);
    }

    /// The next whole frame without its size prefix.
    ///
    /// # Errors
    /// [`DecodeError::TooLarge`] as soon as a prefix announces more than `max` bytes. The buffer
    /// stays as it is: nothing after such a prefix can be read.
    pub fn next_frame(&mut self, max: usize) -> Result<Option<Bytes>, DecodeError> {
        let Some(len) = self.announced() else {
            return Ok(None);
        };
        if len > max {
            return Err(DecodeError::TooLarge { bytes: len, max });
        }
        let start = self.consumed + PREFIX_BYTES;
        let Some(frame) = self.data.get(start..start + len) else {
            return Ok(None);
        };
        if start + len < self.data.len() {
            let frame = Bytes::copy_from_slice(frame);
            self.consumed = start + len;
            return Ok(Some(frame));
        }
        // The last bytes held: no heap memory stays behind, and a lone frame is not copied.
        let mut data = std::mem::take(&mut self.data);
        self.consumed = 0;
        if start == PREFIX_BYTES {
            let mut frame = Bytes::from(data);
            let _prefix = frame.split_to(PREFIX_BYTES);
            return Ok(Some(frame));
        }
        data.drain(..start);
        data.shrink_to_fit();
        Ok(Some(Bytes::from(data)))
    }

    /// Bytes held.
    pub fn buffered(&self) -> usize {
        self.data.len() - self.consumed
    }

    /// What the prefix in front announces, once it is whole.
    fn announced(&self) -> Option<usize> {
        let prefix = self.data.get(self.consumed..)?.first_chunk()?;
        usize::try_from(u32::from_le_bytes(*prefix)).ok()
    }
}
