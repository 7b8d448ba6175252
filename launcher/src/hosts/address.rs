//! Addresses: where the coordinator listens, and which interface a host's collectives use.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};

use zerofold_configs::Endpoint;

use crate::error::LaunchError;

/// Where the coordinator listens so that it is met at `endpoint`: on the address that the endpoint names, where it is one of
/// this host's and others can reach it; else on all of them.
///
/// # Errors
/// The name cannot be looked up.
pub(super) fn listen(endpoint: &Endpoint) -> Result<SocketAddr, LaunchError> {
    let found = resolve(endpoint)?;
    let literal = is_loopback(&endpoint.host) || endpoint.host.parse::<IpAddr>().is_ok();
    let own = found.iter().find(|address| {
        // Many systems give their own name an address of loopback, which no other host reaches.
        (literal || !address.ip().is_loopback()) && TcpListener::bind((address.ip(), 0)).is_ok()
    });
    Ok(own.copied().unwrap_or_else(|| {
        let all = match found.iter().all(SocketAddr::is_ipv6) && !found.is_empty() {
            true => IpAddr::from([0u16; 8]),
            false => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        SocketAddr::new(all, endpoint.port)
    }))
}

/// Whether the host of an endpoint itself says that the job is on one host. (A name that merely leads to loopback here may lead elsewhere from
/// other hosts.)
pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn resolve(endpoint: &Endpoint) -> Result<Vec<SocketAddr>, LaunchError> {
    let found = (endpoint.host.as_str(), endpoint.port).to_socket_addrs();
    let found = found.map_err(|error| {
        LaunchError::usage(
            format!("the meeting point {endpoint} cannot be looked up: {error}"),
            "--rdzv-endpoint names host 0 by a name that all hosts know, or by its address",
        )
    })?;
    Ok(found.collect())
}

/// The address of this host by which it reaches the coordinator. Nothing is sent.
pub(super) fn towards(endpoint: &Endpoint) -> Option<IpAddr> {
    resolve(endpoint).ok()?.into_iter().find_map(|address| {
        let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { [0u16; 8].into() };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(address).ok()?;
        Some(socket.local_addr().ok()?.ip())
    })
}

/// The interface that collectives use: as the user says, else that of `address`. Checked where it was said.
///
/// # Errors
/// This host has no such interface.
pub(super) fn interface(said: Option<&str>, address: Option<IpAddr>) -> Result<Option<String>, LaunchError> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (said, place) = match said {
        Some(said) => (Some(said.to_owned()), "--interface"),
        // Gloo's name, as PyTorch reads it; of several the first counts.
        None => (
            variable("GLOO_SOCKET_IFNAME").map(|names| names.split(',').next().unwrap_or_default().to_owned()),
            "GLOO_SOCKET_IFNAME",
        ),
    };
    let Some(said) = said else { return Ok(address.map(|address| address.to_string())) };
    let all = if_addrs::get_if_addrs().map_err(LaunchError::system("list the network interfaces"))?;
    match all.iter().any(|interface| interface.name == said || interface.ip().to_string() == said) {
        true => Ok(Some(said)),
        false => {
            let names: std::collections::BTreeSet<_> =
                all.iter().map(|interface| format!("{} ({})", interface.name, interface.ip())).collect();
            let names: Vec<_> = names.into_iter().collect();
            let message = format!("{place} {said}: this host has no such interface or address");
            Err(LaunchError::usage(message, format!("it has {}", names.join(", "))))
        }
    }
}

/// The name of the interface that has this name or address.
pub(super) fn name_of(interface: &str) -> Option<String> {
    let all = if_addrs::get_if_addrs().ok()?;
    let found = all.into_iter().find(|it| it.name == interface || it.ip().to_string() == interface)?;
    Some(found.name)
}

/// This host's name, for messages.
pub(super) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coordinator_listens_where_it_is_met() {
        let at = |host: &str| listen(&Endpoint { host: host.to_owned(), port: 5 }).unwrap().to_string();
        assert_eq!(at("127.0.0.1"), "127.0.0.1:5");
        assert_eq!(at("localhost"), "127.0.0.1:5");
        // Somebody else's address, as behind a service of Kubernetes.
        assert_eq!(at("192.0.2.1"), "0.0.0.0:5");
        let error = listen(&Endpoint { host: "no-such-host.invalid".to_owned(), port: 5 }).unwrap_err().to_string();
        assert!(error.contains("no-such-host.invalid:5") && error.contains("--rdzv-endpoint"), "{error}");
    }

    #[test]
    fn an_interface_is_found_by_name_and_by_address() {
        assert_eq!(towards(&Endpoint { host: "127.0.0.1".to_owned(), port: 5 }), Some(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(interface(Some("lo"), None).unwrap().as_deref(), Some("lo"));
        assert_eq!(name_of("127.0.0.1").as_deref(), Some("lo"));
        let error = interface(Some("nowhere0"), None).unwrap_err().to_string();
        assert!(error.contains("--interface nowhere0") && error.contains("lo (127.0.0.1)"), "{error}");
    }
}
