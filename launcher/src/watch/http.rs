//! The Prometheus endpoint: `GET /metrics` on loopback, from a thread of its own.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::sync::{Semaphore, oneshot};

use super::board::Board;
use super::prometheus;

/// Connections at once; more wait.
const CONNECTIONS: usize = 16;
/// How long a caller may take to ask, on a connection that it holds.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long after a refused connection (too many open files) the next is looked for.
const AFTER_A_FAILURE: Duration = Duration::from_millis(200);

/// Why there is no endpoint.
#[derive(Debug, Error)]
pub enum MetricsError {
    /// The configured port belongs to somebody else.
    #[error(
        "port {port} (metrics_port) is in use by another process\nhint: choose another, or metrics_port: 0 for any free one; `ss -ltnp sport = :{port}` shows who has it"
    )]
    PortInUse {
        /// The port.
        port: u16,
    },
    /// Another reason.
    #[error("cannot serve metrics on 127.0.0.1:{port}: {source}")]
    Start {
        /// The port; 0 for any.
        port: u16,
        /// What the system said.
        source: std::io::Error,
    },
}

/// An endpoint that is being served. Dropping it ends the service.
pub struct MetricsEndpoint {
    address: SocketAddr,
    shutdown: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsEndpoint {
    /// Listens on this port of loopback, or on any free one for 0, and tells what is on the board.
    ///
    /// # Errors
    /// The port is taken, or the system refuses a socket or a thread.
    pub fn start(port: u16, board: Arc<Board>) -> Result<MetricsEndpoint, MetricsError> {
        let failed = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::AddrInUse if port != 0 => MetricsError::PortInUse { port },
            _ => MetricsError::Start { port, source },
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (shutdown, asked) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        ended = serve(listener, board) => {
                            if let Err(error) = ended {
                                tracing::error!(%error, "the metrics endpoint ended");
                            }
                        }
                        _ = asked => {}
                    }
                });
                runtime.shutdown_background();
            })
            .map_err(failed)?;
        Ok(MetricsEndpoint { address, shutdown: Some(shutdown), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsEndpoint {
    fn drop(&mut self) {
        if let Some(shutdown) = self.shutdown.take() {
            let _ = shutdown.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, board: Arc<Board>) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = free.clone().acquire_owned().await else { return Ok(()) };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a connection for metrics was not accepted");
                tokio::time::sleep(AFTER_A_FAILURE).await;
                continue;
            }
        };
        let board = board.clone();
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let answer = answer(&request, &board);
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut connection = http1::Builder::new();
            connection.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            // What a caller does wrong on a connection is the caller's business.
            let _ = connection.serve_connection(TokioIo::new(stream), answer).await;
            drop(place);
        });
    }
}

fn answer(request: &Request<Incoming>, board: &Board) -> Response<Full<Bytes>> {
    let reads = [Method::GET, Method::HEAD].contains(request.method());
    let (status, kind, text) = match (reads, request.uri().path()) {
        (true, "/metrics") => (StatusCode::OK, prometheus::CONTENT_TYPE, prometheus::exposition(&board.status())),
        (true, _) => (StatusCode::NOT_FOUND, "text/plain", "metrics are at /metrics\n".to_owned()),
        (false, _) => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET is answered\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if !reads {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::path::Path;
    use std::time::Instant;

    fn ask(address: SocketAddr, words: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write!(stream, "{words} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn metrics_are_served_while_others_misbehave_and_the_port_is_free_afterwards() {
        let board = Arc::new(Board::new(Path::new("runs/x"), Instant::now(), 1));
        let endpoint = MetricsEndpoint::start(0, board.clone()).unwrap();
        let address = endpoint.address();
        // These hold connections and ask nothing, or rubbish.
        let silent: Vec<_> = (0..CONNECTIONS - 1).map(|_| TcpStream::connect(address).unwrap()).collect();
        TcpStream::connect(address).unwrap().write_all(b"\x16\x03\x01 rubbish\r\n\r\n").unwrap();
        let answer = ask(address, "GET /metrics");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{answer}");
        assert!(answer.contains("\nzerofold_up 1\n"), "{answer}");
        board.begin(1, 7, None);
        assert!(ask(address, "GET /metrics?x=1").contains("\nzerofold_planned_steps 7\n"));
        assert!(!ask(address, "HEAD /metrics").contains("zerofold_up"));
        assert!(ask(address, "GET /").starts_with("HTTP/1.1 404 "));
        assert!(ask(address, "POST /metrics").starts_with("HTTP/1.1 405 "));
        let taken = MetricsEndpoint::start(address.port(), board.clone()).err().unwrap().to_string();
        assert!(taken.contains("(metrics_port) is in use by another process\nhint: "), "{taken}");
        drop((endpoint, silent));
        MetricsEndpoint::start(address.port(), board).unwrap();
    }
}
