//! The public API, as any client sees it: JSON over HTTP, nothing from inside the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::StreamExt as _;
use protocol::ids::{AgentId, ProcessId};
use reqwest::StatusCode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::ledger::End;

/// A client of one deployment, by one of its API servers or all of them.
#[derive(Clone)]
pub struct Api {
    http: reqwest::Client,
    base: String,
    /// Of all its API servers.
    bases: Arc<[String]>,
    /// Of its processes without an API: they have figures.
    figures: Arc<[String]>,
    /// Which of them is next.
    turn: Arc<AtomicUsize>,
    token: String,
}

/// One process to create.
#[derive(Clone, Debug, Serialize)]
pub struct Item<P = NewProcess> {
    /// The same for every try.
    pub idempotency_key: String,
    /// What to start.
    pub process: P,
}

/// What to start on somebody's account.
#[derive(Clone, Debug, Serialize)]
pub struct OnAccount {
    /// What to start.
    #[serde(flatten)]
    pub process: NewProcess,
    /// On whose account.
    pub tenant: String,
}

/// What to start.
#[derive(Clone, Debug, Serialize)]
pub struct NewProcess {
    /// The agent that does the work.
    pub agent: String,
    /// The driver.
    pub kind: &'static str,
    /// Its input.
    pub input: Value,
    /// Over after this long.
    pub deadline_seconds: u64,
}

/// What became of one item.
#[derive(Clone, Debug)]
pub enum Created {
    /// Accepted, now or at an earlier try.
    Accepted(ProcessId),
    /// Not accepted; the same request may be later.
    Later(String),
    /// Refused for good.
    Refused(String),
}

/// One thing that happened, from the event stream.
#[derive(Debug)]
pub struct StreamEvent {
    /// Where to go on after a lost connection.
    pub id: String,
    /// A process that ended.
    pub ended: Option<(ProcessId, End)>,
}

#[derive(Deserialize)]
struct BatchReply {
    results: Vec<BatchResult>,
}

#[derive(Deserialize)]
struct BatchResult {
    process: Option<Identified>,
    problem: Option<Problem>,
}

#[derive(Deserialize)]
struct Identified {
    id: Uuid,
}

/// A group and who owns it.
#[derive(Clone, Debug, Deserialize)]
pub struct GroupState {
    /// The group.
    pub id: Uuid,
    /// Raised with every new owner.
    pub epoch: u64,
    /// Agents in it that may come in.
    pub agents: usize,
    /// Agents of it that have a session.
    pub connected: usize,
    /// The link of the agent server that owns it, where there are several.
    pub agent_server: Option<String>,
}

/// How far one action on many processes is.
#[derive(Clone, Debug, Deserialize)]
pub struct Batch {
    /// `running`, `finished` or `cancelled`.
    pub state: String,
    /// Processes that it has dealt with.
    pub done: usize,
    /// Processes that it could not deal with.
    pub failed: usize,
    /// Why not, of the last of these.
    pub trouble: Option<String>,
}

#[derive(Deserialize)]
struct Problem {
    detail: String,
    #[serde(default)]
    retryable: bool,
}

const TIMEOUT: Duration = Duration::from_secs(30);
/// Items on a page.
const PAGE: usize = 500;

impl Api {
    /// A client for the API at `base` with a bearer token.
    ///
    /// # Errors
    /// When the HTTP client cannot be built.
    pub fn new(base: &str, token: &str) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            .connect_timeout(TIMEOUT)
            .no_proxy()
            .build()?;
        let base = base.trim_end_matches('/').to_owned();
        Ok(Self {
            http,
            bases: Arc::new([base.clone()]),
            figures: Arc::default(),
            turn: Arc::default(),
            base,
            token: token.trim().to_owned(),
        })
    }

    /// The same with more API servers of its deployment: as behind a balancer, processes are created by all of them in
    /// turn. Metrics are those of all. The rest is asked of the first.
    #[must_use]
    pub fn with_others(mut self, others: &[String]) -> Self {
        let others = others.iter().map(|base| base.trim_end_matches('/'));
        self.bases = self
            .bases
            .iter()
            .map(String::as_str)
            .chain(others)
            .map(str::to_owned)
            .collect();
        self
    }

    /// The same with the listeners `admin` of processes that have no API: metrics are theirs, too.
    #[must_use]
    pub fn with_figures_of(mut self, bases: &[String]) -> Self {
        self.figures = bases.into();
        self
    }

    /// The text of `count` new join tokens.
    ///
    /// # Errors
    /// When the server refuses or cannot be reached.
    pub async fn join_tokens(&self, count: usize) -> anyhow::Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Reply {
            tokens: Vec<Token>,
        }
        #[derive(Deserialize)]
        struct Token {
            token: String,
        }
        let body = json!({ "count": count, "ttl_seconds": 3600 });
        let reply = self.post("/v1/tokens", &body).await?;
        if !reply.status().is_success() {
            bail!("no join tokens: {}", reply.text().await?);
        }
        Ok(reply
            .json::<Reply>()
            .await?
            .tokens
            .into_iter()
            .map(|token| token.token)
            .collect())
    }

    /// Creates processes in one batch; one answer an item, in order.
    ///
    /// # Errors
    /// When the request as a whole failed: nothing is known about any item; try again with the same
    /// keys.
    pub async fn create<P: Serialize + Sync>(
        &self,
        items: &[Item<P>],
    ) -> anyhow::Result<Vec<Created>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let base = &self.bases[turn % self.bases.len()];
        let body = json!({ "processes": items });
        let reply = self.post_to(base, "/v1/process-batches", &body).await?;
        if reply.status() == StatusCode::TOO_MANY_REQUESTS || reply.status().is_server_error() {
            bail!("{}", reply.text().await?);
        }
        if !reply.status().is_success() {
            let text = reply.text().await?;
            return Ok(items
                .iter()
                .map(|_| Created::Refused(text.clone()))
                .collect());
        }
        let results = reply.json::<BatchReply>().await?.results;
        if results.len() != items.len() {
            bail!("{} answers to {} items", results.len(), items.len());
        }
        Ok(results
            .into_iter()
            .map(|result| match (result.process, result.problem) {
                (Some(process), _) => Created::Accepted(ProcessId(process.id)),
                (None, Some(problem)) if problem.retryable => Created::Later(problem.detail),
                (None, Some(problem)) => Created::Refused(problem.detail),
                (None, None) => Created::Refused("neither a process nor a problem".to_owned()),
            })
            .collect())
    }

    /// How a process ended; `None` while it has not.
    ///
    /// # Errors
    /// When the server cannot be reached or does not know the process.
    pub async fn end_of(&self, process: ProcessId) -> anyhow::Result<Option<End>> {
        let body: Value = self
            .get(&format!("/v1/processes/{process}"))
            .await?
            .json()
            .await?;
        let state = body["state"]
            .as_str()
            .context("a process without a state")?;
        Ok(end_of_state(state))
    }

    /// The process as JSON, for reports.
    ///
    /// # Errors
    /// As [`Api::end_of`].
    pub async fn process(&self, process: ProcessId) -> anyhow::Result<Value> {
        Ok(self
            .get(&format!("/v1/processes/{process}"))
            .await?
            .json()
            .await?)
    }

    /// All processes that the store has, and how each ended.
    ///
    /// # Errors
    /// When the server cannot be reached, or answers something else.
    pub async fn processes(&self) -> anyhow::Result<Vec<(ProcessId, Option<End>)>> {
        #[derive(Deserialize)]
        struct Row {
            id: Uuid,
            state: String,
        }
        let rows: Vec<Row> = self.all("/v1/processes").await?;
        let rows = rows.iter();
        Ok(rows
            .map(|row| (ProcessId(row.id), end_of_state(&row.state)))
            .collect())
    }

    /// All agents that the store has.
    ///
    /// # Errors
    /// As [`Api::processes`].
    pub async fn agents(&self) -> anyhow::Result<Vec<AgentId>> {
        let rows: Vec<Identified> = self.all("/v1/agents").await?;
        Ok(rows.into_iter().map(|row| AgentId(row.id)).collect())
    }

    /// All items of a list.
    async fn all<T: DeserializeOwned>(&self, list: &str) -> anyhow::Result<Vec<T>> {
        #[derive(Deserialize)]
        struct Page<T> {
            items: Vec<T>,
            next_page_token: Option<String>,
        }
        let mut all = Vec::new();
        let mut more = String::new();
        loop {
            let page = self.get(&format!("{list}?page_size={PAGE}{more}")).await?;
            let page: Page<T> = page.json().await?;
            all.extend(page.items);
            match page.next_page_token {
                Some(token) => more = format!("&page_token={token}"),
                None => return Ok(all),
            }
        }
    }

    /// All metrics as they are now.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn metrics(&self) -> anyhow::Result<Metrics> {
        let mut all = String::new();
        for base in self.bases.iter().chain(&*self.figures) {
            all += &self.get_from(base, "/metrics").await?.text().await?;
        }
        Ok(Metrics(all))
    }

    /// The value of a metric, all its series added up; `None` when it is not there.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn metric(&self, name: &str) -> anyhow::Result<Option<f64>> {
        let values = self.samples(name).await?;
        Ok((!values.is_empty()).then(|| values.iter().sum()))
    }

    /// The samples of a metric: one a shard where it belongs to the gateway.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn samples(&self, name: &str) -> anyhow::Result<Vec<f64>> {
        Ok(self.metrics().await?.samples(name))
    }

    /// Operations of an agent that take a permit at its gateway, and permits that are granted and not used;
    /// `None` where the server cannot tell.
    pub async fn permits_of(&self, agent: AgentId) -> Option<[u64; 2]> {
        let limit = self.get(&format!("/v1/limits/agent/{agent}")).await.ok()?;
        let limit: Value = limit.json().await.ok()?;
        let live = &limit["live"];
        Some([live["running"].as_u64()?, live["granted"].as_u64()?])
    }

    /// Makes a batch that cancels what is ready on a tenant's account, so many a second (1 to 1000); its id.
    /// `expected` is how many that are, right to within a tenth.
    ///
    /// # Errors
    /// When the server refuses or cannot be reached.
    pub async fn cancel_ready(
        &self,
        tenant: &str,
        expected: usize,
        per_second: u32,
    ) -> anyhow::Result<Uuid> {
        let body = json!({
            "action": "cancel",
            "filter": { "tenant": tenant, "state": "ready" },
            "max": expected,
            "rate_per_second": per_second,
            "confirm": expected,
        });
        let reply = self.post("/v1/batches", &body).await?;
        if !reply.status().is_success() {
            bail!("no batch: {}", reply.text().await?);
        }
        Ok(reply.json::<Identified>().await?.id)
    }

    /// A batch as it is now.
    ///
    /// # Errors
    /// When the server cannot be reached or does not know it.
    pub async fn batch(&self, id: Uuid) -> anyhow::Result<Batch> {
        let reply = self.get(&format!("/v1/batches/{id}")).await?;
        Ok(reply.json().await?)
    }

    /// All groups; there must not be more than a page holds.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn groups(&self) -> anyhow::Result<Vec<GroupState>> {
        #[derive(Deserialize)]
        struct Page {
            items: Vec<GroupState>,
        }
        let reply = self.get("/v1/groups?page_size=500").await?;
        Ok(reply.json::<Page>().await?.items)
    }

    /// Lets the agent server at a link give its groups away.
    ///
    /// # Errors
    /// When the server refuses or cannot be reached.
    pub async fn drain_agent_server(&self, link: &str) -> anyhow::Result<()> {
        let path = format!("/v1/agent-servers/{link}/drain");
        let reply = self.post(&path, &json!({})).await?;
        if !reply.status().is_success() {
            bail!("no drain: {}", reply.text().await?);
        }
        Ok(())
    }

    /// Whether the server says that it is ready.
    pub async fn ready(&self) -> bool {
        self.get("/readyz").await.is_ok()
    }

    /// Follows the ends of processes from behind `last`; hands each event to `seen` until the
    /// connection ends.
    ///
    /// # Errors
    /// When the connection cannot be made or breaks.
    pub async fn follow(
        &self,
        last: Option<&str>,
        mut seen: impl FnMut(StreamEvent),
    ) -> anyhow::Result<()> {
        let mut request = self
            .http
            .get(format!("{}/v1/events?type=process.finished", self.base))
            .bearer_auth(&self.token);
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
        }
        let reply = request.send().await?.error_for_status()?;
        let mut chunks = reply.bytes_stream();
        let mut buffer = Vec::new();
        while let Some(chunk) = chunks.next().await {
            buffer.extend_from_slice(&chunk?);
            let mut start = 0;
            while let Some(length) = find(&buffer[start..], b"\n\n") {
                if let Some(event) = parse_event(&buffer[start..start + length]) {
                    seen(event);
                }
                start += length + 2;
            }
            buffer.drain(..start);
        }
        Ok(())
    }

    async fn post(&self, path: &str, body: &Value) -> anyhow::Result<reqwest::Response> {
        self.post_to(&self.base, path, body).await
    }

    async fn post_to(
        &self,
        base: &str,
        path: &str,
        body: &Value,
    ) -> anyhow::Result<reqwest::Response> {
        Ok(self
            .http
            .post(format!("{base}{path}"))
            .bearer_auth(&self.token)
            .header("Idempotency-Key", Uuid::now_v7().to_string())
            .timeout(TIMEOUT)
            .json(body)
            .send()
            .await?)
    }

    async fn get(&self, path: &str) -> anyhow::Result<reqwest::Response> {
        self.get_from(&self.base, path).await
    }

    async fn get_from(&self, base: &str, path: &str) -> anyhow::Result<reqwest::Response> {
        let request = self
            .http
            .get(format!("{base}{path}"))
            .bearer_auth(&self.token);
        Ok(request.timeout(TIMEOUT).send().await?.error_for_status()?)
    }
}

/// What a server said about itself at one moment.
pub struct Metrics(String);

impl Metrics {
    /// The samples of a metric.
    pub fn samples(&self, name: &str) -> Vec<f64> {
        let of_metric = self.0.lines().filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        of_metric
            .filter_map(|line| line.rsplit_once(' ')?.1.parse().ok())
            .collect()
    }

    /// All series of a metric added up; `None` when it is not there.
    pub fn sum(&self, name: &str) -> Option<f64> {
        let values = self.samples(name);
        (!values.is_empty()).then(|| values.iter().sum())
    }
}

fn end_of_state(state: &str) -> Option<End> {
    match state {
        "succeeded" => Some(End::Succeeded),
        "failed" | "cancelled" => Some(End::Failed),
        _ => None,
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

/// One block of the event stream (WHATWG HTML, server-sent events); comments and events without an
/// id are none.
fn parse_event(block: &[u8]) -> Option<StreamEvent> {
    let text = std::str::from_utf8(block).ok()?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim_start()))
    };
    let id = field("id")?.to_owned();
    let ended = field("data")
        .and_then(|data| serde_json::from_str::<Value>(data).ok())
        .filter(|record| record["type"] == "process.finished")
        .and_then(|record| {
            let process = record["process"].as_str()?.parse().ok()?;
            Some((process, end_of_state(record["data"]["to"].as_str()?)?))
        });
    Some(StreamEvent { id, ended })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_come_after_the_first_and_slashes_are_not_doubled() {
        let api = Api::new("http://a/", "token\n").unwrap();
        assert_eq!(*api.bases, ["http://a"]);
        let api = api.with_others(&["http://b/".to_owned(), "http://c".to_owned()]);
        assert_eq!(*api.bases, ["http://a", "http://b", "http://c"]);
        assert_eq!(
            (api.base.as_str(), api.token.as_str()),
            ("http://a", "token")
        );
    }

    #[test]
    fn an_end_is_read_from_the_stream_and_comments_are_not() {
        let block = concat!(
            "id: 17\nevent: process.finished\n",
            r#"data: {"sequence":17,"type":"process.finished","data":{"to":"succeeded"},"#,
            r#""process":"00000000-0000-0000-0000-000000000007"}"#,
        );
        let event = parse_event(block.as_bytes()).unwrap();
        assert_eq!(event.id, "17");
        assert_eq!(
            event.ended,
            Some((ProcessId(Uuid::from_u128(7)), End::Succeeded))
        );
        assert!(parse_event(b": keep-alive").is_none());
    }
}
