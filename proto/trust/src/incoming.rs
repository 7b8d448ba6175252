//! Connections as they come in, encrypted or not.

use crate::Refusals;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// How long a stranger may take to shake hands.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at a time; more wait.
const HANDSHAKES: usize = 256;
/// After an error of `accept` (no file handle is left, say), how long until the next try.
const PAUSE: Duration = Duration::from_millis(50);

/// An accepted connection.
#[derive(Debug)]
pub enum Socket {
    /// As it is.
    Plain(TcpStream),
    /// Encrypted.
    Tls(Box<TlsStream<TcpStream>>),
}

/// The connections that `listener` accepts, once their handshake is done; must be called inside a tokio runtime. A peer that
/// does not manage one is refused, told of once, and holds up nobody.
pub fn incoming(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    refusals: Refusals,
) -> impl Stream<Item = io::Result<Socket>> {
    let (ready, accepted) = mpsc::channel(64);
    tokio::spawn(async move {
        let turns = Arc::new(Semaphore::new(HANDSHAKES));
        loop {
            let (stream, peer) = tokio::select! {
                // Nobody takes connections any more.
                () = ready.closed() => return,
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::debug!(%error, "a connection could not be accepted");
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                },
            };
            // Small messages back and forth: waiting to fill a packet would cost 40 ms each.
            let _ = stream.set_nodelay(true);
            let Some(tls) = tls.clone() else {
                if ready.send(Ok(Socket::Plain(stream))).await.is_err() {
                    return;
                }
                continue;
            };
            let Ok(turn) = turns.clone().acquire_owned().await else { return };
            let (ready, refusals) = (ready.clone(), refusals.clone());
            tokio::spawn(async move {
                let shaken = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await;
                drop(turn);
                let problem = match shaken {
                    Ok(Ok(stream)) => {
                        let _ = ready.send(Ok(Socket::Tls(Box::new(stream)))).await;
                        return;
                    }
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => format!("no TLS handshake within {} s", HANDSHAKE.as_secs()),
                };
                refusals.tell(Some(peer.ip()), "TLS", &format!("no TLS as this job's launches speak it: {problem}"));
            });
        }
    });
    ReceiverStream::new(accepted)
}

impl Connected for Socket {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        match self {
            Socket::Plain(stream) => stream.connect_info(),
            Socket::Tls(stream) => stream.get_ref().0.connect_info(),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Socket::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Socket {
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
