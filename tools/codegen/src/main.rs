//! Writes `src/serving/generated` from `proto/`. Run from the root of the repository:
//! `cargo run --manifest-path tools/codegen/Cargo.toml`.

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = protox::compile(["thalweg/v1/feature_service.proto"], ["proto"])?;
    let out = "src/serving/generated";
    std::fs::write(format!("{out}/descriptors.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure().out_dir(out).compile_fds(files)?;
    Ok(())
}
