//! What all private servers have in common: a process, a port, a folder, a log.

use std::fs::{File, Permissions};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::error::{KitError, machine};
use crate::keeper::Keeper;
use crate::{places, tls};

/// Between two looks at whether something has happened.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// A server that has not answered for so long will not: a Java machine on a busy one takes its time.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// A server that was asked to end may take so long.
const END_WITHIN: Duration = Duration::from_secs(30);
/// One look at whether a server answers.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// Other programs look for ports too: one that was free may be taken when the server comes to it.
const PORT_TRIES: u32 = 3;
/// So much of a log's end is shown.
const LOG_SHOWN: usize = 4000;
/// What every server says to its log.
const LOG: &str = "log";

/// How one kind of server is started and asked whether it is there.
pub(crate) struct Kind {
    /// For messages.
    pub(crate) name: &'static str,
    /// What is sent to it; nothing where it speaks first.
    pub(crate) asks: &'static [u8],
    /// Whether an answer, as far as it is here, says that it is ready.
    pub(crate) ready: fn(&[u8]) -> bool,
}

/// Makes the command that starts a server in its place.
type MakeCommand = Box<dyn Fn(&Place<'_>) -> Result<Command, KitError> + Send + Sync>;

/// A private server.
pub struct Server {
    kind: Kind,
    port: u16,
    command: MakeCommand,
    running: Mutex<Running>,
    user: Option<(u32, u32)>,
    folder: PathBuf,
}

struct Running {
    child: Option<Child>,
    keeper: Keeper,
}

/// What a server's command is made of.
pub(crate) struct Place<'a> {
    /// Its own; it may write there.
    pub(crate) folder: &'a Path,
    /// Where it is to listen, on 127.0.0.1.
    pub(crate) port: u16,
}

impl Server {
    /// Prepares a folder, then starts the server in it and waits until it answers.
    pub(crate) async fn start(
        kind: Kind,
        prepare: impl AsyncFnOnce(&Self) -> Result<(), KitError>,
        command: impl Fn(&Place<'_>) -> Result<Command, KitError> + Send + Sync + 'static,
    ) -> Result<Self, KitError> {
        let user = places::unprivileged()?;
        let keeper = Keeper::new(kind.name)?;
        let folder = keeper.folder().to_owned();
        if let Some((user, group)) = user {
            std::os::unix::fs::chown(&folder, Some(user), Some(group))
                .map_err(machine(folder.display().to_string()))?;
        }
        let mut server = Self {
            kind,
            port: places::free_port()?,
            command: Box::new(command),
            running: Mutex::new(Running {
                child: None,
                keeper,
            }),
            user,
            folder,
        };
        prepare(&server).await?;
        let mut tries = 1;
        while let Err(error) = server.restart().await {
            if tries == PORT_TRIES || !matches!(error, KitError::Ended { .. }) {
                return Err(error);
            }
            tries += 1;
            server.port = places::free_port()?;
        }
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Its folder, which goes with it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let log = std::fs::read(self.folder.join(LOG)).unwrap_or_default();
        let from = log.len().saturating_sub(LOG_SHOWN);
        String::from_utf8_lossy(&log[from..]).into_owned()
    }

    /// Puts a file into its folder that only its user may read, as servers ask of keys.
    pub(crate) fn give_secret(&self, name: &str, text: &str) -> Result<(), KitError> {
        tls::write(&self.folder, name, text)?;
        let path = self.folder.join(name);
        let refused = || machine(path.display().to_string());
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(refused())?;
        if let Some((user, group)) = self.user {
            std::os::unix::fs::chown(&path, Some(user), Some(group)).map_err(refused())?;
        }
        Ok(())
    }

    /// Starts it anew, on the same port and with the same data, and waits until it answers. One that runs is
    /// killed before.
    ///
    /// # Errors
    /// [`KitError::Ended`] or [`KitError::Late`], with the end of its log.
    pub async fn restart(&self) -> Result<(), KitError> {
        self.kill().await?;
        let place = Place {
            folder: &self.folder,
            port: self.port,
        };
        let child = self.spawn((self.command)(&place)?)?;
        {
            let mut running = self.running();
            running.keeper.watch(Some(child.id()))?;
            running.child = Some(child);
        }
        let ready = async {
            loop {
                if let Some(status) = self.try_wait()? {
                    return Err(self.ended(status));
                }
                if self.answers().await {
                    return Ok(());
                }
                sleep(LOOK_EVERY).await;
            }
        };
        let ready = timeout(READY_WITHIN, ready).await;
        ready.unwrap_or_else(|_| Err(self.late("answer", READY_WITHIN)))
    }

    /// Kills it, as a crash does. Its data stays.
    ///
    /// # Errors
    /// [`KitError::Late`]: the kernel does not end it.
    pub async fn kill(&self) -> Result<(), KitError> {
        self.end(Signal::KILL).await
    }

    /// Ends it in order. Its data stays.
    ///
    /// # Errors
    /// [`KitError::Late`]: it does not end; [`Server::kill`] does.
    pub async fn stop(&self) -> Result<(), KitError> {
        self.end(Signal::TERM).await
    }

    /// Nothing of it goes on until [`Server::resume`]: connections stay, and nobody answers.
    pub fn pause(&self) {
        self.signal_all(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal_all(Signal::CONT);
    }

    /// Runs a tool of the server to its end, as the server's user; what it printed.
    pub(crate) async fn run(&self, mut command: Command) -> Result<String, KitError> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = self
            .prepared(&mut command)?
            .spawn()
            .map_err(machine(name))?;
        let ended = async {
            loop {
                match child.try_wait().map_err(machine(self.kind.name))? {
                    Some(status) if status.success() => return Ok(self.log()),
                    Some(status) => return Err(self.ended(status)),
                    None => sleep(LOOK_EVERY).await,
                }
            }
        };
        match timeout(READY_WITHIN, ended).await {
            Ok(ended) => ended,
            Err(_) => {
                // Nobody waits for it any more.
                drop(child.kill());
                drop(child.wait());
                Err(self.late("end its preparation", READY_WITHIN))
            }
        }
    }

    fn spawn(&self, mut command: Command) -> Result<Child, KitError> {
        let name = command.get_program().to_string_lossy().into_owned();
        self.prepared(&mut command)?.spawn().map_err(machine(name))
    }

    /// In a group of its own, so that it can be killed with its helpers, and what ends the test's group passes it
    /// by: the keeper ends it.
    fn prepared<'a>(&self, command: &'a mut Command) -> Result<&'a mut Command, KitError> {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.folder.join(LOG))
            .map_err(machine(self.folder.display().to_string()))?;
        let errors = log.try_clone().map_err(machine(LOG))?;
        command
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0);
        if let Some((user, group)) = self.user {
            command.uid(user).gid(group);
        }
        Ok(command)
    }

    /// Whether it is there and answers.
    async fn answers(&self) -> bool {
        let ask = async {
            let mut stream = TcpStream::connect(self.address()).await.ok()?;
            stream.write_all(self.kind.asks).await.ok()?;
            let mut answer = Vec::new();
            while !(self.kind.ready)(&answer) {
                let read = stream.read_buf(&mut answer).await.ok()?;
                (read > 0).then_some(())?;
            }
            Some(())
        };
        matches!(timeout(ANSWER_WITHIN, ask).await, Ok(Some(())))
    }

    async fn end(&self, signal: Signal) -> Result<(), KitError> {
        let asked = self.running().child.as_ref().and_then(pid);
        let Some(id) = asked else {
            return Ok(());
        };
        // It may have ended by itself.
        kill_process(id, signal).ok();
        // One that stands still hears nothing else.
        self.resume();
        let ended = async {
            while self.try_wait()?.is_none() {
                sleep(LOOK_EVERY).await;
            }
            Ok(())
        };
        let ended = timeout(END_WITHIN, ended).await;
        ended.unwrap_or_else(|_| Err(self.late("end", END_WITHIN)))
    }

    /// How it has ended; `None`: it runs.
    fn try_wait(&self) -> Result<Option<ExitStatus>, KitError> {
        let mut running = self.running();
        let status = match &mut running.child {
            Some(child) => child.try_wait().map_err(machine(self.kind.name))?,
            None => Some(ExitStatus::default()),
        };
        if status.is_some() && running.child.take().is_some() {
            running.keeper.watch(None)?;
        }
        Ok(status)
    }

    /// The server first, so that it starts no helpers meanwhile.
    fn signal_all(&self, signal: Signal) {
        let server = self.running().child.as_ref().map(Child::id);
        for id in server.into_iter().flat_map(family) {
            // A helper may have ended meanwhile.
            Pid::from_raw(id).map(|id| kill_process(id, signal).ok());
        }
    }

    fn ended(&self, status: ExitStatus) -> KitError {
        KitError::Ended {
            name: self.kind.name,
            status,
            log: self.log(),
        }
    }

    fn late(&self, what: &'static str, waited: Duration) -> KitError {
        KitError::Late {
            name: self.kind.name,
            what,
            seconds: waited.as_secs(),
            log: self.log(),
        }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let running = self.running.get_mut();
        let running = running.unwrap_or_else(PoisonError::into_inner);
        // The keeper kills what is left of its group.
        if let Some(child) = &mut running.child {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn pid(child: &Child) -> Option<Pid> {
    Pid::from_raw(i32::try_from(child.id()).ok()?)
}

/// A process and all that it started, it first. PostgreSQL's helpers have groups of their own, so a signal to the
/// group does not reach them.
fn family(server: u32) -> Vec<i32> {
    let parents: Vec<(i32, i32)> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            // The name in parentheses may hold anything; then come the state and the parent.
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
            Some((id, parent.parse().ok()?))
        })
        .collect();
    let mut found: Vec<i32> = i32::try_from(server).into_iter().collect();
    let mut at = 0;
    while let Some(&parent) = found.get(at) {
        let children = parents.iter().filter(|(_, of)| *of == parent);
        found.extend(children.map(|(id, _)| *id));
        at += 1;
    }
    found
}
