//! The wire between `launch` and its workers: the messages and services of `control.proto`, and nothing else.

/// Version 1 of the control plane.
pub mod v1 {
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    tonic::include_proto!("zerofold.control.v1");
}
