//! The tonic service that agents attend: a thin shell round the registry.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};
use zerofold_proto::hosts::from_agent::Kind as Said;
use zerofold_proto::hosts::hosts_server::Hosts;
use zerofold_proto::hosts::to_agent::Kind;
use zerofold_proto::hosts::{FromAgent, Pulse, ToAgent, Welcome};
use zerofold_trust::Refusals;

use super::registry::{Registry, message};
use super::roster::Refusal;
use crate::control::Connection;

/// How often each side sends a pulse.
pub(super) const PULSE: Duration = Duration::from_secs(1);
/// After so many pulses that did not come the other side is gone. They are counted, not timed, so that a process which itself
/// stood still takes nobody else for gone.
pub(super) const MISSED_PULSES: u32 = 10;
/// How long an agent may take to say who it is.
const HELLO: Duration = Duration::from_secs(10);
/// The largest message of an agent: its configuration, or the last lines of a worker.
pub(super) const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// The service.
#[derive(Clone)]
pub(crate) struct HostsService {
    pub(super) registry: Arc<Registry>,
    pub(super) refusals: Refusals,
}

#[tonic::async_trait]
impl Hosts for HostsService {
    type AttendStream = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<ToAgent, Status>> + Send>>;

    async fn attend(&self, request: Request<Streaming<FromAgent>>) -> Result<Response<Self::AttendStream>, Status> {
        let (peer, own) = (request.remote_addr(), request.local_addr());
        let peer = peer.map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.ip());
        let connection = request.extensions().get::<Connection>().cloned();
        let mut said = request.into_inner();
        let hello = match tokio::time::timeout(HELLO, said.message()).await {
            Ok(Ok(Some(FromAgent { kind: Some(Said::Hello(hello)) }))) => hello,
            _ => return Err(Status::invalid_argument("an agent says first who it is")),
        };
        let (outbox, messages) = mpsc::unbounded_channel();
        let _ = outbox.send(message(Kind::Welcome(Welcome {})));
        let admitted = self.registry.admit(hello, (peer, own.map(|own| own.ip())), outbox.clone());
        let session = admitted.map_err(|refusal| {
            self.refusals.tell(Some(peer), refusal.kind(), &refusal.to_string());
            let code = match refusal {
                Refusal::Taken { .. } => Code::AlreadyExists,
                _ => Code::FailedPrecondition,
            };
            Status::new(code, refusal.to_string())
        })?;
        // It makes no room for others any more.
        connection.iter().for_each(Connection::is_member);
        tokio::spawn(listen(self.registry.clone(), session, said, outbox));
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(messages).map(Ok))))
    }
}

/// Hears what an agent says until it is gone.
async fn listen(
    registry: Arc<Registry>,
    session: u64,
    mut said: Streaming<FromAgent>,
    outbox: mpsc::UnboundedSender<ToAgent>,
) {
    let mut ticks = interval(PULSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut missed, mut asked) = (0, false);
    let how = loop {
        let heard = tokio::select! {
            // What has come counts before the time that has passed.
            biased;
            heard = said.message() => heard,
            _ = ticks.tick() => {
                missed += 1;
                if missed > MISSED_PULSES {
                    break format!("has not been heard from for {MISSED_PULSES} s");
                }
                let _ = outbox.send(message(Kind::Pulse(Pulse::default())));
                continue;
            }
        };
        missed = 0;
        match heard {
            Ok(Some(FromAgent { kind: Some(kind) })) => match kind {
                Said::Pulse(pulse) => registry.pulse(session, pulse),
                Said::Started(started) => registry.started(session, started.generation, Ok(started.pids)),
                Said::NotStarted(not) => registry.started(session, not.generation, Err(not.reason)),
                Said::Exited(exited) => registry.exited(session, exited),
                Said::StopAsked(stop) => {
                    registry.stop_asked(session, stop.signal, std::mem::replace(&mut asked, true));
                }
                Said::Hello(_) => break "introduced itself twice".to_owned(),
            },
            Ok(Some(FromAgent { kind: None })) => {}
            Ok(None) => break "closed its connection".to_owned(),
            Err(status) => {
                tracing::debug!(%status, session, "an agent's stream broke");
                break "lost its connection".to_owned();
            }
        }
    };
    registry.lost(session, &how);
}
