# What the scripts of this folder share. Sourced, never run.
# Everything they say goes to stderr, so that `scripts/launch generate` keeps stdout for the answer.
# shellcheck shell=bash disable=SC2034 # several are for the scripts that source this

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
libtorch="$root/.libtorch"
libtorch_cuda="$root/.libtorch-cuda"
# cpu or cuda: what the last scripts/setup was asked for.
libtorch_choice="$root/.libtorch-choice"
cpu_requirements="$root/scripts/requirements/libtorch.txt"
cuda_requirements="$root/scripts/requirements/libtorch-cuda.txt"
demo_model="$root/.models/SmolLM2-135M-Instruct"
target="${CARGO_TARGET_DIR:-$root/target}"
[[ $target == /* ]] || target="$PWD/$target"
export CARGO_TARGET_DIR="$target"
python="${PYTHON:-python3}"
# Set but empty means not set; cargo would take it for a folder.
if [[ -z ${LIBTORCH:-} ]]; then unset LIBTORCH; fi
if [[ -z ${LIBTORCH_USE_PYTORCH:-} ]]; then unset LIBTORCH_USE_PYTORCH; fi
LIBTORCH_OF_USER="${LIBTORCH:-}"

# libtorch_chosen: cpu or cuda.
libtorch_chosen() {
    if [[ -f $libtorch_choice ]]; then cat "$libtorch_choice"; else echo cpu; fi
}


say() {
    printf '%s\n' "$*" >&2
}

# fail WHAT [HINT]: what went wrong and, on a last line, what to do about it.
fail() {
    printf 'error: %s\n' "$1" >&2
    if [[ $# -gt 1 ]]; then printf 'hint: %s\n' "$2" >&2; fi
    exit 1
}

# megabytes FILE...: their size together.
megabytes() {
    du -c -B 1000000 --apparent-size -- "$@" | tail -n 1 | cut -f 1
}

# need_disk FOLDER MEGABYTES PURPOSE
need_disk() {
    local free
    free="$(df -P -B 1000000 -- "$1" | awk 'NR == 2 { print $4 }')"
    if ((free < $2)); then
        fail "$3 needs $2 MB of free disk under $1, $free MB are free" "free some space, or move the project to a larger disk"
    fi
    say "      disk: $2 MB needed, $free MB free under $1"
}

# need_memory MEGABYTES PURPOSE: by what the kernel could hand out now, swap included, within the container's limit.
need_memory() {
    local free limit used
    free="$(awk '/^(MemAvailable|SwapFree):/ { sum += $2 } END { print int(sum / 976.5625) }' /proc/meminfo)"
    if [[ -r /sys/fs/cgroup/memory.max && -r /sys/fs/cgroup/memory.current ]]; then
        limit="$(</sys/fs/cgroup/memory.max)"
        used="$(</sys/fs/cgroup/memory.current)"
        if [[ $limit =~ ^[0-9]+$ ]] && (((limit - used) / 1000000 < free)); then
            free=$(((limit - used) / 1000000))
        fi
    fi
    if ((free < $1)); then
        fail "$2 needs about $1 MB of memory, $free MB are available" "stop other programs, raise the container's limit, or add swap"
    fi
    say "      memory: $1 MB needed, $free MB available"
}

# need_python: python3 and a pip new enough to download for a platform that it is told.
need_python() {
    local version
    command -v "$python" >/dev/null ||
        fail "python3 is missing (it only fetches and unpacks; training needs none)" "sudo apt install python3 python3-pip"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$("$python" --version) is too old, 3.10 or newer is needed" "set PYTHON to a newer one, e.g. PYTHON=/usr/bin/python3.11"
    version="$("$python" -m pip --version 2>/dev/null | awk '{ print $2 }')"
    [[ -n $version ]] ||
        fail "pip is missing for $(command -v "$python")" "sudo apt install python3-pip"
    ((${version%%.*} >= 21)) ||
        fail "pip $version is too old, 21 or newer is needed" "$python -m pip install --user --upgrade pip"
}

# pip_retry FOLDER ARGUMENT...: pip with its temporary files in FOLDER and without a person's own defaults in the way.
# Tried three times; a file whose hash is wrong is thrown away by pip itself, one cut short is resumed where pip can (25.1).
pip_retry() {
    local folder="$1" attempt
    shift
    local options=(--disable-pip-version-check --no-input --retries 5 --timeout 60)
    if [[ ! -t 2 ]]; then options+=(--quiet); fi
    if "$python" -m pip install --help | grep -q -- --resume-retries; then options+=(--resume-retries 20); fi
    for attempt in 1 2 3; do
        # The last try distrusts what pip keeps of earlier downloads.
        if ((attempt == 3)); then options+=(--no-cache-dir); fi
        if TMPDIR="$folder" PIP_REQUIRE_VIRTUALENV=0 PIP_USER=0 PIP_ROOT_USER_ACTION=ignore \
            "$python" -m pip "$@" "${options[@]}" >&2; then
            return 0
        fi
        if ((attempt < 3)); then
            say "      that did not work; trying again in $((attempt * 5)) seconds"
            sleep $((attempt * 5))
        fi
    done
    return 1
}

# hold_lock FOLDER: one set-up at a time in FOLDER; a second waits for the first.
hold_lock() {
    mkdir -p "$1"
    if ! command -v flock >/dev/null; then return 0; fi
    exec {lock}>"$1/.lock"
    if ! flock -n "$lock"; then
        say "      another set-up is at work in $1; waiting for it"
        flock "$lock"
    fi
}

# libtorch_installed FOLDER REQUIREMENTS: does a libtorch of the pinned versions lie there?
libtorch_installed() {
    [[ -f $1/installed.txt && "$(<"$1/installed.txt")" == "$(<"$2")" ]]
}

# see_to_libtorch: sets up what is missing, and lets builds use what was chosen. A libtorch of the user's goes before it.
see_to_libtorch() {
    if ! libtorch_ready; then "$root/scripts/setup"; fi
    if [[ -z $LIBTORCH_OF_USER && -z ${LIBTORCH_USE_PYTORCH:-} && "$(libtorch_chosen)" == cuda ]]; then
        export LIBTORCH="$libtorch_cuda/torch"
    fi
}

# libtorch_ready: is the chosen libtorch there, or did the user bring one?
libtorch_ready() {
    if [[ -n ${LIBTORCH_OF_USER:-} || -n ${LIBTORCH_USE_PYTORCH:-} ]]; then return 0; fi
    case "$(libtorch_chosen)" in
    cuda) libtorch_installed "$libtorch_cuda" "$cuda_requirements" ;;
    # The first time, setup looks whether there is a GPU.
    *) [[ -f $libtorch_choice ]] && libtorch_installed "$libtorch" "$cpu_requirements" ;;
    esac
}

# What the programs are built from, and what they are built with; either new, they are built again.
sources=(Cargo.toml Cargo.lock .cargo proto configs launcher runtime)
built="$target/release/.zerofold-built"

build_choices() {
    printf '%s\n' "LIBTORCH=${LIBTORCH:-}" "LIBTORCH_USE_PYTORCH=${LIBTORCH_USE_PYTORCH:-}" "root=$root"
}

# build_fresh: are launch and worker there, and no older than their sources?
build_fresh() {
    [[ -x $target/release/launch && -x $target/release/worker && -f $built && "$(<"$built")" == "$(build_choices)" ]] || return 1
    # Tests and examples are not part of the programs.
    [[ -z "$(cd "$root" && find "${sources[@]}" \( -name tests -o -name examples -o -name demo \) -prune -o -newer "$built" -print -quit)" ]]
}

# build_programs: launch and worker, in release.
build_programs() {
    if [[ -x $target/release/worker ]]; then
        say "      building launch and worker: their sources have changed"
    else
        say "      building launch and worker: about 8 minutes on 2 cores the first time, most of it C++; seconds later on"
        mkdir -p "$target"
        need_disk "$target" 2500 "building"
        need_memory 2500 "building"
    fi
    command -v cargo >/dev/null || fail "cargo is missing" "install Rust with rustup: see rust-lang.org/tools/install"
    mkdir -p "$target/release"
    # Dated before the build, so that a source changed while it runs counts as newer.
    build_choices >"$built.next"
    (cd "$root" && cargo build --release --workspace --bins >&2) ||
        fail "the build failed (cargo's own message is above)" "scripts/setup checks what the build needs; a build cut short goes on where it stopped"
    [[ -x $target/release/launch && -x $target/release/worker ]] ||
        fail "the build left no launch and worker in $target/release" "unset CARGO_BUILD_TARGET, and build.target in cargo's own configuration"
    mv "$built.next" "$built"
}

# wants_demo_model ARGUMENT...: do these arguments, or the configuration they name, train, plan or use the demo model?
# A model named on the command line wins over the configuration's. A relative path means it only from the project folder.
wants_demo_model() {
    local argument previous="" config="" command="" here=no
    if [[ "$(pwd -P)" == "$root" ]]; then here=yes; fi
    for argument in "$@"; do
        case "$argument" in
        -h | --help | -V | --version) return 1 ;;
        train | plan | generate) command="$argument" ;;
        "$demo_model"* | *="$demo_model"*) return 0 ;;
        .models/SmolLM2-135M-Instruct* | *=.models/SmolLM2-135M-Instruct*) [[ $here == yes ]] && return 0 || return 1 ;;
        --model=* | --model[_-]name[_-]or[_-]path=* | *model_name_or_path=*) return 1 ;;
        --config=* | --config[_-]file=*) config="${argument#*=}" ;;
        esac
        case "$previous" in
        --model | --model[_-]name[_-]or[_-]path) return 1 ;;
        --config | --config[_-]file) config="$argument" ;;
        esac
        previous="$argument"
    done
    [[ ($command == train || $command == plan) && -n $config && $here == yes ]] || return 1
    local file
    for file in "$config" "$root/configs/$config" "$root/configs/$config.yaml"; do
        if [[ -f $file ]]; then
            grep -Eq '^[^#]*\.models/SmolLM2-135M-Instruct' "$file"
            return
        fi
    done
    return 1
}
