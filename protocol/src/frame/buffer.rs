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
        let announced = self.announced();
        if let Some(bytes) = announced.filter(|bytes| *bytes > max) {
            return Err(DecodeError::TooLarge { bytes, max });
        }
        let start = self.consumed + PREFIX_BYTES;
        let end = announced.map_or(usize::MAX, |len| start + len);
        if end < self.data.len() {
            self.consumed = end;
            return Ok(Some(Bytes::copy_from_slice(&self.data[start..end])));
        }
        if end > self.data.len() {
            // A part of a frame may wait long: it keeps no more memory than it needs.
            self.drop_front(self.consumed);
            return Ok(None);
        }
        // The last bytes held: no heap memory stays behind, and a lone frame is not copied.
        if self.consumed > 0 {
            self.drop_front(start);
            return Ok(Some(Bytes::from(std::mem::take(&mut self.data))));
        }
        let mut frame = Bytes::from(std::mem::take(&mut self.data));
        let _prefix = frame.split_to(PREFIX_BYTES);
        Ok(Some(frame))
    }

    /// Gives back the memory of the first `count` bytes.
    fn drop_front(&mut self, count: usize) {
        if count > 0 {
            self.data.drain(..count);
            self.data.shrink_to_fit();
            self.consumed = 0;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_buffer_holds_no_heap_memory() {
        let mut buffer = FrameBuffer::default();
        for pieces in [
            &[&[2, 0, 0, 0, 7, 7][..]][..],
            &[&[1, 0, 0], &[0, 7, 0, 0, 0, 0]],
        ] {
            pieces.iter().for_each(|piece| buffer.push(piece));
            while let Ok(Some(_)) = buffer.next_frame(10) {}
            assert_eq!((buffer.buffered(), buffer.data.capacity()), (0, 0));
        }
    }

    #[test]
    fn a_lone_frame_is_handed_out_without_a_copy() {
        let mut buffer = FrameBuffer::default();
        buffer.push(&[3, 0, 0, 0, 1, 2, 3]);
        let bytes = buffer.data[PREFIX_BYTES..].as_ptr();
        let frame = buffer.next_frame(10).unwrap().unwrap();
        assert_eq!(frame.as_ptr(), bytes);
    }

    #[test]
    fn a_part_of_a_frame_keeps_no_more_memory_than_it_needs() {
        let mut buffer = FrameBuffer::default();
        let whole = [&100u32.to_le_bytes()[..], &[1; 100]].concat();
        buffer.push(&[&whole[..], &whole, &whole[..7]].concat());
        while let Ok(Some(_)) = buffer.next_frame(100) {}
        assert_eq!((buffer.buffered(), buffer.data.capacity()), (7, 7));
    }

    #[test]
    fn announced_bytes_cost_nothing_before_they_arrive() {
        let mut buffer = FrameBuffer::default();
        buffer.push(&u32::MAX.to_le_bytes());
        for sent in 0..10_000 {
            assert!(buffer.data.capacity() <= 2 * (PREFIX_BYTES + sent).max(PREFIX_BYTES));
            buffer.push(&[0]);
        }
    }

    #[test]
    fn a_frame_in_many_pieces_needs_no_more_room_than_it_has_bytes() {
        let mut buffer = FrameBuffer::default();
        buffer.push(&1000u32.to_le_bytes());
        (0..1000).for_each(|_| buffer.push(&[1]));
        assert_eq!(buffer.data.capacity(), 1004);
    }
}
