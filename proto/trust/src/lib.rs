//! Who may speak on the wire of a job.
//!
//! 1. Every job has a [`Token`]. Whoever has it belongs to the job; there is no other secret.
//! 2. Each call carries a proof derived from it, which a [`Gate`] compares in constant time before the call's body is read.
//! 3. Across hosts the wire is encrypted (TLS 1.3). The key of the certificate authority is derived from the token, so both
//!    sides know the authority without a file: the coordinator issues itself a certificate, clients trust that authority and
//!    no other, and a server without the token is refused.
//! 4. The token itself is never sent, printed or put into an error.

mod authority;
mod client;
mod gate;
mod incoming;
mod token;

#[cfg(test)]
mod tests;

pub use authority::{Authority, TrustError};
pub use client::{Bearer, NO_TLS, OTHER_TOKEN, Wire, connect, endpoint, reason, wire};
pub use gate::{Gate, Refusals};
pub use incoming::{Socket, secured};
pub use token::{Token, TokenError};
