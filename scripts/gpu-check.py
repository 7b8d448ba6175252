"""Checks Zerofold on one GPU: equivalence, speed and memory beside PyTorch, compute-sanitizer; see docs/gpu.md.

Both sides train the same rows of random tokens with the same recipe: bfloat16 compute, float32 masters, AdamW, clipped
to norm 1. They take turns, a process each time; steps that warm up are left out, and what is shown is the median of the
rounds' medians. Ours times a step by the host, from its batch to the call of AdamW, whose rest on the device falls into
the next step; the other side waits for the device before and after.

A model's FLOPs of a token are 6 P + 12 L H T / 2, for P parameters, L layers of width H and rows of T tokens: what is
computed again by activation checkpointing does not count. Utilisation is their share of the card's dense bfloat16 peak.
"""

import argparse
import json
import os
import random
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

PARTS = ("equivalence", "speed", "sanitizer")
STAGES = (0, 3)
LEARNING_RATE, MAX_GRAD_NORM = 1e-4, 1.0
LOSS_LIMIT = 2e-2  # largest relative difference of the first loss; in bfloat16
FINDING_STATUS = 9  # by which compute-sanitizer ends when it found something

# Dense bfloat16 FLOP/s by the makers' data sheets, under the names that the driver gives the cards.
PEAKS = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A10": 125e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA B200": 2250e12,
}

# 1.23 billion parameters, 0.13 of them in embedding and head.
RANDOM_LLAMA = {
    "hidden_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 32768,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
}


class Failed(Exception):
    """Something that was run did not end as it should; what it said."""


@dataclass
class Case:
    """A model to train."""

    name: str
    model: Path
    length: int  # tokens of a row
    most_rows: int  # of a micro-batch; fewer where they do not fit


@dataclass
class Device:
    """What is computed on."""

    name: str
    memory: int  # bytes
    peak: float | None  # FLOP/s


@dataclass
class Steps:
    """What one job measured."""

    losses: list
    tokens_per_second: float
    peak_bytes: int | None
    planned_bytes: int | None = None


class Report:
    """The rows of the table, what is to be said beside it, and what is wrong."""

    def __init__(self):
        self.rows, self.notes, self.failures = [], [], []

    def add(self, what, ours, theirs=None, unit="text"):
        ratio = ours / theirs if theirs and unit != "text" else None
        self.rows.append({"what": what, "ours": ours, "theirs": theirs, "ratio": ratio, "unit": unit})

    def fail(self, what, reason):
        self.add(what, "FAILED")
        self.failures.append(f"{what}: {reason}")

    def print(self):
        cells = [["", "ours", "PyTorch", "ratio"]]
        for row in self.rows:
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f}"
            cells.append([row["what"], shown(row["ours"], row["unit"]), shown(row["theirs"], row["unit"]), ratio])
        first, *others = (max(len(line[column]) for line in cells) for column in range(4))
        print()
        for what, *numbers in cells:
            columns = [f"{number:>{width}}" for number, width in zip(numbers, others, strict=True)]
            print("  ".join([f"{what:<{first}}", *columns]).rstrip())
        print()
        for line in self.notes + [f"FAILED: {failure}" for failure in self.failures]:
            print(line)


def shown(value, unit):
    """A number as the table has it."""
    if value is None:
        return ""
    if unit == "bytes":
        return f"{value / 1e9:.2f} GB" if value >= 1e8 else f"{value / 1e6:.2f} MB"
    forms = {"text": "{}", "tokens/s": "{:,.0f}", "share": "{:.1%}", "error": "{:+.1%}", "loss": "{:.4f}"}
    return forms[unit].format(value)


def say(words):
    print(words, file=sys.stderr, flush=True)


def parse():
    parser = argparse.ArgumentParser(prog="scripts/gpu-check", description=__doc__, allow_abbrev=False)
    parser.add_argument("--root", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--demo-model", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=PARTS, action="append", help="one part; may be given often")
    parser.add_argument("--rehearse", action="store_true", help="the same on the CPU with a tiny model, no sanitizer")
    parser.add_argument("--rounds", type=int, help="how often each side has its turn (default 3, in a rehearsal 1)")
    parser.add_argument("--json", type=Path, help="also write every number to this file")
    options = parser.parse_args()
    options.binaries = options.target / "release"
    options.rounds = options.rounds or (1 if options.rehearse else 3)
    options.warm_up, options.measured = (1, 2) if options.rehearse else (5, 20)
    return options


def run(command, **environment):
    """Runs a command and returns what it printed; raises what it said last when it failed."""
    command = [str(word) for word in command]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    try:
        done = subprocess.run(command, env=os.environ | environment, text=True, errors="replace", check=False, **both)
    except OSError as error:
        raise Failed(f"{command[0]} cannot be run: {error}") from error
    if done.returncode != 0:
        raise Failed(f"{shlex.join(command)} ended with status {done.returncode}\n{done.stdout[-6000:]}")
    return done.stdout


def find_device(rehearse):
    """The first GPU that PyTorch sees. Asked in a process of its own, which leaves nothing behind on the card."""
    if rehearse:
        return Device("CPU", 16 << 30, None)
    question = "import torch; it = torch.cuda.get_device_properties(0); print(it.total_memory, it.name)"
    try:
        memory, name = run([sys.executable, "-c", question]).splitlines()[-1].split(maxsplit=1)
    except Failed as failure:
        sys.exit(
            f"error: PyTorch sees no GPU: {str(failure).splitlines()[-1]}\n"
            "hint: look at nvidia-smi and CUDA_VISIBLE_DEVICES; --rehearse runs the same on the CPU"
        )
    return Device(name, int(memory), PEAKS.get(name))


def write_rows(path, count, length, vocabulary):
    generator = random.Random(1)
    with path.open("w") as file:
        for _ in range(count):
            file.write(json.dumps({"input_ids": [generator.randrange(vocabulary) for _ in range(length)]}) + "\n")


def write_random_llama(folder, tokenizer):
    """A folder in bfloat16, by transformers' own initialisation; the tokenizer is there because a folder has one."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(LlamaConfig(**RANDOM_LLAMA), dtype=torch.bfloat16).save_pretrained(folder)
    shutil.copy(tokenizer, folder)


def cases(options, folder):
    """The models, from small to large."""
    tiny = options.root / "tests" / "fixtures" / "models" / "tiny-llama"
    if options.rehearse:
        return [Case("tiny-llama", tiny, 64, 2)]
    say("writing a random Llama of 1.2 billion parameters")
    write_random_llama(folder / "random-llama", tiny / "tokenizer.json")
    return [
        Case("SmolLM2-135M", options.demo_model, 1024, 16),
        Case("random 1.2B", folder / "random-llama", 2048, 4),
    ]


# Equivalence.


def equivalence(options, report):
    what = "equivalence to float64, one process"
    say(f"{what}: cargo test, which builds the tests first")
    which = ["--ranks", "1"] if options.rehearse else ["--gpu"]
    command = ["cargo", "test", "--release", "--manifest-path", options.root / "Cargo.toml"]
    try:
        said = run([*command, "-p", "zerofold-runtime", "--test", "matrix", "--", *which])
    except Failed as failure:
        report.fail(what, failure)
        return
    passed = re.findall(r"^test result: ok\. (\d+) passed", said, re.MULTILINE)
    if not passed or int(passed[-1]) == 0:
        report.fail(what, f"no test ran\n{said[-2000:]}")
        return
    report.add(what, f"{passed[-1]} passed")


# Speed and memory.


def fitting(options, case, device):
    """Rows of a micro-batch, and whether blocks are recomputed: by plan as many as fit, recomputed only if one row
    does not."""
    for recompute in (False, True):
        rows = case.most_rows
        while rows > 0:
            answer = plan(options, case, device, rows, recompute)
            fits = zip(answer["plans"], answer["memory"]["fits"], strict=True)
            if all(it for planned, it in fits if planned["stage"] in STAGES):
                return rows, recompute
            rows //= 2
    raise Failed(f"by plan not even one row of {case.length} tokens fits into {shown(device.memory, 'bytes')}")


def plan(options, case, device, rows=1, recompute=False):
    """What `launch plan` answers."""
    command = [options.binaries / "launch", "--nproc", 1, "plan", "--json", "--gpu-memory", device.memory]
    command += ["--model_name_or_path", case.model, "--per_device_train_batch_size", rows, "--max_length", case.length]
    command += ["--mixed_precision", "bf16", "--gradient_checkpointing", str(recompute).lower()]
    return json.loads(run(command))


def train(options, folder, environment=None, **settings):
    """Runs a job of ours over one process; returns its steps and its plan.json."""
    settings = {
        "output_dir": folder,
        "mixed_precision": "bf16",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": MAX_GRAD_NORM,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        **settings,
    }
    if options.rehearse:
        settings["use_cpu"] = "true"
    command = [options.binaries / "launch", "--nproc", 1, "train"]
    for key, value in settings.items():
        command += [f"--{key}", value]
    try:
        run(command, **(environment or {}))
        wanted = "cpu" if options.rehearse else "cuda"
        if f"\ndevice: {wanted}\n" not in (folder / "config.resolved.yaml").read_text():
            raise Failed(f"the job did not run on {wanted}: a build for the CPU, or no GPU was seen")
        steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [step for step in steps if "loss" in step], json.loads((folder / "plan.json").read_text())
    finally:
        # The exported model is not needed, and there would be many.
        shutil.rmtree(folder, ignore_errors=True)


def our_steps(options, folder, case, stage, rows, data, recompute):
    steps, memory = train(
        options,
        folder / "run",
        zero_stage=stage,
        model_name_or_path=case.model,
        dataset=data,
        max_length=case.length,
        max_steps=options.warm_up + options.measured,
        per_device_train_batch_size=rows,
        gradient_checkpointing=str(recompute).lower(),
    )
    if memory["measured"] is None:
        raise Failed("the job measured no memory")
    return Steps(
        [step["loss"] for step in steps],
        statistics.median(step["tokens_per_second"] for step in steps[options.warm_up :]),
        memory["measured"]["live_peak"],
        memory["planned"]["plan"]["total"],
    )


def their_steps(options, folder, case, stage, rows, data, recompute):
    result = folder / "theirs.json"
    command = [sys.executable, options.root / "scripts" / "gpu-check-fsdp2.py", case.model, data, result]
    command += ["--stage", stage, "--batch", rows, "--learning-rate", LEARNING_RATE, "--max-grad-norm", MAX_GRAD_NORM]
    command += ["--gradient-checkpointing"] * recompute + ["--cpu"] * options.rehearse
    # As the workers of launch have it.
    run(command, PYTORCH_ALLOC_CONF=os.environ.get("PYTORCH_ALLOC_CONF", "expandable_segments:True"))
    answer = json.loads(result.read_text())
    seconds = statistics.median(answer["step_seconds"][options.warm_up :])
    return Steps(answer["losses"], rows * case.length / seconds, answer["peak_bytes"])


def speed(options, report, folder, device):
    if device.peak is None and not options.rehearse:
        report.notes.append(f"no utilisation: the bfloat16 peak of {device.name} is not known to scripts/gpu-check.py")
    for case in cases(options, folder):
        try:
            rows, recompute = fitting(options, case, device)
            parameters = plan(options, case, device)["model"]["parameters"]
        except Failed as failure:
            report.fail(case.name, failure)
            continue
        report.notes.append(
            f"{case.name}: {parameters / 1e6:,.1f} million parameters, {rows} × {case.length} tokens a step, activation "
            f"checkpointing {'on' if recompute else 'off'}, {options.measured} steps measured, rounds: {options.rounds}"
        )
        config = json.loads((case.model / "config.json").read_text())
        data = folder / f"{case.model.name}.jsonl"
        write_rows(data, rows * (options.warm_up + options.measured), case.length, config["vocab_size"])
        flops = token_flops(parameters, config, case.length)
        for stage in STAGES:
            what = f"{case.name}, stage {stage}"
            try:
                ours, theirs = turns(options, folder, case, stage, rows, data, recompute)
            except Failed as failure:
                report.fail(what, failure)
            else:
                compare(report, what, ours, theirs, flops, device)
    report.notes.append(
        f"PyTorch {version('torch')} and transformers {version('transformers')}, not compiled; at stage 3 FSDP2, at "
        "stage 0 no FSDP2: a bfloat16 model with float32 masters, no autocast"
    )


def token_flops(parameters, config, length):
    """Of forward and backward; attention is causal."""
    return 6 * parameters + 12 * config["num_hidden_layers"] * config["hidden_size"] * length / 2


def turns(options, folder, *job):
    """Each side's jobs, run in turn."""
    sides = (our_steps, their_steps)
    found = ([], [])
    for turn in range(options.rounds):
        for side, jobs in zip(sides, found, strict=True):
            jobs.append(side(options, folder, *job))
            name = "ours" if side is our_steps else "PyTorch"
            say(f"{job[0].name}, stage {job[1]}, round {turn + 1}, {name}: {jobs[-1].tokens_per_second:,.0f} tokens/s")
    return found


def compare(report, what, ours, theirs, flops, device):
    """The rows of one model at one stage."""
    rates = [statistics.median(job.tokens_per_second for job in jobs) for jobs in (ours, theirs)]
    report.add(f"{what}: tokens/s", *rates, unit="tokens/s")
    report.rows[-1]["rounds"] = [[job.tokens_per_second for job in jobs] for jobs in (ours, theirs)]
    if device.peak is not None:
        shares = [rate * flops / device.peak for rate in rates]
        report.add(f"{what}: model FLOPs utilisation", *shares, unit="share")
    # Every round does the same work.
    ours, theirs = ours[0], theirs[0]
    report.add(f"{what}: peak memory", ours.peak_bytes, theirs.peak_bytes, unit="bytes")
    report.add(f"{what}: peak memory by plan", ours.planned_bytes, unit="bytes")
    report.add(f"{what}: the plan's error", ours.planned_bytes / ours.peak_bytes - 1, unit="error")
    report.add(f"{what}: first loss", ours.losses[0], theirs.losses[0], unit="loss")
    report.add(f"{what}: last loss", ours.losses[-1], theirs.losses[-1], unit="loss")
    apart = abs(ours.losses[0] / theirs.losses[0] - 1)
    if not apart <= LOSS_LIMIT:
        report.failures.append(f"{what}: the first losses are {apart:.1e} apart, relatively (limit {LOSS_LIMIT:.0e})")


# compute-sanitizer.


def find_sanitizer():
    return shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")


def sanitizer(options, report, folder):
    tool = find_sanitizer()
    if tool is None:
        report.add("compute-sanitizer", "not run")
        report.notes.append(
            "compute-sanitizer is missing, so NOTHING was checked by it: it comes with the CUDA toolkit "
            "(package cuda-sanitizer-13-0), and is looked for on the PATH and in /usr/local/cuda/bin"
        )
        return
    fixtures = options.root / "tests" / "fixtures"
    for stage in STAGES:
        what = f"compute-sanitizer, tiny-llama, stage {stage}"
        say(what)
        logs = folder / f"sanitizer-{stage}"
        logs.mkdir()
        # Without libtorch's cache every tensor is an allocation of its own, so that a wrong access is seen.
        environment = {
            "ZEROFOLD_WORKER": str(worker_under(tool, options.binaries / "worker", logs)),
            "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
        }
        try:
            train(
                options,
                folder / "run",
                environment,
                zero_stage=stage,
                backend="nccl",  # its streams and events too; the default for one process has none
                model_name_or_path=fixtures / "models" / "tiny-llama",
                dataset=fixtures / "data" / "rows.jsonl",
                max_steps=2,
                per_device_train_batch_size=2,
            )
        except Failed as failure:
            report.fail(what, f"{failure}\n{summary(logs)[-4000:]}")
            continue
        found = re.findall(r"ERROR SUMMARY: (\d+) error", summary(logs))
        if found and all(number == "0" for number in found):
            report.add(what, "clean")
        else:
            report.fail(what, f"its log does not say that it found nothing\n{summary(logs)[-4000:]}")


def worker_under(tool, worker, logs):
    """A script that runs the worker under the sanitizer."""
    script = logs / "worker"
    # Calls that CUDA refuses are noticed by their callers, and libtorch tries some on purpose.
    command = [tool, "--error-exitcode", FINDING_STATUS, "--target-processes", "all", "--report-api-errors", "no"]
    command += ["--log-file", logs / "%p.log", worker]
    script.write_text(f'#!/bin/sh\nexec {shlex.join(str(word) for word in command)} "$@"\n')
    script.chmod(0o755)
    return script


def summary(logs):
    return "\n".join(log.read_text(errors="replace") for log in sorted(logs.glob("*.log")))


def main():
    options = parse()
    parts = options.only or PARTS
    began = time.monotonic()
    device = find_device(options.rehearse)
    say(f"device: {device.name}, {shown(device.memory, 'bytes')}")
    report = Report()
    if "equivalence" in parts:
        equivalence(options, report)
    # Beside the build: /tmp may be small.
    with tempfile.TemporaryDirectory(prefix="gpu-check-", dir=options.target) as folder:
        if "speed" in parts:
            speed(options, report, Path(folder), device)
        if "sanitizer" in parts and not options.rehearse:
            sanitizer(options, report, Path(folder))
    if options.rehearse:
        report.notes.append("a rehearsal: compute-sanitizer is left out, and the figures mean nothing")
    report.print()
    print(f"{device.name}, {(time.monotonic() - began) / 60:.1f} minutes: {'FAILED' if report.failures else 'ok'}")
    if options.json:
        result = {"device": device.name, "memory_bytes": device.memory, "peak_flops": device.peak}
        result |= {"rehearsal": options.rehearse, "parts": list(parts), "warm_up_steps": options.warm_up}
        result |= {"measured_steps": options.measured, "rounds": options.rounds}
        result |= {"rows": report.rows, "notes": report.notes, "failures": report.failures}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
