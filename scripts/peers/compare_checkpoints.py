"""Saving and loading beside torch.distributed.checkpoint; see scripts/compare_checkpoints and docs/checkpoints.md."""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import ours
import theirs
from cells import BATCH
from jobs import Failed, say, start, wait

RANKS, LENGTH = 2, 512
# What is compared, which way is better, and the goal for the ratio of theirs to ours.
ROWS = [("save", 1.5), ("load", 1.5), ("stall", 5.0)]


def run_theirs(setup, folder, number):
    folder.mkdir()
    job = {"model": str(setup.model), "rows": str(setup.rows), "folder": str(folder), "result": str(folder / "result.json")}
    job |= {"dtype": "bf16", "accumulation": 1, "batch": BATCH, "max_grad_norm": 1.0, "learning_rate": 1e-4, "weight_decay": 0.1}
    (folder / "job.json").write_text(json.dumps(job))
    processes, logs = theirs.start_ranks(setup, [theirs.HERE / "save_peer.py", folder / "job.json"], folder, RANKS)
    wait(processes, logs)
    return json.loads((folder / "result.json").read_text())


def run_ours(setup, folder, number):
    """Steps 1 to 7 with a save after the third, behind steps 4 to 7, and one at the end, which nothing goes on beside; then
    goes on from it for one step."""
    folder.mkdir()
    run, log = folder / "run", folder / "log"
    settings = {
        "model_name_or_path": setup.model, "dataset": setup.rows, "output_dir": run, "use_cpu": "true", "backend": "shm",
        "zero_stage": 3, "mixed_precision": "bf16", "max_length": LENGTH, "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-4, "lr_scheduler_type": "constant", "weight_decay": 0.1, "gradient_checkpointing": "false",
        "train_sampling_strategy": "sequential", "save_steps": 4,
    }  # fmt: skip
    words = [word for key, value in settings.items() for word in (f"--{key}", value)]
    launch = [setup.binaries / "launch", "--nproc", RANKS, "train", *words]
    for more in (["--max_steps", 7], ["--max_steps", 8, "--resume"]):
        wait([start([*launch, *more], ours.ENVIRONMENT, log)], [log])
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = [record["step_seconds"] for record in records if "grad_norm" in record]
    text = "\n".join((run / "logs" / f"rank-{rank}.log").read_text() for rank in range(RANKS))
    committed = r"the checkpoint of step (\d+) was committed after (\d+) ms; steps waited (\d+) ms"
    saves = [tuple(map(int, found)) for found in re.findall(committed, text)]
    largest = lambda step, place: max(save[place] for save in saves if save[0] == step) / 1000
    load = max(int(millis) for millis in re.findall(r"read the checkpoint of step \d+ in (\d+) ms", text)) / 1000
    behind = largest(4, 1)
    result = {"step": statistics.median(seconds[1:4]), "save": largest(7, 1), "load": load, "stall": largest(4, 2)}
    # The steps that begin before the save behind them ends.
    meanwhile, gone = [], 0.0
    for step in seconds[4:7]:
        if gone < behind:
            meanwhile.append(step)
        gone += step
    bytes_ = sum(file.stat().st_size for file in (run / "checkpoints" / "step-00000007").iterdir())
    return result | {"slowest step": max(meanwhile), "bytes": bytes_}


def write_plainly(folder, size):
    """Seconds that dd takes to write so many bytes and sync them."""
    file = folder / "plain"
    begin = time.perf_counter()
    words = ["dd", "if=/dev/zero", f"of={file}", "bs=4M", f"count={size // (4 << 20)}", "conv=fsync", "status=none"]
    subprocess.run(words, check=True)
    seconds = time.perf_counter() - begin
    file.unlink()
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--peers", required=True, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--binaries", required=True, type=Path, help="folder of launch and worker")
    parser.add_argument("--model", required=True, type=Path, help="the model that is trained")
    parser.add_argument("--data", required=True, type=Path, help="text to train on")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs (3)")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="compare-checkpoints-") as name:
        root = Path(name)
        inputs = root / "inputs"
        tokenizer = options.model / "tokenizer.json"
        words = [options.python, theirs.HERE / "inputs.py", inputs, options.model, options.data, tokenizer, LENGTH, 64]
        subprocess.run([str(word) for word in words], check=True, stdout=sys.stderr)
        setup = SimpleNamespace(
            python=options.python, peers=options.peers, tcmalloc=options.peers / "libtcmalloc_minimal.so.4",
            state=root, binaries=options.binaries.resolve(), model=options.model.resolve(), rows=inputs / "rows-S.jsonl",
        )  # fmt: skip
        results = {"ours": [], "theirs": []}
        plain = []
        for number in range(options.rounds):
            for side, run in (("ours", run_ours), ("theirs", run_theirs)):
                folder = root / f"{side}-{number}"
                results[side].append(run(setup, folder, number))
                shutil.rmtree(folder)
                os.sync()
                say(f"round {number + 1} of {options.rounds}, {side}: {results[side][-1]}")
            plain.append(write_plainly(root, results["ours"][0]["bytes"]))
        print_table(results, statistics.median(plain), options.json)


def print_table(results, plain, path):
    median = {side: {what: statistics.median(run[what] for run in runs) for what in runs[0]} for side, runs in results.items()}
    ours_, theirs_ = median["ours"], median["theirs"]
    rows = [{"what": what, "ours": ours_[what], "theirs": theirs_[what], "ratio": theirs_[what] / max(ours_[what], 1e-3), "goal": goal} for what, goal in ROWS]
    for side, figures in median.items():
        slower = figures["slowest step"] / figures["step"]
        rows.append({"what": f"slowest step during a save over a step, {side}", side: figures["slowest step"], "ratio": slower, "goal": 1.15})
    rows.append({"what": "save, over dd with fsync", "ours": ours_["save"], "ratio": ours_["save"] / plain, "goal": None})
    for row in rows:
        figures = ", ".join(f"{side} {row[side]:.3f} s" for side in ("ours", "theirs") if side in row)
        goal = f", goal {row['goal']}" if row["goal"] else ""
        print(f"{row['what']}: {figures}, ratio {row['ratio']:.2f}{goal}")
    print(f"{ours_['bytes'] / 1e9:.3f} GB; dd with fsync writes them in {plain:.2f} s")
    if path:
        path.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except Failed as error:
        sys.exit(f"error: {error}")
