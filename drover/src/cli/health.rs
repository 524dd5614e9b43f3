//! `drover health`

use control::api::model::Health;
use reqwest::StatusCode;

use super::client::Client;
use super::{Output, print};
use crate::fault::{Exit, Fault};

/// Asks `/readyz`: it knows why a server that is alive cannot work. Exit code 1 when not ready.
pub(super) async fn run(client: &Client, output: Output) -> Result<Exit, Fault> {
    let response = client.probe(&["readyz"]).await?;
    let status = response.status();
    let body = response
        .bytes()
        .await
        .map_err(|error| Fault::new(format_args!("the reply broke off: {error}")))?;
    let health: Health = serde_json::from_slice(&body).map_err(|_| {
        Fault::new(format_args!(
            "something answered {status}, but it is not the Drover API"
        ))
        .advise("check the URL given with --api or DROVER_API")
    })?;
    print::value(output, &health, |health| {
        let mut text = format!("{}\n", health.status);
        let width = health.checks.iter().map(|check| check.name.len()).max();
        let width = width.unwrap_or_default();
        for check in &health.checks {
            let mark = if check.ok { "ok" } else { "failed" };
            text.push_str(&format!(
                "  {:width$} {mark:7} {}\n",
                check.name, check.detail
            ));
        }
        text
    })?;
    Ok(if status == StatusCode::OK {
        Exit::Success
    } else {
        Exit::Failure
    })
}
