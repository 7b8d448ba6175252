"""Compares model folders with transformers: float32 logits of a fixed text, and greedy answers.

A run folder stands for its `model/`. Exits 1 when logits differ by more than --limit or an answer differs where the
two best logits do not nearly tie.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "fixtures"))
from common import REPOSITORY, load_model  # noqa: E402

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

TEXTS = [
    "A lighthouse keeper counts the ships that pass by night. On Monday there were 14, on Tuesday 9 and on Wednesday "
    "none, because of the fog. Whoever wants to know the sum has to add the three numbers.",
    "def area(width, height):\n    return width * height\n\nprint(area(3, 4))  # Größe: 12 m², naïve but right. "
    "数 🙂 "
    "What follows here is only there so that both rows have enough tokens to compare.",
]
PROMPTS = ["The three largest cities of France are", "Once upon a time there was a gardener who"]
QUESTIONS = ["What is the capital of Italy? Answer in one sentence.", "Add 12 and 30."]
NEAR_TIE = 1e-3


def run(command):
    """Standard output of a command of ours; its own error ends the comparison."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        sys.exit(f"error: {' '.join(str(part) for part in command)} ended with status {done.returncode}")
    return done.stdout.decode("utf-8", errors="replace")


def compare_logits(folder, model, tokenizer, options):
    """True when our logits of TEXTS agree with those of transformers."""
    encoded = [tokenizer(text)["input_ids"] for text in TEXTS]
    length = min(len(ids) for ids in encoded)
    ids = torch.tensor([row[:length] for row in encoded])
    with torch.no_grad():
        theirs = model(input_ids=ids, use_cache=False).logits
    with tempfile.TemporaryDirectory() as temporary:
        asked, answered = Path(temporary) / "ids.safetensors", Path(temporary) / "logits.safetensors"
        save_file({"input_ids": ids}, asked)
        run([options.binaries / "worker", "logits", folder, asked, answered])
        ours = load_file(answered)["logits"]
    if ours.shape != theirs.shape or ours.dtype != torch.float32:
        print(f"  logits: {ours.dtype} {tuple(ours.shape)}, expected float32 {tuple(theirs.shape)}")
        return False
    largest = (ours - theirs).abs().max().item()
    same = (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item()
    right = largest < options.limit * theirs.std().item()
    print(
        f"  logits of {tuple(ids.shape)} tokens: largest difference {largest:.2e} (limit {options.limit:.0e} of the standard "
        f"deviation {theirs.std():.2f}), same best token at {100 * same:.2f} % {verdict(right)}"
    )
    return right


@torch.no_grad()
def answer(model, tokenizer, ids, new_tokens):
    """The greedy answer of transformers and the smallest gap between the two best logits on the way to it."""
    out = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        temperature=None,
        top_p=None,
        top_k=None,
    )[0]
    best = model(input_ids=out[None], use_cache=False).logits[0, len(ids) - 1 : -1].topk(2).values
    return tokenizer.decode(out[len(ids) :], skip_special_tokens=True), (best[:, 0] - best[:, 1]).min().item()


def compare_answers(folder, model, tokenizer, options):
    """True when our greedy answers are those of transformers, letter by letter."""
    cases = [(prompt, tokenizer(prompt)["input_ids"], "--prompt") for prompt in PROMPTS]
    if tokenizer.chat_template:
        for question in QUESTIONS:
            messages = [{"role": "user", "content": question}]
            encoded = tokenizer.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=True, return_dict=True
            )
            cases.append((question, encoded["input_ids"], "--chat"))
    right = True
    for prompt, ids, way in cases:
        theirs, gap = answer(model, tokenizer, ids, options.max_new_tokens)
        command = [options.binaries / "launch", "generate", "--model", folder, way, prompt]
        command += ["--max_new_tokens", options.max_new_tokens, "--temperature", 0, "--dtype", "float32"]
        ours = run(command)
        equal = ours.strip() == theirs.strip()
        tie = not equal and gap < NEAR_TIE
        right &= equal or tie
        note = " (two logits nearly tie: not counted)" if tie else ""
        print(f"  {way} {prompt!r}: smallest gap {gap:.1e} {verdict(equal)}{note}")
        if not equal:
            print(f"    transformers: {theirs!r}\n    zerofold:     {ours!r}")
        elif options.verbose:
            print(f"    {theirs.strip()!r}")
    return right


def verdict(right):
    return "ok" if right else "DIFFERENT"


def main():
    parser = argparse.ArgumentParser(prog="scripts/compare model", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a model folder, or a run folder")
    parser.add_argument("--limit", type=float, default=3e-5, help="largest difference of a logit, in standard deviations (default 3e-5)")
    parser.add_argument("--max_new_tokens", type=int, default=32, help="length of an answer (default 32)")
    parser.add_argument("--binaries", type=Path, default=REPOSITORY / "target" / "release", help="where ours lie")
    parser.add_argument("--only", choices=["logits", "answers"], help="leave the other one out")
    parser.add_argument("--verbose", action="store_true", help="show the answers")
    options = parser.parse_args()
    from transformers import AutoTokenizer

    right = True
    for folder in options.folders:
        folder = folder / "model" if (folder / "model" / "config.json").exists() else folder
        if not (folder / "config.json").exists():
            parser.error(f"{folder} has no config.json")
        print(folder)
        model = load_model(folder)
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        if options.only != "answers":
            right &= compare_logits(folder, model, tokenizer, options)
        if options.only != "logits":
            right &= compare_answers(folder, model, tokenizer, options)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
