"""One rank of a peer's training run: PyTorch DDP, FSDP2 or DeepSpeed over transformers' model, on the CPU over Gloo.

Called by theirs.py with a job file (or `--idle PEER`); RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are in the
environment. Rank 0 appends one JSON object a step to `metrics` as soon as the step is done, as a run's metrics.jsonl. A
step's time is the wall time from the end of the step before to its own end: rows, forward, backward, clipping, optimizer
and one loss.item().
"""

import json
import os
import sys
import time

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM
from wrap_peer import PEERS


def load_rows(path):
    """All rows as one tensor: they are of one length, so that no row needs padding or a mask."""
    with open(path, encoding="utf-8") as file:
        return torch.tensor([json.loads(line)["input_ids"] for line in file])


def train(job, peer, rows, rank, world):
    batch, accumulation = job["batch"], job["accumulation"]
    begin = time.perf_counter()
    for step in range(job["steps"]):
        total = torch.zeros(())
        for micro_batch in range(accumulation):
            # As the rows of a sequential run of ours: micro-batch a of rank r is slice a * N + r of the step.
            first = ((step * accumulation + micro_batch) * world + rank) * batch
            ids = rows[first : first + batch]
            loss = peer.loss(ids, last=micro_batch + 1 == accumulation)
            peer.backward(loss)
            total += loss.detach().float() / (accumulation * world)
        norm = peer.finish_step()
        dist.all_reduce(total)  # rows are of one length, so the mean of the means is the mean over all tokens
        loss = total.item()
        now = time.perf_counter()
        if rank == 0:
            record = {"step": step + 1, "loss": loss, "grad_norm": norm, "step_seconds": now - begin}
            with open(job["metrics"], "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        begin = now


def idle(peer):
    """Imports what a run imports and does nothing, so that what imports take in memory can be seen."""
    import transformers.models.llama.modeling_llama  # noqa: F401

    if peer.startswith("fsdp2"):
        import torch.distributed.fsdp
    if peer == "fsdp2-compiled":
        import torch._inductor.compile_fx  # noqa: F401
    if peer.startswith("zero"):
        import deepspeed  # noqa: F401
    print("ready", flush=True)
    sys.stdin.read()


def main():
    if sys.argv[1] == "--idle":
        return idle(sys.argv[2])
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo")
    rows = load_rows(job["rows"])
    model = AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=torch.float32, local_files_only=True, attn_implementation="sdpa"
    ).train()
    model.config.use_cache = False
    train(job, PEERS[job["peer"]](model, job), rows, rank, world)
    dist.barrier()
    # Without the teardown: Gloo's sometimes aborts when the other rank is gone first, and nothing of it is measured.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
