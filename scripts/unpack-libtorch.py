"""Unpacks from the wheels in one folder what a build needs of libtorch: unpack-libtorch.py cpu|cuda WHEELS DESTINATION

Kept: torch/include, torch/lib without its Python library, and the licences. For the CPU also without its CUDA libraries,
and of NVIDIA's wheels only the two libraries that libtorch_cpu.so is linked with; for CUDA all of their libraries.
`torch` and `nvidia` stay side by side: libtorch's libraries find the latter relative to themselves.
"""

import ctypes
import pathlib
import shutil
import sys
import zipfile

LEFT_OUT = ("libtorch_global_deps.so", "libtorch_python.so")
# Not needed on the CPU. torch-sys links CUDA as soon as it sees libtorch_cuda.so.
LEFT_OUT_ON_CPU = ("libtorch.so", "libtorch_nvshmem.so", "libcaffe2_nvrtc.so")
CUDA_LIBRARIES_ON_CPU = ("libcudart.so.13", "libcupti.so.13")


def wanted(name: str, cuda: bool) -> bool:
    """Whether the wheel's member `name` is unpacked."""
    parts = pathlib.PurePosixPath(name).parts
    if name.endswith("/") or ".." in parts or name.startswith("/"):
        return False
    if parts[:2] == ("torch", "include"):
        return True
    if parts[:2] == ("torch", "lib") and len(parts) == 3 and ".so" in parts[2]:
        on_cpu = parts[2] not in LEFT_OUT_ON_CPU and "cuda" not in parts[2]
        return parts[2] not in LEFT_OUT and (cuda or on_cpu)
    if parts[0] == "nvidia":
        return parts[-1] in CUDA_LIBRARIES_ON_CPU or (cuda and ".so" in parts[-1])
    return False


def main() -> None:
    cuda = sys.argv[1] == "cuda"
    wheels, destination = pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    for wheel in sorted(wheels.glob("*.whl")):
        package, version = wheel.name.split("-")[:2]
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                parts = pathlib.PurePosixPath(member.filename).parts
                if wanted(member.filename, cuda):
                    path = destination / member.filename
                elif not member.is_dir() and parts[0].endswith(".dist-info") and "license" in member.filename.lower():
                    folder = destination / ("torch" if package == "torch" else "nvidia") / "licenses" / package
                    path = folder.joinpath(*(part for part in parts[1:] if part not in ("..", "licenses")))
                else:
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, open(path, "wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                if ".so" in path.name:
                    path.chmod(0o755)
        if package == "torch":
            (destination / "torch" / "build-version").write_text(version + "\n")
    library = destination / "torch" / "lib"
    if not cuda:
        # The wheel's own libtorch.so wants CUDA; a linker script of this name leads -ltorch to the CPU library.
        (library / "libtorch.so").write_text("INPUT(-ltorch_cpu)\n")
    main_library = "libtorch_cuda.so" if cuda else "libtorch_cpu.so"
    try:
        ctypes.CDLL(str(library / main_library))
    except OSError as error:
        sys.exit(f"error: the unpacked {main_library} does not load on this machine: {error}")


if __name__ == "__main__":
    main()
