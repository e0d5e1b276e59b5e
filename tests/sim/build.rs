//! Builds what answers for libc in the simulation.

fn main() {
    println!("cargo:rerun-if-changed=src/libc.c");
    if std::env::var_os("CARGO_CFG_KV_SIM").is_some() {
        cc::Build::new()
            .file("src/libc.c")
            .link_lib_modifier("+whole-archive")
            .warnings_into_errors(true)
            .compile("kvsimlibc");
    }
}
