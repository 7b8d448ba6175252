//! The wire between `launch` and its workers, and between the launches of several hosts: the messages and services of
//! `control.proto` and `hosts.proto`, and nothing else.

/// Version 1 of the control plane.
pub mod v1 {
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    tonic::include_proto!("zerofold.control.v1");
}

/// Between the launches of several hosts.
pub mod hosts {
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    tonic::include_proto!("zerofold.hosts.v1");
}
