//! Connections as they come in, encrypted or not.

use crate::Refusals;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::Connected;

/// How long a stranger may take to shake hands.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at a time; more wait.
const HANDSHAKES: usize = 256;
/// After an error of `accept` (no file handle is left, say), how long until the next try.
const PAUSE: Duration = Duration::from_millis(50);

/// What connections are made of, as they are accepted.
pub trait Accepted: Connected + AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// Who is at the other end.
    fn peer(&self) -> Option<IpAddr>;
}

impl Accepted for TcpStream {
    fn peer(&self) -> Option<IpAddr> {
        self.peer_addr().ok().map(|peer| peer.ip())
    }
}

/// An accepted connection.
#[derive(Debug)]
pub enum Socket<S> {
    /// As it is.
    Plain(S),
    /// Encrypted.
    Tls(Box<TlsStream<S>>),
}

/// The connections that were `accepted`, once their handshake is done; must be called inside a tokio runtime. A peer that does not
/// manage one is refused, told of once, and holds up nobody.
pub fn incoming<S: Accepted>(
    accepted: impl Stream<Item = io::Result<S>> + Send + 'static,
    tls: Option<TlsAcceptor>,
    refusals: Refusals,
) -> impl Stream<Item = io::Result<Socket<S>>> {
    let (ready, shaken) = mpsc::channel(64);
    tokio::spawn(async move {
        let turns = Arc::new(Semaphore::new(HANDSHAKES));
        let mut accepted = std::pin::pin!(accepted);
        loop {
            let stream = tokio::select! {
                // Nobody takes connections any more.
                () = ready.closed() => return,
                next = accepted.next() => match next {
                    Some(Ok(stream)) => stream,
                    Some(Err(error)) => {
                        tracing::debug!(%error, "a connection could not be accepted");
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                    None => return,
                },
            };
            let Some(tls) = tls.clone() else {
                if ready.send(Ok(Socket::Plain(stream))).await.is_err() {
                    return;
                }
                continue;
            };
            let Ok(turn) = turns.clone().acquire_owned().await else { return };
            let (ready, refusals, peer) = (ready.clone(), refusals.clone(), stream.peer());
            tokio::spawn(async move {
                let done = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await;
                drop(turn);
                let problem = match done {
                    Ok(Ok(stream)) => {
                        let _ = ready.send(Ok(Socket::Tls(Box::new(stream)))).await;
                        return;
                    }
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => format!("no TLS handshake within {} s", HANDSHAKE.as_secs()),
                };
                refusals.tell(peer, "TLS", &format!("no TLS as this job's launches speak it: {problem}"));
            });
        }
    });
    ReceiverStream::new(shaken)
}

impl<S: Connected> Connected for Socket<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> S::ConnectInfo {
        match self {
            Socket::Plain(stream) => stream.connect_info(),
            Socket::Tls(stream) => stream.get_ref().0.connect_info(),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Socket<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Socket::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Socket::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(stream) => Pin::new(stream).poll_flush(context),
            Socket::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Socket::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
