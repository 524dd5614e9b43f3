//! The floors of one round.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;

use super::model::FloorRun;
use super::process::{self, CLIENT_CPU, SERVER_CPU};
use super::{Measure, Options};
use crate::clock;
use crate::peers::floors::DATAGRAM_BYTES;
use crate::peers::load::TICK;

/// The echo is measured for so long.
const ECHO_SECONDS: f64 = 5.0;

/// Measures the floors of what was asked for.
///
/// # Errors
/// When a process or the kernel fails.
pub(super) fn run(round: u32, options: &Options, dir: &Path) -> anyhow::Result<Vec<FloorRun>> {
    let mut runs = Vec::new();
    let mut add = |floor: &str, about: &str, measure: String, value: f64| {
        runs.push(FloorRun {
            floor: floor.to_owned(),
            about: about.to_owned(),
            measure,
            round,
            value,
        });
    };
    if options.wants(Measure::HandshakeCpu) {
        let value = child_value("handshake", dir)?;
        let about = "rustls and quinn-proto, both sides in memory, no socket";
        add("in-memory", about, "handshake_cpu_net".to_owned(), value);
    }
    if options.wants(Measure::CommandCpu) {
        let value = child_value("protection", dir)? + echo(options.command_rate, dir)?;
        let about = "one datagram in and one out: packet protection and a bare io_uring UDP echo";
        let size = options.sessions;
        add("datagrams", about, format!("command_cpu_{size}_net"), value);
    }
    Ok(runs)
}

fn start(floor: &str, dir: &Path) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["floor", floor, "--dir"]).arg(dir);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    process::start_on(SERVER_CPU, &mut command)
}

fn first_line(child: &mut Child) -> anyhow::Result<String> {
    let output = child.stdout.take().context("no pipe from the floor")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

fn child_value(floor: &str, dir: &Path) -> anyhow::Result<f64> {
    let mut child = start(floor, dir)?;
    let line = first_line(&mut child)?;
    child.wait()?;
    line.parse()
        .with_context(|| format!("the floor `{floor}` said `{line}`"))
}

/// CPU of a datagram that comes in and goes out again, in microseconds.
fn echo(rate: f64, dir: &Path) -> anyhow::Result<f64> {
    let mut child = start("echo", dir)?;
    let pid = child.id();
    let measured = first_line(&mut child).and_then(|line| {
        let address: SocketAddr = line.parse()?;
        let before = process::cpu_of(pid)?.all_ns;
        let answered = send(address, rate)?;
        let spent = process::cpu_of(pid)?.all_ns - before;
        anyhow::ensure!(answered > 0, "the echo is silent");
        #[expect(clippy::cast_precision_loss, reason = "seconds of nanoseconds")]
        let each = spent as f64 / answered as f64 / 1e3;
        Ok(each)
    });
    // Its input ends: it goes.
    drop(child.stdin.take());
    child.wait()?;
    measured
}

/// Sends datagrams on the same grid as the commands; answers how many came back.
fn send(address: SocketAddr, rate: f64) -> anyhow::Result<u64> {
    let socket = UdpSocket::bind(("127.0.0.1", 0))?;
    socket.connect(address)?;
    socket.set_nonblocking(true)?;
    let (datagram, mut buffer) = ([0xc0; DATAGRAM_BYTES], [0; DATAGRAM_BYTES]);
    let (begin, mut sent, mut answered) = (clock::now(), 0.0, 0);
    process::on_cpu(CLIENT_CPU, || {
        loop {
            let elapsed = (clock::now() - begin).as_secs_f64();
            while sent < (elapsed * rate).floor() && elapsed < ECHO_SECONDS {
                socket.send(&datagram)?;
                sent += 1.0;
            }
            while socket.recv(&mut buffer).is_ok() {
                answered += 1;
            }
            if elapsed > ECHO_SECONDS + Duration::from_millis(100).as_secs_f64() {
                return Ok(answered);
            }
            process::pause(TICK);
        }
    })?
}
