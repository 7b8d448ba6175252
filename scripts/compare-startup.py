"""Times the way to the first finished step: Zerofold beside `accelerate launch` with a minimal PyTorch script.

Both train the tiny Llama of the fixtures on the same rows, data-parallel over Gloo on the CPU, in float32, with the
same processes, threads and batch. What is shown is (time to the first finished step) - (median step), both sides run
in turn, and the ratio of the medians.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "fixtures"))
from common import DATA, MODELS, REPOSITORY, versions  # noqa: E402

MODEL, ROWS = MODELS / "tiny-llama", DATA / "rows.jsonl"
POLL_SECONDS = 0.002


def our_command(options, folder):
    """The command that trains with Zerofold into `folder`/run, and the file its steps appear in."""
    config = {
        "distributed_type": "MULTI_CPU",
        "num_processes": options.nproc,
        "mixed_precision": "no",
        "training": {
            "model_name_or_path": str(MODEL),
            "dataset": str(ROWS),
            "output_dir": str(folder / "run"),
            "max_steps": options.max_steps,
            "per_device_train_batch_size": options.batch,
            "learning_rate": 2e-3,
            "weight_decay": 0.1,
            "warmup_steps": 3,
            "train_sampling_strategy": "sequential",
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "logging_steps": 1,
        },
    }
    file = folder / "startup.yaml"
    file.write_text(json.dumps(config, indent=2))  # JSON is YAML
    return [options.binaries / "launch", "--config", file, "train"], folder / "run" / "metrics.jsonl"


def their_command(options, folder):
    """The same work by `accelerate launch`."""
    script = Path(__file__).resolve().parent / "fixtures" / "accelerate_train.py"
    # With --cpu, accelerate starts a single process whatever --num_processes says. What starts several (its front to
    # torchrun) goes by the name of --multi_gpu; the script itself asks for the CPU, and checks what it got.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--num_processes"]
    launch += [options.nproc, "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--multi_gpu"] if options.nproc > 1 else ["--cpu"]
    launch += ["--num_cpu_threads_per_process", options.threads]
    work = [script, MODEL, ROWS, folder / "metrics.jsonl", "--max_steps", options.max_steps]
    work += ["--per_device_train_batch_size", options.batch, "--expect_processes", options.nproc]
    return launch + work, folder / "metrics.jsonl"


def timed(command, metrics, options):
    """Runs a command; returns its records and the seconds from its start to the first record in `metrics`."""
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "CUDA_VISIBLE_DEVICES": ""}
    log = metrics.parent.parent / f"{metrics.parent.name}.log"
    first = None
    with open(log, "wb") as output:
        begin = time.perf_counter()
        process = subprocess.Popen([str(part) for part in command], stdout=output, stderr=output, env=environment)
        while process.poll() is None:
            if first is None and metrics.exists() and metrics.stat().st_size > 0:
                first = time.perf_counter() - begin
            time.sleep(POLL_SECONDS)
        whole = time.perf_counter() - begin
    if process.returncode != 0 or first is None:
        sys.stderr.write(log.read_text(errors="replace")[-4000:])
        sys.exit(f"error: {' '.join(str(part) for part in command)} ended with status {process.returncode}")
    records = [json.loads(line) for line in metrics.read_text().splitlines() if line.strip()]
    return [record for record in records if "grad_norm" in record], first, whole


def measure(name, make_command, options):
    """One run of one side: seconds to the first step less the median step."""
    folder = Path(tempfile.mkdtemp(prefix=f"startup-{name}-"))
    inner = folder / "work"
    inner.mkdir()
    try:
        records, first, whole = timed(*make_command(options, inner), options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    # The first step is not typical of the others (it builds what the others reuse).
    median = statistics.median(record["step_seconds"] for record in records[1:])
    print(
        f"{name:>10}: first step after {first:6.3f} s, median step {1000 * median:8.2f} ms, "
        f"start-up {first - median:6.3f} s, whole run {whole:6.3f} s",
        flush=True,
    )
    return first - median


def main():
    parser = argparse.ArgumentParser(prog="scripts/compare startup", description=__doc__)
    parser.add_argument("--nproc", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each (default 1)")
    parser.add_argument("--batch", type=int, default=4, help="rows of a process in a step (default 4)")
    parser.add_argument("--max_steps", type=int, default=20, help="steps of a run (default 20)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each side (default 3)")
    parser.add_argument("--binaries", type=Path, default=REPOSITORY / "target" / "release", help="where ours lie")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    sides = {"zerofold": our_command, "accelerate": their_command}
    figures = {name: [] for name in sides}
    for _ in range(options.runs):
        for name, make_command in sides.items():
            figures[name].append(measure(name, make_command, options))
    medians = {name: statistics.median(values) for name, values in figures.items()}
    ratio = medians["accelerate"] / medians["zerofold"]
    print(
        f"median start-up: zerofold {medians['zerofold']:.3f} s, accelerate {medians['accelerate']:.3f} s, "
        f"ratio {ratio:.1f}"
    )
    if options.json:
        result = {"versions": versions(), "start_up_seconds": figures, "medians": medians, "ratio": ratio}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
