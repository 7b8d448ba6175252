"""Exported models beside their sources in transformers; see scripts/check-exports."""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "fixtures"))
from common import DATA, REPOSITORY  # noqa: E402

import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from transformers.utils import logging  # noqa: E402

LIMIT = 1e-5
STAGES = [0, 1, 2, 3]
TEXTS = [
    "A lighthouse keeper counts the ships that pass by night: 14 on Monday, 9 on Tuesday and none on Wednesday.",
    "def area(width, height):\n    return width * height\n\nprint(area(3, 4))  # Größe: 12 m²",
]
CONVERSATION = [
    {"role": "user", "content": "What is the capital of Italy?"},
    {"role": "assistant", "content": "Rome."},
    {"role": "user", "content": "And how far is it from Oslo?"},
]


class Model:
    """A model folder as transformers reads it."""

    def __init__(self, folder):
        self.folder = folder
        self.model, self.loading = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        self.model.eval()
        self.tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)

    @torch.no_grad()
    def logits(self, ids):
        return self.model(input_ids=ids, use_cache=False).logits

    def keys(self):
        """Names and types of what lies in its files."""
        found = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                found |= {name: str(file.get_slice(name).get_dtype()) for name in file.keys()}
        return found

    def is_tied(self):
        return self.model.get_output_embeddings().weight is self.model.get_input_embeddings().weight


def check(source, folder, dtype):
    """What is wrong with an export, in words, and the largest difference of a logit."""
    export = Model(folder)
    wrong = []
    for what, keys in export.loading.items():
        if keys:
            wrong.append(f"{what}: {sorted(map(str, keys))[:3]}")
    ours, theirs = export.keys(), source.keys()
    if ours.keys() != theirs.keys():
        wrong.append(f"keys that only one has: {sorted(ours.keys() ^ theirs.keys())[:3]}")
    expected = {"F32"} if dtype == "float32" else set(theirs.values())
    if set(ours.values()) != expected:
        wrong.append(f"types {sorted(set(ours.values()))}, and not {sorted(expected)}")
    if export.is_tied() != source.is_tied():
        wrong.append(f"tied: {export.is_tied()}, the source: {source.is_tied()}")
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"]:
        files = [model.folder / name for model in (source, export)]
        if files[0].exists() != files[1].exists() or files[0].exists() and files[0].read_bytes() != files[1].read_bytes():
            wrong.append(f"{name} differs")
    if export.tokenizer.get_vocab() != source.tokenizer.get_vocab():
        wrong.append("the vocabulary differs")
    if export.tokenizer.chat_template != source.tokenizer.chat_template:
        wrong.append("the chat template differs")
    encoded = [[model.tokenizer(text)["input_ids"] for text in TEXTS] for model in (source, export)]
    if source.tokenizer.chat_template:
        for model, ids in zip((source, export), encoded):
            ids.append(model.tokenizer.apply_chat_template(CONVERSATION, return_dict=True)["input_ids"])
    if encoded[0] != encoded[1]:
        wrong.append("texts have other tokens")
    difference = max((export.logits(ids) - source.logits(ids)).abs().max().item() for ids in (torch.tensor([row]) for row in encoded[0]))
    if not difference <= LIMIT:
        wrong.append(f"a logit differs by {difference:.2e}")
    return wrong, difference


def run(command):
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        text = done.stdout.decode("utf-8", errors="replace")
        sys.exit(f"error: {' '.join(str(word) for word in command)} ended with status {done.returncode}:\n{text}")


def exports(launch, source, stage, folder):
    """The models that come of a step with learning rate 0: (folder, type, how)."""
    data = REPOSITORY / "configs/demo/train.jsonl" if source.tokenizer.chat_template and source.model.num_parameters() > 1e7 else DATA / "rows.jsonl"
    job = [launch, "--nproc", 2, "train", "--model_name_or_path", source.folder, "--dataset", data, "--output_dir", folder / "run"]
    job += ["--zero_stage", stage, "--use_cpu", "true", "--max_steps", 1, "--learning_rate", 0, "--weight_decay", 0]
    job += ["--mixed_precision", "no", "--per_device_train_batch_size", 1, "--max_length", 128]
    run(job)
    (folder / "run/model").rename(folder / "written")
    yield folder / "written", "source", "by training"
    run([*job, "--save_dtype", "float32", "--resume"])
    yield folder / "run/model", "float32", "by training"
    for dtype in ["source", "float32"]:
        run([launch, "export", folder / "run", "--output", folder / dtype, "--dtype", dtype])
        yield folder / dtype, dtype, "by launch export"


def main():
    parser = argparse.ArgumentParser(prog="scripts/check-exports", description=__doc__)
    parser.add_argument("--launch", type=Path, required=True)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    logging.disable_progress_bar()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    right = True
    for folder in options.folders:
        source = Model(folder.resolve())
        tied = "tied" if source.is_tied() else "untied"
        print(f"{folder.name}: {tied}, {sorted(set(source.keys().values()))[0]}, {source.model.num_parameters():,} parameters", flush=True)
        for stage in STAGES:
            with tempfile.TemporaryDirectory() as temporary:
                for exported, dtype, how in exports(options.launch.resolve(), source, stage, Path(temporary)):
                    wrong, difference = check(source, exported, dtype)
                    verdict = "; ".join(wrong) if wrong else "ok"
                    print(f"  stage {stage}, {dtype:7} {how:16}: largest difference of a logit {difference:.1e}, {verdict}", flush=True)
                    right &= not wrong
    print("all exports are their sources" if right else "some exports are NOT their sources")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
