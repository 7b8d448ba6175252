"""One rank of FSDP2 that trains, saves by torch.distributed.checkpoint and loads again, on the CPU over Gloo.

Called by compare_checkpoints.py with a job file; RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are in the environment.
Rank 0 writes what it measured, in seconds, as JSON to the job's `result`. Files are synced to disk, which is the default
of FileSystemWriter.
"""

import json
import os
import statistics
import sys
import time

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from train_peer import load_rows
from transformers import AutoModelForCausalLM
from wrap_peer import PEERS


class Training:
    """Steps on the job's rows, one after the other."""

    def __init__(self, job, rank, world):
        model = AutoModelForCausalLM.from_pretrained(
            job["model"], dtype=torch.float32, local_files_only=True, attn_implementation="sdpa"
        ).train()
        model.config.use_cache = False
        self.job, self.rank, self.world, self.taken = job, rank, world, 0
        self.rows, self.peer = load_rows(job["rows"]), PEERS["fsdp2"](model, job)

    def step(self):
        begin, batch = time.perf_counter(), self.job["batch"]
        first = (self.taken * self.world + self.rank) * batch
        loss = self.peer.loss(self.rows[first : first + batch], last=True)
        self.peer.backward(loss)
        self.peer.finish_step()
        self.taken += 1
        return time.perf_counter() - begin

    def state(self):
        model, optimizer = get_state_dict(self.peer.wrapped, self.peer.optimizer)
        return {"model": model, "optimizer": optimizer}


def timed(work):
    dist.barrier()
    begin = time.perf_counter()
    result = work()
    dist.barrier()
    return time.perf_counter() - begin, result


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("cpu:gloo")
    # What a save says behind the steps would meet what the steps say, in a group that both use.
    behind = dist.new_group(backend="gloo")
    training = Training(job, rank, world)
    training.step()
    plain = statistics.median(training.step() for _ in range(2))
    folder = job["folder"]
    save, _ = timed(lambda: dcp.save(training.state(), checkpoint_id=f"{folder}/sync"))

    def load():
        state = training.state()
        dcp.load(state, checkpoint_id=f"{folder}/sync")
        set_state_dict(
            training.peer.wrapped,
            training.peer.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )

    loaded, _ = timed(load)
    begin = time.perf_counter()
    future = dcp.async_save(training.state(), checkpoint_id=f"{folder}/async", process_group=behind)
    stall, meanwhile = time.perf_counter() - begin, []
    # Steps need all ranks, so all take as many.
    busy = torch.ones(())
    while busy.item() > 0:
        meanwhile.append(training.step())
        busy = torch.tensor(float(not future.done()))
        dist.all_reduce(busy)
    future.result()
    if rank == 0:
        result = {"step": plain, "save": save, "load": loaded, "stall": stall, "slowest step": max(meanwhile)}
        with open(job["result"], "w", encoding="utf-8") as file:
            json.dump(result, file)
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
