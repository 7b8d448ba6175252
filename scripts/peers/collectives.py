"""Collectives over Gloo by torch.distributed, and what the memory gives a plain copy or add: one rank of a measurement.

As `launch bench` does it: float32, a barrier before each, of each repetition the slowest rank, of those the median.

    collectives.py OUTPUT     with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment
"""

import json
import os
import statistics
import sys
import time

import torch
import torch.distributed as dist

SIZES = {64 << 10: 60, 1 << 20: 40, 16 << 20: 11, 128 << 20: 5}  # bytes of the full buffer, and repetitions
WARM_UP = 2


def seconds(work, repetitions):
    times = []
    for repetition in range(WARM_UP + repetitions):
        dist.barrier()
        begin = time.perf_counter()
        work()
        if repetition >= WARM_UP:
            times.append(time.perf_counter() - begin)
    slowest = torch.tensor(times, dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return statistics.median(slowest.tolist())


def measure(bytes_, repetitions, world):
    """Beside the collectives: a copy of as many bytes as a gather writes, and a sum of two of a reduction's parts."""
    full, shard = torch.ones(bytes_ // 4), torch.ones(bytes_ // 4 // world)
    other = torch.ones_like(full)
    parts = other.chunk(world)
    return {
        "all_gather": seconds(lambda: dist.all_gather_into_tensor(full, shard), repetitions),
        "reduce_scatter": seconds(lambda: dist.reduce_scatter_tensor(shard, full), repetitions),
        "copy": seconds(lambda: full.copy_(other), repetitions),
        "add": seconds(lambda: torch.add(parts[0], parts[1], out=shard), repetitions),
    }


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    world = dist.get_world_size()
    result = {str(size): measure(size, repetitions, world) for size, repetitions in SIZES.items()}
    if dist.get_rank() == 0:
        with open(sys.argv[1], "w", encoding="utf-8") as file:
            json.dump(result, file)
    dist.barrier()
    os._exit(0)  # as train_peer.py


if __name__ == "__main__":
    main()
