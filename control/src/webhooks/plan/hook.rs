//! One webhook in the plan.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::{Attempt, Known, Receiver, Tried};
use crate::api::model::Timestamp;
use crate::clock::UnixMs;
use crate::store::webhooks::{DeliveryRow, DeliveryState, WebhookRow, WebhookWrite};
use crate::webhooks::events::{Logged, Message, Wants};
use crate::webhooks::verdict::{FAILING, Timing, Verdict, judge, pause};

/// Attempts under way to one receiver.
const FLIGHTS_MAX: usize = 4;
/// Events in memory that wait for their first attempt.
const WINDOW_MAX: usize = 64;
/// Bytes of these; the last one may be over it.
const WINDOW_BYTES_MAX: usize = 1 << 20;
/// Deliveries that wait for another attempt; with as many, no further event is read.
const RETRIES_MAX: usize = 1000;
/// Results that wait to be written; with as many, nothing further is sent.
const RESULTS_MAX: usize = 256;
/// A cursor that moves over events which nobody wants is stored this often.
const SAVE_EVERY: Duration = Duration::from_secs(5);

/// A webhook that is not disabled.
pub(super) struct Hook {
    pub(super) receiver: Arc<Receiver>,
    wants: Wants,
    generation: u64,
    /// Every event up to here was looked at.
    pub(super) read: u64,
    /// The cursor in the store.
    saved: u64,
    saved_at: UnixMs,
    /// Events that are neither delivered nor in the store as rows; `None`: under way.
    window: BTreeMap<u64, Option<Message>>,
    window_bytes: usize,
    /// Events behind the cursor that have a row.
    beyond: BTreeSet<u64>,
    /// Rows that wait, by time.
    retries: BTreeSet<(UnixMs, u64)>,
    /// Rows that are under way.
    retrying: BTreeSet<u64>,
    /// What is to be written.
    results: Vec<DeliveryRow>,
    /// Failures since the last success.
    failures: u32,
    failing_since: Option<UnixMs>,
    failing_saved: Option<UnixMs>,
    /// Nothing is sent before.
    gate: UnixMs,
    /// Events that were trimmed unread, not yet written.
    missed: u64,
    /// Why nothing more is sent.
    end: Option<String>,
    end_saved: bool,
}

fn receiver(row: &WebhookRow) -> Arc<Receiver> {
    Arc::new(Receiver {
        webhook: row.id,
        url: row.url.clone(),
        secret: row.secret.clone(),
        old: row.old_secret.clone(),
    })
}

fn wants(row: &WebhookRow) -> Wants {
    Wants {
        events: row.events.clone(),
        agent: row.agent,
        kind: row.kind.clone(),
        tenant: row.tenant.clone(),
    }
}

impl Hook {
    pub(super) fn new(known: Known, now: UnixMs) -> Self {
        let row = known.row;
        Self {
            receiver: receiver(&row),
            wants: wants(&row),
            generation: row.generation,
            read: row.cursor,
            saved: row.cursor,
            saved_at: now,
            window: BTreeMap::new(),
            window_bytes: 0,
            beyond: known.beyond.into_iter().collect(),
            retries: known.waiting.into_iter().collect(),
            retrying: BTreeSet::new(),
            results: Vec::new(),
            failures: 0,
            failing_since: row.failing_since,
            failing_saved: row.failing_since,
            gate: UnixMs(0),
            missed: 0,
            end: None,
            end_saved: false,
        }
    }

    /// The row may have been changed by hand. What is under way goes on.
    pub(super) fn update(&mut self, known: Known) {
        let row = known.row;
        let (receiver, wants) = (receiver(&row), wants(&row));
        let moved = row.generation != self.generation;
        if moved || wants != self.wants {
            let resume = if moved { row.cursor } else { self.cursor() };
            self.window.retain(|_, message| message.is_none());
            self.window_bytes = 0;
            self.read = resume;
            let unwritten = self.results.iter().map(|row| row.seq);
            self.beyond = known.beyond.into_iter().chain(unwritten).collect();
        }
        if moved {
            self.generation = row.generation;
            self.saved = row.cursor;
            (self.end, self.end_saved) = (None, false);
        }
        if moved || receiver.url != self.receiver.url {
            // Whoever was failing may be repaired.
            self.failures = 0;
            self.gate = UnixMs(0);
        }
        (self.failing_since, self.failing_saved) = (row.failing_since, row.failing_since);
        self.receiver = receiver;
        self.wants = wants;
        let unsettled = |seq: &u64| self.results.iter().any(|row| row.seq == *seq);
        self.retries = known
            .waiting
            .into_iter()
            .filter(|(_, seq)| !self.retrying.contains(seq) && !unsettled(seq))
            .collect();
    }

    /// Whether it can take further events.
    pub(super) fn is_hungry(&self) -> bool {
        self.end.is_none()
            && self.window.len() < WINDOW_MAX
            && self.window_bytes < WINDOW_BYTES_MAX
            && self.retries.len() + self.retrying.len() + self.results.len() < RETRIES_MAX
    }

    pub(super) fn is_failing(&self) -> bool {
        self.failures >= FAILING
    }

    pub(super) fn flights(&self) -> usize {
        let new = self.window.values().filter(|message| message.is_none());
        new.count() + self.retrying.len()
    }

    /// Every event up to here is delivered, in a row, or not wanted.
    pub(super) fn cursor(&self) -> u64 {
        let settled = self.window.keys().next().map_or(self.read, |seq| seq - 1);
        settled.max(self.saved)
    }

    /// The log begins at `first`: what was before it is gone.
    pub(super) fn skip_trimmed(&mut self, first: u64) {
        let lost = first.saturating_sub(self.read.saturating_add(1));
        self.missed += lost;
        self.read += lost;
    }

    pub(super) fn wants(&self, logged: &Logged, name: &str) -> bool {
        self.wants.wants(logged, name)
    }

    /// The next event was read; with a message it is to be told.
    pub(super) fn take(&mut self, seq: u64, message: Option<Message>) {
        self.read = seq;
        let told = self.beyond.remove(&seq) || self.window.contains_key(&seq);
        if let Some(message) = message
            && !told
        {
            self.window_bytes += message.body.len();
            self.window.insert(seq, Some(message));
        }
    }

    pub(super) fn has_results(&self) -> bool {
        !self.results.is_empty()
    }

    fn has_room(&self) -> bool {
        let most = if self.is_failing() { 1 } else { FLIGHTS_MAX };
        self.end.is_none() && self.flights() < most && self.results.len() < RESULTS_MAX
    }

    /// When the next thing can be sent.
    pub(super) fn due(&self) -> Option<UnixMs> {
        if !self.has_room() {
            return None;
        }
        let new = self.window.values().any(Option::is_some);
        let retry = self.retries.first().map(|(at, _)| *at);
        let due = if new { Some(UnixMs(0)) } else { retry };
        due.map(|at| at.max(self.gate))
    }

    pub(super) fn is_ready(&self, now: UnixMs) -> bool {
        self.due().is_some_and(|at| at <= now)
    }

    /// Takes what is due: rows whose time has come, else the oldest new event.
    pub(super) fn start(&mut self, now: UnixMs) -> Option<(u64, Option<Message>)> {
        if self.retries.first().is_some_and(|(at, _)| *at <= now) {
            let (_, seq) = self.retries.pop_first()?;
            self.retrying.insert(seq);
            return Some((seq, None));
        }
        let (seq, place) = self
            .window
            .iter_mut()
            .find(|(_, message)| message.is_some())?;
        let message = place.take()?;
        self.window_bytes = self.window_bytes.saturating_sub(message.body.len());
        Some((*seq, Some(message)))
    }

    pub(super) fn end(
        &mut self,
        attempt: &Attempt,
        tried: Option<Tried>,
        now: UnixMs,
        chance: f64,
        timing: &Timing,
    ) {
        if attempt.message.is_none() {
            self.retrying.remove(&attempt.seq);
        } else {
            self.window.remove(&attempt.seq);
        }
        let Some(tried) = tried else { return };
        let Tried {
            message,
            attempts,
            first_at,
            ended,
        } = tried;
        let verdict = judge(&ended, attempts, first_at, now, chance, timing);
        self.note(&verdict, now, chance, timing);
        let (state, error, next_at) = match verdict {
            Verdict::Done => (DeliveryState::Succeeded, None, None),
            Verdict::Again { at, why, .. } => (DeliveryState::Waiting, Some(why), Some(at)),
            Verdict::Dead { why } => (DeliveryState::Dead, Some(why), None),
            Verdict::Gone => {
                let why = "the answer was 410: the receiver wants nothing more";
                (DeliveryState::Dead, Some(why.to_owned()), None)
            }
        };
        self.results.push(DeliveryRow {
            seq: attempt.seq,
            name: message.name,
            body: message.body,
            state,
            attempts,
            status: ended.result.ok(),
            took_ms: u64::try_from(ended.took.as_millis()).unwrap_or(u64::MAX),
            error,
            first_at,
            last_at: now,
            next_at,
        });
    }

    /// What an attempt's end says about the receiver as a whole.
    fn note(&mut self, verdict: &Verdict, now: UnixMs, chance: f64, timing: &Timing) {
        let why = match verdict {
            Verdict::Done => {
                if self.is_failing() {
                    self.gate = UnixMs(0);
                }
                self.failures = 0;
                self.failing_since = None;
                return;
            }
            Verdict::Gone => {
                self.end = Some("the receiver answered 410 Gone".to_owned());
                return;
            }
            Verdict::Again { at, asked, why } => {
                if *asked {
                    self.gate = self.gate.max(*at);
                }
                why
            }
            Verdict::Dead { why } => why,
        };
        self.failures = self.failures.saturating_add(1);
        if self.is_failing() {
            let pause = pause(self.failures, chance, timing);
            self.gate = self.gate.max(now.plus(pause));
        }
        let since = *self.failing_since.get_or_insert(now);
        if since.until(now) >= timing.disable {
            let since = Timestamp(since.0);
            self.end = Some(format!("no attempt has succeeded since {since}: {why}"));
        }
    }

    /// What is to be written, if anything is.
    pub(super) fn write(&mut self, now: UnixMs, all: bool) -> Option<WebhookWrite> {
        let cursor = self.cursor();
        let moved = cursor > self.saved && (all || self.saved_at.until(now) >= SAVE_EVERY);
        let ends = self.end.is_some() && !self.end_saved;
        let fails = self.failing_since != self.failing_saved;
        if !moved && !ends && !fails && self.results.is_empty() && self.missed == 0 {
            return None;
        }
        self.end_saved = self.end.is_some();
        Some(WebhookWrite {
            webhook: self.receiver.webhook,
            generation: self.generation,
            cursor,
            missed: std::mem::take(&mut self.missed),
            failing_since: self.failing_since,
            disable: self.end.clone().filter(|_| ends),
            deliveries: std::mem::take(&mut self.results),
        })
    }

    pub(super) fn written(&mut self, write: &WebhookWrite, now: UnixMs) {
        // Only now are the rows there that another attempt would read.
        for row in &write.deliveries {
            self.retries.extend(row.next_at.map(|at| (at, row.seq)));
        }
        if write.generation == self.generation {
            self.saved = self.saved.max(write.cursor);
            self.saved_at = now;
            self.failing_saved = write.failing_since;
        }
    }

    pub(super) fn not_written(&mut self, write: WebhookWrite) {
        self.missed += write.missed;
        self.end_saved &= write.disable.is_none();
        let later = std::mem::replace(&mut self.results, write.deliveries);
        self.results.extend(later);
    }
}
