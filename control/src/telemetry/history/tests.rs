use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// Times of a second, as whoever measures keeps them: since its start.
fn measured(times: &mut Times, micros: &[u64]) -> Option<Cells> {
    let before = times.clone();
    for micros in micros {
        times.record(Duration::from_micros(*micros));
    }
    Cells::since(Some(&before), times.histogram(), times.sum_us())
}

/// The second that ends at `second`.
fn slot(second: u64, counted: Vec<(Series, Cells)>) -> Slot {
    let at = |second: u64| UnixMs(second * 1000);
    Slot::new(at(second - 1), at(second), counted)
}

fn range(from: u64, to: u64) -> (UnixMs, UnixMs) {
    (UnixMs(from * 1000), UnixMs(to * 1000))
}

#[test]
fn an_interval_is_what_came_since_the_last_look() {
    let mut times = Times::new();
    let first = measured(&mut times, &[10, 10, 5000]).unwrap();
    assert_eq!(first.cells, [(10, 2), (4992, 1)]);
    assert_eq!(first.sum_us, 5020);
    assert_eq!(measured(&mut times, &[]), None);
    let second = measured(&mut times, &[10]).unwrap();
    assert_eq!((second.cells, second.sum_us), (vec![(10, 1)], 10));
}

#[test]
fn what_is_older_than_two_minutes_is_kept_in_steps_of_ten_seconds_and_counts_the_same() {
    let mut history = History::default();
    let mut times = Times::new();
    for second in 1..=1000 {
        let cells = measured(&mut times, &[second, 100]).unwrap();
        history.add(slot(second, vec![(3, cells)]));
    }
    assert_eq!(history.fine.len(), FINE_MAX);
    assert_eq!(history.coarse.len(), 88);
    let (since, fine) = history.kept_since().unwrap();
    assert_eq!((since, fine), (UnixMs(0), UnixMs(880_000)));
    let (from, to) = range(0, 1000);
    let found = history.look(&[3], from, to, Some(COARSE));
    assert_eq!(found.times.histogram().len(), 2000);
    assert_eq!(found.times.sum_us(), times.sum_us());
    assert_eq!(found.span, Some((from, to)));
    assert_eq!(found.steps.len(), 100);
    for (at, step) in found.steps.iter().enumerate() {
        assert_eq!(step.from.0, at as u64 * COARSE);
        let count: u64 = step.bins.iter().map(|bin| bin[2]).sum();
        assert_eq!(count, 20);
    }
    // By the second, and only what was asked for.
    let (from, to) = range(990, 995);
    let found = history.look(&[3], from, to, Some(1000));
    assert_eq!(found.steps.len(), 5);
    assert_eq!(found.times.histogram().len(), 10);
    let nothing = history.look(&[4], from, to, Some(1000));
    assert!(nothing.times.histogram().is_empty() && nothing.steps.is_empty());
    assert_eq!(nothing.span, Some((from, to)));
}

#[test]
fn an_hour_is_kept_and_no_more() {
    let mut history = History::default();
    for second in 1..=10_000 {
        history.add(slot(second, Vec::new()));
    }
    let (since, _) = history.kept_since().unwrap();
    assert!((6390..=6410).contains(&(since.0 / 1000)), "{since}");
    assert_eq!(history.coarse.len(), COARSE_MAX);
}

#[test]
fn over_its_bytes_it_forgets_the_oldest() {
    let mut history = History::default();
    // Every bucket of forty histograms, each second: more than any server can.
    let all: Vec<(u32, u32)> = (0..3000).map(|low| (low, 1)).collect();
    for second in 1..=2000 {
        let cells = Cells {
            cells: all.clone(),
            sum_us: 1,
        };
        let counted = (0..40).map(|series| (series, cells.clone())).collect();
        history.add(slot(second, counted));
        assert!(history.bytes <= BYTES_MAX);
    }
    let slots = history.coarse.iter().chain(&history.fine);
    assert_eq!(history.bytes, slots.map(Slot::bytes).sum::<usize>());
    assert!(history.fine.len() > 10);
    assert_eq!(history.fine.back().unwrap().to, UnixMs(2_000_000));
}

#[test]
fn a_clock_that_is_set_back_costs_nothing_that_was_kept() {
    let mut history = History::default();
    let mut times = Times::new();
    for second in (500..600).chain(100..200) {
        let cells = measured(&mut times, &[7]).unwrap();
        history.add(slot(second, vec![(0, cells)]));
    }
    let (from, to) = range(0, 1000);
    let found = history.look(&[0], from, to, None);
    assert_eq!(found.times.histogram().len(), 200);
    let (from, to) = range(100, 150);
    let found = history.look(&[0], from, to, None);
    assert_eq!(found.times.histogram().len(), 50);
}

proptest! {
    /// However seconds are merged and cut into steps: the counts are those of one histogram that
    /// has seen everything, and every time lies within its bin.
    #[test]
    fn nothing_is_lost_or_moved(
        seconds in prop::collection::vec(prop::collection::vec(1u64..700_000_000, 0..20), 1..300),
        step in 1u64..30,
    ) {
        let mut history = History::default();
        let mut whole = Times::new();
        for (second, micros) in (1..).zip(&seconds) {
            let cells = measured(&mut whole, micros);
            history.add(slot(second, cells.map(|cells| (0, cells)).into_iter().collect()));
        }
        let (from, to) = range(0, 301);
        let found = history.look(&[0], from, to, Some(step * COARSE));
        prop_assert_eq!(found.times.histogram(), whole.histogram());
        prop_assert_eq!(found.times.sum_us(), whole.sum_us());
        let mut binned = 0;
        for step in &found.steps {
            for [low, next, count] in &step.bins {
                prop_assert!(low < next && (next - low) * 16 <= (*next).max(16));
                binned += count;
            }
        }
        prop_assert_eq!(binned, whole.histogram().len());
    }
}
