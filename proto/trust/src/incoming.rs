//! Connections as they come in, encrypted or not.

use crate::Refusals;
use crate::client::WRONG_RECORD;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
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

/// An accepted connection.
#[derive(Debug)]
pub enum Socket<S> {
    /// As it is.
    Plain(Plain<S>),
    /// Encrypted.
    Tls(Box<TlsStream<S>>),
}

/// A connection without TLS. It is told of once when somebody speaks TLS on it: to HTTP/2 that is noise, and nobody would learn
/// why.
#[derive(Debug)]
pub struct Plain<S> {
    stream: S,
    /// Until the first byte has come.
    unheard: Option<(Refusals, Option<IpAddr>)>,
}

/// How a TLS connection begins: the type of the record that a handshake is in (RFC 8446, section 5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// The accepted connections, once their handshake is done; must be called inside a tokio runtime. A peer that does not manage
/// one is refused, told of once by its address, and holds up nobody.
pub fn secured<S>(
    accepted: impl Stream<Item = io::Result<S>> + Send + 'static,
    tls: Option<TlsAcceptor>,
    refusals: Refusals,
    peer: impl Fn(&S) -> Option<IpAddr> + Send + 'static,
) -> Pin<Box<dyn Stream<Item = io::Result<Socket<S>>> + Send>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(tls) = tls else {
        let plain = move |stream: S| {
            let unheard = Some((refusals.clone(), peer(&stream)));
            Socket::Plain(Plain { stream, unheard })
        };
        return Box::pin(accepted.map(move |stream| stream.map(&plain)));
    };
    let (ready, secured) = mpsc::channel(64);
    tokio::spawn(async move {
        let turns = Arc::new(Semaphore::new(HANDSHAKES));
        let mut accepted = std::pin::pin!(accepted);
        loop {
            let stream = tokio::select! {
                // Nobody takes connections any more.
                () = ready.closed() => return,
                stream = accepted.next() => match stream {
                    Some(Ok(stream)) => stream,
                    Some(Err(_)) => continue,
                    None => return,
                },
            };
            let Ok(turn) = turns.clone().acquire_owned().await else { return };
            let (tls, ready, refusals, peer) = (tls.clone(), ready.clone(), refusals.clone(), peer(&stream));
            tokio::spawn(async move {
                let shaken = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await;
                drop(turn);
                let problem = match shaken {
                    Ok(Ok(stream)) => {
                        let _ = ready.send(Ok(Socket::Tls(Box::new(stream)))).await;
                        return;
                    }
                    Ok(Err(error)) if error.to_string().contains(WRONG_RECORD) => {
                        "it speaks without it (give --no-tls on every host or on none)".to_owned()
                    }
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => format!("no TLS handshake within {} s", HANDSHAKE.as_secs()),
                };
                refusals.tell(peer, "TLS", &format!("no TLS as this job's launches speak it: {problem}"));
            });
        }
    });
    Box::pin(ReceiverStream::new(secured))
}

impl<S: Connected> Connected for Socket<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> S::ConnectInfo {
        match self {
            Socket::Plain(plain) => plain.stream.connect_info(),
            Socket::Tls(stream) => stream.get_ref().0.connect_info(),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Socket<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(plain) => {
                let before = buffer.filled().len();
                let polled = Pin::new(&mut plain.stream).poll_read(context, buffer);
                if let Some(first) = buffer.filled().get(before)
                    && let Some((refusals, peer)) = plain.unheard.take()
                    && *first == HANDSHAKE_RECORD
                {
                    let reason = "it speaks TLS, and this launch does not (give --no-tls on every host or on none)";
                    refusals.tell(peer, "TLS", reason);
                }
                polled
            }
            Socket::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Plain(plain) => Pin::new(&mut plain.stream).poll_write(context, bytes),
            Socket::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Plain(plain) => Pin::new(&mut plain.stream).poll_write_vectored(context, slices),
            Socket::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Socket::Plain(plain) => plain.stream.is_write_vectored(),
            Socket::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(plain) => Pin::new(&mut plain.stream).poll_flush(context),
            Socket::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(plain) => Pin::new(&mut plain.stream).poll_shutdown(context),
            Socket::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
