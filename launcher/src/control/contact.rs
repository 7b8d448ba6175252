//! Where a control plane listens, and how it is reached.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use zerofold_trust::{Token, TokenError};

/// Where a control plane listens, and for whom.
#[derive(Clone, Debug)]
pub struct Listen {
    /// The address; port 0 takes any free one.
    pub address: SocketAddr,
    /// What every caller must know.
    pub token: Token,
    /// Whether what is said is encrypted.
    pub tls: bool,
}

impl Listen {
    /// On loopback, for those who get a new token from this process: nothing is encrypted, since nobody else reads along.
    ///
    /// # Errors
    /// No token can be made.
    pub fn loopback(port: Option<u16>) -> Result<Listen, TokenError> {
        let address = (Ipv4Addr::LOCALHOST, port.unwrap_or(0)).into();
        Ok(Listen { address, token: Token::generate()?, tls: false })
    }
}

/// How a control plane is reached.
#[derive(Clone, Debug)]
pub struct Contact {
    /// A name or address; one of IPv6 without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// What it asks every caller for.
    pub token: Token,
    /// Whether it speaks TLS.
    pub tls: bool,
}

impl Contact {
    /// How processes of the same host reach what listens on `address`.
    pub fn of(address: SocketAddr, token: Token, tls: bool) -> Contact {
        let host = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.to_string(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.to_string(),
            ip => ip.to_string(),
        };
        Contact { host, port: address.port(), token, tls }
    }

    /// As a URL.
    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{self}")
    }
}

impl fmt::Display for Contact {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(formatter, "[{}]:{}", self.host, self.port),
            false => write!(formatter, "{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_fit_the_address() {
        let token = Token::generate().unwrap();
        let table = [
            ("127.0.0.1:1", false, "http://127.0.0.1:1"),
            ("10.0.0.1:2", true, "https://10.0.0.1:2"),
            ("0.0.0.0:3", true, "https://127.0.0.1:3"),
            ("[::]:4", true, "https://[::1]:4"),
            ("[fd00::1]:5", false, "http://[fd00::1]:5"),
        ];
        for (address, tls, url) in table {
            assert_eq!(Contact::of(address.parse().unwrap(), token.clone(), tls).url(), url);
        }
        let shown = format!("{:?}", Listen::loopback(None).unwrap());
        assert!(shown.contains("Token(…)"), "{shown}");
    }
}
