//! Retries are paid for, whoever makes them: more servers do not try again more.

use loadtest::flow::{Change, Kind, RuleName, Scenario, Score};

use crate::{Seed, seeds};

const HOSTS: usize = 4;
const KINDS: usize = 2;
const SECONDS: f64 = 120.0;

/// What the buckets of all kinds at all hosts let through without a success: 10 at once, and one in a minute.
const FREE: u64 = (HOSTS * KINDS) as u64 * (10 + 2);

/// Of the attempts that end, `share` fail in passing.
fn failing(seed: Seed, share: f64, servers: usize) -> Score {
    let kind = |mean| Kind { mean, share: 0.5 };
    let score = RuleName::Drover.run(&Scenario {
        seed: seed.number,
        hosts: HOSTS,
        servers,
        outstanding: 400,
        kinds: vec![kind(0.5), kind(2.0)],
        changes: vec![(0.0, Change::Failing(share))],
        warm_up: 0.0,
        measured: SECONDS,
        ..Scenario::default()
    });
    println!(
        "seed {seed}, {share} fail, {servers} servers: {} failed, {} tried again, {} succeeded",
        score.failed, score.retries, score.successes
    );
    score
}

#[test]
fn where_everything_fails_a_few_retries_are_made_whatever_the_number_of_servers() {
    for seed in seeds() {
        for servers in [1, 4, 16] {
            let score = failing(seed, 1.0, servers);
            assert_eq!(score.successes, 0);
            // All that is free is used, and nothing beyond it: without a budget there would be two for each process.
            assert!(score.retries <= FREE, "{}", score.retries);
            assert!(score.retries >= FREE * 3 / 4, "{}", score.retries);
            assert!(score.failed >= 2 * score.retries, "{}", score.failed);
        }
    }
}

#[test]
fn where_some_fail_retries_are_a_tenth_of_the_successes_at_most() {
    for seed in seeds() {
        for servers in [1, 4, 16] {
            let score = failing(seed, 0.5, servers);
            let paid = score.successes / 10;
            assert!(score.retries <= FREE + paid, "{}", score.retries);
            assert!(score.retries >= (FREE + paid) * 3 / 4, "{}", score.retries);
        }
    }
}
