use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn key(scope: Scope, number: u32) -> Key {
    Key::new(scope, number).expect("a small number")
}

fn vector(keys: &[Key]) -> Vector {
    Vector::new(keys.iter().copied()).expect("few keys")
}

const AGENT: fn(u32) -> Key = |n| key(Scope::Agent, n);
const TENANT: fn(u32) -> Key = |n| key(Scope::Tenant, n);

#[test]
fn keys_sort_by_scope_and_keep_their_number() {
    let number = (1 << NUMBER_BITS) - 1;
    let scopes = [
        Scope::Agent,
        Scope::AgentClass,
        Scope::Resource,
        Scope::Tenant,
        Scope::Group,
        Scope::Global,
    ];
    for scope in scopes {
        let key = key(scope, number);
        assert_eq!((key.scope(), key.number()), (scope, number));
        assert_eq!(Key::new(scope, number + 1), None);
    }
    let given = [key(Scope::Global, 0), AGENT(7), TENANT(1), AGENT(7)];
    let sorted = vector(&given);
    assert_eq!(sorted.keys(), [AGENT(7), TENANT(1), key(Scope::Global, 0)]);
    let many = (0..9).map(AGENT);
    assert_eq!(Vector::new(many), Err(TooManyKeys));
    assert!(Vector::new((0..8).map(AGENT)).is_ok());
}

#[test]
fn all_or_nothing_is_taken_and_the_first_key_without_room_is_named() {
    let mut ledger = Ledger::default();
    let both = vector(&[AGENT(1), TENANT(1)]);
    ledger.set_limit(TENANT(1), Some(0));
    assert_eq!(
        ledger.acquire('a', 0, &both),
        Err(Denied::Parked(TENANT(1)))
    );
    assert_eq!(ledger.used(AGENT(1)), 0);
    ledger.set_limit(AGENT(1), Some(0));
    assert_eq!(ledger.acquire('b', 0, &both), Err(Denied::Parked(AGENT(1))));
}

#[test]
fn the_key_with_room_wakes_in_turn_and_nobody_overtakes() {
    let mut ledger = Ledger::default();
    let one = vector(&[AGENT(1)]);
    ledger.set_limit(AGENT(1), Some(1));
    assert_eq!(ledger.acquire('a', 0, &one), Ok(()));
    for asker in ['b', 'c'] {
        assert!(ledger.acquire(asker, 0, &one).is_err());
    }
    assert_eq!(ledger.position('c'), Some((AGENT(1), 1)));
    ledger.release(&one);
    // A newcomer finds no room: the woken one has a claim on it.
    assert!(ledger.acquire('d', 0, &one).is_err());
    assert_eq!(ledger.poll_wake(), Some('b'));
    assert_eq!(ledger.poll_wake(), None);
    assert_eq!(ledger.acquire('b', 0, &one), Ok(()));
    ledger.release(&one);
    assert_eq!(ledger.poll_wake(), Some('c'));
    ledger.withdraw('c');
    assert_eq!(ledger.poll_wake(), Some('d'));
}

#[test]
fn a_lower_rank_is_woken_first() {
    let mut ledger = Ledger::default();
    let one = vector(&[AGENT(1)]);
    ledger.set_limit(AGENT(1), Some(0));
    for (asker, rank) in [('a', 9), ('b', 1), ('c', 9)] {
        assert!(ledger.acquire(asker, rank, &one).is_err());
    }
    ledger.set_limit(AGENT(1), Some(3));
    let woken: Vec<char> = std::iter::from_fn(|| ledger.poll_wake()).collect();
    assert_eq!(woken, ['b', 'a', 'c']);
}

#[test]
fn a_woken_asker_that_waits_elsewhere_passes_its_place_on_and_keeps_its_turn() {
    let mut ledger = Ledger::default();
    let both = vector(&[AGENT(1), TENANT(1)]);
    let agent = vector(&[AGENT(1)]);
    let tenant = vector(&[TENANT(1)]);
    ledger.set_limit(AGENT(1), Some(1));
    ledger.set_limit(TENANT(1), Some(0));
    assert_eq!(ledger.acquire('x', 0, &agent), Ok(()));
    assert!(ledger.acquire('a', 0, &both).is_err());
    assert!(ledger.acquire('b', 0, &agent).is_err());
    assert!(ledger.acquire('c', 0, &tenant).is_err());
    ledger.release(&agent);
    assert_eq!(ledger.poll_wake(), Some('a'));
    assert_eq!(
        ledger.acquire('a', 0, &both),
        Err(Denied::Parked(TENANT(1)))
    );
    assert_eq!(ledger.position('a'), Some((TENANT(1), 0)), "before 'c'");
    assert_eq!(ledger.poll_wake(), Some('b'));
}

#[test]
fn a_shrinking_limit_drains_and_an_inventory_counts_over_it() {
    let mut ledger = Ledger::default();
    let one = vector(&[AGENT(1)]);
    ledger.set_limit(AGENT(1), Some(3));
    for _ in 0..5 {
        ledger.charge(&one);
    }
    assert_eq!(ledger.used(AGENT(1)), 5);
    assert!(ledger.acquire('a', 0, &one).is_err());
    for _ in 0..2 {
        ledger.release(&one);
        assert_eq!(ledger.poll_wake(), None);
    }
    ledger.release(&one);
    assert_eq!(ledger.poll_wake(), Some('a'));
}

#[test]
fn what_is_not_in_use_costs_nothing() {
    let mut ledger = Ledger::default();
    let both = vector(&[AGENT(1), TENANT(1)]);
    ledger.set_limit(TENANT(1), Some(1));
    assert_eq!(ledger.acquire('a', 0, &both), Ok(()));
    assert!(ledger.acquire('b', 0, &both).is_err());
    ledger.release(&both);
    ledger.withdraw('b');
    ledger.set_limit(TENANT(1), None);
    assert!(ledger.is_idle() && ledger.counts.is_empty() && ledger.places.is_empty());
}

// ——— against a naive model ———

const KEYS: u32 = 4;
const ASKERS: u8 = 6;

#[derive(Clone, Debug)]
enum Step {
    Acquire(u8, u64, u8),
    Release(usize),
    Limit(u32, Option<u32>),
    Withdraw(u8),
    Inventory(u8),
    Retry(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..ASKERS, 0..3_u64, 1..16_u8).prop_map(|(a, r, v)| Step::Acquire(a, r, v)),
        5 => any::<usize>().prop_map(Step::Release),
        3 => (0..KEYS, prop::option::of(0..4_u32)).prop_map(|(k, l)| Step::Limit(k, l)),
        1 => (0..ASKERS).prop_map(Step::Withdraw),
        1 => (1..16_u8).prop_map(Step::Inventory),
        3 => (0..ASKERS).prop_map(Step::Retry),
    ]
}

/// The vector whose keys are the bits of a mask.
fn masked(mask: u8) -> Vector {
    let keys = (0..KEYS).filter(|n| mask >> n & 1 == 1).map(|n| {
        let scopes = [Scope::Agent, Scope::Resource, Scope::Tenant, Scope::Global];
        key(scopes[n as usize % 4], n)
    });
    Vector::new(keys).expect("four keys")
}

#[derive(Default)]
struct Model {
    held: Vec<Vector>,
    limits: BTreeMap<Key, u32>,
    /// What each asker that waits wants.
    wants: BTreeMap<u8, (u64, Vector)>,
}

impl Model {
    fn used(&self, key: Key) -> u32 {
        let held = self.held.iter().filter(|held| held.keys().contains(&key));
        u32::try_from(held.count()).expect("few")
    }

    fn has_room(&self, key: Key) -> bool {
        self.limits
            .get(&key)
            .is_none_or(|limit| self.used(key) < *limit)
    }

    fn ask(&mut self, ledger: &mut Ledger<u8>, asker: u8, rank: u64, vector: Vector) {
        let fits = vector.keys().iter().all(|key| self.has_room(*key));
        match ledger.acquire(asker, rank, &vector) {
            Ok(()) => {
                assert!(fits, "a limit was passed");
                self.held.push(vector);
                self.wants.remove(&asker);
            }
            Err(Denied::Parked(key)) => {
                assert!(vector.keys().contains(&key));
                self.wants.insert(asker, (rank, vector));
            }
            Err(Denied::Full(_)) => panic!("six askers are not too many"),
        }
    }

    /// Every woken asker asks again, until nobody is woken.
    fn handle_wakes(&mut self, ledger: &mut Ledger<u8>) {
        for _ in 0..1000 {
            let Some(asker) = ledger.poll_wake() else {
                return;
            };
            let (rank, vector) = self.wants[&asker];
            self.ask(ledger, asker, rank, vector);
        }
        panic!("askers wake each other for ever");
    }

    fn check(&self, ledger: &Ledger<u8>) {
        for mask in [1, 2, 4, 8] {
            let key = masked(mask).keys()[0];
            assert_eq!(ledger.used(key), self.used(key), "a permit leaked");
            assert!(
                ledger.waiting(key) == 0 || !self.has_room(key),
                "somebody is parked where there is room"
            );
        }
        for asker in self.wants.keys() {
            assert!(ledger.position(*asker).is_some(), "an asker was lost");
        }
    }
}

proptest! {
    #[test]
    fn no_limit_is_passed_nobody_waits_at_room_and_nothing_leaks(
        steps in prop::collection::vec(step(), 1..120)
    ) {
        let (mut ledger, mut model) = (Ledger::default(), Model::default());
        for step in steps {
            match step {
                Step::Acquire(asker, rank, mask) => {
                    model.ask(&mut ledger, asker, rank, masked(mask));
                }
                Step::Retry(asker) => {
                    if let Some((rank, vector)) = model.wants.get(&asker).copied() {
                        model.ask(&mut ledger, asker, rank, vector);
                    }
                }
                Step::Release(place) if !model.held.is_empty() => {
                    let place = place % model.held.len();
                    let vector = model.held.swap_remove(place);
                    ledger.release(&vector);
                }
                Step::Release(_) => {}
                Step::Limit(number, limit) => {
                    let key = masked(1 << number).keys()[0];
                    match limit {
                        Some(limit) => model.limits.insert(key, limit),
                        None => model.limits.remove(&key),
                    };
                    ledger.set_limit(key, limit);
                }
                Step::Withdraw(asker) => {
                    model.wants.remove(&asker);
                    ledger.withdraw(asker);
                }
                Step::Inventory(mask) => {
                    model.held.push(masked(mask));
                    ledger.charge(&masked(mask));
                }
            }
            model.handle_wakes(&mut ledger);
            model.check(&ledger);
        }
        for vector in std::mem::take(&mut model.held) {
            ledger.release(&vector);
        }
        for asker in 0..ASKERS {
            ledger.withdraw(asker);
        }
        prop_assert!(ledger.is_idle(), "something is left");
    }
}
