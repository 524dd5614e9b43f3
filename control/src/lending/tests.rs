use protocol::flow::lending::Incarnation;

use super::*;
use crate::clock;

fn pool() -> LimitKey {
    LimitKey::Resource("pool/fast".to_owned())
}

fn limit(key: LimitKey, max: u32) -> Limit {
    Limit {
        key,
        min: 0,
        max,
        pin: None,
    }
}

fn duty(now: Instant, term: u32) -> Option<Duty> {
    Some(Duty {
        term,
        until: now + Duration::from_secs(8),
    })
}

/// A lender of 4 permits of one pool, with the duty, past its quiet time.
fn lender(now: Instant) -> Lender {
    let mut lender = Lender::new();
    lender.set_limits(now, &[limit(pool(), 4)]);
    lender.handle_duty(now - Duration::from_secs(6), duty(now, 1));
    lender
}

/// What a home says that holds nothing, uses nothing and wants so many.
fn wants(number: u64, wants: u32) -> Report {
    Report {
        incarnation: Incarnation(1),
        number,
        term: Term(0),
        lease: 0,
        holds: 0,
        in_use: 0,
        wants,
    }
}

fn outputs(lender: &mut Lender) -> Vec<Request> {
    std::iter::from_fn(|| lender.poll_request()).collect()
}

fn report(lender: &mut Lender, now: Instant, shard: u16, report: Report) -> Vec<Request> {
    lender.handle_reported(now, ShardId(shard), 2, &[(pool(), report)]);
    outputs(lender)
}

fn leases(requests: &[Request]) -> Vec<(u16, Lease)> {
    let lend = requests.iter().filter_map(|request| match request {
        Request::Lend { shard, leases } => Some((shard.0, leases[0].1)),
        _ => None,
    });
    lend.collect()
}

/// Both homes answer the new parent; what the first one, which wants two, is lent then.
fn acquaint(lender: &mut Lender, now: Instant) -> Vec<(u16, Lease)> {
    let first = report(lender, now, 0, wants(1, 2));
    let asks = Request::AskUse { keys: vec![pool()] };
    assert!(first.contains(&asks), "the other home is not known");
    let [(0, none)] = leases(&first)[..] else {
        panic!("{first:?}");
    };
    assert_eq!((none.credit, none.only_prolongs), (0, true));
    let answer = |number, lease: Lease, wants| Report {
        number,
        term: lease.term,
        lease: lease.number,
        ..self::wants(number, wants)
    };
    report(lender, now, 0, answer(2, none, 2));
    let second = report(lender, now, 1, wants(1, 0));
    let of_second = |(home, lease)| (home == 1).then_some(lease);
    let none = leases(&second).into_iter().find_map(of_second);
    let none = none.expect("the other home is written to as well");
    leases(&report(lender, now, 1, answer(2, none, 0)))
}

#[test]
fn nothing_is_lent_before_every_home_has_answered() {
    let now = clock::monotonic();
    let mut lender = lender(now);
    let lent = acquaint(&mut lender, now);
    let [(0, lease)] = lent[..] else {
        panic!("{lent:?}");
    };
    assert_eq!(
        (lease.credit, lease.answers, lease.only_prolongs),
        (3, 2, false)
    );
    assert_eq!(
        lender.lent(&pool()),
        Some(3),
        "two, and half of what nobody wants"
    );
}

#[test]
fn without_the_duty_or_beyond_it_nothing_is_lent() {
    let now = clock::monotonic();
    let mut none = Lender::new();
    none.set_limits(now, &[limit(pool(), 4)]);
    assert!(report(&mut none, now, 0, wants(1, 2)).is_empty());
    let mut lender = lender(now);
    let late = now + Duration::from_secs(8);
    assert!(report(&mut lender, late, 0, wants(1, 2)).is_empty());
    lender.handle_duty(late, duty(late, 1));
    assert!(
        !report(&mut lender, late, 0, wants(2, 2)).is_empty(),
        "prolonged"
    );
    lender.handle_duty(late, None);
    assert!(
        report(&mut lender, late, 0, wants(3, 2)).is_empty(),
        "another's"
    );
}

#[test]
fn a_new_holder_of_the_duty_waits_for_the_leases_of_the_one_before() {
    let now = clock::monotonic();
    let mut lender = Lender::new();
    lender.set_limits(now, &[limit(pool(), 4)]);
    lender.handle_duty(now, duty(now, 1));
    let early = acquaint(&mut lender, now);
    let only_prolongs = |(_, lease): &(u16, Lease)| lease.only_prolongs && lease.credit == 0;
    assert!(early.iter().all(only_prolongs), "too early: {early:?}");
    let later = now + CREDIT_LEASE + MARGIN;
    assert_eq!(lender.lent(&pool()), Some(0));
    let lent = leases(&report(&mut lender, later, 0, wants(3, 2)));
    assert_eq!(lent[0].1.credit, 3);
}

#[test]
fn limits_that_are_not_set_or_not_used_cost_nothing() {
    let now = clock::monotonic();
    let mut lender = lender(now);
    assert!(report(&mut lender, now, 0, wants(1, 0)).is_empty());
    let other = (LimitKey::Global, wants(2, 5));
    lender.handle_reported(now, ShardId(0), 2, &[other]);
    assert!(lender.parents.is_empty() && outputs(&mut lender).is_empty());
    lender.set_limits(now, &[limit(LimitKey::Work("build".to_owned()), 4)]);
    assert!(!lender.is_wanted(), "each agent's own");
}

#[test]
fn a_limit_that_is_taken_away_and_set_again_begins_with_a_higher_term() {
    let now = clock::monotonic();
    let mut lender = lender(now);
    let before = acquaint(&mut lender, now)[0].1.term;
    lender.set_limits(now, &[]);
    lender.set_limits(now, &[limit(pool(), 1)]);
    let again = leases(&report(&mut lender, now, 0, wants(3, 2)));
    assert!(again[0].1.term > before && again[0].1.credit == 0);
}
