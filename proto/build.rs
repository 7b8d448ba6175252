//! Compiles the `.proto` files with protox, so that no protoc is needed.

/// Messages that are also printed as JSON, by `launch status --json`.
const SHOWN: [&str; 6] =
    ["StatusReply", "JobStatus", "StepStatus", "EvaluationStatus", "CheckpointStatus", "RankStatus"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["control.proto", "hosts.proto", "status.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let mut code = tonic_prost_build::configure().btree_map(".");
    for message in SHOWN {
        code = code.type_attribute(format!(".zerofold.control.v1.{message}"), "#[derive(serde::Serialize)]");
    }
    code.compile_fds(descriptors)?;
    Ok(())
}
