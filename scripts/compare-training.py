"""Compares a finished run with a plain single-process PyTorch loop on the same rows in the same order.

The run must be float32 and sequential (`mixed_precision: no`, `train_sampling_strategy: sequential`). Its
config.resolved.yaml says the model, the data and the hyperparameters, so nothing has to be repeated here. Rows come
from the data file where it is pre-tokenised, else from what the run tokenised (RUN/data/train.safetensors).
Exits 1 when a loss differs by more than --limit, relatively.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "fixtures"))
from common import Recipe, load_model, read_rows, train  # noqa: E402

import torch  # noqa: E402


def read_metrics(path):
    """The step records of a metrics.jsonl, evaluations left out."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [record for record in records if "grad_norm" in record]


def read_tokenised(path):
    """Rows of the run's own safetensors file: input_ids and labels end to end, offsets [rows + 1]."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    offsets = tensors["offsets"].tolist()
    ids, labels = tensors["input_ids"].tolist(), tensors["labels"].tolist()
    return [(ids[begin:end], labels[begin:end]) for begin, end in zip(offsets, offsets[1:])]


def rows_of(run, dataset, max_length):
    """The rows of a run, truncated as it does, and where they came from."""
    dataset = dataset if dataset.is_absolute() or dataset.exists() else run / dataset
    if dataset.is_file():
        with open(dataset, encoding="utf-8") as file:
            first = next((line for line in file if line.strip()), "{}")
        if "input_ids" in json.loads(first):
            return [(ids[:max_length], labels[:max_length]) for ids, labels in read_rows(dataset)], dataset
    tokenised = run / "data" / "train.safetensors"
    return read_tokenised(tokenised), tokenised


def plain_value(value):
    """The text of a YAML value that may be an enum written as a word, a bool (YAML reads `no` as false) or none."""
    return {False: "no", None: "no"}.get(value, str(value))


def recipe_of(config, max_steps):
    """The run's hyperparameters; says what keeps it from being comparable."""
    training = config["training"]
    problems = []
    if plain_value(config["mixed_precision"]).lower() != "no":
        problems.append(f"mixed_precision is {config['mixed_precision']}, expected no")
    if plain_value(training["train_sampling_strategy"]).lower() != "sequential":
        problems.append(f"train_sampling_strategy is {training['train_sampling_strategy']}, expected sequential")
    if isinstance(training["lr_scheduler_type"], dict):
        problems.append(f"lr_scheduler_kwargs is {training['lr_scheduler_type']['parameters']}, expected none")
    if problems:
        sys.exit("error: this run cannot be compared: " + "; ".join(problems))
    warmup = float(training.get("warmup_steps") or training.get("warmup_ratio") or 0)
    if 0 < warmup < 1:
        import math

        warmup = math.ceil(max_steps * warmup)
    return Recipe(
        global_batch=config["num_processes"]
        * config["gradient_accumulation_steps"]
        * training["per_device_train_batch_size"],
        max_steps=max_steps,
        learning_rate=float(training["learning_rate"]),
        lr_scheduler_type=str(training["lr_scheduler_type"]).lower(),
        warmup_steps=int(warmup),
        weight_decay=float(training["weight_decay"]),
        adam_beta1=float(training["adam_beta1"]),
        adam_beta2=float(training["adam_beta2"]),
        adam_epsilon=float(training["adam_epsilon"]),
        max_grad_norm=float(config["max_grad_norm"]) or float("inf"),
    )


def relative(ours, theirs):
    return abs(ours - theirs) / max(abs(theirs), 1e-12)


def main():
    parser = argparse.ArgumentParser(prog="scripts/compare training", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder (its output_dir)")
    parser.add_argument("--limit", type=float, default=1e-5, help="largest relative difference (default 1e-5)")
    parser.add_argument("--model", type=Path, help="start from this model instead of the one the run names")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of PyTorch")
    options = parser.parse_args()
    import yaml

    torch.set_num_threads(options.threads)
    config = yaml.safe_load((options.run / "config.resolved.yaml").read_text(encoding="utf-8"))
    training = config["training"]
    ours = read_metrics(options.run / "metrics.jsonl")
    broken = [record["step"] for record in ours if record["loss"] is None or record["grad_norm"] is None]
    if broken:
        sys.exit(f"error: the run's loss or gradient norm is not finite at step {broken[0]}")
    if not ours:
        sys.exit(f"error: {options.run / 'metrics.jsonl'} holds no finished step")
    missing = [index + 1 for index, record in enumerate(ours) if record["step"] != index + 1]
    if missing:
        sys.exit(f"error: {options.run / 'metrics.jsonl'} does not hold every step from 1 on (first gap: {missing[0]})")
    max_steps = training["max_steps"] if training["max_steps"] > 0 else len(ours)
    recipe = recipe_of(config, max_steps)
    rows, source = rows_of(options.run, Path(training["dataset"]), training["max_length"])
    print(f"rows: {len(rows)} from {source}\nrecipe: {recipe.as_dict()}")
    print(f"{'step':>5} {'loss: zerofold':>18} {'pytorch':>18} {'relative':>9}", end="")
    print(f"   {'norm: zerofold':>14} {'pytorch':>11} {'relative':>9}")
    worst = {"loss": 0.0, "grad_norm": 0.0}

    def show(theirs):
        if theirs["step"] > len(ours):
            return
        mine = ours[theirs["step"] - 1]
        apart = {key: relative(mine[key], theirs[key]) for key in worst}
        for key, value in apart.items():
            worst[key] = max(worst[key], value)
        rate = relative(mine["learning_rate"], theirs["learning_rate"])
        note = "" if rate < 1e-6 else f"  learning rate {mine['learning_rate']} against {theirs['learning_rate']}"
        print(
            f"{theirs['step']:>5} {mine['loss']:>18.10f} {theirs['loss']:>18.10f} {apart['loss']:>9.1e}   "
            f"{mine['grad_norm']:>14.6f} {theirs['grad_norm']:>11.6f} {apart['grad_norm']:>9.1e}{note}",
            flush=True,
        )

    model = load_model(options.model or training["model_name_or_path"])
    train(model, rows, recipe, on_step=show)
    right = worst["loss"] <= options.limit
    print(
        f"largest relative difference: loss {worst['loss']:.2e} (limit {options.limit:.0e}), gradient norm "
        f"{worst['grad_norm']:.2e}: {'ok' if right else 'DIFFERENT'}"
    )
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
