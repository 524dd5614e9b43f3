//! What lies between a process server and its connection, without a network.

use bytes::Bytes;
use protocol::frame::FrameBuffer;
use protocol::ids::{AgentId, Epoch, Fence, GrantId, GroupId, OperationId, ProcessId, Slot};
use protocol::limits::FRAME_BYTES_MAX;
use protocol::link::Target;
use protocol::operation::Command;

use super::*;

fn link() -> (RemoteLink, Arc<Pipe>) {
    let pipe = Arc::new(Pipe::default());
    let gateway = GatewayId::from_bytes([3; 16]);
    let link = RemoteLink {
        gateway,
        pipe: Arc::clone(&pipe),
    };
    (link, pipe)
}

fn target() -> Target {
    Target {
        agent: AgentId::from_bytes([1; 16]),
        group: GroupId::from_bytes([2; 16]),
        slot: Slot(0),
    }
}

fn dispatch(input: usize) -> Request {
    Request::Dispatch {
        target: target(),
        grant: GrantId(1),
        epoch: Epoch(1),
        command: Box::new(Command {
            operation: OperationId::new(ProcessId::from_bytes([4; 16]), 0),
            fence: Fence(7),
            kind: "exec".to_owned(),
            input: Bytes::from(vec![b' '; input]),
            deadline_ms: 0,
        }),
    }
}

fn received(link: &RemoteLink) -> Vec<Event> {
    let mut out = Vec::new();
    let count = link.receive(&mut out, usize::MAX);
    assert_eq!(count, out.len());
    out
}

/// Takes what waits to be written, as words.
fn said(pipe: &Pipe) -> Vec<ServerWord> {
    let mut buffer = FrameBuffer::default();
    buffer.push(&std::mem::take(&mut *pipe.outbox()));
    let mut words = Vec::new();
    while let Some(bytes) = buffer.next_frame(FRAME_BYTES_MAX).unwrap() {
        words.extend(frame::decode_server_word(&bytes));
    }
    words
}

#[test]
fn an_outbox_without_room_gives_the_request_back_whole() {
    let (link, pipe) = link();
    let mut sent = 0;
    let refused = loop {
        match link.send(dispatch(64 << 10)) {
            Ok(()) => sent += 1,
            Err(LinkFull(request)) => break request,
        }
    };
    assert_eq!(*refused, dispatch(64 << 10));
    assert!(sent >= 60 && pipe.outbox().len() <= OUTBOX_BYTES_MAX + FRAME_BYTES_MAX + 4);
    pipe.outbox().clear();
    assert!(link.send(*refused).is_ok());
}

#[test]
fn a_command_that_no_frame_can_hold_is_not_delivered() {
    let (link, pipe) = link();
    assert!(link.send(dispatch(2 << 20)).is_ok());
    assert!(pipe.outbox().is_empty());
    let [
        Event::NotDelivered {
            fence: Fence(7),
            reason: NotDelivered::TooLarge,
            ..
        },
    ] = received(&link)[..]
    else {
        panic!("its sender is told");
    };
}

#[tokio::test]
async fn an_inbox_without_room_is_waited_for_and_keeps_the_order() {
    let (link, pipe) = link();
    let offer = |n: usize| Event::Offered {
        target: target(),
        grant: GrantId(n.try_into().unwrap()),
        epoch: Epoch(1),
    };
    let count = INBOX_MAX + 10;
    let filling = tokio::spawn({
        let pipe = Arc::clone(&pipe);
        async move {
            for n in 0..count {
                pipe.put(Heard::Event(offer(n)), 1).await;
            }
        }
    });
    let mut heard = Vec::new();
    while heard.len() < count {
        tokio::task::yield_now().await;
        assert!(pipe.inbox().heard.len() <= INBOX_MAX);
        heard.extend(received(&link));
    }
    filling.await.unwrap();
    let in_order: Vec<Event> = (0..count).map(offer).collect();
    assert!(heard == in_order);
    // Few events may be large.
    pipe.put(Heard::Event(offer(0)), INBOX_BYTES_MAX).await;
    let more = pipe.put(Heard::Event(offer(1)), 1);
    assert!(timeout(Duration::from_millis(50), more).await.is_err());
}

#[test]
fn whoever_reads_says_so_and_leads_from_its_place_in_the_order_on() {
    let (link, pipe) = link();
    assert!(!link.leads());
    assert_eq!(received(&link), []);
    assert_eq!(said(&pipe), [ServerWord::Came]);
    assert_eq!(received(&link), []);
    assert_eq!(said(&pipe), [], "not at each turn");
    let agent = AgentId::from_bytes([1; 16]);
    let told = |n| Event::Withdrawn {
        target: Target { agent, ..target() },
        grant: GrantId(n),
    };
    {
        let mut inbox = pipe.inbox();
        let heard = [
            Heard::Event(told(1)),
            Heard::Leads(true),
            Heard::Event(told(2)),
        ];
        inbox.heard.extend(heard.map(|heard| (heard, 0)));
    }
    let mut out = Vec::new();
    assert_eq!(link.receive(&mut out, 1), 1);
    assert!(!link.leads(), "what came before is another one's");
    assert_eq!(link.receive(&mut out, 1), 1);
    assert!(link.leads());
    link.drain();
    assert_eq!(said(&pipe), [ServerWord::Draining]);
}

#[test]
fn what_is_said_to_a_gateway_that_is_gone_goes_nowhere() {
    let (link, pipe) = link();
    pipe.gone.cancel();
    assert!(link.cut_off().is_cancelled());
    assert!(link.send(dispatch(1)).is_ok());
    assert!(pipe.outbox().is_empty());
    assert!(!pipe.left.is_cancelled());
    drop(link);
    assert!(pipe.left.is_cancelled());
}

#[test]
fn an_agent_server_that_was_left_out_for_want_of_the_store_does_not_wait_for_more() {
    let store = |error| AddError::Introduction(StartError::Store(error));
    assert!(is_for_want_of_the_store(&store(StoreError::Unreachable)));
    assert!(is_for_want_of_the_store(&store(StoreError::Busy)));
    let row = StoreError::BadRow("a limit".to_owned());
    assert!(!is_for_want_of_the_store(&store(row)), "that stays so");
    let twice = AddError::Twice("a:7444".to_owned(), "b:7444".to_owned());
    assert!(!is_for_want_of_the_store(&twice));
    let deaf = AddError::Introduction(StartError::Gateway);
    assert!(!is_for_want_of_the_store(&deaf));
}

#[test]
fn silence_begins_with_the_last_packet_and_anew_for_whoever_stood_still() {
    let began = clock::monotonic();
    let mut silence = Silence::new(began, LISTEN_EVERY);
    let mut lasts = |ms, packets| {
        let now = began + Duration::from_millis(ms);
        silence.lasts(packets, now).as_millis()
    };
    assert_eq!(lasts(250, 3), 0);
    assert_eq!(lasts(500, 3), 250);
    assert_eq!(lasts(750, 3), 500);
    assert_eq!(lasts(1000, 4), 0);
    assert_eq!(lasts(1250, 4), 250);
    // It stood still itself: what came meanwhile is not read yet.
    assert_eq!(lasts(9000, 4), 0);
    assert_eq!(lasts(9250, 4), 250);
}
