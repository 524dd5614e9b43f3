//! The histograms that a real server writes to disk, read by an independent implementation.

#[expect(dead_code, reason = "end_to_end.rs uses the rest")]
#[path = "support/deployment.rs"]
mod deployment;

use std::path::{Path, PathBuf};
use std::process::Command;

use deployment::{Deployment, eventually, said};
use rustix::process::Signal;
use serde_json::Value;

const RUNS: u64 = 3;

/// Adds up all intervals of all files in a folder with the HdrHistogram of Python, and prints what it
/// found by tag, and the begin and end of each interval.
const READER: &str = r#"
import glob, json, sys
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader
sums, spans = {}, []
for path in sorted(glob.glob(sys.argv[1] + "/*.hlog")):
    reader = HistogramLogReader(path, HdrHistogram(1, 600_000_000, 2))
    while (one := reader.get_next_interval_histogram()) is not None:
        spans.append([one.get_start_time_stamp(), one.get_end_time_stamp()])
        sums.setdefault(one.get_tag(), HdrHistogram(1, 600_000_000, 2)).add(one)
tags = {
    tag: {
        "count": found.get_total_count(),
        "min_us": found.get_min_value(),
        "p50_us": found.get_value_at_percentile(50),
        "p99_us": found.get_value_at_percentile(99),
        "max_us": found.get_max_value(),
    }
    for tag, found in sums.items()
}
print(json.dumps({"tags": tags, "spans": spans}))
"#;

/// The Python of the pinned tools: in `DROVER_TOOLS`, or where `.ci/tools` puts it.
fn python() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin");
    let tools = std::env::var_os("DROVER_TOOLS").map_or(workspace, PathBuf::from);
    let python = tools.join("python");
    let found = Command::new(&python).args(["-c", "import hdrh"]).output();
    assert!(
        found.is_ok_and(|output| output.status.success()),
        "{} with the package hdrhistogram reads the files in this test: run `bash .ci/tools`, or set \
         DROVER_TOOLS to the folder of such a python",
        python.display()
    );
    python
}

/// The sum over the last hour.
fn told(deployment: &Deployment, name: &str) -> Value {
    let text = deployment.get(&format!("/v1/histograms/{name}"));
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn the_files_of_a_server_say_the_same_to_another_reader() {
    let python = python();
    let mut deployment = Deployment::start_with(&["--set", "histograms.log_interval=1s"]);
    let agent = deployment.agent("hv-1");
    for _ in 0..RUNS {
        let run = deployment.drover(&["run", "hv-1", "exec", "--", "echo", "hello"]);
        assert!(run.status.success(), "{}", said(&run));
    }
    let expected = [
        ("handshake", 1),
        ("command_queue", RUNS),
        ("command_wire", RUNS),
        ("command_agent", RUNS),
        ("command_total", RUNS),
        ("process", RUNS),
    ];
    for (name, count) in expected {
        eventually(name, || told(&deployment, name)["count"] == count);
    }
    let told = expected.map(|(name, _)| (name, told(&deployment, name)));
    // What a command took is what its parts took.
    let mean = |at: usize| told[at].1["mean_us"].as_f64().expect("a mean");
    let (parts, whole) = (mean(2) + mean(3), mean(4));
    assert!((parts - whole).abs() <= 2.0, "{parts} µs of {whole} µs");
    // An orderly end writes the rest.
    deployment.server.signal(Signal::TERM);
    assert!(deployment.server.wait().success());
    drop(agent);

    let output = Command::new(python)
        .args(["-c", READER])
        .arg(deployment.data_dir().join("histograms"))
        .output()
        .expect("python runs");
    assert!(output.status.success(), "{}", said(&output));
    let read: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    for (name, told) in told {
        for field in ["count", "min_us", "p50_us", "p99_us", "max_us"] {
            assert_eq!(
                read["tags"][name][field], told[field],
                "{name} {field}: {read}"
            );
        }
    }
    // Both shards and the API have been at work, and routes are told apart.
    for tag in [
        "shard_turn",
        "store_commit",
        "api:GET:/v1/histograms/{name}",
    ] {
        assert!(
            read["tags"][tag]["count"].as_u64() > Some(0),
            "{tag}: {read}"
        );
    }
    let spans: Vec<(f64, f64)> = serde_json::from_value(read["spans"].clone()).expect("spans");
    assert!(spans.iter().all(|(begin, end)| begin < end));
    assert!(spans.is_sorted(), "intervals are in order");
}
