//! Enrolment, re-keying and revoking, with a made-up gateway between.

use protocol::enrol::EnrolRefusal;
use protocol::identity::{KeyHash, SpiffeId};
use protocol::ids::AgentId;
use protocol::link::Request;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::plane::{DOMAIN, DRIVERS, REMOTE, csr, eventually, plane};

#[tokio::test]
async fn a_token_makes_an_agent_that_every_shard_knows_before_it_is_told() {
    let plane = plane().await;
    let token = plane.join_tokens(json!({})).await.pop().unwrap();
    assert_eq!(token.ca_key, plane.ca_key);
    let enrolment = plane.enrol(1, token.secret, csr()).await.unwrap();
    assert_eq!(enrolment.domain, DOMAIN);
    assert_eq!(enrolment.addresses, ["gw.cloud.example:7443"]);
    let (_, leaf) = X509Certificate::from_der(&enrolment.chain[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    let [GeneralName::URI(uri)] = names.value.general_names[..] else {
        panic!("one name");
    };
    let id: SpiffeId = uri.parse().unwrap();
    assert_eq!(
        id.to_string(),
        format!("spiffe://{DOMAIN}/agent/{}", enrolment.agent)
    );
    let (_, root) = X509Certificate::from_der(&enrolment.roots[0]).unwrap();
    assert_eq!(KeyHash::of_spki(root.public_key().raw), token.ca_key);
    let sent = plane.gateway.sent.lock().unwrap().clone();
    let at = |wanted: &dyn Fn(&Request) -> bool| sent.iter().position(wanted).unwrap();
    let admitted = at(&|request| {
        matches!(request, Request::AdmitAgent { keys, .. }
        if keys == &[KeyHash::of_spki(leaf.public_key().raw)])
    });
    let answered = at(&|request| matches!(request, Request::EnrolReply { .. }));
    assert!(admitted < answered);
    let (_, list) = plane.get("/v1/tokens").await;
    let used = &list["items"][0];
    assert_eq!(used["state"], "used");
    assert_eq!(used["used_by"], enrolment.agent.to_string());
    assert_eq!(used["used_from"], REMOTE);
}

#[tokio::test]
async fn of_a_hundred_users_of_one_token_exactly_one_comes_in() {
    let plane = plane().await;
    let token = plane.join_tokens(json!({})).await.pop().unwrap();
    let tries = (0..100).map(|ticket| plane.enrol(ticket, token.secret, csr()));
    let results = futures_util::future::join_all(tries).await;
    let enrolled = results.iter().filter(|result| result.is_ok()).count();
    let used = results
        .iter()
        .filter(|result| matches!(result, Err(EnrolRefusal::UsedToken)))
        .count();
    assert_eq!((enrolled, used), (1, 99));
    let (_, agents) = plane.get("/v1/agents").await;
    assert_eq!(agents["items"].as_array().unwrap().len(), 1);
    assert_eq!(plane.gateway.admitted.lock().unwrap().len(), 1);
    let (_, metrics) = plane.get("/metrics").await;
    let metrics = metrics.as_str().unwrap();
    assert!(metrics.contains("drover_enrolments_total{result=\"used_token\"} 99"));
}

#[tokio::test]
async fn unknown_used_expired_and_deleted_tokens_are_told_apart() {
    let plane = plane().await;
    assert_eq!(
        plane.enrol(1, [7; 32], csr()).await.unwrap_err(),
        EnrolRefusal::UnknownToken
    );
    let token = plane
        .join_tokens(json!({ "ttl_seconds": 1 }))
        .await
        .pop()
        .unwrap();
    eventually("the token's end", async || {
        let (_, list) = plane.get("/v1/tokens").await;
        (list["items"][0]["state"] == "expired").then_some(())
    })
    .await;
    assert_eq!(
        plane.enrol(2, token.secret, csr()).await.unwrap_err(),
        EnrolRefusal::ExpiredToken
    );
    let token = plane.join_tokens(json!({})).await.pop().unwrap();
    plane.enrol(3, token.secret, csr()).await.unwrap();
    assert_eq!(
        plane.enrol(4, token.secret, csr()).await.unwrap_err(),
        EnrolRefusal::UsedToken
    );
    let (_, made) = plane.post("/v1/tokens", json!({})).await;
    let token: protocol::enrol::JoinToken = made["tokens"][0]["token"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    plane
        .delete(&format!(
            "/v1/tokens/{}",
            made["tokens"][0]["id"].as_str().unwrap()
        ))
        .await;
    assert_eq!(
        plane.enrol(5, token.secret, csr()).await.unwrap_err(),
        EnrolRefusal::UnknownToken
    );
    // Refusals are on record, with where they came from.
    let span = plane.store.event_span().await.unwrap();
    let events = plane.store.events_after(0, None, 1000).await.unwrap();
    let refused: Vec<_> = events
        .iter()
        .filter(|event| event.kind == "security.enrolment_refused")
        .collect();
    assert!(!refused.is_empty(), "{span:?}");
    assert_eq!(refused[0].data["remote"], REMOTE);
}

#[tokio::test]
async fn a_request_that_cannot_be_used_does_not_cost_its_token() {
    let plane = plane().await;
    let token = plane.join_tokens(json!({})).await.pop().unwrap();
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let foreign = CertificateParams::default()
        .serialize_request(&p384)
        .unwrap();
    for (ticket, csr) in (0..).zip([Vec::new(), vec![0x30; 65_000], foreign.der().to_vec()]) {
        assert_eq!(
            plane.enrol(ticket, token.secret, csr).await.unwrap_err(),
            EnrolRefusal::BadRequest
        );
    }
    plane.enrol(9, token.secret, csr()).await.unwrap();
}

#[tokio::test]
async fn one_key_is_one_agent() {
    let plane = plane().await;
    let tokens = plane.join_tokens(json!({ "count": 2 })).await;
    let csr = csr();
    plane.enrol(1, tokens[0].secret, csr.clone()).await.unwrap();
    assert_eq!(
        plane.enrol(2, tokens[1].secret, csr).await.unwrap_err(),
        EnrolRefusal::BadRequest
    );
    let (_, list) = plane.get("/v1/tokens").await;
    assert_eq!(list["items"][1]["state"], "valid", "it is not spent");
}

#[tokio::test]
async fn agents_without_a_wish_spread_over_the_automatic_groups() {
    let plane = plane().await;
    plane.post("/v1/groups", json!({ "name": "mine" })).await;
    let tokens = plane.join_tokens(json!({ "count": 64 })).await;
    let mut groups = std::collections::BTreeSet::new();
    let mut slots = std::collections::BTreeSet::new();
    for (ticket, token) in (0..).zip(tokens) {
        let enrolment = plane.enrol(ticket, token.secret, csr()).await.unwrap();
        groups.insert(enrolment.group);
        slots.insert(enrolment.slot);
    }
    assert_eq!((groups.len(), slots.len()), (64, 64));
    let token = plane
        .join_tokens(json!({ "group": "mine" }))
        .await
        .pop()
        .unwrap();
    let enrolment = plane.enrol(100, token.secret, csr()).await.unwrap();
    let (_, group) = plane.get(&format!("/v1/groups/{}", enrolment.group)).await;
    assert_eq!(
        (&group["name"], &group["agents"]),
        (&json!("mine"), &json!(1))
    );
}

#[tokio::test]
async fn rekeying_replaces_the_key_and_keeps_the_agent() {
    let plane = plane().await;
    let agent = plane.agent(1, false).await;
    let (_, before) = plane.get(&format!("/v1/agents/{agent}")).await;
    let (status, made) = plane
        .post(&format!("/v1/agents/{agent}/rekey"), Value::Null)
        .await;
    assert_eq!(status, 400, "null is not a body: {made}");
    let (status, made) = plane
        .post(&format!("/v1/agents/{agent}/rekey"), json!({}))
        .await;
    assert_eq!((status, &made["rekeys"]), (201, &json!(agent)));
    let token: protocol::enrol::JoinToken = made["token"].as_str().unwrap().parse().unwrap();
    let enrolment = plane.enrol(2, token.secret, csr()).await.unwrap();
    assert_eq!(enrolment.agent, agent);
    let (_, after) = plane.get(&format!("/v1/agents/{agent}")).await;
    assert_eq!(after["group"], before["group"]);
    assert_ne!(after["keys"], before["keys"]);
    assert_eq!(after["keys"].as_array().unwrap().len(), 1);
    let admitted = plane.gateway.admitted.lock().unwrap()[&agent].1.clone();
    assert_eq!(json!([admitted[0].to_string()]), after["keys"]);
}

#[tokio::test]
async fn a_revoked_agent_loses_its_key_its_tokens_and_its_work() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    let path = format!("/v1/agents/{agent}");
    let (_, rekey) = plane.post(&format!("{path}/rekey"), json!({})).await;
    let (status, revoked) = plane.post(&format!("{path}/revoke"), json!({})).await;
    assert_eq!((status, &revoked["state"]), (200, &json!("revoked")));
    assert_eq!(revoked["keys"], json!([]));
    eventually("the gateway to hear", async || {
        let sent = plane.gateway.sent.lock().unwrap();
        let told = |request: &Request| matches!(request, Request::RevokeAgent { agent: of } if *of == agent);
        sent.iter().any(told).then_some(())
    })
    .await;
    assert_eq!(
        plane.post(&format!("{path}/revoke"), json!({})).await.0,
        200,
        "again"
    );
    assert_eq!(plane.post(&format!("{path}/rekey"), json!({})).await.0, 409);
    let token: protocol::enrol::JoinToken = rekey["token"].as_str().unwrap().parse().unwrap();
    assert_eq!(
        plane.enrol(2, token.secret, csr()).await.unwrap_err(),
        EnrolRefusal::UnknownToken
    );
    let (status, problem) = plane
        .start("k", json!({ "agent": agent, "kind": "exec" }))
        .await;
    assert_eq!(
        (status, &problem["errors"][0]["field"]),
        (422, &json!("agent"))
    );
    let unknown = AgentId(uuid::Uuid::nil());
    assert_eq!(
        plane
            .post(&format!("/v1/agents/{unknown}/revoke"), json!({}))
            .await
            .0,
        404
    );
}

#[tokio::test]
async fn a_restarted_server_admits_who_is_enrolled_and_nobody_else() {
    let plane = plane().await;
    let (kept, revoked) = (plane.agent(1, true).await, plane.agent(2, false).await);
    plane
        .post(&format!("/v1/agents/{revoked}/revoke"), json!({}))
        .await;
    let dir = plane.dir;
    plane
        .control
        .drain(std::time::Duration::from_secs(10))
        .await;
    drop(plane.store);
    let plane = crate::plane::plane_in(dir, 10_000).await;
    let admitted: Vec<AgentId> = plane
        .gateway
        .admitted
        .lock()
        .unwrap()
        .keys()
        .copied()
        .collect();
    assert_eq!(admitted, [kept]);
    // What it last said about itself is remembered, its session is not.
    let (_, agent) = plane.get(&format!("/v1/agents/{kept}")).await;
    assert_eq!(agent["state"], "disconnected");
    assert_eq!(agent["kinds"], json!(DRIVERS));
    assert_eq!(agent["labels"], json!({ "rack": "7" }));
    assert!(agent["last_seen_at"].is_string(), "{agent}");
}
