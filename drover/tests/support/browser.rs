//! A headless Chromium, driven over the DevTools protocol on a pipe: no driver, no WebSocket, no
//! dependency.
//!
//! `--remote-debugging-pipe` makes Chromium read commands on descriptor 3 and write replies and
//! events on descriptor 4, each a JSON text that ends with NUL. A shell moves our pipes there.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

/// Names under which systems install it.
const NAMES: [&str; 5] = [
    "chromium",
    "chromium-headless-shell",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
];
/// A command that is not answered for so long will not be.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// What is said of an expression whose page goes away meanwhile.
fn is_loading(error: &str) -> bool {
    error.contains("navigated") || error.contains("context was destroyed")
}

/// A browser with one page. Ends with it.
pub(crate) struct Browser {
    child: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    session: Option<String>,
    last_id: u64,
    /// What the page complained about.
    pub(crate) complaints: Vec<String>,
    /// Every address that the page asked for.
    pub(crate) requests: Vec<String>,
    _profile: TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The browser of this machine: `DROVER_CHROMIUM`, or the first in PATH.
fn find() -> PathBuf {
    if let Some(named) = std::env::var_os("DROVER_CHROMIUM") {
        return named.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .flat_map(|folder| NAMES.map(|name| folder.join(name)))
        .find(|file| file.is_file())
        .unwrap_or_else(|| {
            panic!(
                "there is no Chromium in PATH, and the dashboard is tested in one: install it (Debian: \
                 apt-get install chromium-headless-shell) or set DROVER_CHROMIUM to its path"
            )
        })
}

impl Browser {
    /// Starts it with an empty page.
    pub(crate) fn start() -> Self {
        let profile = tempfile::tempdir().expect("a temporary directory");
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null"])
            .arg(find())
            .args(["--remote-debugging-pipe", "--headless", "--no-sandbox"])
            .args(["--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-sync"])
            .args(["--disable-component-update", "--disable-dev-shm-usage"])
            .args(["--hide-scrollbars", "--force-color-profile=srgb"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the browser starts");
        let commands = child.stdin.take().expect("it is piped");
        let replies = child.stdout.take().expect("it is piped");
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(replies).split(0) {
                let Ok(message) = message else { return };
                let Ok(message) = serde_json::from_slice(&message) else {
                    return;
                };
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self {
            child,
            commands,
            messages,
            session: None,
            last_id: 0,
            complaints: Vec::new(),
            requests: Vec::new(),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", attach);
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Network", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Sends a command and waits for its answer.
    #[track_caller]
    pub(crate) fn call(&mut self, method: &str, params: Value) -> Value {
        let answer = self.exchange(method, params);
        answer.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// Sends a command and waits for its answer, or what was wrong; what else comes is noted.
    #[track_caller]
    fn exchange(&mut self, method: &str, params: Value) -> Result<Value, Value> {
        self.last_id += 1;
        let id = self.last_id;
        let mut command = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = &self.session {
            command["sessionId"] = json!(session);
        }
        let text = format!("{command}\0");
        self.commands
            .write_all(text.as_bytes())
            .expect("the browser lives");
        loop {
            let message = self
                .messages
                .recv_timeout(ANSWER_WITHIN)
                .unwrap_or_else(|_| panic!("the browser did not answer {method}"));
            if message["id"] == id {
                return match &message["error"] {
                    Value::Null => Ok(message["result"].clone()),
                    error => Err(error.clone()),
                };
            }
            self.note(&message);
        }
    }

    fn note(&mut self, message: &Value) {
        let params = &message["params"];
        match message["method"].as_str().unwrap_or_default() {
            "Runtime.exceptionThrown" => {
                let details = &params["exceptionDetails"];
                self.complaints.push(format!(
                    "exception: {} {}",
                    details["text"], details["exception"]["description"]
                ));
            }
            "Runtime.consoleAPICalled"
                if ["error", "warning", "assert"]
                    .iter()
                    .any(|kind| params["type"] == *kind) =>
            {
                self.complaints.push(format!("console: {}", params["args"]));
            }
            "Log.entryAdded" if params["entry"]["level"] == "error" => {
                self.complaints.push(format!(
                    "log: {} {}",
                    params["entry"]["text"], params["entry"]["url"]
                ));
            }
            "Network.requestWillBeSent" => {
                let url = params["request"]["url"].as_str().unwrap_or_default();
                self.requests.push(url.to_owned());
            }
            _ => {}
        }
    }

    /// Goes to an address.
    #[track_caller]
    pub(crate) fn go(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url }));
    }

    /// The value of an expression in the page; promises are waited for.
    #[track_caller]
    pub(crate) fn eval(&mut self, expression: &str) -> Value {
        let value = self.evaluate(expression);
        value.unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    #[track_caller]
    fn evaluate(&mut self, expression: &str) -> Result<Value, Value> {
        let params =
            json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let reply = self.exchange("Runtime.evaluate", params)?;
        let failed = &reply["exceptionDetails"];
        assert!(failed.is_null(), "{expression}: {failed}");
        Ok(reply["result"]["value"].clone())
    }

    /// Waits until an expression is true in the page.
    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, expression: &str) {
        self.until_told(what, &format!("Boolean({expression})"));
    }

    /// Waits until an expression is `true` itself, or a promise of it.
    #[track_caller]
    pub(crate) fn until_told(&mut self, what: &str, expression: &str) {
        for _ in 0..600 {
            match self.evaluate(expression) {
                Ok(value) if value == true => return,
                Ok(_) => {}
                // A page that is just loading anew cannot answer.
                Err(error) if error["message"].as_str().is_some_and(is_loading) => {}
                Err(error) => panic!("{what}: {error}"),
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
        let shown = self.eval("document.body.innerText");
        panic!(
            "waited in vain for: {what}\n{expression}\n--- shown ---\n{}\n--- complaints ---\n{:?}",
            shown.as_str().unwrap_or_default(),
            self.complaints
        );
    }

    /// The text of the first element that a selector finds; empty when there is none.
    #[track_caller]
    pub(crate) fn text(&mut self, selector: &str) -> String {
        let text = self.eval(&format!(
            "document.querySelector({})?.innerText ?? ''",
            json!(selector)
        ));
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Presses a key: one character, or `Enter`, `Tab`, `Escape`, `ArrowLeft`, `ArrowRight`.
    #[track_caller]
    pub(crate) fn press(&mut self, key: &str) {
        let (code, text) = match key {
            "Enter" => (13, "\r"),
            "Tab" => (9, ""),
            "Escape" => (27, ""),
            "ArrowLeft" => (37, ""),
            "ArrowRight" => (39, ""),
            other => (
                u32::from(
                    other
                        .bytes()
                        .next()
                        .unwrap_or_default()
                        .to_ascii_uppercase(),
                ),
                other,
            ),
        };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({ "type": kind, "key": key, "windowsVirtualKeyCode": code });
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = json!(text);
            }
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// Types text into whatever has the focus.
    #[track_caller]
    pub(crate) fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text }));
    }

    /// Gives the page a size; `phone` with a finger instead of a mouse.
    #[track_caller]
    pub(crate) fn size(&mut self, width: u32, height: u32, phone: bool) {
        let params = json!({
            "width": width, "height": height, "mobile": phone,
            "deviceScaleFactor": if phone { 2 } else { 1 },
        });
        self.call("Emulation.setDeviceMetricsOverride", params);
    }

    /// What the system says it prefers: `light` or `dark`.
    #[track_caller]
    pub(crate) fn prefer(&mut self, scheme: &str) {
        let feature = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": feature }));
    }

    /// Whether pictures are wanted.
    pub(crate) fn takes_pictures(&self) -> bool {
        std::env::var_os("DROVER_SCREENSHOTS").is_some()
    }

    /// Writes a picture of the page into the folder that `DROVER_SCREENSHOTS` names, if it does.
    #[track_caller]
    pub(crate) fn picture(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("DROVER_SCREENSHOTS") else {
            return;
        };
        let taken = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        let bytes = base64::Engine::decode(
            &base64::engine::general_purpose::STANDARD,
            taken["data"].as_str().unwrap_or_default(),
        );
        let file = Path::new(&folder).join(format!("{name}.png"));
        std::fs::write(&file, bytes.expect("a picture is base64")).expect("it can be written");
    }
}
