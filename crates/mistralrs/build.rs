//! Tells who builds this without the instructions that make it usable: candle chooses its kernels when it is compiled.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_RUNTIME").is_none() {
        return;
    }
    let has = |name: &str| std::env::var(name).unwrap_or_default();
    let features = has("CARGO_CFG_TARGET_FEATURE");
    if has("CARGO_CFG_TARGET_ARCH") == "x86_64" && !features.split(',').any(|feature| feature == "avx2") {
        println!(
            "cargo::warning=mistralrs computes without SIMD in this build: set RUSTFLAGS=\"-C target-cpu=native\""
        );
    }
}
