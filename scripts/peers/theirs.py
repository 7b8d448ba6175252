"""Runs the peers: one process a rank, as torchrun would start them but without its own 3 seconds and its memory."""

import json
import os
import socket
import time
from pathlib import Path

from cells import BATCH, RANKS
from jobs import follow, start

HERE = Path(__file__).resolve().parent
# Ranks stay on a core of their own: without that, eager FSDP2 was 4 % slower.
PINNED = True


def environment(setup, deepspeed=False):
    """One thread, tcmalloc, huge pages (6 % for eager FSDP2), and DeepSpeed to be found by those only that use it."""
    values = {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "LD_PRELOAD": str(setup.tcmalloc),
        "THP_MEM_ALLOC_ENABLE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(setup.state / "inductor"),
        "TORCH_EXTENSIONS_DIR": str(setup.state / "extensions"),
        "PYTHONPATH": "",
    }
    if deepspeed:
        values["PYTHONPATH"] = str(setup.peers)
        values["PATH"] = f"{setup.peers / 'bin'}:{os.environ['PATH']}"
    return values


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_ranks(setup, words, folder, processes=RANKS, deepspeed=False):
    """Processes and logs of `python WORDS...` as so many ranks."""
    shared = environment(setup, deepspeed) | {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    cores = sorted(os.sched_getaffinity(0))
    started, logs = [], []
    for rank in range(processes):
        logs.append(folder / f"rank-{rank}.log")
        core = cores[rank] if PINNED and processes <= len(cores) else None
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        started.append(start([setup.python, *words], shared | ranks, logs[-1], core))
    return started, logs


def run(cell, setup, folder, watch=None):
    folder.mkdir(parents=True)
    job = {
        "peer": cell.side,
        "dtype": cell.dtype,
        "accumulation": cell.accumulation,
        "batch": BATCH,
        "steps": cell.steps,
        "model": str(setup.models[cell.model]),
        "rows": str(setup.rows[cell.model]),
        "metrics": str(folder / "metrics.jsonl"),
        "learning_rate": setup.learning_rate,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
    }
    file = folder / "job.json"
    file.write_text(json.dumps(job, indent=2))
    words, begin = [HERE / "train_peer.py", file], time.time()
    processes, logs = start_ranks(setup, words, folder, cell.processes, cell.side.startswith("zero"))
    watching = (lambda: watch([process.pid for process in processes])) if watch else None
    return follow(processes, logs, folder / "metrics.jsonl", cell.steps, begin, watching)
