//! The full screen: takes the terminal, draws when something happened, and gives it back whatever
//! ends it.

use std::io;
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::terminal::is_raw_mode_enabled;
use ratatui::layout::{Position, Rect, Size};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::limits;
use super::state::{Input, Page, State, Then};
use super::view;
use super::watch::{Overviews, Update};
use crate::cli::client::Client;
use crate::fault::{Exit, Fault};
use crate::signal::Signals;

/// Inputs that wait to be handled; who brings more waits.
const QUEUE: usize = 16;
/// The shell's code for SIGHUP.
const HANGUP: u8 = 128 + 1;

/// Shows the deployment until somebody leaves.
///
/// # Errors
/// The first connection fails, the server refuses, or the terminal cannot be used.
pub(super) async fn run(client: Client) -> Result<Exit, Fault> {
    let address = client.address();
    let for_limits = client.clone();
    let (overviews, first) = Overviews::open(client).await?;
    let mut ends = Ends::new()?;
    let mut screen = Screen::take()?;
    let mut state = State::new(&address, colour(), screen.size()?, *first);
    let (to, mut updates) = mpsc::channel(QUEUE);
    tokio::spawn(overviews.pass_on(to.clone()));
    let (shows_limits, shown) = watch::channel(false);
    tokio::spawn(limits::pass_on(for_limits, shown, to));
    let mut events = events();
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    seconds.reset();
    screen.draw(&state)?;
    loop {
        let input = tokio::select! {
            code = ends.next() => return Ok(Exit::Signal(code)),
            event = events.recv() => match event {
                Some(Ok(Event::Key(key))) => Input::Key(key),
                Some(Ok(Event::Resize(width, height))) => Input::Size(Size::new(width, height)),
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Err(no_terminal("read", &error)),
                None => return Err(Fault::new("the keyboard's reader has stopped")),
            },
            update = updates.recv() => match update {
                Some(Ok(Update::Figures(overview))) => Input::Figures(overview),
                Some(Ok(Update::Lost(why))) => Input::Lost(why),
                Some(Ok(Update::Limits(limits))) => Input::Limits(limits),
                Some(Err(fault)) => return Err(fault),
                None => return Err(Fault::new("the reader of the server's figures has stopped")),
            },
            _ = seconds.tick() => Input::Second,
        };
        let then = state.handle(input);
        shows_limits.send_replace(state.page == Page::Limits);
        match then {
            Then::Draw => screen.draw(&state)?,
            Then::Repaint => screen.repaint(&state)?,
            Then::Wait => {}
            Then::Quit => return Ok(Exit::Success),
        }
    }
}

/// <https://no-color.org>
fn colour() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The terminal in full-screen mode. A panic gives it back before it says what it is about (ratatui
/// sees to that); every other end does when this is dropped.
struct Screen(DefaultTerminal);

impl Screen {
    fn take() -> Result<Self, Fault> {
        ratatui::try_init().map(Self).map_err(|error| {
            // Half of it may have been done.
            ratatui::restore();
            no_terminal("use", &error)
        })
    }

    fn size(&self) -> Result<Size, Fault> {
        self.0.size().map_err(|error| no_terminal("ask", &error))
    }

    fn repaint(&mut self, state: &State) -> Result<(), Fault> {
        // Not `clear`: it asks the terminal where its cursor is, and who reads the keys gets the answer.
        let whole = Rect::from((Position::ORIGIN, self.size()?));
        let cleared = self.0.resize(whole);
        cleared.map_err(|error| no_terminal("write to", &error))?;
        self.draw(state)
    }

    fn draw(&mut self, state: &State) -> Result<(), Fault> {
        self.0
            .draw(|frame| view::draw(frame, state))
            .map(drop)
            .map_err(|error| no_terminal("write to", &error))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // After a panic it is given back already; to do so twice would write over what the panic said.
        if is_raw_mode_enabled().unwrap_or(true) {
            ratatui::restore();
        }
    }
}

fn no_terminal(action: &str, error: &io::Error) -> Fault {
    Fault::new(format_args!("cannot {action} the terminal: {error}"))
        .advise("`drover top --once` prints the figures as text")
}

/// Keys and sizes. Reading blocks, so a thread does it; it ends with the program.
fn events() -> mpsc::Receiver<io::Result<Event>> {
    let (to, from) = mpsc::channel(QUEUE);
    std::thread::spawn(move || {
        loop {
            let event = event::read();
            let last = event.is_err();
            if to.blocking_send(event).is_err() || last {
                return;
            }
        }
    });
    from
}

/// The signals that end it.
struct Ends {
    signals: Signals,
    hangup: Signal,
}

impl Ends {
    fn new() -> Result<Self, Fault> {
        let hangup = signal(SignalKind::hangup())
            .map_err(|error| Fault::new(format_args!("cannot handle signals: {error}")))?;
        Ok(Self {
            signals: Signals::new()?,
            hangup,
        })
    }

    /// The exit code of a program that the next one ends.
    async fn next(&mut self) -> u8 {
        tokio::select! {
            (_, code) = self.signals.next() => code,
            _ = self.hangup.recv() => HANGUP,
        }
    }
}
