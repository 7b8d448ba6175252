//! gRPC calls whose messages are any bytes.

use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status};

use zerofold_trust::Wire;

use crate::dice::Dice;

/// The calls there are, and one that is not there.
const CALLS: [&str; 13] = [
    "Join",
    "StoreSet",
    "StoreGet",
    "StoreGetAll",
    "StoreWait",
    "StoreAdd",
    "StoreCheck",
    "StoreDelete",
    "Heartbeat",
    "CheckpointWritten",
    "Fail",
    "Leave",
    "Nothing",
];

/// Makes a call with a message that protobuf did not write, as a rule; the answer counts for nothing.
pub(crate) async fn call(channel: &Wire, dice: &mut Dice) {
    let path = format!("/zerofold.control.v1.Control/{}", dice.one_of(&CALLS));
    let Ok(path) = PathAndQuery::try_from(path) else { return };
    let mut client = tonic::client::Grpc::new(channel.clone());
    if client.ready().await.is_ok() {
        let _ = client.unary(Request::new(message(dice)), path, Bytes).await;
    }
}

/// Bytes, or fields of protobuf with wrong types, numbers and lengths.
fn message(dice: &mut Dice) -> Vec<u8> {
    if dice.once_in(3) {
        return dice.bytes(300);
    }
    let mut message = Vec::new();
    for _ in 0..dice.below(12) {
        let (field, kind) = (dice.below(18), dice.below(8));
        message.push((field << 3 | kind) as u8);
        match kind {
            0 => varint(dice.count(), &mut message),
            1 => message.extend(dice.number().to_le_bytes()),
            2 => {
                let text = dice.bytes(40);
                let length = if dice.once_in(4) { dice.count() } else { text.len() as u64 };
                varint(length, &mut message);
                message.extend(text);
            }
            _ => message.extend(dice.bytes(8)),
        }
    }
    message
}

fn varint(mut value: u64, into: &mut Vec<u8>) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

/// Messages as they are.
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Bytes;
    type Decoder = Bytes;

    fn encoder(&mut self) -> Bytes {
        Bytes
    }

    fn decoder(&mut self) -> Bytes {
        Bytes
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        prost::bytes::BufMut::put_slice(buffer, &item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        let length = prost::bytes::Buf::remaining(buffer);
        prost::bytes::Buf::advance(buffer, length);
        Ok(Some(()))
    }
}
