//! Strangers who do not speak gRPC, or not to the end.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::dice::Dice;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longer than this a stranger listens to no answer.
const PATIENCE: Duration = Duration::from_millis(50);

/// Sends bytes that mean nothing, or a beginning of HTTP/2 that goes wrong, and listens for a moment.
pub(crate) async fn nonsense(address: SocketAddr, dice: &mut Dice) {
    let bytes = match dice.below(4) {
        0 => dice.bytes(4096),
        1 => b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        2 => beginning(dice),
        _ => {
            let mut bytes = beginning(dice);
            bytes.truncate(dice.below(bytes.len() as u64 + 1) as usize);
            bytes
        }
    };
    let Ok(mut stream) = TcpStream::connect(address).await else { return };
    // The other side may have closed it by now.
    let _ = stream.write_all(&bytes).await;
    if dice.once_in(2) {
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
    }
}

/// A crowd of connections that say nothing, or no more than how HTTP/2 begins.
pub(crate) async fn crowd(address: SocketAddr, dice: &mut Dice) {
    let mut held = Vec::new();
    for _ in 0..dice.below(300) {
        let Ok(mut stream) = TcpStream::connect(address).await else { continue };
        if dice.once_in(2) {
            let _ = stream.write_all(PREFACE).await;
            let _ = stream.write_all(&frame(4, 0, 0, &[])).await;
        }
        held.push(stream);
    }
    tokio::time::sleep(Duration::from_millis(dice.below(50))).await;
}

/// The preface, settings, and frames of any kind.
fn beginning(dice: &mut Dice) -> Vec<u8> {
    let mut bytes = PREFACE.to_vec();
    if !dice.once_in(8) {
        bytes.extend(frame(4, 0, 0, &[]));
    }
    for _ in 0..dice.below(40) {
        let kind = dice.one_of(&[0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 255]);
        let (flags, stream) = (dice.below(256) as u8, dice.one_of(&[0, 1, 1, 3, 5, 7, 2, u32::MAX >> 1, u32::MAX]));
        let payload = match kind {
            1 if !dice.once_in(4) => headers(dice),
            8 | 3 => dice.below(1 << 32).to_be_bytes()[4..].to_vec(),
            6 => dice.below(u64::MAX).to_be_bytes().to_vec(),
            _ => dice.bytes(200),
        };
        bytes.extend(frame(kind, flags, stream, &payload));
    }
    bytes
}

/// Headers of a gRPC call, without compression.
fn headers(dice: &mut Dice) -> Vec<u8> {
    let path = dice.one_of(&["Heartbeat", "StoreSet", "CheckpointWritten", "Nothing"]);
    let path = format!("/zerofold.control.v1.Control/{path}");
    let fields = [(":method", "POST"), (":scheme", "http"), (":path", &path), ("content-type", "application/grpc")];
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend(text.as_bytes());
        }
    }
    block
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}
