//! What one client may take from the control plane, so that none takes what others need. docs/control-plane.md has the table.

use std::time::Duration;

/// The largest part of a checkpoint: a rank's lists every tensor it holds.
pub const MAX_PART_BYTES: usize = 64 << 20;
/// The largest message with a part of a checkpoint: the part and what is said of it.
pub const MAX_PART_MESSAGE_BYTES: usize = MAX_PART_BYTES + (64 << 10);
/// The largest message of every other call.
pub const MAX_MESSAGE_BYTES: usize = 2 << 20;
/// The largest headers of a request.
pub const MAX_HEADER_BYTES: u32 = 16 << 10;
/// How many calls may be under way on one connection. A rank has a handful: its heartbeat, a save, and the store's.
pub const MAX_CALLS_PER_CONNECTION: u32 = 32;
/// What a connection may send before it is read, and each of its calls.
pub const WINDOW_BYTES: u32 = 256 << 10;
/// How long a connection may take until its first whole request; one that says nothing is closed then.
pub const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// How long the other side's system may not answer before a connection counts as dead.
pub const DEAD_CONNECTION: Duration = Duration::from_secs(60);
/// How long ranks that have written their parts of a checkpoint wait for the others.
pub const SAVE_PATIENCE: Duration = Duration::from_secs(1800);
/// Connections for `launch status`, other nodes, and strangers.
const CONNECTIONS_BESIDE_RANKS: usize = 256;
/// Files that `launch` needs beside connections and those of its workers.
const FILES_BESIDE_CONNECTIONS: usize = 256;

/// How many connections there may be: each rank's, and its next one while the last is not yet known to be dead.
pub fn max_connections(world_size: u32) -> usize {
    2 * world_size as usize + CONNECTIONS_BESIDE_RANKS
}

/// How many files `launch` may have to hold open at once.
pub fn files_wanted(world_size: u32) -> u64 {
    // A worker on this host takes three: its output, its errors and its log.
    (max_connections(world_size) + 3 * world_size as usize + FILES_BESIDE_CONNECTIONS) as u64
}
