//! How far the command line has seen the store: what it has written it reads, in this command and in the next one,
//! also where the API answers from a replica.
//!
//! ```text
//!   answer to a write ─▶ its Drover-Position ─▶ kept, also in a file ─▶ sent with every read
//!   an event was heard ─▶ from then on `latest`: events come before replicas have what they tell of
//! ```
//!
//! The file is a convenience: where it cannot be written or read, only the next command may read what was so before.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control::api::model::{POSITION, POSITION_LATEST};
use reqwest::{RequestBuilder, Response, Url};

/// A position in a file is of no use any more after this: no server reads from a replica that is older.
const FILE_LIFE: Duration = Duration::from_secs(600);

/// What one API has shown to whoever runs this program.
#[derive(Debug)]
pub(super) struct Seen {
    /// Where it is kept for the next command; `None`: nowhere.
    file: Option<PathBuf>,
    position: Mutex<Option<String>>,
}

impl Seen {
    /// Of the API at `base`, with what the last command has left.
    pub(super) fn of(base: &Url) -> Self {
        let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let state = state.or_else(|| Some(home?.join(".local/state")));
        Self::kept_in(state.map(|state| state.join("drover").join(file_name(base))))
    }

    fn kept_in(file: Option<PathBuf>) -> Self {
        let left = file.as_ref().and_then(|file| {
            let written = std::fs::metadata(file).ok()?.modified().ok()?;
            // A file from the future is of a clock that was set back.
            (written.elapsed().ok()? < FILE_LIFE).then_some(())?;
            let text = std::fs::read_to_string(file).ok()?;
            (!text.is_empty() && text.chars().all(|c| c.is_ascii_graphic())).then_some(text)
        });
        Self {
            file,
            position: Mutex::new(left),
        }
    }

    /// Says with a read what was seen.
    pub(super) fn tell(&self, request: RequestBuilder) -> RequestBuilder {
        match &*self.position() {
            Some(position) => request.header(POSITION, position),
            None => request,
        }
    }

    /// Notes what an answer says.
    pub(super) fn note(&self, response: &Response) {
        let position = response.headers().get(POSITION);
        let Some(position) = position.and_then(|position| position.to_str().ok()) else {
            return;
        };
        if let Some(file) = &self.file {
            // See above: it is a convenience.
            drop(file.parent().map(std::fs::create_dir_all));
            drop(std::fs::write(file, position));
        }
        let mut seen = self.position();
        if seen.as_deref() != Some(POSITION_LATEST) {
            *seen = Some(position.to_owned());
        }
    }

    /// An event may tell of what no replica has yet.
    pub(super) fn heard(&self) {
        *self.position() = Some(POSITION_LATEST.to_owned());
    }

    /// Forgets what was seen, as where it was of another store; whether there was something.
    pub(super) fn forget(&self) -> bool {
        if let Some(file) = &self.file {
            drop(std::fs::remove_file(file));
        }
        self.position().take().is_some()
    }

    fn position(&self) -> MutexGuard<'_, Option<String>> {
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `http://127.0.0.1:7440/` is `http---127.0.0.1-7440-`.
fn file_name(base: &Url) -> String {
    let kept = |c: char| c.is_ascii_alphanumeric() || c == '.';
    let name = base.as_str().chars();
    name.map(|c| if kept(c) { c } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(position: &str) -> Response {
        let answer = hyper::Response::builder().header(POSITION, position);
        Response::from(answer.body("").unwrap())
    }

    fn told(seen: &Seen) -> Option<String> {
        let request = reqwest::Client::new().get("http://127.0.0.1/");
        let request = seen.tell(request).build().unwrap();
        let value = request.headers().get(POSITION)?;
        Some(value.to_str().unwrap().to_owned())
    }

    #[test]
    fn what_one_command_wrote_the_next_one_says_that_it_has_seen() {
        let place = tempfile::tempdir().unwrap();
        let file = Some(place.path().join("state").join("api"));
        let first = Seen::kept_in(file.clone());
        assert_eq!(told(&first), None);
        first.note(&answer("abc"));
        assert_eq!(told(&first).as_deref(), Some("abc"));
        let second = Seen::kept_in(file.clone());
        assert_eq!(told(&second).as_deref(), Some("abc"));
        second.heard();
        second.note(&answer("def"));
        assert_eq!(told(&second).as_deref(), Some("latest"));
        assert_eq!(told(&Seen::kept_in(file.clone())).as_deref(), Some("def"));
        assert!(second.forget() && !second.forget());
        assert_eq!(told(&Seen::kept_in(file)), None);
    }

    #[test]
    fn a_file_that_is_old_or_holds_something_else_is_not_believed() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("api");
        for text in ["", "a b", "a\nb"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(told(&Seen::kept_in(Some(path.clone()))), None, "{text:?}");
        }
        std::fs::write(&path, "abc").unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        let old = file.metadata().unwrap().modified().unwrap() - FILE_LIFE;
        file.set_modified(old).unwrap();
        assert_eq!(told(&Seen::kept_in(Some(path))), None);
    }

    #[test]
    fn each_api_has_a_file_of_its_own() {
        let names = ["http://127.0.0.1:7440", "http://127.0.0.1:7450"]
            .map(|url| file_name(&url.parse().unwrap()));
        assert_eq!(names, ["http---127.0.0.1-7440-", "http---127.0.0.1-7450-"]);
    }
}
