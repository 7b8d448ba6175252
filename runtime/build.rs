//! Compiles the C++ shim against the libtorch that torch-sys found, and gives the binaries a path to it.

use std::path::PathBuf;

fn main() {
    let library = PathBuf::from(std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys tells where libtorch lies"));
    let include = library.parent().expect("libtorch's lib folder has a parent").join("include");
    println!("cargo:rerun-if-changed=csrc");
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .files(["csrc/shim.cpp", "csrc/gloo.cpp", "csrc/memory.cpp", "csrc/device.cpp"])
        .include("csrc/gloo_stub")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .flag("-Wno-unused-parameter")
        .warnings(false)
        .compile("zerofold_shim");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", library.display());
    let cuda = library.join("libtorch_cuda.so").exists();
    if cuda {
        // libtorch finds its CUDA half by what that registers when it is loaded. No symbol of it is asked for, so the linker
        // would leave it out.
        println!("cargo:rustc-link-arg=-L{}", library.display());
        println!("cargo:rustc-link-arg=-Wl,--push-state,--no-as-needed,-ltorch_cuda,--pop-state");
    }
    println!("cargo:rustc-env=ZEROFOLD_LIBTORCH_HAS_CUDA={cuda}");
}
