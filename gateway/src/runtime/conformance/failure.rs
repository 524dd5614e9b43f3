//! What happens when something is refused, or a shard dies.

use super::super::launch::{LaunchError, ShardFailure};
use super::super::ring::seccomp::refuse_io_uring;
use super::super::{DatapathKind, ParkKind};
use super::every_combination;
use super::harness::{PATIENCE, Play, Word, client, receive};

every_combination! {
    a_panic_stops_the_other_shards_and_is_reported,
    a_shard_that_returns_early_stops_the_others_and_is_reported,
    a_stopped_gateway_leaves_its_address_free,
}

fn a_panic_stops_the_other_shards_and_is_reported(datapath: DatapathKind, park: ParkKind) {
    let stage = Play {
        shards: 3,
        ..Play::new(datapath, park)
    }
    .start()
    .unwrap();
    stage.shard(1).try_send(Word::Die).ok().unwrap();
    stage.failures.recv_timeout(PATIENCE).unwrap();
    assert!(stage.launched.stop_flag().is_set());
    let failure = stage.launched.stop().unwrap_err();
    assert!(matches!(failure, ShardFailure::Panicked(shard) if shard.0 == 1));
    assert!(stage.failures.try_recv().is_err(), "said once");
}

fn a_shard_that_returns_early_stops_the_others_and_is_reported(
    datapath: DatapathKind,
    park: ParkKind,
) {
    let stage = Play {
        shards: 2,
        ..Play::new(datapath, park)
    }
    .start()
    .unwrap();
    stage.shard(1).try_send(Word::Leave).ok().unwrap();
    stage.failures.recv_timeout(PATIENCE).unwrap();
    let failure = stage.launched.stop().unwrap_err();
    assert!(
        failure
            .to_string()
            .contains("shard 1 failed: a shard leaves on purpose")
    );
}

fn a_stopped_gateway_leaves_its_address_free(datapath: DatapathKind, park: ParkKind) {
    let stage = Play {
        shards: 2,
        ..Play::new(datapath, park)
    }
    .start()
    .unwrap();
    let address = stage.launched.local_addr();
    stage.end();
    std::net::UdpSocket::bind(address).unwrap();
}

/// Runs `test` on a thread that may not use io_uring, as in many containers.
fn without_io_uring(test: impl FnOnce() + Send + 'static) {
    std::thread::spawn(|| {
        refuse_io_uring().unwrap();
        test();
    })
    .join()
    .unwrap();
}

#[test]
fn auto_falls_back_to_poll_where_io_uring_is_refused_and_says_so() {
    without_io_uring(|| {
        for park in [ParkKind::Monoio, ParkKind::Direct] {
            let play = Play {
                echo: true,
                shards: 2,
                ..Play::new(DatapathKind::Auto, park)
            };
            let stage = play.start().unwrap();
            let client = client(stage.launched.local_addr());
            client.send(b"without").unwrap();
            assert_eq!(receive(&client), b"without");
            let stats = stage.stats().datapath;
            assert_eq!((stats.kind, stats.fallback), (DatapathKind::Poll, true));
            stage.end();
        }
    });
}

#[test]
fn uring_by_name_fails_where_it_is_refused_and_says_what_to_do() {
    without_io_uring(|| {
        for park in [ParkKind::Monoio, ParkKind::Direct] {
            let play = Play {
                shards: 2,
                ..Play::new(DatapathKind::Uring, park)
            };
            let error = play.start().err().unwrap();
            assert!(matches!(error, LaunchError::UringRefused(_)));
            assert!(
                error
                    .to_string()
                    .contains("choose the datapath `auto` or `poll`")
            );
        }
    });
}

#[test]
fn auto_is_io_uring_where_that_is_allowed() {
    let stage = Play::new(DatapathKind::Auto, ParkKind::Monoio)
        .start()
        .unwrap();
    let stats = stage.stats().datapath;
    assert_eq!((stats.kind, stats.fallback), (DatapathKind::Uring, false));
    stage.end();
}

#[test]
fn a_number_of_shards_that_makes_no_sense_is_refused() {
    for shards in [0, 65] {
        let play = Play {
            shards,
            ..Play::new(DatapathKind::Auto, ParkKind::Monoio)
        };
        let error = play.start().err().unwrap();
        assert!(error.to_string().contains("1 to 64 shards"));
    }
}
