//! Writes real frames and texts for the fuzz targets to begin with: `fuzz_seeds DIRECTORY`.

#[path = "../tests/support/values.rs"]
mod values;

use std::fs;
use std::io;
use std::path::Path;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use protocol::enrol::JoinToken;
use protocol::frame::{self, EncodeError};
use protocol::identity::KeyHash;

/// Values of each kind.
const SEEDS: usize = 60;

fn main() -> io::Result<()> {
    let Some(directory) = std::env::args_os().nth(1) else {
        return Err(io::Error::other("usage: fuzz_seeds DIRECTORY"));
    };
    let directory = Path::new(&directory);
    frames(directory)?;
    save(
        directory,
        "frame_buffer",
        0,
        b"\x01\x07\x02\0\0\0ab\x01\x86\0\0\0\0\x03\0\x05\0\0xyz",
    )?;
    let token = JoinToken {
        ca_key: KeyHash([7; 32]),
        secret: [9; 32],
    };
    let uuid = "0190b6b8-0000-7000-8000-000000000001";
    let texts = [
        token.to_string(),
        format!("spiffe://cloud.example/agent/{uuid}"),
        format!("spiffe://cloud.example/gateway/{uuid}"),
        format!("spiffe://cloud.example/process-server/{uuid}"),
        format!("{uuid}/12"),
        "[2001:db8::1]:7443".to_owned(),
        "gateway.example:7443".to_owned(),
    ];
    for (n, text) in texts.iter().enumerate() {
        save(directory, "text_forms", n, text.as_bytes())?;
    }
    Ok(())
}

/// Frames of every kind.
fn frames(directory: &Path) -> io::Result<()> {
    write(
        directory,
        "decode_agent_message",
        values::agent_message(),
        frame::encode_agent_message,
    )?;
    write(
        directory,
        "decode_gateway_message",
        values::gateway_message(),
        frame::encode_gateway_message,
    )?;
    write(
        directory,
        "decode_enrol",
        values::enrol_request(),
        frame::encode_enrol_request,
    )?;
    write(
        directory,
        "decode_enrol",
        values::enrol_reply(),
        frame::encode_enrol_reply,
    )?;
    write(
        directory,
        "decode_request",
        values::request(),
        frame::encode_request,
    )?;
    write(
        directory,
        "decode_event",
        values::event(),
        frame::encode_event,
    )?;
    write(
        directory,
        "decode_words",
        values::words::server_word(),
        frame::encode_server_word,
    )?;
    write(
        directory,
        "decode_words",
        values::words::gateway_word(),
        frame::encode_gateway_word,
    )
}

/// Frames without their prefixes, the same ones on every run.
fn write<T>(
    directory: &Path,
    target: &str,
    strategy: impl Strategy<Value = T>,
    encode: fn(&T, &mut Vec<u8>) -> Result<(), EncodeError>,
) -> io::Result<()> {
    let mut runner = TestRunner::deterministic();
    for _ in 0..SEEDS {
        let value = strategy
            .new_tree(&mut runner)
            .map_err(|e| io::Error::other(e.message()))?;
        let mut framed = Vec::new();
        encode(&value.current(), &mut framed).map_err(io::Error::other)?;
        let frame = framed.split_off(size_of::<u32>());
        save(directory, target, frame.len(), &frame)?;
    }
    Ok(())
}

fn save(directory: &Path, target: &str, n: usize, seed: &[u8]) -> io::Result<()> {
    let directory = directory.join(target);
    fs::create_dir_all(&directory)?;
    fs::write(directory.join(format!("seed-{n}")), seed)
}
