//! The processes of one turn: started on their CPU, given orders, measured in `/proc`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::clock;
use crate::peers::Part;
use crate::peers::orders::{Answer, Order};

/// The CPU of what is measured.
pub const SERVER_CPU: usize = 0;
/// The CPU of everything else.
pub const CLIENT_CPU: usize = 1;
/// No order takes longer.
const ANSWER_MAX: Duration = Duration::from_secs(300);
/// A broker that does not listen by then never will.
const LISTEN_MAX: Duration = Duration::from_secs(10);
/// The gateway's shards have threads of this name.
const SHARD_THREAD_PREFIX: &str = "shard-";

/// A process of a peer that takes orders.
pub struct Follower {
    child: Killed,
    input: ChildStdin,
    answers: Receiver<String>,
    what: String,
}

/// A process that does not outlive this value.
pub struct Killed(Child);

impl Killed {
    /// Its id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        if self.0.kill().is_err() {
            tracing::debug!("a process had ended already");
        }
        if let Err(error) = self.0.wait() {
            tracing::warn!(%error, "a process cannot be waited for");
        }
    }
}

/// Lets this process, and those that it starts, open as many files as the hard limit allows: a
/// session of a TCP peer is an open file.
///
/// # Errors
/// The operating system's.
pub fn raise_open_files() -> anyhow::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("the limit of open files cannot be raised")
}

/// Does something on one CPU; threads and processes that it starts stay there.
///
/// # Errors
/// When there is no such CPU.
pub fn on_cpu<T>(cpu: usize, something: impl FnOnce() -> T) -> anyhow::Result<T> {
    let before = sched_getaffinity(None).context("no CPU affinity")?;
    let mut one = CpuSet::new();
    one.set(cpu);
    sched_setaffinity(None, &one).with_context(|| format!("there is no CPU {cpu}"))?;
    let result = something();
    sched_setaffinity(None, &before)?;
    Ok(result)
}

/// Starts a program on one CPU.
///
/// # Errors
/// When it cannot be started.
pub fn start_on(cpu: usize, command: &mut Command) -> anyhow::Result<Child> {
    let child = on_cpu(cpu, || command.spawn())?;
    let program = command.get_program().to_string_lossy();
    child.with_context(|| format!("cannot start {program}"))
}

/// Starts a program that takes no orders and waits until it listens on TCP.
///
/// # Errors
/// When it cannot be started or does not listen.
pub fn start_broker(command: &mut Command, address: SocketAddr) -> anyhow::Result<Killed> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut broker = Killed(start_on(SERVER_CPU, command)?);
    let begin = clock::now();
    while TcpStream::connect(address).is_err() {
        if let Some(status) = broker.0.try_wait()? {
            bail!("the broker ended at once with {status}");
        }
        if clock::now() - begin > LISTEN_MAX {
            bail!("the broker does not listen on {address}");
        }
        pause(Duration::from_millis(20));
    }
    Ok(broker)
}

/// A TCP address that was free a moment ago.
///
/// # Errors
/// The operating system's.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

/// What a process of a peer is started with.
pub struct Start<'a> {
    /// Which peer.
    pub peer: &'a str,
    /// Which process of it.
    pub part: Part,
    /// Where the material is.
    pub dir: &'a Path,
    /// Listen or connect here.
    pub address: SocketAddr,
    /// A program and arguments that become this process (`valgrind …`, `env …`).
    pub wrapper: &'a [String],
}

impl Follower {
    /// Starts it and waits until it is ready; answers its address too.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(start: &Start<'_>) -> anyhow::Result<(Self, SocketAddr)> {
        let own = std::env::current_exe()?;
        let mut command = match start.wrapper.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(own);
                command
            }
            None => Command::new(own),
        };
        let (part, cpu) = match start.part {
            Part::Server => ("server", SERVER_CPU),
            Part::Clients => ("clients", CLIENT_CPU),
            Part::Commander => ("commander", CLIENT_CPU),
        };
        command
            .args(["peer", start.peer, part, "--dir"])
            .arg(start.dir)
            .args(["--address", &start.address.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = start_on(cpu, &mut command)?;
        let input = child.stdin.take().context("no pipe to the process")?;
        let output = child.stdout.take().context("no pipe from the process")?;
        let (sender, answers) = sync_channel(4);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let follower = Self {
            child: Killed(child),
            input,
            answers,
            what: format!("{} {part}", start.peer),
        };
        match follower.answer()? {
            Answer::Ready(address) => Ok((follower, address)),
            other => bail!("{} is not ready but said {other:?}", follower.what),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Gives an order and waits for its answer.
    ///
    /// # Errors
    /// When it could not be followed.
    pub fn order(&mut self, order: &Order) -> anyhow::Result<Answer> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.input
            .write_all(&line)
            .with_context(|| format!("{} has ended", self.what))?;
        match self.answer()? {
            Answer::Failed(why) => bail!("{}: {why}", self.what),
            answer => Ok(answer),
        }
    }

    fn answer(&self) -> anyhow::Result<Answer> {
        let line = self
            .answers
            .recv_timeout(ANSWER_MAX)
            .with_context(|| format!("{} has ended or hangs", self.what))?;
        serde_json::from_str(&line).with_context(|| format!("{} said `{line}`", self.what))
    }
}

/// CPU time that a process has used, and how often it slept.
#[derive(Clone, Copy, Default, Debug)]
pub struct Cpu {
    /// All its threads, in nanoseconds.
    pub all_ns: u64,
    /// The gateway's shards among them.
    pub shards_ns: u64,
    /// Times that a thread of it had nothing more to do and slept: each has a wake-up to pay for.
    pub sleeps: u64,
}

/// Reads `/proc/PID/task/*/schedstat`: nanoseconds on a CPU, where `stat` only has ticks of 10 ms.
///
/// # Errors
/// When the process is gone.
pub fn cpu_of(pid: u32) -> anyhow::Result<Cpu> {
    let mut cpu = Cpu::default();
    let tasks = PathBuf::from(format!("/proc/{pid}/task"));
    for task in std::fs::read_dir(&tasks).with_context(|| format!("process {pid} is gone"))? {
        let task = task?.path();
        // A thread may end between the two reads.
        let stat = std::fs::read_to_string(task.join("schedstat")).unwrap_or_default();
        let spent = stat.split_whitespace().next().map(str::parse::<u64>);
        let spent = spent.and_then(Result::ok).unwrap_or(0);
        cpu.all_ns += spent;
        let status = std::fs::read_to_string(task.join("status")).unwrap_or_default();
        let sleeps = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
            .map(|count| count.trim().parse::<u64>());
        cpu.sleeps += sleeps.and_then(Result::ok).unwrap_or(0);
        let name = std::fs::read_to_string(task.join("comm")).unwrap_or_default();
        if name.starts_with(SHARD_THREAD_PREFIX) {
            cpu.shards_ns += spent;
        }
    }
    Ok(cpu)
}

/// Resident memory of a process in bytes: `Rss` of `/proc/PID/smaps_rollup`, which is exact where
/// `status` is rounded to batches of pages.
///
/// # Errors
/// When the process is gone.
pub fn rss_of(pid: u32) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"));
    let kib: u64 = line
        .and_then(|line| line.split_whitespace().next())
        .context("no Rss in smaps_rollup")?
        .parse()?;
    Ok(kib * 1024)
}

/// UDP datagrams and TCP segments that this machine has sent, loopback included
/// (`/proc/net/snmp`). Whatever else runs here is in it.
///
/// # Errors
/// When `/proc` is not there.
pub fn packets_sent() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/net/snmp")?;
    let field = |table: &str, name: &str| -> Option<u64> {
        let mut lines = text.lines().filter(|line| line.starts_with(table));
        let place = lines
            .next()?
            .split_whitespace()
            .position(|word| word == name)?;
        lines.next()?.split_whitespace().nth(place)?.parse().ok()
    };
    let udp = field("Udp:", "OutDatagrams").context("no UDP counters")?;
    let tcp = field("Tcp:", "OutSegs").context("no TCP counters")?;
    Ok(udp + tcp)
}

/// Waits. `compare` has nothing else to do meanwhile.
#[expect(
    clippy::disallowed_methods,
    reason = "no runtime here: what is measured runs in other processes"
)]
pub fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_cpu_and_memory() {
        let pid = std::process::id();
        assert!(cpu_of(pid).unwrap().all_ns > 0);
        assert!(rss_of(pid).unwrap() > 100_000);
        packets_sent().unwrap();
    }
}
