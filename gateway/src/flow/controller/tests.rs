use super::*;

/// A target with `slots`, processor sharing above them; exact, without noise unless asked for.
struct Target {
    now: Instant,
    slots: f64,
    gamma: f64,
    seconds: f64,
}

impl Target {
    fn new(slots: f64) -> Self {
        Self {
            now: epoch(),
            slots,
            gamma: 0.05,
            seconds: 2.0,
        }
    }

    /// How much slower than alone each of `flight` operations is.
    fn stretch(&self, flight: f64) -> f64 {
        let over = (flight - self.slots).max(0.0) / self.slots;
        (flight / self.slots).max(1.0) * (1.0 + self.gamma * over)
    }

    /// So many operations end, one after the other, with the limit always used up.
    fn run(&mut self, controller: &mut Controller, bounds: &Bounds, ends: u32) {
        for _ in 0..ends {
            let flight = controller.limit(bounds);
            self.end(controller, bounds, flight, 0);
        }
    }

    fn end(&mut self, controller: &mut Controller, bounds: &Bounds, flight: u32, kind: u32) {
        let factor = if kind == 0 { 1.0 } else { 10.0 };
        let service = self.seconds * factor * self.stretch(f64::from(flight));
        self.now += Duration::from_secs_f64(service / f64::from(flight));
        let sample = Sample {
            kind,
            service: Duration::from_secs_f64(service),
            end: End::Ran,
            in_flight: flight,
        };
        controller.handle_end(self.now, bounds, &sample);
    }
}

#[expect(clippy::disallowed_methods, reason = "a beginning for made-up clocks")]
fn epoch() -> Instant {
    Instant::now()
}

fn busy(controller: &mut Controller, now: Instant, bounds: &Bounds) {
    let sample = Sample {
        kind: 0,
        service: Duration::ZERO,
        end: End::Busy,
        in_flight: controller.limit(bounds),
    };
    controller.handle_end(now, bounds, &sample);
}

const WIDE: Bounds = Bounds::up_to(64);

#[test]
fn an_idle_controller_is_eight_bytes_and_a_rested_one_sixteen_more() {
    assert_eq!(size_of::<Controller>(), 8);
    assert_eq!(size_of::<Known>(), 16);
    assert!(size_of::<Learnt>() <= 640, "{}", size_of::<Learnt>());
    let mut controller = Controller::new();
    assert!(controller.0.is_none());
    assert_eq!(controller.limit(&WIDE), 2);
    let mut target = Target::new(8.0);
    target.run(&mut controller, &WIDE, 500);
    let limit = controller.limit(&WIDE);
    let rested = controller.poll_timeout().expect("it works");
    assert!(rested > target.now);
    controller.handle_timeout(target.now + REST, &WIDE);
    assert!(controller.learnt().is_none(), "it keeps what it learnt");
    assert_eq!(controller.poll_timeout(), None);
    assert_eq!(controller.limit(&WIDE), limit);
}

#[test]
fn a_new_target_is_found_by_doubling_and_kept_a_little_above_its_capacity() {
    for slots in [1.0, 3.0, 8.0, 40.0] {
        let mut controller = Controller::new();
        let mut target = Target::new(slots);
        let bounds = Bounds::up_to(1000);
        target.run(&mut controller, &bounds, 6000);
        let limit = f64::from(controller.limit(&bounds));
        // The limit sways by an eighth.
        let range = (slots * 0.85).floor()..=(slots * 1.3 + 2.0);
        assert!(range.contains(&limit), "{limit} for {slots} slots");
    }
}

#[test]
fn a_smaller_capacity_is_followed_within_three_windows() {
    let mut controller = Controller::new();
    let mut target = Target::new(8.0);
    target.run(&mut controller, &WIDE, 2000);
    target.slots = 4.0;
    target.run(&mut controller, &WIDE, 3 * 48);
    let limit = controller.limit(&WIDE);
    assert!((3..=6).contains(&limit), "{limit}");
}

#[test]
fn a_larger_capacity_is_followed_within_a_few_ends() {
    let mut controller = Controller::new();
    let mut target = Target::new(4.0);
    target.run(&mut controller, &WIDE, 2000);
    target.slots = 8.0;
    // An alarm at the latest when the limit sways up, two windows to double it.
    target.run(&mut controller, &WIDE, 110);
    let limit = controller.limit(&WIDE);
    assert!((7..=13).contains(&limit), "{limit}");
    let decision = controller.last_decision().expect("it decided");
    assert!(decision.to >= 7.0, "{decision:?}");
}

#[test]
fn quick_ends_that_leave_the_limit_unused_are_no_reason_to_grow() {
    let mut controller = Controller::new();
    let mut target = Target::new(8.0);
    target.run(&mut controller, &WIDE, 2000);
    let before = controller.limit(&WIDE) + 1;
    // Much larger, but nobody asks for more than half of the limit.
    target.slots = 64.0;
    for _ in 0..500 {
        target.end(&mut controller, &WIDE, before / 2, 0);
    }
    assert!(controller.limit(&WIDE) <= before + 2, "{before}");
}

#[test]
fn a_leap_stays_within_the_bounds() {
    let mut controller = Controller::new();
    let mut target = Target::new(4.0);
    let bounds = Bounds::up_to(6);
    target.run(&mut controller, &bounds, 2000);
    target.slots = 64.0;
    for _ in 0..500 {
        target.run(&mut controller, &bounds, 1);
        assert!(controller.limit(&bounds) <= 6);
        assert!(controller.known_limit().is_some_and(|known| known <= 6));
    }
    assert_eq!(controller.limit(&bounds), 6);
}

#[test]
fn operations_that_became_slower_for_their_own_reason_keep_their_limit() {
    let mut controller = Controller::new();
    let mut target = Target::new(8.0);
    target.run(&mut controller, &WIDE, 2000);
    target.seconds = 6.0;
    target.run(&mut controller, &WIDE, 600);
    let limit = controller.limit(&WIDE);
    assert!(limit >= 7, "{limit}");
    // And when they are fast again, the high baseline is no licence to overload.
    target.seconds = 2.0;
    target.run(&mut controller, &WIDE, 800);
    let mut limits = 0;
    for _ in 0..40 {
        target.run(&mut controller, &WIDE, 5);
        limits += controller.limit(&WIDE);
    }
    let limit = f64::from(limits) / 40.0;
    assert!((7.0..=11.5).contains(&limit), "{limit}");
}

#[test]
fn without_demand_nothing_is_learnt_and_the_limit_does_not_grow() {
    let mut controller = Controller::warm(8);
    let mut target = Target::new(8.0);
    for _ in 0..500 {
        target.end(&mut controller, &WIDE, 3, 0);
    }
    assert_eq!(controller.limit(&WIDE), 8);
}

#[test]
fn a_change_of_the_mix_is_no_congestion() {
    let mut controller = Controller::new();
    let mut target = Target::new(8.0);
    for n in 0..4000 {
        let flight = controller.limit(&WIDE);
        target.end(&mut controller, &WIDE, flight, n % 2);
    }
    let before = controller.limit(&WIDE);
    // Only the kind that takes ten times as long.
    for _ in 0..100 {
        let flight = controller.limit(&WIDE);
        target.end(&mut controller, &WIDE, flight, 1);
    }
    let after = controller.limit(&WIDE);
    assert!(after + 2 >= before, "{before} then {after}");
    let expected = controller.expected(1).expect("known").as_secs_f64();
    assert!((15.0..=25.0).contains(&expected), "{expected}");
}

#[test]
fn a_refusal_cuts_once_however_often_it_is_said() {
    let mut controller = Controller::new();
    let mut target = Target::new(8.0);
    target.run(&mut controller, &WIDE, 2000);
    let before = controller.limit(&WIDE);
    for _ in 0..20 {
        busy(&mut controller, target.now, &WIDE);
    }
    let after = f64::from(controller.limit(&WIDE));
    let expected = f64::from(before) * 0.7;
    assert!((after - expected).abs() <= 1.0, "{before} then {after}");
    assert_eq!(controller.last_decision().map(|d| d.why), Some(Why::Busy));
    busy(&mut controller, target.now + Duration::from_secs(60), &WIDE);
    assert!(f64::from(controller.limit(&WIDE)) < after);
}

#[test]
fn bounds_count_at_once_and_a_pin_stands_still() {
    let mut controller = Controller::warm(20);
    let low = Bounds::up_to(5);
    assert_eq!(controller.limit(&low), 5);
    assert_eq!(controller.limit(&Bounds::up_to(0)), 0);
    let min = Bounds { min: 30, ..WIDE };
    assert_eq!(controller.limit(&min), 30);
    let pinned = Bounds {
        pin: Some(12),
        ..WIDE
    };
    let mut target = Target::new(4.0);
    target.run(&mut controller, &pinned, 1000);
    assert_eq!(controller.limit(&pinned), 12);
    assert_eq!(controller.limit(&WIDE), 20, "a pin teaches nothing");
    let above = Bounds {
        pin: Some(12),
        ..low
    };
    assert_eq!(controller.limit(&above), 5, "the hard cap is above a pin");
}

#[test]
fn an_overdue_window_does_not_ask_for_the_same_time_for_ever() {
    let mut controller = Controller::new();
    let mut target = Target::new(8.0);
    target.end(&mut controller, &WIDE, 1, 0);
    let due = controller.poll_timeout().expect("a window is open");
    controller.handle_timeout(due, &WIDE);
    assert!(controller.poll_timeout().is_some_and(|next| next > due));
}

#[test]
fn more_kinds_than_are_told_apart_share_the_last_place() {
    let mut controller = Controller::new();
    let mut target = Target::new(8.0);
    for kind in (0..40).cycle().take(4000) {
        let flight = controller.limit(&WIDE);
        target.end(&mut controller, &WIDE, flight, kind);
    }
    assert!(controller.expected(39).is_some());
    assert!(controller.limit(&WIDE) >= 2);
}
