//! Instructions of the gateway's hot steps, counted by callgrind: `.ci/gates`.

#![expect(unused_qualifications, reason = "gungraun's macros write full paths")]

#[expect(clippy::unwrap_used, reason = "a support file of tests")]
#[path = "../tests/gateway/support/authority.rs"]
mod authority;

use std::hint::black_box;
use std::sync::Arc;

use gateway::TlsMaterial;
use gateway::bench::{Credentials, Line, Permits, Talk};
use gungraun::{library_benchmark, library_benchmark_group, main};
use protocol::agent::ALPN_SESSION;
use quinn_proto::ClientConfig;
use quinn_proto::crypto::rustls::QuicClientConfig;
use rustls::RootCertStore;

use authority::{Authority, DOMAIN};

/// A shard with so many agents that are up and idle.
fn line(agents: u16) -> Line {
    let authority = Authority::new();
    let own = authority.gateway();
    let material = TlsMaterial {
        chain: own.chain,
        key: own.key,
        agent_roots: vec![authority.agent_root()],
    };
    let mut roots = RootCertStore::empty();
    roots.add(authority.gateway_root()).expect("a root");
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let provider = Arc::new(provider);
    Line::new(&material, DOMAIN, agents, |agent| {
        let own = authority.agent(agent);
        let mut tls = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(own.chain, own.key)
            .expect("a certificate and its key");
        tls.alpn_protocols = vec![ALPN_SESSION.to_vec()];
        let quic = QuicClientConfig::try_from(tls).expect("a cipher suite for QUIC");
        Credentials {
            client: ClientConfig::new(Arc::new(quic)),
            key: own.key_hash,
        }
    })
}

fn pings(agents: u16) -> Line {
    line(agents).with_pings()
}

fn commands(agents: u16) -> Line {
    line(agents).with_commands()
}

fn answers(agents: u16) -> Line {
    line(agents).with_answers()
}

// Two PINGs of each agent in, one acknowledgement out.
#[library_benchmark(setup = pings)]
#[bench::alone(1)]
#[bench::of_32(32)]
fn shard_ping(mut line: Line) -> Line {
    let (taken, sent) = black_box(line.run());
    assert_eq!(taken, 2 * sent);
    line
}

// A command for each agent from the control plane, one datagram out.
#[library_benchmark(setup = commands)]
#[bench::alone(1)]
#[bench::of_32(32)]
fn shard_command(mut line: Line) -> Line {
    let (_, sent) = black_box(line.run());
    assert!(sent > 0);
    line
}

// Accepted and Finished of each agent in one datagram, events for the control plane out.
#[library_benchmark(setup = answers)]
#[bench::alone(1)]
#[bench::of_32(32)]
fn shard_answer(mut line: Line) -> Line {
    let (taken, _) = black_box(line.run());
    assert!(taken > 0);
    line
}

// A command's life in a session without QUIC.
#[library_benchmark(setup = Talk::new)]
#[bench::of_64(64)]
fn session_command(mut talk: Talk) -> Talk {
    assert_eq!(black_box(talk.run()), 64);
    talk
}

// A permit's life at its home shard.
#[library_benchmark(setup = Permits::new)]
#[bench::of_64(64)]
fn permit(mut permits: Permits) -> Permits {
    assert_eq!(black_box(permits.run()), 64);
    permits
}

library_benchmark_group!(
    name = steps,
    benchmarks = [
        shard_ping,
        shard_command,
        shard_answer,
        session_command,
        permit
    ]
);
main!(library_benchmark_groups = steps);
