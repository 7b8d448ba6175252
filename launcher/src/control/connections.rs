//! The control plane's connections: accepted, counted, and ended when they take what others need.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::Sleep;
use tonic::transport::server::{Connected, TcpConnectInfo};
use tonic::{Request, Status};

use super::admission::{Admission, Admitted};
use super::limits::DEAD_CONNECTION;

/// How long to wait when the system has no file handle for a connection.
const NO_HANDLE: Duration = Duration::from_millis(50);

/// How many connections may wait until they are accepted.
const WAITING: i32 = 4096;

/// All connections of a control plane.
pub(crate) struct Connections {
    admission: Mutex<Admission<oneshot::Sender<()>>>,
    first_request: Duration,
    told_of_crowd: AtomicBool,
    told_of_error: AtomicBool,
}

impl Connections {
    /// None yet, and never more than `limit`. One on which no request comes within `first_request` is ended.
    pub(crate) fn new(limit: usize, first_request: Duration) -> Arc<Self> {
        Arc::new(Connections {
            admission: Mutex::new(Admission::new(limit)),
            first_request,
            told_of_crowd: AtomicBool::new(false),
            told_of_error: AtomicBool::new(false),
        })
    }

    fn admission(&self) -> MutexGuard<'_, Admission<oneshot::Sender<()>>> {
        self.admission.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on there may be so many.
    pub(crate) fn set_limit(&self, limit: usize) {
        self.admission().set_limit(limit);
    }

    /// How many there are now.
    pub(crate) fn count(&self) -> usize {
        self.admission().count()
    }

    /// Those that come to `listener`, and may stay.
    pub(crate) fn incoming(self: Arc<Self>, listener: TcpListener) -> impl Stream<Item = io::Result<Guarded>> {
        // The standard library asks for 128, so that of more workers who come at once some wait a second, and some are refused.
        // The system cuts it to net.core.somaxconn.
        if let Err(error) = rustix::net::listen(&listener, WAITING) {
            tracing::warn!("the control plane's queue of new connections stays short: {error}");
        }
        stream::unfold((self, listener), async |(connections, listener)| {
            let guarded = connections.next(&listener).await;
            Some((Ok(guarded), (connections, listener)))
        })
    }

    async fn next(self: &Arc<Self>, listener: &TcpListener) -> Guarded {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    if let Some(guarded) = self.admit(stream, peer) {
                        return guarded;
                    }
                }
                Err(error) => {
                    if !self.told_of_error.swap(true, Ordering::Relaxed) {
                        tracing::warn!(
                            "the control plane cannot accept a connection: {error}\nhint: `ulimit -n` limits the files of launch; each rank takes some"
                        );
                    }
                    // Without a pause this would be tried again at once, for ever.
                    tokio::time::sleep(NO_HANDLE).await;
                }
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr) -> Option<Guarded> {
        let (end, ended) = oneshot::channel();
        let admitted = self.admission().arrived(end);
        if !matches!(admitted, Admitted::Stays(_)) && !self.told_of_crowd.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the control plane has {} connections, as many as it may; those on which no rank of the job has spoken make room for new ones (the newest is from {peer})\nhint: `ss -tnp` shows who holds them",
                self.count()
            );
        }
        let number = match admitted {
            Admitted::Stays(number) => number,
            Admitted::InPlaceOf(number, oldest) => {
                // It may be about to close by itself.
                let _ = oldest.send(());
                number
            }
            Admitted::Refused => return None,
        };
        prepare(&stream);
        let (heard, member) = (AtomicBool::new(false), AtomicBool::new(false));
        let addresses = (stream.local_addr().ok(), peer);
        let state = Arc::new(State { connections: self.clone(), number, addresses, heard, member });
        let guard = Guard { ended: Some(ended), late: Box::pin(tokio::time::sleep(self.first_request)) };
        Some(Guarded { stream, guard: Some(guard), connection: Connection(state) })
    }
}

fn prepare(stream: &TcpStream) {
    // Small messages back and forth: waiting to fill a packet would cost 40 ms each.
    let nodelay = stream.set_nodelay(true);
    // A host that is cut off sends nothing, not even that it is gone. A stopped process's system still answers.
    let timeout = rustix::net::sockopt::set_tcp_user_timeout(stream, DEAD_CONNECTION.as_millis() as u32);
    let idle = rustix::net::sockopt::set_tcp_keepidle(stream, DEAD_CONNECTION / 4);
    let interval = rustix::net::sockopt::set_tcp_keepintvl(stream, DEAD_CONNECTION / 4);
    let keepalive = rustix::net::sockopt::set_socket_keepalive(stream, true);
    let failed = [timeout, idle, interval, keepalive].into_iter().find_map(Result::err);
    if let Some(error) = nodelay.err().or(failed.map(io::Error::from)) {
        tracing::debug!(%error, "a connection was not set up as it should be");
    }
}

struct State {
    connections: Arc<Connections>,
    number: u64,
    /// Of this side, and of the other.
    addresses: (Option<SocketAddr>, SocketAddr),
    /// A request has come.
    heard: AtomicBool,
    /// A rank of the job has spoken.
    member: AtomicBool,
}

/// A connection as the service sees it.
#[derive(Clone)]
pub(crate) struct Connection(Arc<State>);

impl Connection {
    /// A request has come on it.
    fn heard(&self) {
        self.0.heard.store(true, Ordering::Relaxed);
    }

    /// A rank of the job has spoken on it: it makes no room for others any more.
    pub(crate) fn is_member(&self) {
        if !self.0.member.load(Ordering::Relaxed) && self.0.connections.admission().is_member(self.0.number) {
            self.0.member.store(true, Ordering::Relaxed);
        }
    }
}

/// Tells, as tonic does for plain connections, from where a call comes.
// The error's type is tonic's.
#[allow(clippy::result_large_err)]
pub(crate) fn introduce(mut call: Request<()>) -> Result<Request<()>, Status> {
    if let Some(connection) = call.extensions().get::<Connection>() {
        let (local_addr, peer) = connection.0.addresses;
        call.extensions_mut().insert(TcpConnectInfo { local_addr, remote_addr: Some(peer) });
    }
    Ok(call)
}

/// Notes that a call has come from somebody who knows the token: such a connection makes no room for others.
// The error's type is tonic's.
#[allow(clippy::result_large_err)]
pub(crate) fn hear(call: Request<()>) -> Result<Request<()>, Status> {
    if let Some(connection) = call.extensions().get::<Connection>() {
        connection.heard();
        connection.is_member();
    }
    Ok(call)
}

/// What ends a stranger's connection.
struct Guard {
    ended: Option<oneshot::Receiver<()>>,
    late: Pin<Box<Sleep>>,
}

/// A connection that is ended when it says nothing, or has to make room.
pub(crate) struct Guarded {
    stream: TcpStream,
    guard: Option<Guard>,
    connection: Connection,
}

impl Guarded {
    /// Who is on the other side.
    pub(crate) fn peer(&self) -> Option<IpAddr> {
        Some(self.connection.0.addresses.1.ip())
    }

    /// An error once the connection has to go. Looked at whenever hyper reads or writes, so that a peer who does not read what
    /// it is sent is seen too.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let state = &self.connection.0;
        if state.member.load(Ordering::Relaxed) {
            self.guard = None;
        }
        let Some(guard) = &mut self.guard else { return Ok(()) };
        if let Some(Poll::Ready(told)) = guard.ended.as_mut().map(|ended| Pin::new(ended).poll(context)) {
            guard.ended = None;
            if told.is_ok() {
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "it made room for a new connection"));
            }
        }
        if !state.heard.load(Ordering::Relaxed) && guard.late.as_mut().poll(context).is_ready() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no request came in time"));
        }
        Ok(())
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let State { connections, number, .. } = self.connection.0.as_ref();
        connections.admission().closed(*number);
    }
}

impl Connected for Guarded {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

impl AsyncRead for Guarded {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;
    use tokio::io::AsyncReadExt;

    const LIMIT: Duration = Duration::from_secs(10);

    /// Runs a test with a limit on its time.
    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(LIMIT, test).await.expect("the test hangs") });
    }

    #[test]
    fn who_says_nothing_is_ended_and_who_asked_something_is_not() {
        run(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let connections = Connections::new(8, Duration::from_millis(60));
            let mut incoming = std::pin::pin!(connections.clone().incoming(listener));
            let _silent = TcpStream::connect(address).await.unwrap();
            let mut silent = incoming.next().await.unwrap().unwrap();
            let _asks = TcpStream::connect(address).await.unwrap();
            let mut asks = incoming.next().await.unwrap().unwrap();
            asks.connect_info().heard();
            assert_eq!(connections.count(), 2);
            let error = silent.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            let waits = tokio::time::timeout(Duration::from_millis(120), asks.read_u8()).await;
            assert!(waits.is_err(), "{waits:?}");
            drop(silent);
            assert_eq!(connections.count(), 1);
        });
    }

    #[test]
    fn a_stranger_who_does_not_read_makes_room_too() {
        run(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let connections = Connections::new(1, LIMIT);
            let mut incoming = std::pin::pin!(connections.clone().incoming(listener));
            let _deaf = TcpStream::connect(address).await.unwrap();
            let mut deaf = incoming.next().await.unwrap().unwrap();
            let writer = tokio::spawn(async move {
                loop {
                    if let Err(error) = tokio::io::AsyncWriteExt::write_all(&mut deaf, &[0; 1 << 16]).await {
                        return error.kind();
                    }
                }
            });
            let _new = TcpStream::connect(address).await.unwrap();
            let new = incoming.next().await.unwrap().unwrap();
            assert_eq!(writer.await.unwrap(), io::ErrorKind::ConnectionAborted);
            // A member stays; the next one is refused, and so is not handed out.
            new.connect_info().is_member();
            let mut refused = TcpStream::connect(address).await.unwrap();
            tokio::select! {
                _ = incoming.next() => panic!("there is no room"),
                read = refused.read_u8() => assert!(read.is_err(), "{read:?}"),
            }
            assert_eq!(connections.count(), 1);
        });
    }
}
