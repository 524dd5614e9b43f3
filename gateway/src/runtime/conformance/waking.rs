//! What ends a park, and what does not.

use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use super::super::{DatapathKind, ParkKind, clock};
use super::every_combination;
use super::harness::{Event, Play, Word, client};

every_combination! {
    a_word_from_another_thread_ends_a_park,
    a_wake_in_the_middle_of_a_turn_ends_the_next_park,
    words_to_several_shards_arrive_in_order,
    a_deadline_ends_a_park_and_not_before,
    an_earlier_deadline_replaces_a_later_one,
    an_idle_shard_does_not_wake,
    packets_words_and_deadlines_at_once_lose_nothing,
}

fn a_word_from_another_thread_ends_a_park(datapath: DatapathKind, park: ParkKind) {
    let stage = Play::new(datapath, park).start().unwrap();
    for number in 0..200 {
        stage.tell(Word::Ping(number));
        assert!(matches!(stage.next(), Event::Pong(seen, _) if seen == number));
    }
    stage.end();
}

fn a_wake_in_the_middle_of_a_turn_ends_the_next_park(datapath: DatapathKind, park: ParkKind) {
    let stage = Play::new(datapath, park).start().unwrap();
    for number in 0..50 {
        stage.tell(Word::PingYourself(number));
        assert!(matches!(stage.next(), Event::Pong(seen, _) if seen == number));
    }
    stage.end();
}

fn words_to_several_shards_arrive_in_order(datapath: DatapathKind, park: ParkKind) {
    let stage = Play {
        shards: 2,
        ..Play::new(datapath, park)
    }
    .start()
    .unwrap();
    for number in 0..2000 {
        let shard = (number % 2) as usize;
        let mut word = Word::Ping(number);
        while let Err(full) = stage.shard(shard).try_send(word) {
            word = full.0;
            std::thread::yield_now();
        }
    }
    let mut last = [None; 2];
    for _ in 0..2000 {
        let Event::Pong(number, shard) = stage.next() else {
            panic!("only pongs here")
        };
        let last = &mut last[usize::from(shard.0)];
        assert!(*last < Some(number) && number % 2 == u64::from(shard.0));
        *last = Some(number);
    }
    stage.end();
}

fn a_deadline_ends_a_park_and_not_before(datapath: DatapathKind, park: ParkKind) {
    let stage = Play::new(datapath, park).start().unwrap();
    for millis in [0, 1, 3, 40] {
        let deadline = clock::now() + Duration::from_millis(millis);
        stage.tell(Word::Deadline(deadline));
        assert!(matches!(stage.next(), Event::Woke(at) if at >= deadline));
    }
    stage.end();
}

fn an_earlier_deadline_replaces_a_later_one(datapath: DatapathKind, park: ParkKind) {
    let stage = Play::new(datapath, park).start().unwrap();
    stage.tell(Word::Deadline(clock::now() + Duration::from_secs(3600)));
    stage.tell(Word::Ping(1));
    assert!(matches!(stage.next(), Event::Pong(1, _)));
    let deadline = clock::now() + Duration::from_millis(20);
    stage.tell(Word::Deadline(deadline));
    assert!(matches!(stage.next(), Event::Woke(at) if at >= deadline));
    // The one that moved is done with: another works as well.
    let deadline = clock::now() + Duration::from_millis(20);
    stage.tell(Word::Deadline(deadline));
    assert!(matches!(stage.next(), Event::Woke(at) if at >= deadline));
    stage.end();
}

fn an_idle_shard_does_not_wake(datapath: DatapathKind, park: ParkKind) {
    let stage = Play::new(datapath, park).start().unwrap();
    let client = client(stage.launched.local_addr());
    client.send(b"once").unwrap();
    stage.seen();
    let before = stage.stats().turns;
    assert_eq!(
        stage
            .events
            .recv_timeout(Duration::from_millis(500))
            .unwrap_err(),
        RecvTimeoutError::Timeout
    );
    let after = stage.stats().turns;
    // One turn for the question, and what was left of the first one's wake.
    assert!(
        after - before <= 2,
        "{} turns while nothing happened",
        after - before
    );
    stage.end();
}

fn packets_words_and_deadlines_at_once_lose_nothing(datapath: DatapathKind, park: ParkKind) {
    const ROUNDS: u64 = 300;
    let stage = Play::new(datapath, park).start().unwrap();
    let client = client(stage.launched.local_addr());
    let (mut seen, mut pongs, mut woken) = (0, 0, 0);
    for round in 0..ROUNDS {
        let deadline = clock::now() + Duration::from_micros(round * 7);
        stage.tell(Word::Deadline(deadline));
        for _ in 0..round % 5 {
            client.send(&round.to_be_bytes()).unwrap();
        }
        stage.tell(Word::Ping(round));
        let mut open = 2 + round % 5;
        while open > 0 {
            match stage.next() {
                Event::Seen(..) => seen += 1,
                Event::Pong(..) => pongs += 1,
                Event::Woke(at) => woken += u64::from(at >= deadline),
                other => panic!("unexpected {other:?}"),
            }
            open -= 1;
        }
    }
    assert_eq!((seen, pongs, woken), (ROUNDS / 5 * 10, ROUNDS, ROUNDS));
    stage.end();
}
