//! Tells a web server of a step.

use anyhow::{Context as _, Result, bail, ensure};
use reqwest::StatusCode;
use std::time::Duration;
use wardian_history::steps::Step;

/// Time limit of one request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pauses before the second and the third try.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];

/// Where steps are told.
#[derive(Debug)]
pub struct Webhook {
    url: reqwest::Url,
    client: reqwest::Client,
}

/// The server does not want the message.
#[derive(Debug, thiserror::Error)]
#[error("the server answered {0}")]
struct Refused(StatusCode);

/// Parses a URL.
pub fn url(text: &str) -> Result<reqwest::Url, String> {
    let url: reqwest::Url = text.parse().map_err(|error| format!("{error}"))?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(url),
        _ => Err("it must begin with http:// or https://, and name a host".to_owned()),
    }
}

/// What is told: the step, and in which series and in whose words.
#[derive(Debug, serde::Serialize)]
pub struct Message<'a> {
    /// The step as a sentence, for chats that show a field of this name.
    pub text: &'a str,
    /// The series.
    pub series: &'a str,
    /// The step.
    pub step: &'a Step,
}

impl Webhook {
    /// Prepares a client: certificates are read, nothing is sent.
    pub fn new(url: reqwest::Url) -> Result<Self> {
        let client = wardian_image::plain_client(&wardian_image::Settings::default()).context("--webhook")?;
        Ok(Self { url, client })
    }

    /// Posts a message as JSON. Three tries in all.
    pub async fn post(&self, message: &Message<'_>) -> Result<()> {
        let body = serde_json::to_vec(message).context("encode the message")?;
        let mut pauses = PAUSES.iter();
        loop {
            let done = self.once(body.clone()).await;
            let Err(error) = done else { return Ok(()) };
            match pauses.next() {
                // What was refused is refused again.
                Some(pause) if !error.is::<Refused>() => tokio::time::sleep(*pause).await,
                _ => return Err(error),
            }
        }
    }

    async fn once(&self, body: Vec<u8>) -> Result<()> {
        let request = self
            .client
            .post(self.url.clone())
            .header("Content-Type", "application/json")
            .timeout(PATIENCE)
            .body(body);
        let answer = match request.send().await {
            Ok(answer) => answer,
            // The URL may hold a secret, and is not told.
            Err(error) => bail!(error.without_url()),
        };
        let status = answer.status();
        let again = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
        if status.is_client_error() && !again.contains(&status) {
            return Err(Refused(status).into());
        }
        ensure!(status.is_success(), "the server answered {status}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn urls() {
        assert!(super::url("https://h/x?y").is_ok() && super::url("http://127.0.0.1:1/").is_ok());
        for bad in ["ftp://h/", "h", "file:///x", "https://"] {
            assert!(super::url(bad).is_err(), "{bad}");
        }
    }
}
