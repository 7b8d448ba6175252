//! An agent's connection to the coordinator: carried by a thread of its own, told to the main thread as [`FromHost0`].

use std::sync::mpsc::Sender;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Code;
use zerofold_proto::hosts::from_agent::Kind;
use zerofold_proto::hosts::hosts_client::HostsClient;
use zerofold_proto::hosts::to_agent::Kind as Told;
use zerofold_proto::hosts::{FromAgent, Hello};

use super::address;
use super::agent::Happening;
use super::service::{MAX_MESSAGE_BYTES, MISSED_PULSES, PULSE};
use crate::control::Contact;

/// How long one try to connect may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the coordinator may take to answer who this is.
const WELCOME: Duration = Duration::from_secs(15);

/// What comes from host 0.
#[derive(Debug)]
pub(super) enum FromHost0 {
    /// This agent belongs to the job.
    Welcome,
    /// Something to do.
    Told(Told),
    /// It cannot be reached, or was lost; in words.
    Gone(String),
    /// Somebody else has this node rank, perhaps one who is about to be written off.
    Taken(String),
    /// This agent is not wanted; in words.
    Refused(String),
}

/// One try to attend. Dropped, it hangs up.
pub(super) struct Attendance {
    outbox: UnboundedSender<FromAgent>,
    task: tokio::task::JoinHandle<()>,
}

impl Attendance {
    /// Connects and introduces this agent; what comes is sent to `happenings` marked with `attempt`.
    pub(super) fn begin(
        runtime: &tokio::runtime::Handle,
        contact: Contact,
        hello: Hello,
        (attempt, happenings): (u64, Sender<Happening>),
    ) -> Attendance {
        let (outbox, messages) = unbounded_channel();
        let task = runtime.spawn(async move {
            let tell = |what| {
                let _ = happenings.send(Happening::Host0(attempt, what));
            };
            let last = attend(&contact, hello, messages, &tell).await;
            tell(last);
        });
        Attendance { outbox, task }
    }

    /// Says something to the coordinator.
    pub(super) fn say(&self, kind: Kind) {
        let _ = self.outbox.send(FromAgent { kind: Some(kind) });
    }
}

impl Drop for Attendance {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn attend(
    contact: &Contact,
    hello: Hello,
    messages: UnboundedReceiver<FromAgent>,
    tell: &impl Fn(FromHost0),
) -> FromHost0 {
    let wire = match zerofold_trust::connect(&contact.url(), &contact.token, CONNECT).await {
        Ok(wire) => wire,
        Err(reason) if reason.contains(zerofold_trust::OTHER_TOKEN) => {
            let hint = "give the same ZEROFOLD_TOKEN or --token-file on every host";
            return FromHost0::Refused(format!("{reason}\nhint: {hint}"));
        }
        Err(reason) if reason.contains(zerofold_trust::NO_TLS) => {
            return FromHost0::Refused(format!("{reason}\nhint: give --no-tls on every host or on none"));
        }
        Err(reason) => return FromHost0::Gone(reason),
    };
    let mut client = HostsClient::new(wire).max_decoding_message_size(MAX_MESSAGE_BYTES);
    // The introduction stands before everything else in the stream.
    let hello = tokio_stream::once(FromAgent { kind: Some(Kind::Hello(hello)) });
    let stream = tokio_stream::StreamExt::chain(hello, UnboundedReceiverStream::new(messages));
    let answered = match tokio::time::timeout(WELCOME, client.attend(stream)).await {
        Ok(answered) => answered,
        Err(_) => return FromHost0::Gone(format!("no answer within {} s", WELCOME.as_secs())),
    };
    let mut told = match answered {
        Ok(told) => told.into_inner(),
        Err(status) => {
            let words = status.message().to_owned();
            return match status.code() {
                Code::AlreadyExists => FromHost0::Taken(words),
                Code::FailedPrecondition | Code::Unauthenticated | Code::InvalidArgument => FromHost0::Refused(words),
                // The connection was made, and what came was no HTTP/2: so a server that expects TLS appears.
                // (On loopback nobody does.)
                _ if !contact.tls
                    && !address::is_loopback(&contact.host)
                    && std::error::Error::source(&status).is_some() =>
                {
                    let hint = "give --no-tls on every host or on none";
                    FromHost0::Gone(format!("it does not answer without TLS\nhint: {hint}"))
                }
                _ => FromHost0::Gone(words),
            };
        }
    };
    let mut ticks = interval(PULSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut missed = 0;
    loop {
        let heard = tokio::select! {
            // What has come counts before the time that has passed.
            biased;
            heard = told.message() => heard,
            _ = ticks.tick() => {
                missed += 1;
                if missed > MISSED_PULSES {
                    return FromHost0::Gone(format!("it has not been heard from for {MISSED_PULSES} s"));
                }
                continue;
            }
        };
        missed = 0;
        match heard.map(|heard| heard.and_then(|heard| heard.kind)) {
            Ok(Some(Told::Welcome(_))) => tell(FromHost0::Welcome),
            Ok(Some(Told::Pulse(_))) => {}
            Ok(Some(what)) => tell(FromHost0::Told(what)),
            Ok(None) => return FromHost0::Gone("it closed the connection".to_owned()),
            Err(status) => return FromHost0::Gone(status.message().to_owned()),
        }
    }
}
