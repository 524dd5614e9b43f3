//! What goes in and out, and that nothing is lost on the way.

use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use quinn_proto::EcnCodepoint;
use quinn_udp::{RecvMeta, UdpSocketState};

use super::super::{DatapathKind, DatapathStats, ParkKind, UDP_PAYLOAD_BYTES_MAX};
use super::every_combination;
use super::harness::{Play, Stage, Train, Word, client, receive};

every_combination! {
    datagrams_come_back_whole,
    datagrams_come_back_over_ipv6_and_dual_stack,
    a_datagram_that_is_too_long_is_dropped_alone,
    a_long_train_leaves_as_datagrams,
    a_train_that_arrives_is_split,
    congestion_marks_survive_both_ways,
    an_answer_leaves_from_the_address_that_was_asked,
    a_stalled_shard_loses_only_what_the_kernel_had_no_room_for,
    more_sends_than_slots_all_arrive,
    a_train_that_offload_cannot_send_goes_one_by_one,
    a_refused_destination_harms_nobody,
    what_is_discarded_leaves_only_if_it_has_left_already,
}

fn echo(datapath: DatapathKind, park: ParkKind, listen: &'static str) -> Stage {
    Play {
        echo: true,
        listen,
        ..Play::new(datapath, park)
    }
    .start()
    .unwrap()
}

fn datagrams_come_back_whole(datapath: DatapathKind, park: ParkKind) {
    let stage = echo(datapath, park, "127.0.0.1:0");
    let client = client(stage.launched.local_addr());
    for len in [1, 2, 21, 100, 1199, 1200, 1201, UDP_PAYLOAD_BYTES_MAX] {
        let payload: Vec<u8> = (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect();
        client.send(&payload).unwrap();
        assert_eq!(receive(&client), payload);
    }
    let counters = stage.stats();
    let stats = counters.datapath;
    assert_eq!(
        (stats.datagrams_in, stats.datagrams_out, counters.seen),
        (8, 8, 8)
    );
    assert_eq!(stats.bytes_in, stats.bytes_out);
    assert_eq!((stats.kind, stats.fallback), (datapath, false));
    stage.end();
}

fn datagrams_come_back_over_ipv6_and_dual_stack(datapath: DatapathKind, park: ParkKind) {
    let stage = echo(datapath, park, "[::]:0");
    for address in ["[::1]", "127.0.0.1"] {
        let server = format!("{address}:{}", stage.port()).parse().unwrap();
        let client = client(server);
        client.send(address.as_bytes()).unwrap();
        assert_eq!(receive(&client), address.as_bytes());
    }
    stage.end();
}

fn what_is_discarded_leaves_only_if_it_has_left_already(datapath: DatapathKind, park: ParkKind) {
    let stage = Play::new(datapath, park).start().unwrap();
    let client = client(stage.launched.local_addr());
    let to = client.local_addr().unwrap();
    // More than there are slots, so that one which is not free again would be missed.
    let (count, gone) = match datapath {
        DatapathKind::Poll => (1, 1),
        _ => (5000, 0),
    };
    stage.tell(Word::Discard(to, count));
    stage.tell(Word::Send(Train::one(to, b"good".to_vec())));
    for _ in 0..gone {
        assert_eq!(receive(&client), b"late");
    }
    assert_eq!(receive(&client), b"good");
    let stats = stage.stats().datapath;
    let refused = u64::from(count) - gone;
    assert_eq!(
        (stats.datagrams_out, stats.dropped_out),
        (gone + 1, refused)
    );
    stage.end();
}

fn a_datagram_that_is_too_long_is_dropped_alone(datapath: DatapathKind, park: ParkKind) {
    let stage = echo(datapath, park, "127.0.0.1:0");
    let client = client(stage.launched.local_addr());
    for len in [UDP_PAYLOAD_BYTES_MAX + 1, 2048, 9000, 65_000] {
        client.send(&vec![1; len]).unwrap();
    }
    client.send(b"short").unwrap();
    assert_eq!(receive(&client), b"short");
    let counters = stage.stats();
    let stats = counters.datapath;
    assert_eq!(
        (stats.dropped_in, stats.datagrams_in, counters.seen),
        (4, 1, 1)
    );
    stage.end();
}

fn a_long_train_leaves_as_datagrams(datapath: DatapathKind, park: ParkKind) {
    let stage = Play::new(datapath, park).start().unwrap();
    let client = client(stage.launched.local_addr());
    let to = client.local_addr().unwrap();
    for (len, segment) in [
        (300, 100),
        (10 * 1200, 1200),
        (9 * 1452 + 7, 1452),
        (1301, 1300),
    ] {
        let payload: Vec<u8> = (0..len)
            .map(|at| u8::try_from(at / segment).unwrap())
            .collect();
        let train = Train {
            segment: Some(segment),
            ..Train::one(to, payload.clone())
        };
        stage.tell(Word::Send(train));
        for piece in payload.chunks(segment) {
            assert_eq!(receive(&client), piece);
        }
    }
    let stats = stage.stats().datapath;
    assert_eq!(
        (stats.datagrams_out, stats.gso_fallbacks),
        (3 + 10 + 10 + 2, 0)
    );
    stage.end();
}

fn a_train_that_arrives_is_split(datapath: DatapathKind, park: ParkKind) {
    let stage = Play::new(datapath, park).start().unwrap();
    let client = client(stage.launched.local_addr());
    let state = UdpSocketState::new((&client).into()).unwrap();
    let payload: Vec<u8> = (0..12_000)
        .map(|at| u8::try_from(at / 1200).unwrap())
        .collect();
    let transmit = quinn_udp::Transmit {
        destination: stage.launched.local_addr(),
        ecn: None,
        contents: &payload,
        segment_size: Some(1200),
        src_ip: None,
    };
    state.try_send((&client).into(), &transmit).unwrap();
    for piece in payload.chunks(1200) {
        assert_eq!(&stage.seen().1.payload[..], piece);
    }
    stage.end();
}

fn congestion_marks_survive_both_ways(datapath: DatapathKind, park: ParkKind) {
    let stage = echo(datapath, park, "[::]:0");
    for address in ["[::1]", "127.0.0.1"] {
        let server: SocketAddr = format!("{address}:{}", stage.port()).parse().unwrap();
        let client = client(server);
        let state = UdpSocketState::new((&client).into()).unwrap();
        client.set_nonblocking(false).unwrap();
        for ecn in [EcnCodepoint::Ect0, EcnCodepoint::Ect1, EcnCodepoint::Ce] {
            let mark = quinn_udp::EcnCodepoint::from_bits(ecn as u8);
            let transmit = quinn_udp::Transmit {
                destination: server,
                ecn: mark,
                contents: b"marked",
                segment_size: None,
                src_ip: None,
            };
            state.try_send((&client).into(), &transmit).unwrap();
            assert_eq!(stage.seen().1.ecn, Some(ecn));
            assert_eq!(marked(&state, &client), mark);
        }
        client.send(b"plain").unwrap();
        assert_eq!(stage.seen().1.ecn, None);
        assert_eq!(marked(&state, &client), None);
    }
    stage.end();
}

/// The mark of the next datagram at `client`.
fn marked(state: &UdpSocketState, client: &UdpSocket) -> Option<quinn_udp::EcnCodepoint> {
    let mut buffer = [0; 4096];
    let mut meta = [RecvMeta::default()];
    let taken = state.recv(
        client.into(),
        &mut [IoSliceMut::new(&mut buffer)],
        &mut meta,
    );
    assert_eq!(taken.unwrap(), 1);
    meta[0].ecn
}

fn an_answer_leaves_from_the_address_that_was_asked(datapath: DatapathKind, park: ParkKind) {
    let stage = echo(datapath, park, "0.0.0.0:0");
    let asked: SocketAddr = format!("127.0.0.77:{}", stage.port()).parse().unwrap();
    // Connected, so that an answer from 127.0.0.1 would not reach it.
    let client = client(asked);
    client.send(b"who?").unwrap();
    assert_eq!(receive(&client), b"who?");
    assert_eq!(stage.seen().1.local_ip, Some(IpAddr::from([127, 0, 0, 77])));
    stage.end();
}

fn a_stalled_shard_loses_only_what_the_kernel_had_no_room_for(
    datapath: DatapathKind,
    park: ParkKind,
) {
    const DATAGRAMS: u64 = 6000;
    let stage = Play::new(datapath, park).start().unwrap();
    let client = client(stage.launched.local_addr());
    let (resume, stalled) = std::sync::mpsc::channel();
    stage.tell(Word::Stall(stalled));
    for number in 0..DATAGRAMS {
        client.send(&number.to_be_bytes()).unwrap();
    }
    drop(resume);
    let (mut seen, mut stats) = (0, DatapathStats::default());
    while seen + stats.kernel_dropped_in < DATAGRAMS {
        let counters = stage.stats();
        stats = counters.datapath;
        seen += counters.seen;
    }
    assert_eq!(stats.dropped_in, 0);
    if datapath == DatapathKind::Uring {
        assert!(stats.receive_stalls > 0, "the buffers should have run out");
    }
    // And it goes on.
    client.send(b"after").unwrap();
    while stage.seen().1.payload[..] != b"after"[..] {}
    stage.end();
}

fn more_sends_than_slots_all_arrive(datapath: DatapathKind, park: ParkKind) {
    const DATAGRAMS: u32 = 3000;
    let stage = Play::new(datapath, park).start().unwrap();
    let client = client(stage.launched.local_addr());
    let to = client.local_addr().unwrap();
    stage.tell(Word::Burst(to, DATAGRAMS));
    for number in 0..DATAGRAMS {
        assert_eq!(receive(&client), number.to_be_bytes());
    }
    let counters = stage.stats();
    assert_eq!(counters.datapath.datagrams_out, u64::from(DATAGRAMS));
    if datapath == DatapathKind::Uring {
        assert!(counters.no_room > 0, "the slots should have run out");
    }
    stage.end();
}

fn a_train_that_offload_cannot_send_goes_one_by_one(datapath: DatapathKind, park: ParkKind) {
    let stage = Play::new(datapath, park).start().unwrap();
    let client = client(stage.launched.local_addr());
    let to = client.local_addr().unwrap();
    assert!(stage.stats().max_segments > 1);
    // More segments than the kernel takes: EINVAL for the train, nothing against its datagrams.
    let payload: Vec<u8> = (0..13_050)
        .map(|at| u8::try_from(at / 100).unwrap())
        .collect();
    let train = Train {
        segment: Some(100),
        ..Train::one(to, payload.clone())
    };
    stage.tell(Word::Send(train));
    for piece in payload.chunks(100) {
        assert_eq!(receive(&client), piece);
    }
    let counters = stage.stats();
    assert_eq!(
        (counters.datapath.gso_fallbacks, counters.max_segments),
        (1, 1)
    );
    assert_eq!(
        (
            counters.datapath.datagrams_out,
            counters.datapath.dropped_out
        ),
        (131, 0)
    );
    stage.end();
}

fn a_refused_destination_harms_nobody(datapath: DatapathKind, park: ParkKind) {
    let stage = echo(datapath, park, "127.0.0.1:0");
    let client = client(stage.launched.local_addr());
    let closed = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let refused = ["127.0.0.1:0", "255.255.255.255:9", "[2001:db8::1]:9"];
    for to in refused {
        stage.tell(Word::Send(Train::one(to.parse().unwrap(), vec![0; 100])));
        let train = Train::one(to.parse().unwrap(), vec![0; 3000]);
        stage.tell(Word::Send(Train {
            segment: Some(1000),
            ..train
        }));
    }
    for _ in 0..3 {
        stage.tell(Word::Send(Train::one(closed, vec![0; 100])));
    }
    for _ in 0..3 {
        client.send(b"still there?").unwrap();
        assert_eq!(receive(&client), b"still there?");
    }
    let stats = stage.stats().datapath;
    assert_eq!(stats.dropped_out, 3 * (1 + 3));
    assert_eq!(stats.gso_fallbacks, 0);
    // Segmentation offload still works.
    let to = client.local_addr().unwrap();
    stage.tell(Word::Send(Train {
        segment: Some(1000),
        ..Train::one(to, vec![0; 3000])
    }));
    for _ in 0..3 {
        assert_eq!(receive(&client).len(), 1000);
    }
    stage.end();
}
