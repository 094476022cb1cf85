//! Writes a GGUF file's weights in another format, so that engines can be compared on the same weights.
//!
//! `cargo run --release --example requantize -- FROM.gguf TO.gguf q4_0|q4_1|q8_0|f16|f32`

use std::path::Path;

use wardrobe_formats::StorageType;
use wardrobe_formats::gguf::{GgufFile, requantize_file};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [from, to, format] = args.as_slice() else { return Err("usage: requantize FROM TO FORMAT".into()) };
    let storage = match format.as_str() {
        "q4_0" => StorageType::Q4_0,
        "q4_1" => StorageType::Q4_1,
        "q8_0" => StorageType::Q8_0,
        "f16" => StorageType::F16,
        "f32" => StorageType::F32,
        other => return Err(format!("unknown format {other:?}").into()),
    };
    requantize_file(&GgufFile::open(Path::new(from))?, Path::new(to), storage)?;
    Ok(())
}
