//! The wire between `launch`, its workers and those who watch them: the messages and services of `control.proto` and
//! `status.proto`, and nothing else.

/// Version 1 of the control plane, and of what it tells of itself.
pub mod v1 {
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    tonic::include_proto!("zerofold.control.v1");
}
