"""Trains a Llama with PyTorch and transformers in one process, for scripts/gpu-check: losses, seconds, memory as JSON.

Stage 3: FSDP2, fully_shard on every decoder layer and on the rest; its float32 shards are the masters, compute is
bfloat16, reductions are float32. Stage 0: no FSDP2 but a bfloat16 model beside float32 masters, which get its gradients,
are clipped and updated, and are copied back after each step. Autocast, which many use there, is left out: it casts the
weights again in every forward, and would only make this side slower.

Attention is sdpa, AdamW the fused one, nothing is compiled. A step is timed from its rows on the host to its end on the
device. The peak is that of torch.cuda.max_memory_allocated over all steps, without loading.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import AutoModelForCausalLM


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a Hugging Face model folder")
    parser.add_argument("rows", type=Path, help="JSONL with input_ids, all of one length; every token is supervised")
    parser.add_argument("result", type=Path, help="the JSON file to write")
    parser.add_argument("--stage", type=int, required=True, choices=[0, 3])
    parser.add_argument("--batch", type=int, required=True, help="rows of a step; the file is gone through once")
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--max-grad-norm", type=float, required=True)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    return parser.parse_args()


def load(folder, dtype):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True)


class Plain:
    """Stage 0: a bfloat16 model, and the float32 masters that it is copied from."""

    def __init__(self, folder, device):
        self.weights = [torch.nn.Parameter(it.detach().to(device)) for it in load(folder, torch.float32).parameters()]
        self.model = load(folder, torch.bfloat16).to(device)

    def before_update(self):
        for master, parameter in zip(self.weights, self.model.parameters(), strict=True):
            master.grad = parameter.grad.float()
            parameter.grad = None

    @torch.no_grad()
    def after_update(self):
        torch._foreach_copy_(list(self.model.parameters()), self.weights)


class Sharded:
    """Stage 3: FSDP2 over one process."""

    def __init__(self, folder, device):
        self.model = load(folder, torch.float32).to(device)
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        mesh = dist.init_device_mesh(device.type, (1,))
        for module in [*self.model.model.layers, self.model]:
            fully_shard(module, mesh=mesh, mp_policy=policy)
            # A sum over the one process, by an operation that Gloo has too.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        self.weights = list(self.model.parameters())

    def before_update(self):
        """The gradients are those of the masters already."""

    def after_update(self):
        """The next forward casts what it gathers."""


def wait_for(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step(peer, optimizer, rows, device, max_grad_norm):
    """One optimizer step on these rows; returns its loss."""
    rows = rows.to(device)
    loss = peer.model(input_ids=rows, labels=rows, use_cache=False).loss
    loss.backward()
    peer.before_update()
    torch.nn.utils.clip_grad_norm_(peer.weights, max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    peer.after_update()
    return loss.item()


def main():
    options = parse()
    device = torch.device("cpu") if options.cpu else torch.device("cuda", 0)
    dist.init_process_group("gloo" if options.cpu else "nccl", store=dist.HashStore(), rank=0, world_size=1)
    peer = (Sharded if options.stage == 3 else Plain)(options.model, device)
    peer.model.train()
    if options.gradient_checkpointing:
        peer.model.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(peer.weights, lr=options.learning_rate, weight_decay=0.0, fused=True)
    rows = torch.tensor([json.loads(line)["input_ids"] for line in options.rows.read_text().splitlines()])
    if not options.cpu:
        torch.cuda.reset_peak_memory_stats(device)
    losses, seconds = [], []
    for batch in rows.split(options.batch):
        wait_for(device)
        began = time.perf_counter()
        losses.append(step(peer, optimizer, batch, device, options.max_grad_norm))
        wait_for(device)
        seconds.append(time.perf_counter() - began)
    result = {
        "losses": losses,
        "step_seconds": seconds,
        "peak_bytes": None if options.cpu else torch.cuda.max_memory_allocated(device),
    }
    options.result.write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
