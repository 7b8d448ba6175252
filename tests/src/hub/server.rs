//! HTTP: requests in, answers out, and connections that are cut.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot::Receiver;

use super::api::{Answer, Asked, answer};
use super::repo::State;
use super::{READER, WRITER};

pub(super) fn serve(listener: std::net::TcpListener, state: Arc<Mutex<State>>, mut stopped: Receiver<()>) {
    listener.set_nonblocking(true).expect("a socket");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
        loop {
            let connection = tokio::select! {
                _ = &mut stopped => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((connection, _)) = connection else { continue };
            let state = state.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| handle(request, state.clone()));
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(connection), service)
                    .await;
            });
        }
    });
}

/// An error cuts the connection.
async fn handle(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, std::io::Error> {
    let (head, mut body) = request.into_parts();
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let line = format!("{} {}", head.method, head.uri.path());
    let (range, authorization, host) = (header("range"), header("authorization"), header("host").unwrap_or_default());
    let fault = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let told = range.as_ref().map(|range| format!(" {range}")).unwrap_or_default();
        state.requests.push(format!("{line}{told}"));
        let found = state.faults.iter_mut().find(|fault| fault.times > 0 && line.starts_with(fault.begins));
        found.map(|fault| {
            fault.times -= 1;
            fault.clone()
        })
    };
    let cut_after = fault.as_ref().and_then(|fault| fault.cut_after);
    let takes_body = head.method == Method::PUT || head.method == Method::POST;
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(std::io::Error::other)?;
        bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        if takes_body && cut_after.is_some_and(|most| bytes.len() >= most) {
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
    }
    let token = authorization.as_deref().and_then(|text| text.strip_prefix("Bearer "));
    let answer = match &fault {
        Some(fault) if fault.cut_after.is_none() => {
            Answer::error(fault.status.0, fault.status.1, "as the test wants it")
        }
        _ if token.is_some_and(|token| ![WRITER, READER].contains(&token)) => {
            Answer::error(401, "", "Invalid credentials in Authorization header")
        }
        _ => {
            let asked = Asked {
                method: head.method.as_str(),
                path: head.uri.path(),
                query: head.uri.query().unwrap_or_default(),
                host: &host,
                token,
                range: range.as_deref(),
                body: &bytes,
            };
            answer(&asked, &mut state.lock().unwrap_or_else(PoisonError::into_inner))
        }
    };
    Ok(response(answer, &head.method, cut_after.filter(|_| !takes_body)))
}

fn response(answer: Answer, method: &Method, cut_after: Option<usize>) -> Response<BoxBody<Bytes, Infallible>> {
    let length = answer.body.len();
    let bytes = Bytes::from(answer.body);
    // A body that ends before its length is a connection that is cut.
    let body = match cut_after.filter(|most| *most < length) {
        Some(most) => Cut { sent: Some(bytes.slice(..most)), flushed: false }.boxed(),
        None if method == Method::HEAD => Full::new(Bytes::new()).boxed(),
        None => Full::new(bytes).boxed(),
    };
    let mut response = Response::new(body);
    *response.status_mut() = hyper::StatusCode::from_u16(answer.status).expect("a status");
    for (name, value) in answer.headers {
        let value = HeaderValue::from_str(&value).expect("a header");
        response.headers_mut().insert(hyper::header::HeaderName::from_static(name), value);
    }
    response.headers_mut().insert(CONTENT_LENGTH, length.into());
    response
}

/// A body that ends early, once what there is of it has gone out.
struct Cut {
    sent: Option<Bytes>,
    flushed: bool,
}

impl Body for Cut {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(bytes) = self.sent.take() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        if std::mem::replace(&mut self.flushed, true) {
            return Poll::Ready(None);
        }
        // A body that is not ready lets what was written be sent.
        context.waker().wake_by_ref();
        Poll::Pending
    }
}
