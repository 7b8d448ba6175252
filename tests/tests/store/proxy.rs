//! A line between `launch` and the server that can be cut.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What passes on the bytes of every connection.
pub(crate) struct Proxy {
    address: SocketAddr,
    line: Arc<Line>,
}

struct Line {
    server: SocketAddr,
    /// Bytes to the server that still pass; then the line is cut.
    left: AtomicU64,
    cut: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// A whole line to this server.
    pub(crate) fn to(server: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let line = Line { server, left: AtomicU64::new(u64::MAX), cut: AtomicBool::new(false), open: Mutex::default() };
        let line = Arc::new(line);
        let own = line.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                own.clone().connect(client);
            }
        });
        Proxy { address, line }
    }

    /// Where `launch` finds it.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts the line once so many more bytes went to the server; with 0, now.
    pub(crate) fn cut_after(&self, bytes: u64) {
        self.line.left.store(bytes, Ordering::SeqCst);
        if bytes == 0 {
            self.line.cut();
        }
    }

    /// Whether it is cut.
    pub(crate) fn is_cut(&self) -> bool {
        self.line.cut.load(Ordering::SeqCst)
    }

    /// Makes it whole again.
    pub(crate) fn mend(&self) {
        self.line.left.store(u64::MAX, Ordering::SeqCst);
        self.line.cut.store(false, Ordering::SeqCst);
    }
}

impl Line {
    fn connect(self: Arc<Self>, client: TcpStream) {
        let server = match self.cut.load(Ordering::SeqCst) {
            true => None,
            false => TcpStream::connect(self.server).ok(),
        };
        let Some(server) = server else {
            let _ = client.shutdown(Shutdown::Both);
            return;
        };
        let twice = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
        let mut open = self.open.lock().unwrap();
        open.extend([twice(&client), twice(&server)]);
        drop(open);
        let (back_from, back_to) = (twice(&server), twice(&client));
        let own = self.clone();
        std::thread::spawn(move || own.pass(client, server, true));
        std::thread::spawn(move || self.pass(back_from, back_to, false));
    }

    fn pass(&self, mut from: TcpStream, mut to: TcpStream, counted: bool) {
        let mut buffer = [0; 4096];
        while let Ok(bytes @ 1..) = from.read(&mut buffer) {
            if counted {
                let take = |left: u64| (left != u64::MAX).then(|| left.saturating_sub(bytes as u64));
                let before = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
                if before.is_ok_and(|left| left <= bytes as u64) {
                    self.cut();
                }
            }
            if self.cut.load(Ordering::SeqCst) || to.write_all(&buffer[..bytes]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
