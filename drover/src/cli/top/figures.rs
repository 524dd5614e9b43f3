//! The figures that are shown: an overview made harmless, its groups in order, and what some
//! figures were over the last minutes.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, VecDeque};

use control::api::model::overview::{GroupSessions, LatencyOverview, Overview};

use crate::cli::print::harmless;

/// Seconds that the history goes back.
pub(super) const HISTORY_SECONDS: usize = 300;

/// A figure whose course is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Series {
    Sessions,
    Cpu,
    Connects,
    Losses,
    TurnedAway,
    Refusals,
    Handshakes,
    Commands,
    Created,
    Finished,
    Commits,
}

impl Series {
    const COUNT: usize = 11;
    /// What happens per second; what matters most comes first.
    pub(super) const RATES: [Self; 9] = [
        Self::Connects,
        Self::Losses,
        Self::TurnedAway,
        Self::Commands,
        Self::Created,
        Self::Finished,
        Self::Refusals,
        Self::Handshakes,
        Self::Commits,
    ];

    /// What people call it.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::Cpu => "cpu",
            Self::Connects => "connects",
            Self::Losses => "losses",
            Self::TurnedAway => "turned away",
            Self::Refusals => "refusals",
            Self::Handshakes => "handshakes",
            Self::Commands => "commands",
            Self::Created => "processes made",
            Self::Finished => "processes ended",
            Self::Commits => "commits",
        }
    }

    /// Its value now; `None` where the server does not say.
    pub(super) fn of(self, overview: &Overview) -> Option<f64> {
        let rate = |name| overview.rates.get(name).copied();
        match self {
            Self::Sessions => Some(overview.sessions.up as f64),
            Self::Cpu => overview.server.cpu_cores,
            Self::Connects => rate("connects"),
            Self::Losses => rate("losses"),
            Self::TurnedAway => rate("turned_away"),
            Self::Refusals => rate("refusals"),
            Self::Handshakes => rate("admitted"),
            Self::Commands => rate("commands"),
            Self::Created => rate("processes_created"),
            Self::Finished => rate("processes_finished"),
            Self::Commits => rate("commits"),
        }
    }

    /// In the order of their numbers.
    const ALL: [Self; Self::COUNT] = [
        Self::Sessions,
        Self::Cpu,
        Self::Connects,
        Self::Losses,
        Self::TurnedAway,
        Self::Refusals,
        Self::Handshakes,
        Self::Commands,
        Self::Created,
        Self::Finished,
        Self::Commits,
    ];
}

/// How groups are ordered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sort {
    /// Where most agents are missing.
    Missing,
    /// By name, numbers in it by their value.
    Name,
    /// Most sessions first.
    Sessions,
}

impl Sort {
    /// The next one of the circle.
    pub(super) fn next(self) -> Self {
        match self {
            Self::Missing => Self::Name,
            Self::Name => Self::Sessions,
            Self::Sessions => Self::Missing,
        }
    }

    /// What people call it.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing first",
            Self::Name => "by name",
            Self::Sessions => "most sessions first",
        }
    }
}

type Moment = [Option<f64>; Series::COUNT];

/// An overview and what came before it.
#[derive(Clone, Debug)]
pub(super) struct Figures {
    overview: Overview,
    order: Vec<usize>,
    history: VecDeque<Moment>,
    /// Moments ever noted: their number keeps a bucket's contents the same while it moves.
    noted: usize,
}

impl Figures {
    /// The first figures.
    pub(super) fn new(overview: Overview, sort: Sort) -> Self {
        let mut figures = Self {
            overview,
            order: Vec::new(),
            history: VecDeque::new(),
            noted: 0,
        };
        figures.take_in(sort);
        figures
    }

    /// Newer ones.
    pub(super) fn replace(&mut self, overview: Overview, sort: Sort) {
        self.overview = overview;
        self.take_in(sort);
    }

    fn take_in(&mut self, sort: Sort) {
        clean(&mut self.overview);
        self.note(Series::ALL.map(|series| series.of(&self.overview)));
        self.sort(sort);
    }

    /// A second passed without any.
    pub(super) fn skip(&mut self) {
        self.note([None; Series::COUNT]);
    }

    fn note(&mut self, moment: Moment) {
        if self.history.len() == HISTORY_SECONDS {
            self.history.pop_front();
        }
        self.history.push_back(moment);
        self.noted += 1;
    }

    /// Orders the groups.
    pub(super) fn sort(&mut self, sort: Sort) {
        let groups = &self.overview.sessions.by_group;
        let mut order: Vec<usize> = (0..groups.len()).collect();
        order.sort_by(|a, b| match (groups.get(*a), groups.get(*b)) {
            (Some(a), Some(b)) => compare(sort, a, b),
            _ => Ordering::Equal,
        });
        self.order = order;
    }

    /// The overview; all its text may be shown.
    pub(super) fn overview(&self) -> &Overview {
        &self.overview
    }

    /// How many groups there are.
    pub(super) fn groups(&self) -> usize {
        self.order.len()
    }

    /// The group at a place of the order.
    pub(super) fn group(&self, place: usize) -> Option<&GroupSessions> {
        self.overview.sessions.by_group.get(*self.order.get(place)?)
    }

    /// A figure's course in at most `buckets` means of equally many seconds, oldest first; `None`
    /// where nothing is known. Full buckets keep their value for as long as they are there.
    pub(super) fn course(&self, series: Series, buckets: usize) -> Vec<Option<f64>> {
        let size = HISTORY_SECONDS.div_ceil(buckets.max(1));
        let first = self.noted - self.history.len();
        let mut sums: BTreeMap<usize, (f64, u32)> = BTreeMap::new();
        for (place, moment) in self.history.iter().enumerate() {
            let (sum, number) = sums.entry((first + place) / size).or_default();
            if let Some(value) = moment.get(series as usize).copied().flatten() {
                *sum += value;
                *number += 1;
            }
        }
        let means = sums
            .values()
            .map(|(sum, number)| (*number > 0).then(|| sum / f64::from(*number)));
        let surplus = sums.len().saturating_sub(buckets);
        means.skip(surplus).collect()
    }
}

fn compare(sort: Sort, a: &GroupSessions, b: &GroupSessions) -> Ordering {
    let missing = |group: &GroupSessions| Reverse(group.known.saturating_sub(group.up));
    match sort {
        Sort::Missing => missing(a).cmp(&missing(b)),
        Sort::Name => Ordering::Equal,
        Sort::Sessions => b.up.cmp(&a.up),
    }
    .then_with(|| natural(&a.name, &b.name))
}

/// `auto-9` before `auto-10`.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    loop {
        let (x, y) = (number(left), number(right));
        let (order, step) = if x.is_empty() || y.is_empty() {
            let (c, d) = (left.chars().next(), right.chars().next());
            if c.is_none() && d.is_none() {
                return a.cmp(b);
            }
            let step = |c: Option<char>| c.map_or(0, char::len_utf8);
            (c.cmp(&d), (step(c), step(d)))
        } else {
            let [p, q] = [x, y].map(|digits| digits.trim_start_matches('0'));
            (
                p.len().cmp(&q.len()).then_with(|| p.cmp(q)),
                (x.len(), y.len()),
            )
        };
        if order != Ordering::Equal {
            return order;
        }
        left = left.get(step.0..).unwrap_or_default();
        right = right.get(step.1..).unwrap_or_default();
    }
}

fn number(text: &str) -> &str {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.get(..end).unwrap_or_default()
}

/// Every text in it, once, so that nothing that draws can forget to.
fn clean(overview: &mut Overview) {
    let texts = [&mut overview.server.version, &mut overview.server.profile];
    let optional = [&mut overview.store.error, &mut overview.datapath.kind];
    let groups = overview.sessions.by_group.iter_mut();
    let failures = overview.processes.newest_failures.iter_mut();
    texts
        .into_iter()
        .chain(optional.into_iter().flatten())
        .chain(groups.map(|group| &mut group.name))
        .chain(failures.flat_map(|failure| [&mut failure.kind, &mut failure.message]))
        .for_each(|text| *text = harmless(text));
    rename(&mut overview.processes.by_state);
    rename(&mut overview.processes.waiting_on);
    rename::<LatencyOverview>(&mut overview.latency);
}

fn rename<T>(map: &mut BTreeMap<String, T>) {
    *map = std::mem::take(map)
        .into_iter()
        .map(|(name, value)| (harmless(&name), value))
        .collect();
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn names(figures: &Figures) -> Vec<&str> {
        (0..figures.groups())
            .filter_map(|place| Some(figures.group(place)?.name.as_str()))
            .collect()
    }

    #[test]
    fn groups_are_ordered_by_what_is_missing_by_name_and_by_size() {
        let mut overview = sample::overview();
        overview.sessions.by_group = vec![
            sample::group("auto-10", 4, 4),
            sample::group("auto-9", 3, 5),
            sample::group("rack-1", 9, 10),
            sample::group("auto-1", 4, 4),
        ];
        let mut figures = Figures::new(overview, Sort::Missing);
        assert_eq!(names(&figures), ["auto-9", "rack-1", "auto-1", "auto-10"]);
        figures.sort(Sort::Name);
        assert_eq!(names(&figures), ["auto-1", "auto-9", "auto-10", "rack-1"]);
        figures.sort(Sort::Sessions);
        assert_eq!(names(&figures), ["rack-1", "auto-1", "auto-10", "auto-9"]);
        assert!(figures.group(4).is_none());
    }

    #[test]
    fn numbers_in_names_are_compared_by_value_and_the_order_is_total() {
        let mut names = ["b", "a10", "a2", "a02", "a", "", "a2b", "é"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["", "a", "a02", "a2", "a2b", "a10", "b", "é"]);
        let huge = "9".repeat(60);
        assert_eq!(natural(&huge, "10"), Ordering::Greater);
    }

    #[test]
    fn a_course_has_gaps_where_nothing_came_and_no_more_than_it_has_room_for() {
        let mut overview = sample::overview();
        overview.sessions.up = 10;
        let mut figures = Figures::new(overview.clone(), Sort::Name);
        figures.skip();
        overview.sessions.up = 30;
        figures.replace(overview.clone(), Sort::Name);
        let course = figures.course(Series::Sessions, HISTORY_SECONDS);
        assert_eq!(course, [Some(10.0), None, Some(30.0)]);
        assert_eq!(figures.course(Series::Sessions, 1), [Some(20.0)]);
        for _ in 0..2 * HISTORY_SECONDS {
            figures.replace(overview.clone(), Sort::Name);
        }
        for buckets in [1, 7, 60, HISTORY_SECONDS, 1000] {
            let course = figures.course(Series::Sessions, buckets);
            assert!(course.len() <= buckets && course.iter().all(|value| *value == Some(30.0)));
        }
        assert_eq!(figures.course(Series::Sessions, 0).len(), 0);
    }

    #[test]
    fn no_text_of_an_overview_steers_a_terminal() {
        let mut overview = sample::overview();
        let bad = "x\u{1b}[2J\u{202e}\n";
        overview.server.version = bad.to_owned();
        overview.server.profile = bad.to_owned();
        overview.store.error = Some(bad.to_owned());
        overview.datapath.kind = Some(bad.to_owned());
        overview.sessions.by_group = vec![sample::group(bad, 1, 1)];
        overview.processes.by_state = BTreeMap::from([(bad.to_owned(), 1)]);
        overview.processes.waiting_on = BTreeMap::from([(bad.to_owned(), 1)]);
        overview.processes.newest_failures = vec![sample::failure(bad, bad)];
        let latency = overview.latency.values().next().cloned().unwrap();
        overview.latency = BTreeMap::from([(bad.to_owned(), latency)]);
        let shown = serde_json::to_string(Figures::new(overview, Sort::Name).overview()).unwrap();
        for escape in ["\\u001b", "\\n", "\u{202e}"] {
            assert!(!shown.contains(escape), "{shown}");
        }
    }
}
