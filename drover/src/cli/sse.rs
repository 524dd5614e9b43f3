//! Server-sent events (WHATWG HTML §9.2): bytes in, events out. No I/O.

/// Longest line that is kept. An event carries at most some 20 KiB of output; an overview has some
/// 240 bytes for each group with the longest name, so this is enough for 30,000 of those.
const LINE_BYTES_MAX: usize = 8 << 20;

/// One event.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct SseEvent {
    /// The last `id` seen, on this event or before.
    pub(crate) id: Option<u64>,
    /// Its `data` lines.
    pub(crate) data: String,
}

/// The stream sent a line without an end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LineTooLong;

/// Collects bytes into events.
#[derive(Debug, Default)]
pub(crate) struct SseParser {
    line: Vec<u8>,
    event: SseEvent,
    has_data: bool,
}

impl SseParser {
    /// Takes bytes as they came and appends the events that they complete.
    pub(crate) fn handle_bytes(
        &mut self,
        bytes: &[u8],
        events: &mut Vec<SseEvent>,
    ) -> Result<(), LineTooLong> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if self.line.len() > LINE_BYTES_MAX || self.event.data.len() > LINE_BYTES_MAX {
                return Err(LineTooLong);
            }
            if self.line.last() == Some(&b'\n') {
                let line = std::mem::take(&mut self.line);
                self.handle_line(&String::from_utf8_lossy(&line), events);
            }
        }
        Ok(())
    }

    fn handle_line(&mut self, line: &str, events: &mut Vec<SseEvent>) {
        let line = line.trim_end_matches(['\n', '\r']);
        if line.is_empty() {
            let data = std::mem::take(&mut self.event.data);
            if std::mem::take(&mut self.has_data) {
                let id = self.event.id;
                events.push(SseEvent { id, data });
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.event.id = value.parse().ok().or(self.event.id),
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
                self.has_data = true;
            }
            // Comments (keep-alive), `event` (repeated inside the data) and `retry`.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pieces: &[&[u8]]) -> Vec<SseEvent> {
        let mut parser = SseParser::default();
        let mut events = Vec::new();
        for piece in pieces {
            parser.handle_bytes(piece, &mut events).unwrap();
        }
        events
    }

    #[test]
    fn events_are_the_same_however_the_bytes_are_cut() {
        let text =
            b": hello\n\nid: 7\nevent: x\ndata: {\"a\":1}\n\ndata: two\r\ndata: lines\r\n\r\n";
        let expected = [
            SseEvent {
                id: Some(7),
                data: "{\"a\":1}".to_owned(),
            },
            SseEvent {
                id: Some(7),
                data: "two\nlines".to_owned(),
            },
        ];
        for cut in 0..text.len() {
            assert_eq!(
                parse(&[&text[..cut], &text[cut..]]),
                expected,
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn an_event_that_was_cut_off_is_not_an_event() {
        assert_eq!(parse(&[b"id: 1\ndata: half"]), []);
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut parser = SseParser::default();
        let block = vec![b'x'; LINE_BYTES_MAX + 1];
        assert_eq!(
            parser.handle_bytes(&block, &mut Vec::new()),
            Err(LineTooLong)
        );
    }
}
