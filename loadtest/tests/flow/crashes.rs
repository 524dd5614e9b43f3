//! T6: whatever crashes, a permit is never issued twice and none is lost.

use loadtest::flow::{Audit, Spanned, crash, span};

use crate::fresh_seed;

const SCHEDULES: u64 = 10_000;

#[test]
fn no_permit_is_issued_twice_and_none_leaks_in_ten_thousand_crashing_schedules() {
    let fresh = fresh_seed().number.wrapping_mul(1_000_003);
    let halves = [0, fresh];
    let mut wasted = 0;
    for first in halves {
        for seed in (0..SCHEDULES / 2).map(|n| first.wrapping_add(n)) {
            let crashed = crash(seed);
            assert_eq!(crashed.over_issue, 0, "over-issue under seed {seed}");
            assert_eq!(crashed.audit, Audit::default(), "a leak under seed {seed}");
            assert_eq!(
                crashed.repeated, 0,
                "an operation ran twice under seed {seed}"
            );
            wasted += crashed.wasted;
        }
    }
    println!("{SCHEDULES} schedules, {wasted} attempts in vain");
}

/// Limits of a resource, a tenant and of everything, over two homes that crash, as does whoever lends them,
/// while words between them are lost, late and repeated.
#[test]
fn limits_that_span_homes_are_never_passed_and_all_work_ends() {
    let mut faults = 0;
    for seed in 0..400 {
        let spanned = span(seed);
        faults += spanned.faults;
        let right = Spanned {
            faults: spanned.faults,
            ..Spanned::default()
        };
        assert_eq!(spanned, right, "under seed {seed}");
    }
    println!("400 schedules, {faults} faults");
    assert!(faults > 4_000);
}
