//! Processes: idempotency, waiting, batches, cancel, history.

use reqwest::Method;
use serde_json::{Value, json};

use crate::plane::{eventually, plane, read};

#[tokio::test]
async fn a_process_runs_and_shows_its_output() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    let body = json!({
        "agent": "hv-1", "kind": "exec", "input": { "program": "uptime" },
        "class": "interactive", "resource": "vm/1", "max_attempts": 2, "deadline_seconds": 60,
    });
    let request = plane
        .request(Method::POST, "/v1/processes")
        .header("Idempotency-Key", "\"one\"")
        .header("Prefer", "respond-async, wait=30")
        .json(&body);
    let response = request.send().await.unwrap();
    assert_eq!(response.headers()["preference-applied"], "wait");
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let (status, process) = read(response).await;
    assert_eq!(status, 201, "{process}");
    assert_eq!(process["state"], "succeeded");
    assert_eq!(process["agent"], agent.to_string());
    assert_eq!(process["outcome"]["exit_code"], 0);
    assert_eq!(
        process["outcome"]["output"],
        json!({ "encoding": "utf8", "data": "{\"program\":\"uptime\"}" })
    );
    let (status, shown) = plane.get(&location).await;
    assert_eq!(status, 200);
    assert_eq!(shown["input"], json!({ "program": "uptime" }));
    assert_eq!(shown["attempts"], 1);
    assert_eq!(shown["class"], "interactive");
    let (_, events) = plane.get(&format!("{location}/events?page_size=2")).await;
    assert_eq!(events["items"][0]["type"], "process.created");
    let next = events["next_page_token"].as_str().unwrap();
    let (_, rest) = plane
        .get(&format!("{location}/events?page_token={next}"))
        .await;
    assert_eq!(
        rest["items"].as_array().unwrap().last().unwrap()["type"],
        "process.finished"
    );
}

#[tokio::test]
async fn the_same_key_with_the_same_request_is_the_same_process() {
    let plane = plane().await;
    let agent = plane.agent(1, false).await;
    let body = json!({ "agent": agent, "kind": "exec", "input": { "a": 1, "b": 2 } });
    let (status, first) = plane.start("key", body.clone()).await;
    assert_eq!(status, 201, "{first}");
    assert_eq!(first["state"], "ready");
    let reordered = json!({ "kind": "exec", "input": { "b": 2, "a": 1 }, "agent": agent });
    let (status, again) = plane.start("key", reordered).await;
    assert_eq!((status, &again["id"]), (200, &first["id"]));
    let (status, other) = plane
        .start("key", json!({ "agent": agent, "kind": "other" }))
        .await;
    assert_eq!(status, 422, "{other}");
    assert_eq!(other["type"], "urn:drover:problem:idempotency-key-reused");
    let (status, _) = plane.start("key-2", body).await;
    assert_eq!(status, 201);
}

#[tokio::test]
async fn a_key_used_at_once_by_many_makes_one_process() {
    let plane = plane().await;
    let agent = plane.agent(1, false).await;
    let body = json!({ "agent": agent, "kind": "exec" });
    let starts = (0..20).map(|_| plane.start("same", body.clone()));
    let answers = futures_util::future::join_all(starts).await;
    let made = answers.iter().filter(|(status, _)| *status == 201).count();
    let same = answers.iter().filter(|(status, _)| *status == 200).count();
    assert_eq!((made, same), (1, 19));
    assert!(
        answers
            .iter()
            .all(|(_, process)| process["id"] == answers[0].1["id"])
    );
}

#[tokio::test]
async fn a_waiting_process_says_why_and_cancel_ends_it() {
    let plane = plane().await;
    let agent = plane.agent(1, false).await;
    let (_, process) = plane
        .start("k", json!({ "agent": agent, "kind": "exec" }))
        .await;
    let path = format!("/v1/processes/{}", process["id"].as_str().unwrap());
    let (_, shown) = plane.get(&path).await;
    assert_eq!(shown["waiting_on"]["scope"], "agent", "{shown}");
    assert_eq!(shown["waiting_on"]["key"], agent.to_string());
    let (status, cancelled) = plane.post(&format!("{path}/cancel"), json!({})).await;
    assert_eq!((status, &cancelled["state"]), (200, &json!("cancelled")));
    let (status, again) = plane.post(&format!("{path}/cancel"), json!({})).await;
    assert_eq!((status, &again["state"]), (200, &json!("cancelled")));
}

#[tokio::test]
async fn a_running_process_is_cancelling_until_its_agent_answers() {
    let plane = plane().await;
    let agent = plane.agent(1, true).await;
    let (_, process) = plane
        .start("k", json!({ "agent": agent, "kind": "hang" }))
        .await;
    let path = format!("/v1/processes/{}", process["id"].as_str().unwrap());
    eventually("the start", async || {
        (plane.get(&path).await.1["state"] == "running").then_some(())
    })
    .await;
    let (status, cancelling) = plane.post(&format!("{path}/cancel"), json!({})).await;
    assert_eq!((status, &cancelling["state"]), (202, &json!("cancelling")));
    assert_eq!(cancelling["waiting_on"]["scope"], "answer");
}

#[tokio::test]
async fn items_of_a_batch_stand_or_fall_alone() {
    let plane = plane().await;
    let agent = plane.agent(1, false).await;
    let item = |key: &str, process: Value| json!({ "idempotency_key": key, "process": process });
    let good = json!({ "agent": agent, "kind": "exec" });
    let batch = json!({ "processes": [
        item("a", good.clone()),
        item("b", json!({ "agent": agent, "kind": "Exec!" })),
        item("", good.clone()),
        item("c", json!({ "agent": "nobody", "kind": "exec" })),
        item("a", json!({ "agent": agent, "kind": "other" })),
        item("a", good.clone()),
        item("d", json!({ "agent": uuid::Uuid::nil(), "kind": "exec" })),
    ] });
    let (status, answer) = plane.post("/v1/process-batches", batch).await;
    assert_eq!(status, 200, "{answer}");
    let results = answer["results"].as_array().unwrap();
    let statuses: Vec<_> = results
        .iter()
        .map(|result| result["status"].as_u64().unwrap())
        .collect();
    assert_eq!(statuses, [201, 400, 400, 422, 422, 200, 422], "{answer}");
    let fields: Vec<_> = results
        .iter()
        .map(|result| {
            result["problem"]["errors"][0]["field"]
                .as_str()
                .unwrap_or("")
        })
        .collect();
    assert_eq!(
        fields,
        [
            "",
            "processes[1].process.kind",
            "processes[2].idempotency_key",
            "processes[3].process.agent",
            "",
            "",
            "processes[6].process.agent",
        ]
    );
    assert_eq!(results[0]["process"]["id"], results[5]["process"]["id"]);
}

#[tokio::test]
async fn processes_are_listed_newest_first_and_filtered() {
    let plane = plane().await;
    let (one, two) = (plane.agent(1, false).await, plane.agent(2, false).await);
    let mut ids = Vec::new();
    for (n, agent) in [one, two, one].iter().enumerate() {
        let body =
            json!({ "agent": agent, "kind": format!("kind-{n}"), "resource": format!("r/{n}") });
        let (_, process) = plane.start(&n.to_string(), body).await;
        ids.push(process["id"].as_str().unwrap().to_owned());
        // Ids sort by time to the millisecond.
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
    }
    for (query, expected) in [
        (String::new(), vec![2, 1, 0]),
        ("page_size=2".to_owned(), vec![2, 1]),
        (format!("agent={one}"), vec![2, 0]),
        ("agent=hv-2".to_owned(), vec![1]),
        ("kind=kind-1".to_owned(), vec![1]),
        ("resource=r/0".to_owned(), vec![0]),
        ("state=ready".to_owned(), vec![2, 1, 0]),
        ("state=succeeded".to_owned(), vec![]),
    ] {
        let (status, page) = plane.get(&format!("/v1/processes?{query}")).await;
        assert_eq!(status, 200, "{query}: {page}");
        let found: Vec<_> = page["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|process| process["id"].as_str().unwrap().to_owned())
            .collect();
        let expected: Vec<_> = expected
            .into_iter()
            .map(|n: usize| ids[n].clone())
            .collect();
        assert_eq!(found, expected, "{query}");
    }
}
