//! When a process that waits for room in a shared limit may start.
//!
//! Lines of processes take turns at a limit, and each end of an operation that counts gives one of them a
//! permit. So the wait is so many ends, at the time that passes between two of them:
//!
//! - of a tenant's operations that time is measured;
//! - of a group's, and of all operations, those at the process's own agent are a fair sample: how long one
//!   takes there is how many run, times what passes between two ends (Little's law);
//! - of a sort of work only where nothing else runs at the agent: a mean over what is quick and what is slow
//!   would promise too much. Of a shared resource it is not known for the same reason.
//!
//! What cannot be said is left out.

use std::time::Duration;

use protocol::flow::{AgentFlow, LimitKey, Parked};

use crate::dispatch::Queued;

/// `lines`: how many are parked on the limit, its own included, where that is known.
pub(super) fn eta(
    queued: &Queued,
    flow: &AgentFlow,
    parked: &Parked,
    lines: Option<u32>,
) -> Option<Duration> {
    if parked.limit == 0 {
        return None;
    }
    let ends = ends(queued.position, parked, lines)?;
    if ends == 0 {
        return Some(Duration::ZERO);
    }
    let each = between_ends(queued, flow, parked)?;
    Some(each.saturating_mul(u32::try_from(ends).unwrap_or(u32::MAX)))
}

/// Operations under the limit that must end before the one at this place of its line has its turn.
fn ends(position: u32, parked: &Parked, lines: Option<u32>) -> Option<u64> {
    let further = u64::from(position.checked_sub(1)?);
    let first = u64::from(parked.before) + 1;
    let later = match further {
        0 => 0,
        further => further * u64::from(lines?).max(first),
    };
    let free = u64::from(parked.limit.saturating_sub(parked.in_use));
    // After a limit was lowered.
    let over = u64::from(parked.in_use.saturating_sub(parked.limit));
    Some((first + later + over).saturating_sub(free))
}

fn between_ends(queued: &Queued, flow: &AgentFlow, parked: &Parked) -> Option<Duration> {
    let at_agent = flow.running.saturating_add(flow.granted);
    match parked.key {
        LimitKey::Tenant(_) => queued.tenant_each,
        LimitKey::Group(_) | LimitKey::Global => {
            let takes = queued.each?.saturating_mul(queued.in_use);
            let each = takes.checked_div(parked.in_use);
            each.filter(|each| !each.is_zero())
        }
        LimitKey::Work(_) => queued.each.filter(|_| parked.in_use >= at_agent),
        LimitKey::Resource(_) | LimitKey::Agent(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::{BTreeMap, BinaryHeap, VecDeque};

    use protocol::ids::{AgentId, GroupId};
    use uuid::Uuid;

    use super::*;

    const GROUP: LimitKey = LimitKey::Group(GroupId(Uuid::from_u128(2)));

    fn queued(position: u32) -> Queued {
        Queued {
            agent: AgentId(Uuid::from_u128(1)),
            capacity: 8,
            in_use: 4,
            line: None,
            position,
            depth: position,
            each: Some(Duration::from_secs(3)),
            tenant_each: Some(Duration::from_secs(5)),
        }
    }

    fn flow(running: u32) -> AgentFlow {
        AgentFlow {
            capacity: 8,
            limit: 8,
            running,
            granted: 0,
            lines: Vec::new(),
            decision: None,
        }
    }

    fn parked(key: LimitKey, limit: u32, in_use: u32, before: u32) -> Parked {
        Parked {
            key,
            limit,
            in_use,
            before,
        }
    }

    fn tenant() -> LimitKey {
        LimitKey::Tenant("acme".to_owned())
    }

    fn seconds(position: u32, parked: &Parked, lines: Option<u32>) -> Option<u64> {
        eta(&queued(position), &flow(4), parked, lines).map(|eta| eta.as_secs())
    }

    #[test]
    fn a_wait_is_so_many_ends_and_lines_take_turns() {
        let full = parked(tenant(), 6, 6, 2);
        assert_eq!(seconds(1, &full, None), Some(15), "two lines before it");
        assert_eq!(
            seconds(3, &full, Some(4)),
            Some(55),
            "and two turns of four"
        );
        assert_eq!(
            seconds(3, &full, Some(1)),
            Some(45),
            "at least those before"
        );
        assert_eq!(seconds(3, &full, None), None, "how many lines is not known");
        assert_eq!(seconds(0, &full, Some(4)), None, "further back than memory");
        let lowered = parked(tenant(), 6, 8, 0);
        assert_eq!(
            seconds(1, &lowered, None),
            Some(15),
            "two too many, and one"
        );
        let free = parked(tenant(), 6, 3, 1);
        assert_eq!(seconds(1, &free, None), Some(0));
        let stopped = parked(tenant(), 0, 0, 0);
        assert_eq!(seconds(1, &stopped, None), None, "no pace ends that");
    }

    #[test]
    fn what_holds_a_limit_is_measured_or_nothing_is_said() {
        // Four run at the agent and one ends every 3 s: each takes 12 s. Of 24 one ends every 0.5 s.
        assert_eq!(seconds(1, &parked(GROUP, 24, 24, 5), None), Some(3));
        let all = parked(LimitKey::Global, 24, 24, 5);
        assert_eq!(seconds(1, &all, None), Some(3));
        let work = |in_use| parked(LimitKey::Work("build".to_owned()), in_use, in_use, 1);
        assert_eq!(
            seconds(1, &work(4), None),
            Some(6),
            "nothing else runs there"
        );
        assert_eq!(seconds(1, &work(2), None), None, "others may be quicker");
        let pool = LimitKey::Resource("pool/fast".to_owned());
        assert_eq!(seconds(1, &parked(pool, 4, 4, 1), None), None);
        let idle = Queued {
            in_use: 0,
            ..queued(1)
        };
        let full = parked(GROUP, 24, 24, 5);
        assert_eq!(eta(&idle, &flow(0), &full, None), None, "no sample");
        let new = Queued {
            each: None,
            tenant_each: None,
            ..queued(1)
        };
        for key in [tenant(), GROUP, LimitKey::Work(String::new())] {
            let parked = parked(key, 4, 4, 1);
            assert_eq!(eta(&new, &flow(4), &parked, None), None, "{parked:?}");
        }
    }

    /// A limit, and `lines` of 200 processes that take turns at it. It is asked when `from` have ended.
    fn model(limit: usize, lines: usize, service: impl Fn(usize) -> u64, from: usize) -> Model {
        let mut waiting: Vec<u32> = vec![0; lines];
        let mut turns: VecDeque<usize> = (0..lines).collect();
        let mut running = BinaryHeap::new();
        let mut model = Model::default();
        let (mut now, mut started) = (0, 0);
        while model.starts.len() < lines * 200 {
            if running.len() == limit {
                let Reverse(end) = running.pop().unwrap();
                now = end;
                model.ended += 1;
            }
            if model.ended == from && model.asked.is_none() {
                model.asked = Some((now, turns.clone(), waiting.clone()));
            }
            let line = turns.pop_front().unwrap();
            turns.push_back(line);
            model.starts.insert((line, waiting[line]), now);
            waiting[line] += 1;
            running.push(Reverse(now + service(started)));
            started += 1;
        }
        model
    }

    #[derive(Default)]
    struct Model {
        /// When the process of this line and place starts, in milliseconds.
        starts: BTreeMap<(usize, u32), u64>,
        ended: usize,
        /// When it is asked, who is next, and how many of each line have started.
        asked: Option<(u64, VecDeque<usize>, Vec<u32>)>,
    }

    #[test]
    fn a_model_of_a_limit_starts_processes_when_it_was_said() {
        let even = |_: usize| 2_000_u64;
        let uneven = |n: usize| [500, 1_000, 2_000, 4_500][n % 4];
        for (limit, lines) in [(1, 1), (4, 3), (10, 7), (16, 2)] {
            check_model(limit, lines, &even, 2.0);
            check_model(limit, lines, &uneven, 4.5);
        }
    }

    /// Of each place in each line: right to within a tenth of the wait and one long operation, `off` seconds.
    fn check_model(limit: usize, lines: usize, service: &dyn Fn(usize) -> u64, off: f64) {
        let model = model(limit, lines, service, 40);
        let (asked, turns, started) = model.asked.clone().unwrap();
        // Both mean services are 2 s.
        let each = Duration::from_secs(2) / u32::try_from(limit).unwrap();
        for (before, line) in turns.iter().enumerate() {
            for position in [1_u32, 2, 5, 20, 100] {
                let limit = u32::try_from(limit).unwrap();
                let parked = parked(tenant(), limit, limit, u32::try_from(before).unwrap());
                let told = Queued {
                    tenant_each: Some(each),
                    ..queued(position)
                };
                let lines = u32::try_from(lines).ok();
                let eta = eta(&told, &flow(4), &parked, lines).unwrap().as_secs_f64();
                let begins = model.starts[&(*line, started[*line] + position - 1)];
                #[expect(clippy::cast_precision_loss, reason = "milliseconds of minutes")]
                let begins = (begins - asked) as f64 / 1000.0;
                assert!(
                    (eta - begins).abs() <= off + begins / 10.0,
                    "limit {limit}, before {before}, position {position}: {eta} s, {begins} s"
                );
            }
        }
    }
}
