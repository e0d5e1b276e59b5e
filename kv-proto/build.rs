//! Compiles the .proto files with protox, so that no machine needs protoc.

use prost::Message as _;

const FILES: [&str; 3] = ["kv/v1/kv.proto", "kv/admin/v1/admin.proto", "kv/raft/v1/raft.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // `bytes` fields become slices of the message that arrived.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
