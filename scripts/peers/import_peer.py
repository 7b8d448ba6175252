"""One rank that takes a step with ZeRO-3 or FSDP2 and saves a sharded checkpoint; see check_imports.py.

Rank 0 also writes the logits of the trained model for the job's `ids`.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from transformers import AutoModelForCausalLM
from wrap_peer import PEERS


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=world)
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, local_files_only=True).train()
    peer = PEERS[job["peer"]](model, job)
    ids = load_file(job["ids"])["input_ids"]
    peer.backward(peer.loss(ids, last=True))
    peer.finish_step()
    # Every rank takes part, since weights are gathered.
    with torch.no_grad():
        if job["peer"] == "zero3":
            logits = peer.engine(input_ids=ids, use_cache=False).logits
            peer.engine.save_checkpoint(job["folder"])
        else:
            logits = peer.wrapped(input_ids=ids, use_cache=False).logits
            dcp.save({"model": get_model_state_dict(peer.wrapped)}, checkpoint_id=job["folder"])
    if rank == 0:
        save_file({"logits": logits.float().contiguous()}, job["logits"])
    dist.barrier()
    # Without the teardown, as in train_peer.py.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
