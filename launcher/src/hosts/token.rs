//! Where a job's token comes from: the environment, a file, or this launch itself where nobody else needs it.

use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use zerofold_configs::Topology;
use zerofold_trust::Token;

use crate::environment as env;
use crate::error::LaunchError;

/// A file of a token is refused above this size.
const MAX_BYTES: u64 = 4096;
const HOW: &str = "make one with `launch token FILE`, and give it to every host by --token-file FILE or ZEROFOLD_TOKEN";

/// The token of the job: what was given, else a new one where the job has this launch alone.
///
/// # Errors
/// There is none for several hosts, two that differ, or one that is none; its file cannot be read, or others can read it.
pub(crate) fn of_job(topology: &Topology) -> Result<Token, LaunchError> {
    let given = std::env::var_os(env::TOKEN).filter(|token| !token.is_empty());
    let variable = given.map(|token| match token.to_str().map(Token::parse) {
        Some(Ok(token)) => Ok(token),
        Some(Err(error)) => Err(refused(format!("{} in the environment is no token: {error}", env::TOKEN), HOW)),
        None => Err(refused(format!("{} in the environment is no token: it is not text", env::TOKEN), HOW)),
    });
    let file = topology.token_file.as_deref().map(read);
    match (variable.transpose()?, file.transpose()?) {
        (Some(variable), Some(file)) if variable != file => {
            let message = format!("{} in the environment and the token in --token-file differ", env::TOKEN);
            Err(refused(message, "unset the variable, or leave --token-file out"))
        }
        (Some(token), _) | (None, Some(token)) => Ok(token),
        (None, None) if topology.is_alone() => Token::generate().map_err(|error| refused(error.to_string(), HOW)),
        (None, None) => {
            let hosts = topology.nodes.max;
            Err(refused(format!("a job of {hosts} launches needs a token by which they know each other"), HOW))
        }
    }
}

/// The token in a file that nobody else can read.
pub(crate) fn read(path: &Path) -> Result<Token, LaunchError> {
    let shown = path.display();
    let metadata = std::fs::metadata(path).map_err(|error| refused(format!("--token-file {shown}: {error}"), HOW))?;
    if metadata.is_dir() {
        return Err(refused(format!("--token-file {shown} is a folder"), HOW));
    }
    if metadata.mode() & 0o077 != 0 {
        let mode = metadata.mode() & 0o777;
        let message = format!("--token-file {shown} can be read by others (mode {mode:03o})");
        return Err(refused(message, &format!("chmod 600 {shown}")));
    }
    if metadata.len() > MAX_BYTES {
        return Err(refused(format!("--token-file {shown} has {} bytes: it holds no token", metadata.len()), HOW));
    }
    let text = std::fs::read_to_string(path).map_err(|error| refused(format!("--token-file {shown}: {error}"), HOW))?;
    Token::parse(&text).map_err(|error| refused(format!("--token-file {shown} holds no token: {error}"), HOW))
}

/// The command `launch token`: a new token into a new file that nobody else can read, or to standard output.
///
/// # Errors
/// The file is there already, or cannot be written.
pub fn make(file: Option<&Path>) -> Result<u8, LaunchError> {
    use std::io::Write;
    let token = Token::generate().map_err(|error| refused(error.to_string(), HOW))?;
    let Some(path) = file else {
        println!("{}", token.expose());
        return Ok(0);
    };
    let opened = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = opened.and_then(|mut file| writeln!(file, "{}", token.expose()).and_then(|()| file.sync_all()));
    written.map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AlreadyExists => "a token is never overwritten: remove the file, or name another",
            _ => "name a file in a folder that can be written",
        };
        refused(format!("{}: {error}", path.display()), hint)
    })?;
    Ok(0)
}

fn refused(message: String, hint: &str) -> LaunchError {
    LaunchError::usage(message, hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_made_token_is_read_and_one_that_others_can_read_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        assert_eq!(make(Some(&path)).unwrap(), 0);
        let token = read(&path).unwrap();
        let again = make(Some(&path)).unwrap_err().to_string();
        assert!(again.contains("never overwritten") && !again.contains(token.expose()), "{again}");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("mode 640") && error.contains("chmod 600"), "{error}");
        assert!(!error.contains(token.expose()));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(&path, "too short").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("holds no token") && !error.contains("too short"), "{error}");
        assert!(read(&folder.path().join("absent")).unwrap_err().to_string().contains("launch token FILE"));
    }
}
