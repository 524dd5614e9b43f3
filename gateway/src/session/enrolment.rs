//! One enrolment: one stream, one request, one reply, close. The answer comes from the control
//! plane, by ticket.
//!
//! ```text
//!   AwaitRequest ──request──▶ Asked ──EnrolReply──▶ Replying ──acknowledged──▶ EnrolmentDone
//! ```

use std::time::Instant;

use bytes::Bytes;
use protocol::close::CloseCode;
use protocol::enrol::{EnrolRefusal, EnrolReply, EnrolRequest};
use protocol::frame::{FrameBuffer, decode_enrol_request, encode_enrol_reply};
use protocol::limits::ENROL_FRAME_BYTES_MAX;
use quinn_proto::{Dir, StreamEvent, StreamId};

use super::streams::{Read, Streams, Written};
use super::{Output, READ_CHUNK_BYTES, READ_TURN_BYTES, Violation};

#[derive(Debug)]
enum State {
    AwaitRequest(FrameBuffer),
    Asked,
    Replying(Bytes),
    Over,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Enrolment {
    ticket: u64,
    deadline: Instant,
    stream: Option<StreamId>,
    state: State,
}

impl Enrolment {
    /// An enrolment that must be over by the deadline.
    pub(crate) fn new(ticket: u64, deadline: Instant) -> Self {
        let state = State::AwaitRequest(FrameBuffer::default());
        Self {
            ticket,
            deadline,
            stream: None,
            state,
        }
    }

    /// Names the request towards the control plane.
    pub(crate) fn ticket(&self) -> u64 {
        self.ticket
    }

    /// QUIC says that something changed on a stream.
    pub(crate) fn handle_stream_event(
        &mut self,
        event: StreamEvent,
        streams: &mut impl Streams,
    ) -> Option<Output> {
        match event {
            StreamEvent::Opened { dir: Dir::Bi } if self.stream.is_none() => {
                self.stream = streams.accept();
                self.read(streams)
            }
            StreamEvent::Readable { .. } => self.read(streams),
            StreamEvent::Writable { .. } => {
                self.write(streams);
                None
            }
            StreamEvent::Finished { .. } | StreamEvent::Stopped { .. } => self.over(),
            _ => None,
        }
    }

    /// The control plane's answer, or a refusal of the shard's own.
    pub(crate) fn handle_reply(&mut self, reply: &EnrolReply, streams: &mut impl Streams) {
        if !matches!(self.state, State::Asked) {
            return;
        }
        let mut frame = Vec::new();
        if let Err(error) = encode_enrol_reply(reply, &mut frame) {
            tracing::error!(%error, "the control plane's enrolment reply cannot be sent");
            let unavailable = EnrolReply::Refused(EnrolRefusal::Unavailable);
            if encode_enrol_reply(&unavailable, &mut frame).is_err() {
                return;
            }
        }
        self.state = State::Replying(Bytes::from(frame));
        self.write(streams);
    }

    /// The time has come.
    pub(crate) fn handle_timeout(
        &mut self,
        now: Instant,
        streams: &mut impl Streams,
    ) -> Option<Output> {
        if now < self.deadline {
            return None;
        }
        match self.state {
            // Say so, and give the answer a moment to arrive.
            State::Asked => {
                self.deadline = now + super::LINGER;
                self.handle_reply(&EnrolReply::Refused(EnrolRefusal::Unavailable), streams);
                None
            }
            State::AwaitRequest(_) => {
                self.state = State::Over;
                Some(Violation::new(CloseCode::HelloTimeout, "").into())
            }
            State::Replying(_) | State::Over => self.over(),
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        (!matches!(self.state, State::Over)).then_some(self.deadline)
    }

    fn over(&mut self) -> Option<Output> {
        if !matches!(self.state, State::Replying(_)) {
            return None;
        }
        self.state = State::Over;
        Some(Violation::new(CloseCode::EnrolmentDone, "").into())
    }

    fn read(&mut self, streams: &mut impl Streams) -> Option<Output> {
        let stream = self.stream?;
        let State::AwaitRequest(input) = &mut self.state else {
            return None;
        };
        let output = match request(input, stream, streams) {
            Ok(None) => return None,
            Ok(Some(request)) => {
                self.state = State::Asked;
                Output::Ask(request)
            }
            Err(violation) => {
                self.state = State::Over;
                violation.into()
            }
        };
        Some(output)
    }

    fn write(&mut self, streams: &mut impl Streams) {
        if let (Some(stream), State::Replying(bytes)) = (self.stream, &mut self.state)
            && streams.write(stream, bytes) == Written::All
        {
            streams.finish(stream);
        }
    }
}

/// Reads the one request, if it is whole.
fn request(
    input: &mut FrameBuffer,
    stream: StreamId,
    streams: &mut impl Streams,
) -> Result<Option<Box<EnrolRequest>>, Violation> {
    let mut read = Read::More;
    while read == Read::More && input.buffered() <= READ_TURN_BYTES {
        read = streams.read(stream, input, READ_CHUNK_BYTES);
        if let Some(frame) = input.next_frame(ENROL_FRAME_BYTES_MAX)? {
            return Ok(Some(Box::new(decode_enrol_request(&frame)?)));
        }
    }
    match read {
        Read::Finished | Read::Reset => Err(Violation::new(
            CloseCode::UnexpectedFrame,
            "the stream ended before a request",
        )),
        Read::More | Read::Blocked => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use protocol::frame::{decode_enrol_reply, encode_enrol_request};
    use protocol::limits::ENROLMENT_DEADLINE;

    use super::*;
    use crate::runtime::clock;
    use crate::session::LINGER;
    use crate::session::fake::FakeStreams;

    struct Harness {
        enrolment: Enrolment,
        streams: FakeStreams,
        stream: StreamId,
        now: Instant,
    }

    impl Harness {
        fn new() -> Self {
            let now = clock::now();
            let mut streams = FakeStreams::default();
            let stream = streams.agent_opens();
            let mut enrolment = Enrolment::new(7, now + ENROLMENT_DEADLINE);
            let opened = StreamEvent::Opened { dir: Dir::Bi };
            assert!(
                enrolment
                    .handle_stream_event(opened, &mut streams)
                    .is_none()
            );
            Self {
                enrolment,
                streams,
                stream,
                now,
            }
        }

        fn asked() -> Self {
            let mut harness = Self::new();
            let mut frame = Vec::new();
            let request = EnrolRequest {
                secret: [1; 32],
                csr: vec![0x30; 100],
                hostname: "host".to_owned(),
                software: "test".to_owned(),
            };
            encode_enrol_request(&request, &mut frame).unwrap();
            let half = frame.len() / 2;
            assert!(harness.hear(&frame[..half]).is_none());
            assert!(
                matches!(harness.hear(&frame[half..]), Some(Output::Ask(asked)) if *asked == request)
            );
            harness
        }

        fn hear(&mut self, bytes: &[u8]) -> Option<Output> {
            self.streams
                .get(self.stream)
                .incoming
                .extend_from_slice(bytes);
            let readable = StreamEvent::Readable { id: self.stream };
            self.enrolment
                .handle_stream_event(readable, &mut self.streams)
        }

        fn timeout(&mut self, after: Duration) -> Option<Output> {
            self.enrolment
                .handle_timeout(self.now + after, &mut self.streams)
        }

        fn reply(&self) -> EnrolReply {
            decode_enrol_reply(&self.streams.sent(self.stream)[4..]).unwrap()
        }
    }

    fn code(output: Option<Output>) -> Option<CloseCode> {
        match output {
            Some(Output::Close(code, _)) => Some(code),
            _ => None,
        }
    }

    #[test]
    fn a_reply_is_written_and_the_connection_closed_once_it_has_arrived() {
        let mut harness = Harness::asked();
        let refused = EnrolReply::Refused(EnrolRefusal::UsedToken);
        harness
            .enrolment
            .handle_reply(&refused, &mut harness.streams);
        assert_eq!(harness.reply(), refused);
        assert!(harness.streams.get(harness.stream).finished);
        let other = EnrolReply::Refused(EnrolRefusal::UnknownToken);
        harness.enrolment.handle_reply(&other, &mut harness.streams);
        assert_eq!(harness.reply(), refused, "there is one reply");
        let finished = StreamEvent::Finished { id: harness.stream };
        let output = harness
            .enrolment
            .handle_stream_event(finished, &mut harness.streams);
        assert_eq!(code(output), Some(CloseCode::EnrolmentDone));
        assert_eq!(harness.enrolment.poll_timeout(), None);
    }

    #[test]
    fn without_an_answer_of_the_control_plane_the_newcomer_is_told_so() {
        let mut harness = Harness::asked();
        assert!(
            harness
                .timeout(ENROLMENT_DEADLINE - Duration::from_millis(1))
                .is_none()
        );
        assert!(harness.timeout(ENROLMENT_DEADLINE).is_none());
        assert_eq!(
            harness.reply(),
            EnrolReply::Refused(EnrolRefusal::Unavailable)
        );
        let output = harness.timeout(ENROLMENT_DEADLINE + LINGER);
        assert_eq!(
            code(output),
            Some(CloseCode::EnrolmentDone),
            "acknowledged or not"
        );
    }

    #[test]
    fn a_newcomer_that_says_nothing_is_closed() {
        let mut harness = Harness::new();
        assert_eq!(
            code(harness.timeout(ENROLMENT_DEADLINE)),
            Some(CloseCode::HelloTimeout)
        );
    }

    #[test]
    fn what_follows_the_request_is_not_read() {
        let mut harness = Harness::asked();
        assert!(harness.hear(&[0xff; 100]).is_none());
        assert_eq!(harness.streams.get(harness.stream).incoming.len(), 100);
    }
}
