//! What is shown, and what keys and events make of it. No I/O and no clock: a second that passed is
//! an input.

use control::api::model::overview::Overview;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::Size;

use super::figures::{Figures, Sort};
use super::limits::Limits;
use super::view;
use crate::cli::print::harmless;

/// Figures older than this many seconds are told to be old.
const STALE_SECONDS: u64 = 3;

/// A page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Page {
    Fleet,
    Processes,
    Latency,
    Limits,
}

impl Page {
    pub(super) const ALL: [Self; 4] = [Self::Fleet, Self::Processes, Self::Latency, Self::Limits];

    /// Its name.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Fleet => "fleet",
            Self::Processes => "processes",
            Self::Latency => "latency",
            Self::Limits => "limits",
        }
    }

    fn turned(self, by: usize) -> Self {
        let at = Self::ALL.iter().position(|page| *page == self).unwrap_or(0);
        Self::ALL[(at + by) % Self::ALL.len()]
    }
}

/// What happened.
#[derive(Debug)]
pub(super) enum Input {
    /// Newer figures.
    Figures(Box<Overview>),
    /// Newer limits.
    Limits(Box<Limits>),
    /// The connection is lost, and why.
    Lost(String),
    /// A key was pressed.
    Key(KeyEvent),
    /// The terminal has this size.
    Size(Size),
    /// A second passed.
    Second,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Then {
    /// Draw again what has changed.
    Draw,
    /// Draw all of it again: something else wrote onto the screen.
    Repaint,
    /// Nothing that can be seen has changed.
    Wait,
    /// Leave.
    Quit,
}

/// How current the figures are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Freshness {
    /// They come every second.
    Live,
    /// The stream lives, but no figures have come for so many seconds.
    Stale(u64),
    /// There is no stream; why, and seconds since the last figures.
    Lost(String, u64),
}

/// All that a frame is drawn from.
#[derive(Debug)]
pub(super) struct State {
    /// The server's host and port.
    pub(super) address: String,
    /// Whether colours may be used.
    pub(super) colour: bool,
    pub(super) size: Size,
    pub(super) page: Page,
    pub(super) sort: Sort,
    pub(super) help: bool,
    /// Lines of the page's list that are above the first one shown.
    pub(super) scroll: usize,
    live: Figures,
    /// What was live when the display was stopped.
    frozen: Option<Figures>,
    /// The newest limits; none before the first look at their page.
    limits: Option<Box<Limits>>,
    lost: Option<String>,
    /// Seconds since the last figures.
    age: u64,
}

impl State {
    /// The fleet's page with the first figures.
    pub(super) fn new(address: &str, colour: bool, size: Size, first: Overview) -> Self {
        Self {
            address: harmless(address),
            colour,
            size,
            page: Page::Fleet,
            sort: Sort::Missing,
            help: false,
            scroll: 0,
            live: Figures::new(first, Sort::Missing),
            frozen: None,
            limits: None,
            lost: None,
            age: 0,
        }
    }

    /// What is to be shown: the live figures, or those at which the display was stopped.
    pub(super) fn figures(&self) -> &Figures {
        self.frozen.as_ref().unwrap_or(&self.live)
    }

    /// The newest limits that may be shown.
    pub(super) fn limits(&self) -> Option<&Limits> {
        self.limits.as_deref()
    }

    /// Whether the display stands still.
    pub(super) fn paused(&self) -> bool {
        self.frozen.is_some()
    }

    /// How current the live figures are.
    pub(super) fn freshness(&self) -> Freshness {
        match &self.lost {
            Some(why) => Freshness::Lost(why.clone(), self.age),
            None if self.age >= STALE_SECONDS => Freshness::Stale(self.age),
            None => Freshness::Live,
        }
    }

    /// Takes in what happened.
    pub(super) fn handle(&mut self, input: Input) -> Then {
        match input {
            Input::Figures(overview) => {
                self.live.replace(*overview, self.sort);
                let was = (self.lost.take(), std::mem::take(&mut self.age));
                if self.paused() && was.0.is_none() && was.1 < STALE_SECONDS {
                    return Then::Wait;
                }
            }
            Input::Limits(limits) => {
                if self.paused() {
                    return Then::Wait;
                }
                self.limits = Some(limits);
                if self.page != Page::Limits {
                    return Then::Wait;
                }
            }
            Input::Lost(why) => {
                self.lost = Some(harmless(&why));
            }
            Input::Size(size) => self.size = size,
            Input::Second => {
                self.age += 1;
                // One second is that between two overviews, another may fall into it by chance.
                if self.age > 2 {
                    self.live.skip();
                }
                if self.freshness() == Freshness::Live {
                    return Then::Wait;
                }
            }
            Input::Key(key) => {
                let then = self.handle_key(key);
                if then != Then::Draw {
                    return then;
                }
            }
        }
        self.scroll = self.scroll.min(view::scroll_max(self));
        Then::Draw
    }

    fn handle_key(&mut self, key: KeyEvent) -> Then {
        if key.kind == KeyEventKind::Release {
            return Then::Wait;
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if control => return Then::Quit,
            KeyCode::Char('l') if control => return Then::Repaint,
            _ if control || key.modifiers.contains(KeyModifiers::ALT) => return Then::Wait,
            KeyCode::Char('q') => return Then::Quit,
            KeyCode::Esc if !self.help => return Then::Quit,
            KeyCode::Esc => self.help = false,
            KeyCode::Char('?' | 'h') => self.help = !self.help,
            KeyCode::Tab | KeyCode::Right => self.show(self.page.turned(1)),
            KeyCode::BackTab | KeyCode::Left => self.show(self.page.turned(Page::ALL.len() - 1)),
            KeyCode::Char('1') => self.show(Page::Fleet),
            KeyCode::Char('2') => self.show(Page::Processes),
            KeyCode::Char('3') => self.show(Page::Latency),
            KeyCode::Char('4') => self.show(Page::Limits),
            KeyCode::Char('p' | ' ') => self.pause(),
            KeyCode::Char('s') if self.page == Page::Fleet => self.sort_by(self.sort.next()),
            _ => return self.handle_scroll(key.code),
        }
        Then::Draw
    }

    fn handle_scroll(&mut self, code: KeyCode) -> Then {
        let page = view::room(self).saturating_sub(1).max(1);
        self.scroll = match code {
            KeyCode::Down | KeyCode::Char('j') => self.scroll.saturating_add(1),
            KeyCode::Up | KeyCode::Char('k') => self.scroll.saturating_sub(1),
            KeyCode::PageDown => self.scroll.saturating_add(page),
            KeyCode::PageUp => self.scroll.saturating_sub(page),
            KeyCode::Home | KeyCode::Char('g') => 0,
            KeyCode::End | KeyCode::Char('G') => usize::MAX,
            _ => return Then::Wait,
        };
        Then::Draw
    }

    fn show(&mut self, page: Page) {
        self.help = false;
        if self.page != page {
            self.page = page;
            self.scroll = 0;
        }
    }

    fn pause(&mut self) {
        self.frozen = match self.frozen.take() {
            Some(_) => None,
            None => Some(self.live.clone()),
        };
    }

    fn sort_by(&mut self, sort: Sort) {
        self.sort = sort;
        self.scroll = 0;
        self.live.sort(sort);
        if let Some(frozen) = &mut self.frozen {
            frozen.sort(sort);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn state() -> State {
        let mut first = sample::overview();
        first.sessions.by_group = (0..100)
            .map(|n| sample::group(&format!("auto-{n}"), 5, 5))
            .collect();
        State::new("127.0.0.1:7440", false, Size::new(80, 24), first)
    }

    fn press(state: &mut State, code: KeyCode) -> Then {
        state.handle(Input::Key(KeyEvent::from(code)))
    }

    fn figures(up: u64) -> Input {
        let mut overview = sample::overview();
        overview.sessions.up = up;
        Input::Figures(Box::new(overview))
    }

    fn up(state: &State) -> u64 {
        state.figures().overview().sessions.up
    }

    #[test]
    fn three_keys_leave_and_escape_closes_the_help_first() {
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(state().handle(Input::Key(control_c)), Then::Quit);
        assert_eq!(press(&mut state(), KeyCode::Char('q')), Then::Quit);
        let mut state = state();
        assert_eq!(press(&mut state, KeyCode::Char('?')), Then::Draw);
        assert!(state.help);
        assert_eq!(press(&mut state, KeyCode::Esc), Then::Draw);
        assert!(!state.help);
        assert_eq!(press(&mut state, KeyCode::Esc), Then::Quit);
    }

    #[test]
    fn control_l_draws_everything_anew() {
        let control_l = KeyEvent::new(KeyCode::Char('l'), KeyModifiers::CONTROL);
        assert_eq!(state().handle(Input::Key(control_l)), Then::Repaint);
    }

    #[test]
    fn what_means_nothing_changes_nothing() {
        let mut state = state();
        let mut release = KeyEvent::from(KeyCode::Char('q'));
        release.kind = KeyEventKind::Release;
        let control_q = KeyEvent::new(KeyCode::Char('q'), KeyModifiers::CONTROL);
        for key in [release, control_q, KeyEvent::from(KeyCode::Char('x'))] {
            assert_eq!(state.handle(Input::Key(key)), Then::Wait, "{key:?}");
        }
    }

    #[test]
    fn tab_goes_round_the_pages_and_digits_go_straight() {
        let mut state = state();
        let mut seen = Vec::new();
        for _ in 0..4 {
            press(&mut state, KeyCode::Tab);
            seen.push(state.page);
        }
        assert_eq!(
            seen,
            [Page::Processes, Page::Latency, Page::Limits, Page::Fleet]
        );
        press(&mut state, KeyCode::BackTab);
        assert_eq!(state.page, Page::Limits);
        press(&mut state, KeyCode::Char('2'));
        assert_eq!(state.page, Page::Processes);
        press(&mut state, KeyCode::Char('1'));
        assert_eq!(state.page, Page::Fleet);
    }

    #[test]
    fn the_list_scrolls_no_further_than_its_end_and_every_press_counts() {
        let mut state = state();
        assert_eq!(press(&mut state, KeyCode::Up), Then::Draw);
        assert_eq!(state.scroll, 0);
        press(&mut state, KeyCode::Char('j'));
        press(&mut state, KeyCode::Down);
        assert_eq!(state.scroll, 2);
        press(&mut state, KeyCode::End);
        let end = state.scroll;
        assert_eq!(end, 100 - view::room(&state));
        press(&mut state, KeyCode::Down);
        assert_eq!(state.scroll, end);
        press(&mut state, KeyCode::Char('k'));
        assert_eq!(state.scroll, end - 1);
        press(&mut state, KeyCode::PageUp);
        assert_eq!(state.scroll, end - view::room(&state));
        press(&mut state, KeyCode::Home);
        assert_eq!(state.scroll, 0);
    }

    #[test]
    fn a_larger_terminal_and_a_shorter_list_pull_the_scroll_back() {
        let mut state = state();
        press(&mut state, KeyCode::End);
        state.handle(Input::Size(Size::new(80, 200)));
        assert_eq!(state.scroll, 0);
        state.handle(Input::Size(Size::new(80, 24)));
        press(&mut state, KeyCode::End);
        state.handle(figures(1));
        assert_eq!(state.scroll, 0);
    }

    #[test]
    fn sorting_goes_round_on_the_page_that_has_groups() {
        let mut state = state();
        let mut seen = Vec::new();
        for _ in 0..3 {
            press(&mut state, KeyCode::Char('s'));
            seen.push(state.sort);
        }
        assert_eq!(seen, [Sort::Name, Sort::Sessions, Sort::Missing]);
        press(&mut state, KeyCode::Char('3'));
        assert_eq!(press(&mut state, KeyCode::Char('s')), Then::Wait);
    }

    #[test]
    fn a_stopped_display_shows_what_it_showed_and_then_the_newest() {
        let mut state = state();
        state.handle(figures(7));
        press(&mut state, KeyCode::Char('p'));
        assert_eq!(state.handle(figures(8)), Then::Wait);
        assert_eq!((up(&state), state.paused()), (7, true));
        // How the connection is shows all the same.
        assert_eq!(state.handle(Input::Lost("gone".to_owned())), Then::Draw);
        assert_eq!(state.handle(figures(9)), Then::Draw);
        press(&mut state, KeyCode::Char('p'));
        assert_eq!((up(&state), state.paused()), (9, false));
    }

    #[test]
    fn limits_are_drawn_on_their_page_and_stand_still_with_the_rest() {
        let limits = |trouble: &str| {
            Input::Limits(Box::new(Limits {
                trouble: Some(trouble.to_owned()),
                ..Limits::default()
            }))
        };
        let said = |state: &State| state.limits().and_then(|limits| limits.trouble.clone());
        let mut state = state();
        assert_eq!(state.handle(limits("one")), Then::Wait);
        press(&mut state, KeyCode::Char('4'));
        assert_eq!(state.handle(limits("two")), Then::Draw);
        press(&mut state, KeyCode::Char('p'));
        assert_eq!(state.handle(limits("three")), Then::Wait);
        assert_eq!(said(&state).as_deref(), Some("two"));
    }

    #[test]
    fn a_lost_connection_keeps_the_last_figures_until_newer_ones_come() {
        let mut state = state();
        state.handle(figures(7));
        state.handle(Input::Second);
        assert_eq!(state.handle(Input::Lost("no\u{1b}".to_owned())), Then::Draw);
        assert_eq!(state.handle(Input::Second), Then::Draw);
        let lost = Freshness::Lost("no\u{fffd}".to_owned(), 2);
        assert_eq!((state.freshness(), up(&state)), (lost, 7));
        state.handle(figures(8));
        assert_eq!((state.freshness(), up(&state)), (Freshness::Live, 8));
    }

    #[test]
    fn figures_that_stay_away_while_the_stream_lives_are_called_old() {
        let mut state = state();
        assert_eq!(state.handle(Input::Second), Then::Wait);
        state.handle(Input::Second);
        assert_eq!(state.handle(Input::Second), Then::Draw);
        assert_eq!(state.freshness(), Freshness::Stale(3));
    }
}
