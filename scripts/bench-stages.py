"""Tokens/s, bytes sent and exposed communication of the ZeRO stages, beside theory; and activation memory.

Every job trains the same rows of random tokens, one row a micro-batch on each rank. The first step warms up; what is
shown is the median of the others. Theory counts P parameters: a stage's collectives handle so many times P elements in a
step, and a pairwise exchange or a ring sends (N - 1) / N of that.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Elements in collectives per step, in units of P, for A micro-batches (DESIGN of the stages: docs/sharding.md).
THEORY = {0: lambda a: 2, 1: lambda a: 2, 2: lambda a: a + 1, 3: lambda a: 3 * a}
THEORY_WORDS = {0: "2P", 1: "2P", 2: "(A+1)P", 3: "up to 3AP"}


def parse():
    parser = argparse.ArgumentParser(prog="scripts/bench-stages", description=__doc__)
    parser.add_argument("--launch", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--demo-model", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help="a Hugging Face model folder (default: the demo model)")
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--length", type=int, default=128, help="tokens of a row (default 128)")
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--accumulations", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--steps", type=int, default=3, help="measured steps of a job, after one to warm up (default 3)")
    parser.add_argument("--rounds", type=int, default=1, help="how often the whole series is gone through (default 1)")
    parser.add_argument("--mixed-precision", default="bf16", choices=["no", "bf16", "fp16"])
    parser.add_argument("--no-memory", action="store_true", help="leave out activation checkpointing")
    parser.add_argument("--json", type=Path, help="also write every number to this file")
    return parser.parse_args()


def write_rows(path, count, length, vocabulary):
    generator = random.Random(1)
    with path.open("w") as file:
        for _ in range(count):
            ids = [generator.randrange(vocabulary) for _ in range(length)]
            file.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")


def train(options, folder, name, rows, **settings):
    """Runs a job and returns its steps (without the first) and its plan.json."""
    run = folder / name
    settings = {
        "model_name_or_path": options.model,
        "dataset": rows,
        "output_dir": run,
        "num_processes": options.nproc,
        "mixed_precision": options.mixed_precision,
        "per_device_train_batch_size": 1,
        "max_steps": options.steps + 1,
        "max_length": options.length,
        "gradient_checkpointing": "false",
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        **settings,
    }
    command = [str(options.launch), "train"] + [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"error: {name} failed\n{done.stdout}")
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    plan = json.loads((run / "plan.json").read_text())
    # The exported model is not needed, and there would be many.
    subprocess.run(["rm", "-rf", str(run)], check=True)
    return [step for step in steps if "loss" in step][1:], plan


def stages(options, folder, parameters):
    results = {}
    for turn in range(options.rounds):
        for accumulation in options.accumulations:
            rows = folder / f"rows-{accumulation}.jsonl"
            count = options.nproc * accumulation * (options.steps + 1)
            if not rows.exists():
                write_rows(rows, count, options.length, options.vocabulary)
            for stage in options.stages:
                name = f"stage-{stage}-accumulation-{accumulation}-{turn}"
                steps, plan = train(
                    options, folder, name, rows, zero_stage=stage, gradient_accumulation_steps=accumulation
                )
                results.setdefault((accumulation, stage), []).append((steps, plan))
                print(f"  {name}: {statistics.median(step['tokens_per_second'] for step in steps):.1f} tokens/s", flush=True)
    print()
    header = f"{'accumulation':>12} {'stage':>5} {'tokens/s':>9} {'to stage 0':>10} {'exposed':>9} {'of step':>7} "
    header += f"{'sent/step':>11} {'planned':>11} {'handled':>7} {'theory':>12} {'peak/rank':>10}"
    print(header)
    table = []
    for (accumulation, stage), runs in results.items():
        steps = [step for steps, _ in runs for step in steps]
        median = lambda key: statistics.median(step[key] for step in steps)  # noqa: E731
        planned = runs[0][1]["planned"]["plan"]["sent_bytes_per_step"]
        speed, exposed = median("tokens_per_second"), median("communication_seconds")
        base = results.get((accumulation, 0))
        base = statistics.median(s["tokens_per_second"] for steps, _ in base for s in steps) if base else None
        # Gathers move the compute type, reductions float32: elements by their bytes are counted as a range.
        handled = median("logical_bytes") / parameters
        theory = f"{THEORY_WORDS[stage]} = {THEORY[stage](accumulation)}P"
        row = {
            "accumulation": accumulation, "stage": stage, "tokens_per_second": speed,
            "ratio_to_stage_0": speed / base if base else None, "exposed_seconds": exposed,
            "exposed_share": exposed / median("step_seconds"), "sent_bytes": median("sent_bytes"),
            "planned_sent_bytes": planned, "handled_bytes_per_parameter": handled,
            "theory_elements_per_parameter": THEORY[stage](accumulation),
            "peak_memory_bytes": max(step["live_peak_bytes"] for step in steps),
        }
        table.append(row)
        print(
            f"{accumulation:>12} {stage:>5} {speed:>9.1f} {speed / base if base else float('nan'):>10.2f} "
            f"{exposed:>7.2f} s {100 * row['exposed_share']:>5.1f} % {row['sent_bytes'] / 1e6:>8.1f} MB "
            f"{planned / 1e6:>8.1f} MB {handled:>5.1f} B {theory:>17} {row['peak_memory_bytes'] / 1e6:>7.0f} MB"
        )
    print("\nexposed: time the training thread waited in collectives; handled: bytes in collectives per parameter (4 a")
    print("float32 element, 2 a 16-bit one); peak: live tensors; planned: what `launch plan` says is sent")
    return table


def memory(options, folder):
    length = 4 * options.length
    rows = folder / "rows-memory.jsonl"
    write_rows(rows, 2 * options.nproc * 2, length, options.vocabulary)
    result = {}
    for name, value in (("kept", "false"), ("recomputed", "true")):
        _, plan = train(
            options, folder, f"memory-{name}", rows, zero_stage=3, gradient_checkpointing=value, max_length=length,
            per_device_train_batch_size=2, max_steps=2,
        )
        measured, planned = plan["measured"], plan["planned"]["plan"]
        held = sum(planned["state"].values()) + planned["gather_buffers"] + planned["stays_gathered"]
        held += planned["gradient_buffers"] + planned["reduce_buffers"]
        result[name] = {
            "peak": measured["live_peak"], "planned_peak": planned["total"],
            "activations": planned["activations"], "beside_state_and_buffers": measured["live_peak"] - held,
        }
    kept, again = result["kept"], result["recomputed"]
    saved = 1 - again["activations"] / kept["activations"]
    at_peak = 1 - again["beside_state_and_buffers"] / kept["beside_state_and_buffers"]
    print(f"\nactivation checkpointing, stage 3, 2 × {length} tokens a rank:")
    for name, numbers in result.items():
        print(
            f"  {name:>10}: peak {numbers['peak'] / 1e6:.0f} MB (planned {numbers['planned_peak'] / 1e6:.0f}), of it beside "
            f"state and buffers {numbers['beside_state_and_buffers'] / 1e6:.0f} MB; kept from forward to backward "
            f"{numbers['activations'] / 1e6:.0f} MB by plan"
        )
    print(f"  saved: {100 * at_peak:.0f} % of the measured peak beside state and buffers, {100 * saved:.0f} % of what is kept")
    print("  from forward to backward (a common rule of thumb: about 60 % of activation memory)")
    return {**result, "saved_at_peak": at_peak, "saved_kept": saved}


def main():
    options = parse()
    options.model = options.model or options.demo_model
    config = json.loads((options.model / "config.json").read_text())
    options.vocabulary = config["vocab_size"]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        question = [options.launch, "--nproc", str(options.nproc), "plan", "--json", "--model_name_or_path", options.model]
        answer = subprocess.run([str(word) for word in question], stdout=subprocess.PIPE, text=True, check=True).stdout
        parameters = json.loads(answer)["model"]["parameters"]
        print(f"{options.model.name}, {parameters / 1e6:.1f} million parameters, {options.nproc} processes, "
              f"{options.mixed_precision}, rows of {options.length} tokens, {os.cpu_count()} cores", flush=True)
        result = {"stages": stages(options, folder, parameters)}
        if not options.no_memory:
            result["memory"] = memory(options, folder)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\n{(time.monotonic() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
