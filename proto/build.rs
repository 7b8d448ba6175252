//! Compiles the `.proto` files with protox, so that no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILES: [&str; 2] = ["control.proto", "hosts.proto"];
    FILES.iter().for_each(|file| println!("cargo:rerun-if-changed={file}"));
    let descriptors = protox::compile(FILES, ["."])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
