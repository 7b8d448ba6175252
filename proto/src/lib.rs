//! The wire between `launch`, its workers, the launches of other hosts and those who watch: the messages and services of
//! `control.proto`, `hosts.proto` and `status.proto`, and nothing else.

/// Version 1 of the control plane, and of what it tells of itself.
pub mod v1 {
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    tonic::include_proto!("zerofold.control.v1");
}

/// Between the launches of several hosts.
pub mod hosts {
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    tonic::include_proto!("zerofold.hosts.v1");
}
