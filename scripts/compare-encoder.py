"""Compares encoders with transformers: the last hidden states of fixed texts, in float32, alone and as a pair with token types.

Exits 1 when they differ by more than --limit.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "fixtures"))
from common import REPOSITORY  # noqa: E402

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

TEXTS = [
    ("A lighthouse keeper counts the ships that pass by night.",),
    ("On Monday there were 14, on Tuesday 9 and on Wednesday none, because of the fog: whoever wants to know the sum has to add.",),
    ("How many ships were there on Tuesday?", "On Monday there were 14, on Tuesday 9 and on Wednesday none."),
]


def ours_of(folder, encoded, binaries):
    """The last hidden states that `worker` computes of a text."""
    with tempfile.TemporaryDirectory() as temporary:
        asked, answered = Path(temporary) / "ids.safetensors", Path(temporary) / "hidden.safetensors"
        ids = {key: encoded[key].contiguous() for key in ("input_ids", "token_type_ids") if key in encoded}
        save_file(ids, asked)
        command = [binaries / "worker", "hidden-states", folder, asked, answered]
        done = subprocess.run([str(part) for part in command], check=False)
        if done.returncode != 0:
            sys.exit(f"error: {' '.join(str(part) for part in command)} ended with status {done.returncode}")
        return load_file(answered)["last_hidden_state"]


@torch.no_grad()
def compare(folder, options):
    """True when our hidden states of TEXTS agree with those of transformers."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    right = True
    for texts in TEXTS:
        encoded = tokenizer(*texts, return_tensors="pt")
        theirs = model(**encoded).last_hidden_state
        ours = ours_of(folder, encoded, options.binaries)
        same = ours.shape == theirs.shape and ours.dtype == torch.float32
        largest = (ours - theirs).abs().max().item() if same else float("inf")
        right &= largest < options.limit
        print(
            f"  {tuple(theirs.shape)} hidden states of {len(texts)} text(s): largest difference {largest:.2e} (limit "
            f"{options.limit:.0e}, standard deviation {theirs.std():.2f}) {'ok' if largest < options.limit else 'DIFFERENT'}"
        )
    return right


def main():
    parser = argparse.ArgumentParser(prog="scripts/compare encoder", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a model folder")
    parser.add_argument("--limit", type=float, default=1e-4, help="largest difference (default 1e-4)")
    parser.add_argument("--binaries", type=Path, default=REPOSITORY / "target" / "release", help="where ours lie")
    options = parser.parse_args()
    right = True
    for folder in options.folders:
        if not (folder / "config.json").exists():
            parser.error(f"{folder} has no config.json")
        print(folder)
        right &= compare(folder, options)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
