//! The control plane of one job: rendezvous, the key-value store, heartbeats, checkpoints. `launch` serves it on a thread
//! of its own; every worker is a client.
//!
//! Decisions are pure and tested alone ([`store`], [`membership`], [`checkpoint`]); `server` is the shell round them.
//! What happens is told to the main thread as [`Event`]s.

mod admission;
pub mod checkpoint;
mod connections;
mod contact;
mod files;
pub mod limits;
pub mod membership;
#[cfg(test)]
mod model_tests;
pub mod records;
mod routing;
mod server;
mod status;
pub mod store;
#[cfg(test)]
mod store_tests;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::oneshot;
use tonic::service::{InterceptorLayer, Routes};
use zerofold_proto::v1::control_server::ControlServer;
use zerofold_proto::v1::status_server::StatusServer;
use zerofold_trust::{Authority, Gate, Refusals, TrustError, secured};

pub(crate) use connections::Connection;
pub use contact::{Contact, Listen};
pub use membership::{Left, Member, Membership};
pub use server::Publish;

use crate::event::Event;
use crate::hosts::HostsService;
use crate::watch::Board;
use connections::Connections;
use routing::BySize;
use server::{ControlService, Shared};
use status::StatusService;

/// Why the control plane did not start.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The configured port belongs to somebody else.
    #[error(
        "port {port} (main_process_port) is in use by another process\nhint: choose another, or leave main_process_port out to take any free one (the port of --rdzv-endpoint must be free on host 0); `ss -ltnp sport = :{port}` shows who has it"
    )]
    PortInUse {
        /// The port.
        port: u16,
    },
    /// Another reason.
    #[error("cannot start the control plane on {address}: {source}")]
    Start {
        /// Where; port 0 for any.
        address: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// No token can be made.
    #[error("cannot make a token for the job: {0}")]
    Token(#[from] zerofold_trust::TokenError),
    /// No certificate can be made.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// What a job's control plane needs to know.
pub struct ControlOptions {
    /// Where it listens, and for whom.
    pub listen: Listen,
    /// How many ranks.
    pub world_size: u32,
    /// This membership of the job; calls of others are refused.
    pub generation: u64,
    /// Publishes complete checkpoints.
    pub publish: Arc<Publish>,
    /// How long the parts of a checkpoint are waited for, from the first one.
    pub save_patience: Duration,
    /// What those who watch the job are told; none where there is no job.
    pub board: Option<Arc<Board>>,
    /// Serves the launches of other hosts, where there are some.
    pub(crate) hosts: Option<HostsService>,
}

impl ControlOptions {
    /// A job on one host, which nobody watches.
    pub fn new(listen: Listen, world_size: u32, generation: u64, publish: Arc<Publish>) -> ControlOptions {
        let save_patience = limits::SAVE_PATIENCE;
        ControlOptions { listen, world_size, generation, publish, save_patience, board: None, hosts: None }
    }
}

/// A control plane that is being served. Dropping it ends the service.
pub struct ControlPlane {
    contact: Contact,
    shared: Arc<Shared>,
    connections: Arc<Connections>,
    shutdown: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ControlPlane {
    /// Listens and serves from a thread of its own.
    ///
    /// # Errors
    /// The port is taken, or the system refuses a socket or a thread.
    pub fn start(options: ControlOptions, events: Sender<Event>) -> Result<ControlPlane, ControlError> {
        let Listen { address, token, tls } = options.listen;
        let failed = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::AddrInUse if address.port() != 0 => ControlError::PortInUse { port: address.port() },
            _ => ControlError::Start { address, source },
        };
        let acceptor = if tls { Some(Authority::of(&token)?.acceptor()?) } else { None };
        let refusals = Refusals::default();
        let gate = InterceptorLayer::new(Gate::new(&token, refusals.clone()));
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;

        let membership = Membership::new(options.world_size, options.generation, env!("CARGO_PKG_VERSION"));
        let shared = Arc::new(Shared::new(membership, options.publish, options.save_patience, events));
        let service = |bytes| ControlServer::new(ControlService(shared.clone())).max_decoding_message_size(bytes);
        let (small, large) = (service(limits::MAX_MESSAGE_BYTES), service(limits::MAX_PART_MESSAGE_BYTES));
        let service = BySize { small, large };
        if let Some(board) = &options.board {
            let ranks = shared.clone();
            board.follow(move || ranks.membership().members().to_vec());
        }
        let mut routes = Routes::new(service);
        if let Some(board) = options.board {
            routes = routes.add_service(StatusServer::new(StatusService(board)));
        }
        if let Some(hosts) = options.hosts {
            routes = hosts.routes(routes);
        }
        files::make_room(limits::files_wanted(options.world_size));
        let connections = Connections::new(limits::max_connections(options.world_size), limits::FIRST_REQUEST);
        let accepted = connections.clone();
        let (shutdown, asked) = oneshot::channel::<()>();
        let serve = async move {
            let incoming = accepted.incoming(tokio::net::TcpListener::from_std(listener)?);
            let incoming = secured(incoming, acceptor, refusals, |guarded| guarded.peer());
            // In this order: only who has passed the gate counts as having made a request.
            let (introduced, heard) =
                (InterceptorLayer::new(connections::introduce), InterceptorLayer::new(connections::hear));
            let server = limited().layer(introduced).layer(gate).layer(heard).add_routes(routes);
            let server = server.serve_with_incoming(incoming);
            // Not a graceful shutdown: that would wait for workers that hang.
            tokio::select! {
                served = server => served.map_err(std::io::Error::other),
                _ = asked => Ok(()),
            }
        };
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                if let Err(error) = runtime.block_on(serve) {
                    tracing::error!(%error, "the control plane ended");
                }
                runtime.shutdown_background();
            })
            .map_err(failed)?;
        tracing::debug!(%address, "control plane listens");
        let contact = Contact::of(address, token, tls);
        Ok(ControlPlane { contact, shared, connections, shutdown: Some(shutdown), thread: Some(thread) })
    }

    /// How workers of this host reach it.
    pub fn contact(&self) -> &Contact {
        &self.contact
    }

    /// From now on every heartbeat is answered with "finish the step, save, leave".
    pub fn ask_to_stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
    }

    /// Asks for a checkpoint after the step that is being taken.
    pub fn ask_to_save(&self) {
        self.shared.saves.fetch_add(1, Ordering::AcqRel);
    }

    /// Begins another membership of the job, of `world_size` ranks: calls of earlier ones are refused from now on.
    pub fn begin(&self, generation: u64, world_size: u32) {
        self.connections.set_limit(limits::max_connections(world_size));
        self.shared.begin(generation, world_size);
    }

    /// Whether a checkpoint is being published: its folder is not to be touched until it is not.
    pub fn is_publishing(&self) -> bool {
        self.shared.publishing.load(Ordering::Acquire) > 0
    }

    /// A worker's process ended: checkpoints that wait for it are answered with an error.
    pub fn rank_gone(&self, rank: u32, reason: &str) {
        self.shared.rank_gone(rank, reason);
    }

    /// What is known of every rank now.
    pub fn members(&self) -> Vec<Member> {
        self.look(<[Member]>::to_vec)
    }

    /// Looks at what is known of every rank now, without a copy. Calls wait meanwhile.
    pub fn look<T>(&self, look: impl FnOnce(&[Member]) -> T) -> T {
        look(self.shared.membership().members())
    }

    /// How many connections there are now.
    pub fn connections(&self) -> usize {
        self.connections.count()
    }
}

/// A server with the limits of HTTP/2 that [`limits`] names.
fn limited() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .max_concurrent_streams(limits::MAX_CALLS_PER_CONNECTION)
        .initial_stream_window_size(limits::WINDOW_BYTES)
        .initial_connection_window_size(limits::WINDOW_BYTES)
        .http2_max_header_list_size(limits::MAX_HEADER_BYTES)
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if let Some(shutdown) = self.shutdown.take() {
            let _ = shutdown.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
