//! An agent's words on top of a client.

use std::collections::HashMap;

use protocol::agent::{AgentMessage, GatewayMessage, Hello, Welcome};
use protocol::frame::{FrameBuffer, decode_gateway_message, encode_agent_message};
use protocol::ids::{AgentId, Epoch, Fence, OperationId};
use protocol::limits::FRAME_BYTES_MAX;
use protocol::operation::{Command, Outcome, OutcomeStatus};
use protocol::version::SUPPORTED;
use quinn_proto::{Dir, StreamId, VarInt};

use super::client::{Client, ClientOptions};

pub(crate) struct Agent {
    pub(crate) client: Client,
    pub(crate) id: AgentId,
    pub(crate) control: StreamId,
    inputs: HashMap<StreamId, FrameBuffer>,
}

pub(crate) fn hello(id: AgentId) -> Hello {
    Hello {
        versions: SUPPORTED,
        agent: id,
        session_count: 1,
        capacity: 4,
        epoch_seen: Epoch(0),
        kinds: vec!["exec".to_owned()],
        open: Vec::new(),
        hostname: "host".to_owned(),
        software: "test".to_owned(),
        labels: Vec::new(),
    }
}

pub(crate) fn outcome() -> Outcome {
    Outcome {
        status: OutcomeStatus::Succeeded,
        exit_code: Some(0),
        message: "done".to_owned(),
        output: bytes::Bytes::from_static(b"output"),
        service_time: std::time::Duration::from_millis(5),
    }
}

impl Agent {
    /// Connects and opens the control stream, without a word.
    pub(crate) fn connect(id: AgentId, options: &ClientOptions) -> Self {
        let mut client = Client::connect(options);
        client.drive(|client| (client.connected || client.lost.is_some()).then_some(()));
        assert!(client.connected, "{:?}", client.lost);
        let control = client.connection.streams().open(Dir::Bi).unwrap();
        Self {
            client,
            id,
            control,
            inputs: HashMap::new(),
        }
    }

    /// Says Hello and waits for the Welcome.
    pub(crate) fn welcome(&mut self, hello: Hello) -> Welcome {
        self.say(self.control, &AgentMessage::Hello(Box::new(hello)));
        match self.next(self.control) {
            GatewayMessage::Welcome(welcome) => *welcome,
            other => panic!("not a Welcome: {other:?}"),
        }
    }

    pub(crate) fn say(&mut self, stream: StreamId, message: &AgentMessage) {
        let mut frame = Vec::new();
        encode_agent_message(message, &mut frame).unwrap();
        self.send(stream, &frame);
    }

    /// Sends raw bytes.
    pub(crate) fn send(&mut self, stream: StreamId, mut bytes: &[u8]) {
        self.client.drive(|client| {
            if client.lost.is_some() {
                return Some(());
            }
            match client.connection.send_stream(stream).write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(quinn_proto::WriteError::Blocked) => {}
                Err(_) => return Some(()),
            }
            bytes.is_empty().then_some(())
        });
        self.client.send_what_there_is();
    }

    pub(crate) fn finish(&mut self, stream: StreamId) {
        self.client.connection.send_stream(stream).finish().unwrap();
        // As an agent that lets go of a stream: what the gateway still says on it is not read.
        drop(
            self.client
                .connection
                .recv_stream(stream)
                .stop(VarInt::from_u32(0)),
        );
        self.client.send_what_there_is();
    }

    /// The next message on a stream.
    pub(crate) fn next(&mut self, stream: StreamId) -> GatewayMessage {
        let Self { client, inputs, .. } = self;
        let input = inputs.entry(stream).or_default();
        client.drive(|client| {
            assert!(client.lost.is_none(), "lost: {:?}", client.lost);
            read(client, stream, input);
            let frame = input.next_frame(FRAME_BYTES_MAX).unwrap()?;
            Some(decode_gateway_message(&frame).unwrap())
        })
    }

    /// The next command stream with its command.
    pub(crate) fn command(&mut self) -> (StreamId, Epoch, Command) {
        let stream = self
            .client
            .drive(|client| client.connection.streams().accept(Dir::Bi));
        match self.next(stream) {
            GatewayMessage::Command { epoch, command } => (stream, epoch, command),
            other => panic!("not a command: {other:?}"),
        }
    }

    pub(crate) fn accept(&mut self, stream: StreamId, operation: OperationId, fence: Fence) {
        self.say(stream, &AgentMessage::Accepted { operation, fence });
    }

    pub(crate) fn complete(&mut self, stream: StreamId, operation: OperationId, fence: Fence) {
        self.say(
            stream,
            &AgentMessage::Finished {
                operation,
                fence,
                outcome: outcome(),
            },
        );
        self.finish(stream);
    }

    pub(crate) fn close(&mut self, code: u32) {
        let code = VarInt::from_u32(code);
        self.client
            .connection
            .close(super::now(), code, bytes::Bytes::new());
        self.client.send_what_there_is();
    }
}

fn read(client: &mut Client, stream: StreamId, input: &mut FrameBuffer) {
    let mut stream_state = client.connection.recv_stream(stream);
    let Ok(mut chunks) = stream_state.read(true) else {
        return;
    };
    while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
        input.push(&chunk.bytes);
    }
    let _more = chunks.finalize().should_transmit();
}
