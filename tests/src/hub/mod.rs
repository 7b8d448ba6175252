//! A Hugging Face hub on this machine: as much of its API as clients use to download models and data, and to upload models. Of
//! data a repository's id begins with `datasets/`. That it speaks as
//! the real one does is shown by `scripts/compare hub`, which lets the Python package `huggingface_hub` talk to it.
//!
//! Large files lie behind redirects to another host (`localhost` in place of `127.0.0.1`), which wants no token, as the
//! hub's storage does.

mod api;
mod repo;
mod server;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use repo::Repo;
use repo::State;

/// A token that may read and write everything.
pub const WRITER: &str = "hf_writer";
/// A token that may read what is public.
pub(crate) const READER: &str = "hf_reader";

/// What goes wrong with the next requests whose method and path begin like this.
#[derive(Clone, Debug)]
pub struct Fault {
    /// `GET /cdn/`.
    pub begins: &'static str,
    /// After so many bytes of the body, the answer's or the request's, the connection is cut.
    pub cut_after: Option<usize>,
    /// Or this is answered, with this X-Error-Code.
    pub status: (u16, &'static str),
    /// How often.
    pub times: usize,
}

impl Fault {
    /// The connection is cut after so many bytes of the body.
    pub fn cut(begins: &'static str, after: usize, times: usize) -> Fault {
        Fault { begins, cut_after: Some(after), status: (0, ""), times }
    }

    /// An answer with this status and X-Error-Code.
    pub fn status(begins: &'static str, status: u16, code: &'static str, times: usize) -> Fault {
        Fault { begins, cut_after: None, status: (status, code), times }
    }
}

/// The hub. Dropped, it is gone.
pub struct Hub {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Default for Hub {
    fn default() -> Self {
        Hub::new()
    }
}

impl Hub {
    /// An empty hub on a free port.
    pub fn new() -> Hub {
        Hub::on_port(0)
    }

    /// An empty hub on this port.
    pub fn on_port(port: u16) -> Hub {
        let listener = std::net::TcpListener::bind(("127.0.0.1", port)).expect("a port of this machine");
        let address = listener.local_addr().expect("a bound socket has an address");
        let state = Arc::new(Mutex::new(State::default()));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let served = state.clone();
        let thread = std::thread::spawn(move || server::serve(listener, served, stopped));
        Hub { address, state, stop: Some(stop), thread: Some(thread) }
    }

    /// Its address, for HF_ENDPOINT.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Puts the files of a folder into a repository as one commit on main; gives the commit's hash.
    pub fn publish(&self, id: &str, folder: &Path) -> String {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).expect("the folder can be read") {
            let entry = entry.expect("the folder can be read");
            let name = entry.file_name().to_string_lossy().into_owned();
            files.push((name, std::fs::read(entry.path()).expect("the file can be read")));
        }
        self.commit(id, files)
    }

    /// Puts these files into a repository as one commit on main; gives the commit's hash.
    pub fn commit(&self, id: &str, files: Vec<(String, Vec<u8>)>) -> String {
        let mut state = self.state();
        let repo = state.repos.entry(id.to_owned()).or_default();
        let files = files.into_iter().map(|(name, bytes)| (name, Some(bytes))).collect();
        repo.commit("main", files)
    }

    /// Changes a repository: who may see it, its branches.
    pub fn change(&self, id: &str, change: impl FnOnce(&mut Repo)) {
        change(self.state().repos.get_mut(id).expect("the repository is there"));
    }

    /// What is in a branch of a repository, by name; nothing where there is none.
    pub fn files(&self, id: &str, branch: &str) -> std::collections::BTreeMap<String, Vec<u8>> {
        let state = self.state();
        let found = state.repos.get(id).and_then(|repo| repo.files(branch));
        found.map(|files| files.iter().map(|(name, file)| (name.clone(), file.to_vec())).collect()).unwrap_or_default()
    }

    /// How many commits a branch has, the first of which made the repository.
    pub fn commits(&self, id: &str, branch: &str) -> usize {
        self.state().repos.get(id).map_or(0, |repo| repo.length(branch))
    }

    /// Whether only some may see a repository.
    pub fn is_private(&self, id: &str) -> bool {
        self.state().repos.get(id).is_some_and(|repo| repo.private)
    }

    /// Lets requests go wrong.
    pub fn let_fail(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// How much of its faults has not happened yet.
    pub fn faults_left(&self) -> usize {
        self.state().faults.iter().map(|fault| fault.times).sum()
    }

    /// Large files of more bytes are uploaded in parts of this size.
    pub fn take_parts_of(&self, bytes: usize) {
        self.state().part_bytes = bytes;
    }

    /// Gives other bytes for this file than it has, in every repository.
    pub fn spoil(&self, name: &str) {
        self.state().spoilt = Some(name.to_owned());
    }

    /// The requests so far, as `METHOD path` and, for a part of a file, ` range`; and forgets them.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state().requests)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
