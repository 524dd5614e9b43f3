//! `drover webhooks …`: other people's programs are told what happens.

use std::time::Duration;

use clap::{Args, Subcommand};
use control::api::model::webhooks::{
    CreateWebhook, RotateWebhook, UpdateWebhook, Webhook, WebhookDelivery, WebhookFilter,
    WebhookTest, WebhookWithSecret,
};
use serde_json::json;
use uuid::Uuid;

use super::client::Client;
use super::{Output, print};
use crate::config::value;
use crate::fault::{Exit, Fault};

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// List webhooks
    List {
        /// At most so many
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// Make a webhook; its secret is shown once
    Create(CreateArguments),
    /// Show one webhook
    Show {
        /// Its id
        #[arg(value_parser = webhook_id)]
        webhook: Uuid,
    },
    /// Change a webhook; what is not given stays
    Update(UpdateArguments),
    /// Delete a webhook, with its deliveries
    Delete {
        /// Its id
        #[arg(value_parser = webhook_id)]
        webhook: Uuid,
    },
    /// Give a webhook a new secret, which is shown once; the old one signs as well for a while
    Rotate {
        /// Its id
        #[arg(value_parser = webhook_id)]
        webhook: Uuid,
        /// A secret of your own: whsec_ and the base64 of 24–64 bytes
        #[arg(long, value_name = "SECRET")]
        secret: Option<String>,
        /// How long the old secret signs as well, at most 168h [default: 24h]
        #[arg(long, value_name = "TIME", value_parser = overlap)]
        overlap: Option<Duration>,
    },
    /// Send a test now and say what came of it; exit code 1 when it was not delivered
    Test {
        /// Its id
        #[arg(value_parser = webhook_id)]
        webhook: Uuid,
    },
    /// List a webhook's deliveries, the newest event first
    Deliveries {
        /// Its id
        #[arg(value_parser = webhook_id)]
        webhook: Uuid,
        /// Only in this state: waiting, succeeded, dead
        #[arg(long)]
        state: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Deliver an event again, now
    Redeliver {
        /// The webhook's id
        #[arg(value_parser = webhook_id)]
        webhook: Uuid,
        /// The event's sequence, as in `drover webhooks deliveries`
        sequence: u64,
    },
}

/// What a webhook is to be.
#[derive(Args, Clone, Debug)]
pub(crate) struct CreateArguments {
    /// Where events are sent: https://…
    url: String,
    /// Which events; repeat for more: process.finished, process.*, agent.down, *
    #[arg(long = "event", value_name = "EVENT", required = true)]
    events: Vec<String>,
    #[command(flatten)]
    filter: FilterArguments,
    /// For people
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// A secret of your own: whsec_ and the base64 of 24–64 bytes
    #[arg(long, value_name = "SECRET")]
    secret: Option<String>,
    /// Begin behind the event with this sequence [default: what happens from now on]
    #[arg(long, value_name = "SEQUENCE")]
    after: Option<u64>,
    /// Begins disabled
    #[arg(long)]
    disabled: bool,
}

/// What is to be changed.
#[derive(Args, Clone, Debug)]
pub(crate) struct UpdateArguments {
    /// Its id
    #[arg(value_parser = webhook_id)]
    webhook: Uuid,
    /// Where events are sent
    #[arg(long)]
    url: Option<String>,
    /// Which events, instead of those so far; repeat for more
    #[arg(long = "event", value_name = "EVENT")]
    events: Vec<String>,
    #[command(flatten)]
    filter: FilterArguments,
    /// About anything again
    #[arg(long, conflicts_with_all = ["agent", "kind", "tenant"])]
    no_filter: bool,
    /// For people
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Go on, with what happens from now on
    #[arg(long, conflicts_with = "disable")]
    enable: bool,
    /// Send nothing more
    #[arg(long)]
    disable: bool,
    /// Go on behind the event with this sequence: what follows is sent, also again
    #[arg(long, value_name = "SEQUENCE")]
    after: Option<u64>,
}

/// Which events, by what they are about.
#[derive(Args, Clone, Debug)]
struct FilterArguments {
    /// Only about this agent (id or hostname)
    #[arg(long)]
    agent: Option<String>,
    /// Only about processes of this kind
    #[arg(long)]
    kind: Option<String>,
    /// Only about processes of this tenant
    #[arg(long)]
    tenant: Option<String>,
}

impl FilterArguments {
    fn given(self) -> Option<WebhookFilter> {
        let given = self.agent.is_some() || self.kind.is_some() || self.tenant.is_some();
        given.then_some(WebhookFilter {
            agent: self.agent,
            kind: self.kind,
            tenant: self.tenant,
        })
    }
}

fn webhook_id(text: &str) -> Result<Uuid, String> {
    text.parse().map_err(|_| {
        "expected the whole id of a webhook; `drover webhooks list` shows it".to_owned()
    })
}

fn overlap(text: &str) -> Result<Duration, String> {
    let time = value::duration_within(text, Duration::ZERO, Duration::from_secs(7 * 24 * 3600))?;
    if time.subsec_nanos() != 0 {
        return Err("expected whole seconds: 0s, 90s, 24h".to_owned());
    }
    Ok(time)
}

pub(super) async fn run(client: &Client, output: Output, command: Command) -> Result<Exit, Fault> {
    match command {
        Command::List { limit } => {
            let webhooks: Vec<Webhook> = client.list(&["v1", "webhooks"], &[], limit).await?;
            print::value(output, &webhooks, |webhooks| list(webhooks))
        }
        Command::Create(arguments) => create(client, output, arguments).await,
        Command::Show { webhook } => {
            let path = ["v1", "webhooks", &webhook.to_string()];
            let webhook: Webhook = client.get(&path, &[]).await?;
            print::value(output, &webhook, show)
        }
        Command::Update(arguments) => update(client, output, arguments).await,
        Command::Delete { webhook } => {
            let id = webhook.to_string();
            client.delete(&["v1", "webhooks", &id]).await?;
            print::value(output, &json!({ "deleted": id }), |_| {
                format!("{id} is gone\n")
            })
        }
        Command::Rotate {
            webhook,
            secret,
            overlap,
        } => {
            let body = RotateWebhook {
                secret,
                overlap_seconds: overlap.map(|overlap| overlap.as_secs()),
            };
            let path = ["v1", "webhooks", &webhook.to_string(), "rotate"];
            let rotated: WebhookWithSecret = client.post(&path, &body, &super::fresh_key()).await?;
            print::value(output, &rotated, |rotated| format!("{}\n", rotated.secret))
        }
        Command::Test { webhook } => test(client, output, webhook).await,
        Command::Deliveries {
            webhook,
            state,
            limit,
        } => {
            let path = ["v1", "webhooks", &webhook.to_string(), "deliveries"];
            let query: Vec<_> = state.map(|state| ("state", state)).into_iter().collect();
            let all: Vec<WebhookDelivery> = client.list(&path, &query, limit).await?;
            print::value(output, &all, |all| deliveries(all))
        }
        Command::Redeliver { webhook, sequence } => {
            let (id, sequence) = (webhook.to_string(), sequence.to_string());
            let path = ["v1", "webhooks", &id, "deliveries", &sequence, "redeliver"];
            let delivery: WebhookDelivery =
                client.post(&path, &json!({}), &super::fresh_key()).await?;
            print::value(output, &delivery, |delivery| {
                format!("event {} is delivered again\n", delivery.sequence)
            })
        }
    }
}

async fn create(client: &Client, output: Output, asked: CreateArguments) -> Result<Exit, Fault> {
    let body = CreateWebhook {
        url: asked.url,
        events: asked.events,
        filter: asked.filter.given(),
        description: asked.description,
        disabled: asked.disabled.then_some(true),
        secret: asked.secret,
        after: asked.after,
    };
    let path = ["v1", "webhooks"];
    let made: WebhookWithSecret = client.post(&path, &body, &super::fresh_key()).await?;
    print::value(output, &made, |made| {
        let facts = [
            ("id", Some(made.webhook.id.to_string())),
            ("secret", Some(made.secret.clone())),
        ];
        let text = print::facts(&facts);
        format!("{text}(the secret is shown only now: give it to the receiver)\n")
    })
}

async fn update(client: &Client, output: Output, asked: UpdateArguments) -> Result<Exit, Fault> {
    let filter = asked.no_filter.then(WebhookFilter::default);
    let body = UpdateWebhook {
        url: asked.url,
        events: (!asked.events.is_empty()).then_some(asked.events),
        filter: asked.filter.given().or(filter),
        description: asked.description,
        disabled: (asked.enable || asked.disable).then_some(asked.disable),
        after: asked.after,
    };
    if body == UpdateWebhook::default() {
        return Err(Fault::usage("nothing is to be changed").advise(
            "say what: --url, --event, --agent, --kind, --tenant, --enable, --disable, …",
        ));
    }
    let path = ["v1", "webhooks", &asked.webhook.to_string()];
    let webhook: Webhook = client.patch(&path, &body).await?;
    print::value(output, &webhook, show)
}

async fn test(client: &Client, output: Output, webhook: Uuid) -> Result<Exit, Fault> {
    let path = ["v1", "webhooks", &webhook.to_string(), "test"];
    let tested: WebhookTest = client.post(&path, &json!({}), &super::fresh_key()).await?;
    print::value(output, &tested, |tested| {
        match (&tested.error, tested.status) {
            (Some(error), _) => format!("not delivered, after {} ms: {error}\n", tested.took_ms),
            (None, status) => format!(
                "delivered: the answer was {} after {} ms\n",
                print::or_dash(status),
                tested.took_ms
            ),
        }
    })?;
    Ok(if tested.delivered {
        Exit::Success
    } else {
        Exit::Failure
    })
}

fn list(webhooks: &[Webhook]) -> String {
    print::table(
        ["ID", "STATE", "LAG", "WAITING", "DEAD", "EVENTS", "URL"],
        webhooks.iter().map(|webhook| {
            [
                webhook.id.to_string(),
                state(webhook).to_owned(),
                webhook.lag.to_string(),
                webhook.waiting.to_string(),
                webhook.dead.to_string(),
                webhook.events.join(","),
                webhook.url.clone(),
            ]
        }),
        "no webhooks; make one with `drover webhooks create URL --event process.finished`",
    )
}

fn state(webhook: &Webhook) -> &'static str {
    if webhook.disabled {
        "disabled"
    } else if webhook.failing_since.is_some() {
        "failing"
    } else {
        "well"
    }
}

fn show(webhook: &Webhook) -> String {
    let positive = |count: u64| (count > 0).then(|| count.to_string());
    print::facts(&[
        ("id", Some(webhook.id.to_string())),
        ("url", Some(webhook.url.clone())),
        ("events", Some(webhook.events.join(", "))),
        ("agent", webhook.filter.agent.clone()),
        ("kind", webhook.filter.kind.clone()),
        ("tenant", webhook.filter.tenant.clone()),
        (
            "description",
            Some(webhook.description.clone()).filter(|text| !text.is_empty()),
        ),
        ("state", Some(state(webhook).to_owned())),
        ("disabled", webhook.disabled_at.map(|at| at.to_string())),
        ("because", webhook.disabled_reason.clone()),
        (
            "failing since",
            webhook.failing_since.map(|at| at.to_string()),
        ),
        ("cursor", Some(webhook.cursor.to_string())),
        ("lag", Some(webhook.lag.to_string())),
        ("waiting", Some(webhook.waiting.to_string())),
        ("dead", Some(webhook.dead.to_string())),
        ("missed", positive(webhook.missed)),
        (
            "old secret until",
            webhook.old_secret_until.map(|at| at.to_string()),
        ),
        ("created", Some(webhook.created_at.to_string())),
    ])
}

fn deliveries(all: &[WebhookDelivery]) -> String {
    print::table(
        [
            "SEQUENCE", "EVENT", "STATE", "ATTEMPTS", "STATUS", "MS", "LAST", "NEXT", "ERROR",
        ],
        all.iter().map(|delivery| {
            [
                delivery.sequence.to_string(),
                delivery.kind.clone(),
                print::word(&delivery.state),
                delivery.attempts.to_string(),
                print::or_dash(delivery.status),
                delivery.took_ms.to_string(),
                delivery.last_at.to_string(),
                print::or_dash(delivery.next_at),
                print::or_dash(delivery.error.clone()),
            ]
        }),
        "no deliveries",
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    fn parse(words: &[&str]) -> Result<Command, String> {
        let words = ["drover", "webhooks"].iter().chain(words);
        let cli = Cli::try_parse_from(words).map_err(|error| error.to_string())?;
        match cli.command {
            crate::cli::Command::Webhooks(command) => Ok(command),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn a_webhook_needs_a_url_and_an_event() {
        let error = parse(&["create", "https://example.com/"]).unwrap_err();
        assert!(error.contains("--event"), "{error}");
        let Ok(Command::Create(asked)) = parse(&[
            "create",
            "https://a/",
            "--event",
            "process.*",
            "--event",
            "agent.up",
        ]) else {
            panic!("not create");
        };
        assert_eq!(asked.events, ["process.*", "agent.up"]);
        assert_eq!(asked.filter.given(), None);
    }

    #[test]
    fn a_change_cannot_contradict_itself() {
        let id = Uuid::nil().to_string();
        for words in [
            ["--enable", "--disable"].as_slice(),
            ["--no-filter", "--kind", "exec"].as_slice(),
        ] {
            let words: Vec<&str> = ["update", &id]
                .into_iter()
                .chain(words.iter().copied())
                .collect();
            assert!(parse(&words).unwrap_err().contains("cannot be used with"));
        }
        let error = parse(&["show", "abcd"]).unwrap_err();
        assert!(error.contains("drover webhooks list"), "{error}");
    }

    #[test]
    fn overlaps_are_whole_seconds_up_to_a_week() {
        assert_eq!(overlap("0s"), Ok(Duration::ZERO));
        assert_eq!(overlap("168h"), Ok(Duration::from_secs(604_800)));
        for bad in ["169h", "1500ms", "1"] {
            assert!(overlap(bad).is_err(), "{bad}");
        }
    }
}
