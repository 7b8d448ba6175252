//! Where the coordinator is met: `HOST:PORT`.

use std::fmt;

/// The port where nobody names one, as torchrun has it.
pub const DEFAULT_PORT: u16 = 29_400;

/// A host, by name or address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// A name, or an address; one of IPv6 without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(formatter, "[{}]:{}", self.host, self.port),
            false => write!(formatter, "{}:{}", self.host, self.port),
        }
    }
}

/// Reads `HOST`, `HOST:PORT`, `[ADDRESS]:PORT` or a bare address of IPv6; the port may be missing.
///
/// # Errors
/// What it must be, in words.
pub(super) fn parse(text: &str) -> Result<(String, Option<u16>), &'static str> {
    const FORM: &str = "it must be HOST:PORT, such as node0:29400 or [fd00::1]:29400";
    let text = text.trim();
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, behind) = rest.split_once(']').ok_or(FORM)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| FORM)?;
            match behind {
                "" => (host, None),
                behind => (host, Some(behind.strip_prefix(':').ok_or(FORM)?)),
            }
        }
        None if text.parse::<std::net::Ipv6Addr>().is_ok() => (text, None),
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let plain = |letter: u8| letter.is_ascii_alphanumeric() || b".-_".contains(&letter);
    if host.is_empty() || !(host.bytes().all(plain) || host.contains(':')) {
        return Err(FORM);
    }
    let port = port.map(|port| port.parse::<u16>().map_err(|_| FORM)).transpose()?;
    Ok((host.to_owned(), port.filter(|port| *port != 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_written() {
        let table = [
            ("node0:29500", "node0", Some(29500), "node0:29500"),
            ("10.0.0.1", "10.0.0.1", None, "10.0.0.1:29400"),
            ("[fd00::1]:29500", "fd00::1", Some(29500), "[fd00::1]:29500"),
            ("fd00::1", "fd00::1", None, "[fd00::1]:29400"),
            ("[::1]", "::1", None, "[::1]:29400"),
            ("job-0.svc.cluster.local:0", "job-0.svc.cluster.local", None, "job-0.svc.cluster.local:29400"),
        ];
        for (text, host, port, shown) in table {
            let read = parse(text).unwrap();
            assert_eq!(read, (host.to_owned(), port), "{text}");
            let endpoint = Endpoint { host: read.0, port: read.1.unwrap_or(DEFAULT_PORT) };
            assert_eq!(endpoint.to_string(), shown);
        }
        for text in ["", ":29400", "a:b", "a:70000", "[a]:1", "[::1]x", "http://a:1", "a b:1", "a:1:2"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
