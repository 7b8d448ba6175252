//! The stand-in for NCCL and the driver (`gpu_stand_in/`), compiled when a test first needs it.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// A folder for LD_LIBRARY_PATH in which the stand-in has the names of the libraries that it stands for.
pub(crate) fn folder() -> PathBuf {
    // Once a process: one test does not replace the folder under the ranks of another.
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(up_to_date).clone()
}

fn up_to_date() -> PathBuf {
    let sources = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gpu_stand_in"));
    let newest = newest_source(sources);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gpu-stand-in");
    let library = folder.join("libnccl.so");
    let made = library.metadata().and_then(|metadata| metadata.modified());
    if made.is_ok_and(|made| made > newest) {
        return folder;
    }
    // Made apart and renamed, so that two tests at once do not see half of it.
    let apart = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    compile(sources, &apart.path().join("libnccl.so"));
    symlink("libnccl.so", apart.path().join("libcuda.so.1")).unwrap();
    let _old = std::fs::remove_dir_all(&folder);
    // Another test may have been quicker.
    let _renamed = std::fs::rename(apart.path(), &folder);
    assert!(library.exists());
    folder
}

/// What lies directly in the folder: its self-test has one of its own.
fn files(folder: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file())
}

fn newest_source(folder: &Path) -> SystemTime {
    files(folder).map(|path| path.metadata().unwrap().modified().unwrap()).max().unwrap()
}

fn compile(sources: &Path, library: &Path) {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let status = Command::new(compiler)
        .args(["-std=c++20", "-O1", "-g", "-shared", "-fPIC", "-Wall", "-Wextra"])
        .args(files(sources).filter(|path| path.extension().is_some_and(|extension| extension == "cpp")))
        .arg("-o")
        .arg(library)
        .arg("-lpthread")
        .status();
    assert!(status.unwrap().success(), "the stand-in does not compile");
}
