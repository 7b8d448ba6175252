"""Whether what others put together of their sharded checkpoints loads here; see scripts/check-imports."""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import theirs
import torch
from jobs import Failed, wait
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from transformers import AutoModelForCausalLM

MODELS = ["tiny-llama", "tiny-llama-tied"]
# Largest difference of logits, over their standard deviation.
LIMIT = 1e-5
SIDE_FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]


def put_together(setup, peer, source, checkpoint, folder):
    """By the tools that come with DeepSpeed and with torch.distributed.checkpoint. What they write as a pickle, transformers makes
    a folder of: DeepSpeed's tool cannot write a tied head to safetensors."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, local_files_only=True)
    if peer == "fsdp2":
        pickle = checkpoint.with_suffix(".pt")
        dcp_to_torch_save(checkpoint, pickle)
        model.load_state_dict(torch.load(pickle, weights_only=True)["model"])
        return model.save_pretrained(folder)
    tied = model.config.tie_word_embeddings
    output, more = (checkpoint.with_suffix(".pickle"), []) if tied else (folder, ["--safe_serialization"])
    words = [setup.python, checkpoint / "zero_to_fp32.py", checkpoint, output, *more]
    environment = theirs.environment(setup, deepspeed=True)
    done = subprocess.run([str(word) for word in words], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"{peer}: putting the checkpoint together failed\n{done.stderr}")
    if tied:
        model.load_state_dict(torch.load(output / "pytorch_model.bin", weights_only=True))
        model.save_pretrained(folder)


def check(setup, peer, name):
    """True when our logits of what was put together are those of the trained model."""
    folder = setup.state / f"{peer}-{name}"
    folder.mkdir()
    source, checkpoint, model = setup.models / name, folder / "checkpoint", folder / "model"
    ids = torch.arange(2 * 16).reshape(2, 16) % 250
    save_file({"input_ids": ids}, folder / "ids.safetensors")
    job = {"peer": peer, "model": str(source), "ids": str(folder / "ids.safetensors"), "folder": str(checkpoint)}
    job |= {"logits": str(folder / "theirs.safetensors"), "dtype": "f32", "accumulation": 1, "batch": 2, "learning_rate": 1e-2}
    job |= {"max_grad_norm": 1.0, "weight_decay": 0.1}
    (folder / "job.json").write_text(json.dumps(job))
    words = [theirs.HERE / "import_peer.py", folder / "job.json"]
    wait(*theirs.start_ranks(setup, words, folder, 2, deepspeed=peer == "zero3"))
    put_together(setup, peer, source, checkpoint, model)
    for side in SIDE_FILES:
        if (source / side).is_file():
            shutil.copy(source / side, model)
    ours = folder / "ours.safetensors"
    for words in (["launch", "verify", model], ["worker", "logits", model, folder / "ids.safetensors", ours]):
        done = subprocess.run([str(setup.binaries / words[0]), *map(str, words[1:])], capture_output=True, text=True)
        if done.returncode != 0:
            print(f"{peer}, {name}: {words[:2]} failed\n{done.stdout}{done.stderr}")
            return False
    ours, expected = load_file(ours)["logits"], load_file(folder / "theirs.safetensors")["logits"]
    largest = ((ours - expected).abs().max() / expected.std()).item()
    files = ", ".join(sorted(file.name for file in model.glob("*.safetensors")))
    print(f"{peer}, {name}: {files}; logits differ by {largest:.1e} of their standard deviation (limit {LIMIT:.0e})")
    return largest < LIMIT


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("python", "peers", "binaries", "models"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="check-imports-") as name:
        tcmalloc = options.peers / "libtcmalloc_minimal.so.4"
        setup = SimpleNamespace(**vars(options), state=Path(name), tcmalloc=tcmalloc)
        right = [check(setup, peer, model) for peer in ("zero3", "fsdp2") for model in MODELS]
    return 0 if all(right) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as error:
        sys.exit(f"error: {error}")
