"""Runs Zerofold: one job, or several at once that know nothing of each other."""

import json
import shutil
import subprocess
import time
from pathlib import Path

from cells import BATCH, LENGTH
from jobs import follow, start

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(cell, setup, folder):
    backend = cell.side if cell.processes > 1 else "single"
    settings = {
        "model_name_or_path": setup.models[cell.model],
        "dataset": setup.rows[cell.model],
        "output_dir": folder / "run",
        "use_cpu": "true",
        "backend": backend,
        "zero_stage": cell.stage,
        "mixed_precision": "bf16" if cell.dtype == "bf16" else "no",
        "max_steps": cell.steps,
        "max_length": LENGTH,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": cell.accumulation,
        "learning_rate": setup.learning_rate,
        "lr_scheduler_type": "constant",
        "adam_beta2": 0.95,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": "false",
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
    }
    words = [word for key, value in settings.items() for word in (f"--{key}", value)]
    return [setup.binaries / "launch", "--nproc", cell.processes, "train", *words]


def run(cell, setup, folder, watch=None):
    """Records, seconds to the first and last of them; of several jobs at once, those of the first."""
    copies = [folder / f"job-{index}" for index in range(cell.jobs)]
    for copy in copies:
        copy.mkdir(parents=True)
    logs = [copy / "log" for copy in copies]
    begin = time.time()
    processes = [start(command(cell, setup, copy), ENVIRONMENT, log) for copy, log in zip(copies, logs)]
    watching = (lambda: watch(children(processes[0].pid))) if watch else None
    result = follow(processes, logs, copies[0] / "run" / "metrics.jsonl", cell.steps, begin, watching)
    # For the idle workers of memory.py.
    shutil.copy(copies[0] / "run" / "config.resolved.yaml", setup.work / "config.resolved.yaml")
    return result


def children(pid):
    """The workers: the processes that a `launch` started."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it has just ended
        return []


def bench(setup, processes, quick=False):
    """`launch bench`: GEMM rates, copies, collectives."""
    words = [setup.binaries / "launch", "bench", "--device", "cpu", "--nproc", processes, "--json"]
    words += ["--quick"] if quick else []
    answer = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(answer.stdout)
