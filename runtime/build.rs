//! Compiles the C++ shim against the libtorch that torch-sys found, and gives the binaries a path to it.

use std::path::PathBuf;

fn main() {
    let library = PathBuf::from(std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys tells where libtorch lies"));
    let include = library.parent().expect("libtorch's lib folder has a parent").join("include");
    println!("cargo:rerun-if-changed=csrc");
    let mut shim = cc::Build::new();
    shim.cpp(true)
        .std("c++20")
        .include("csrc/gloo_stub")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .flag("-Wno-unused-parameter")
        .warnings(false);
    // Loops over elements: fused multiply-adds are welcome, traps and errno are not looked at. NaN and infinity stay exact.
    let loops = ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"];
    // Clang's OpenMP is another than libtorch's: with it the loops run on one thread.
    let threads = !shim.get_compiler().is_like_clang();
    let openmp_flag = if threads { "-fopenmp" } else { "-fopenmp-simd" };
    shim.clone()
        .files(["csrc/attention.cpp", "csrc/kernels.cpp", "csrc/products.cpp", "csrc/sums.cpp"])
        .flags(loops)
        .flag(openmp_flag)
        .compile("zerofold_kernels");
    shim.files(["csrc/shim.cpp", "csrc/gloo.cpp", "csrc/memory.cpp", "csrc/device.cpp"]).compile("zerofold_shim");
    if threads {
        // The loops run on libtorch's own threads.
        println!("cargo:rustc-link-arg={}", openmp(&library));
    }
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

/// The OpenMP library that lies beside libtorch, as in its wheels and archives; else the compiler's.
fn openmp(library: &std::path::Path) -> String {
    let names = std::fs::read_dir(library).into_iter().flatten().flatten().map(|entry| entry.path());
    let found = names
        .into_iter()
        .find(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("libgomp")));
    found.map_or("-lgomp".to_owned(), |path| path.display().to_string())
}
