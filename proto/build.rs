//! Compiles the `.proto` files with a compiler written in Rust, so that no `protoc` has to be installed.

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = [
        "mainstay/v1/common.proto",
        "mainstay/v1/link.proto",
        "mainstay/v1/client.proto",
        "mainstay/v1/admin.proto",
    ];
    let descriptors = protox::compile(files, ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // Every `bytes` field becomes a `Bytes`: a decoded payload shares the received buffer.
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
