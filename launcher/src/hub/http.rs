//! Requests to the hub: who asks, how long is waited, what is tried again, and what the hub's refusals mean.

use std::io::Read;
use std::time::Duration;

use serde::de::DeserializeOwned;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{HeaderMap, Response};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::error::{HubError, HubTrouble};
use super::names::RepoId;
use super::settings::Settings;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(60);
/// How long the hub may think about a commit, or about putting an upload's parts together.
pub(super) const THINKING: Duration = Duration::from_secs(600);
/// How often something is tried that fails for a passing reason.
const ATTEMPTS: u32 = 5;
/// The pause after the first attempt; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// No pause that the hub asks for is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// An answer that is JSON is not larger.
const MAX_ANSWER_BYTES: u64 = 50_000_000;
/// So much of what the hub says about an error is read.
const MAX_SAID_BYTES: u64 = 2000;

/// Asks one hub.
pub(super) struct Client {
    agent: Agent,
    /// What the environment says.
    pub(super) settings: Settings,
}

/// Why an attempt failed.
pub(super) enum Failed {
    /// Another attempt may go well, after this pause if the hub names one.
    Passing(HubError, Option<Duration>),
    /// It will not.
    Lasting(HubError),
}

impl From<HubError> for Failed {
    fn from(error: HubError) -> Self {
        Failed::Lasting(error)
    }
}

/// How often it is still tried.
pub(super) struct Patience {
    left: u32,
    pause: Duration,
}

impl Patience {
    pub(super) fn new() -> Patience {
        Patience { left: ATTEMPTS - 1, pause: FIRST_PAUSE }
    }

    /// One attempt and no more.
    pub(super) fn none() -> Patience {
        Patience { left: 0, pause: FIRST_PAUSE }
    }

    /// Waits before the next attempt, unless there is to be none.
    pub(super) fn after(&mut self, failed: Failed) -> Result<(), HubError> {
        match failed {
            Failed::Passing(_, asked) if self.left > 0 => {
                std::thread::sleep(asked.map_or(self.pause, |pause| pause.min(LONGEST_PAUSE)));
                self.left -= 1;
                self.pause *= 2;
                Ok(())
            }
            Failed::Passing(error, _) | Failed::Lasting(error) => Err(error),
        }
    }

    /// Tries until it goes well or there is no hope.
    pub(super) fn attempt<T>(mut self, mut attempt: impl FnMut() -> Result<T, Failed>) -> Result<T, HubError> {
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(failed) => self.after(failed)?,
            }
        }
    }
}

impl Client {
    pub(super) fn new(settings: Settings) -> Client {
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // The token is for the hub alone, not for the storage that it sends downloads to.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .user_agent(concat!("zerofold/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls)
            .build()
            .new_agent();
        Client { agent, settings }
    }

    /// For requests that are made by hand.
    pub(super) fn agent(&self) -> &Agent {
        &self.agent
    }

    /// An address of the hub.
    pub(super) fn address(&self, path: &str) -> String {
        format!("{}/{path}", self.settings.endpoint)
    }

    /// Who asks, as a header.
    pub(super) fn authorization(&self) -> Option<String> {
        self.settings.token.as_ref().map(|token| format!("Bearer {token}"))
    }

    /// The answer to a GET as JSON.
    pub(super) fn get<T: DeserializeOwned>(&self, id: &RepoId, path: &str, patience: Patience) -> Result<T, HubError> {
        patience.attempt(|| {
            let mut request = self.agent.get(self.address(path));
            if let Some(authorization) = self.authorization() {
                request = request.header("authorization", authorization);
            }
            self.json(id, request.call())
        })
    }

    /// The answer to a POST of JSON as JSON. It must be one that may arrive twice.
    pub(super) fn post<T: DeserializeOwned>(
        &self,
        id: &RepoId,
        path: &str,
        body: &serde_json::Value,
        kind: &str,
    ) -> Result<T, HubError> {
        Patience::new().attempt(|| self.json(id, self.send(path, kind, body.to_string().as_bytes())))
    }

    /// One POST.
    pub(super) fn send(&self, path: &str, kind: &str, body: &[u8]) -> Result<Response<Body>, ureq::Error> {
        let request = self.agent.post(self.address(path)).config().timeout_per_read(Some(THINKING)).build();
        let mut request = request.header("content-type", kind).header("accept", kind_of_answer(kind));
        if let Some(authorization) = self.authorization() {
            request = request.header("authorization", authorization);
        }
        request.send(body)
    }

    /// An answer as JSON, or why there is none.
    pub(super) fn json<T: DeserializeOwned>(
        &self,
        id: &RepoId,
        answer: Result<Response<Body>, ureq::Error>,
    ) -> Result<T, Failed> {
        let mut response = self.check(id, answer)?;
        let read = response.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_vec();
        let bytes = read.map_err(|error| self.unreachable(id, &error))?;
        serde_json::from_slice(&bytes).map_err(|error| {
            let message =
                format!("{} answered something that is not the hub's: {error}", self.settings.shown_endpoint());
            Failed::Lasting(HubError::refused(id, message, "see that HF_ENDPOINT is the address of a Hugging Face hub"))
        })
    }

    /// A good answer, or why there is none.
    pub(super) fn check(
        &self,
        id: &RepoId,
        answer: Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, Failed> {
        let mut response = answer.map_err(|error| self.unreachable(id, &error))?;
        let status = response.status().as_u16();
        if status < 400 {
            return Ok(response);
        }
        let mut body = String::new();
        let _ = response.body_mut().as_reader().take(MAX_SAID_BYTES).read_to_string(&mut body);
        let said = said(response.headers(), body);
        Err(self.refusal(id, status, response.headers(), &said))
    }

    /// The network, or the hub itself, is not there.
    pub(super) fn unreachable(&self, id: &RepoId, error: &dyn std::fmt::Display) -> Failed {
        let message = format!("{} does not answer: {error}", self.settings.shown_endpoint());
        if message.contains("certificate") {
            let hint = "the system's certificates do not fit it, as behind a company's proxy: install that one's, or name a file \
                        that has them by SSL_CERT_FILE";
            return Failed::Lasting(HubError::new(HubTrouble::Unreachable, id, message, hint));
        }
        let hint = "see that this machine reaches it (HTTPS_PROXY names a proxy, HF_ENDPOINT another hub); what was \
                    downloaded before is used with HF_HUB_OFFLINE=1";
        Failed::Passing(HubError::new(HubTrouble::Unreachable, id, message, hint), None)
    }

    /// What a status of 400 and more means.
    fn refusal(&self, id: &RepoId, status: u16, headers: &HeaderMap, said: &str) -> Failed {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (code, page) = (header("x-error-code"), self.address(&id.page()));
        let (has_token, what) = (self.settings.token.is_some(), id.noun());
        let lasting =
            |trouble, message: String, hint: String| Failed::Lasting(HubError::new(trouble, id, message, hint));
        match (status, code) {
            (408 | 429 | 500..=599, _) => {
                let message = format!("{} answers with status {status}: {said}", self.settings.shown_endpoint());
                let error = HubError::new(HubTrouble::Unreachable, id, message, "try again later");
                Failed::Passing(error, header("retry-after").parse().ok().map(Duration::from_secs))
            }
            (_, "RevisionNotFound") => lasting(
                HubTrouble::Refused,
                "the hub has it, but not the revision that was asked for".to_owned(),
                format!("{page}/tree/main shows its branches and tags; without a revision it is main"),
            ),
            (_, "EntryNotFound") => lasting(
                HubTrouble::Refused,
                format!("a file is not there: {said}"),
                "it may have changed just now: try again".to_owned(),
            ),
            (_, "GatedRepo") => lasting(
                HubTrouble::Refused,
                "it is gated: only accounts that were let in may download it".to_owned(),
                match has_token {
                    true => format!("ask for access at {page} with the account of your token"),
                    false => format!("ask for access at {page}, then set HF_TOKEN to a token of that account"),
                },
            ),
            (401, _) if said.contains("Invalid credentials") => lasting(
                HubTrouble::Refused,
                "the hub does not know the token".to_owned(),
                format!("make one at {} and set HF_TOKEN to it", self.address("settings/tokens")),
            ),
            (401 | 404, _) => lasting(
                HubTrouble::NotFound,
                match has_token {
                    true => format!("the hub has no such {what}, or does not show it to the account of your token"),
                    false => format!("the hub has no such {what}, or it is private"),
                },
                match has_token {
                    true => format!("look at {page}"),
                    false => "look at its name; if it is private, set HF_TOKEN".to_owned(),
                },
            ),
            (403, _) => lasting(
                HubTrouble::Refused,
                format!("the hub does not allow it: {said}"),
                format!("the token needs the right to do this: to read the {what}, or to write to push one"),
            ),
            _ => lasting(
                HubTrouble::Refused,
                format!("the hub answers with status {status}: {said}"),
                format!("look at {page}"),
            ),
        }
    }
}

/// What the hub said about an error, in one line.
fn said(headers: &HeaderMap, body: String) -> String {
    let header = headers.get("x-error-message").and_then(|value| value.to_str().ok());
    let text = header.map_or(body, str::to_owned);
    let json = serde_json::from_str::<serde_json::Value>(&text).ok();
    let text = json.and_then(|json| Some(json.get("error")?.as_str()?.to_owned())).unwrap_or(text);
    let line: String = text.lines().next().unwrap_or_default().chars().filter(|letter| !letter.is_control()).collect();
    match line.is_empty() {
        true => "it says no more".to_owned(),
        false => line.chars().take(300).collect(),
    }
}

fn kind_of_answer(kind: &str) -> &str {
    match kind {
        LFS => LFS,
        _ => JSON,
    }
}

/// JSON.
pub(super) const JSON: &str = "application/json";
/// JSON of Git LFS.
pub(super) const LFS: &str = "application/vnd.git-lfs+json";

#[cfg(test)]
mod tests {
    use super::*;

    fn passing() -> Failed {
        Failed::Passing(HubError::new(HubTrouble::Unreachable, "a/b", "no", "wait"), Some(Duration::ZERO))
    }

    #[test]
    fn what_passes_is_tried_again_and_what_lasts_is_not() {
        let count = |result: fn(u32) -> Result<u32, Failed>| {
            let mut count = 0;
            let ended = Patience::new().attempt(|| {
                count += 1;
                result(count)
            });
            (ended.ok(), count)
        };
        assert_eq!(count(|_| Err(passing())), (None, ATTEMPTS));
        assert_eq!(count(|number| if number < 3 { Err(passing()) } else { Ok(number) }), (Some(3), 3));
        assert_eq!(count(|_| Err(Failed::Lasting(HubError::refused("a/b", "no", "never")))), (None, 1));
        let once: Result<(), _> = Patience::none().attempt(|| Err(passing()));
        assert!(once.is_err());
    }

    #[test]
    fn what_the_hub_says_is_one_harmless_line() {
        let none = HeaderMap::new();
        assert_eq!(said(&none, r#"{"error": "Sha mismatch\u001b[2J"}"#.to_owned()), "Sha mismatch[2J");
        assert_eq!(said(&none, "<html>\n<p>".to_owned()), "<html>");
        assert_eq!(said(&none, String::new()), "it says no more");
        let mut headers = HeaderMap::new();
        headers.insert("x-error-message", "Repository not found".parse().unwrap());
        assert_eq!(said(&headers, "else".to_owned()), "Repository not found");
    }
}
