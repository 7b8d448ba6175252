//! The hub of the tests, for other clients: serves the model folder of the first argument as `owner/model` on a free port,
//! prints its address and runs until standard input ends. `scripts/compare hub` uses it.

use std::io::Read;
use std::path::Path;

fn main() {
    let hub = zerofold_tests::Hub::new();
    let folder = std::env::args().nth(1).expect("a model folder");
    hub.publish("owner/model", Path::new(&folder));
    hub.take_parts_of(100_000);
    println!("{}", hub.endpoint());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
