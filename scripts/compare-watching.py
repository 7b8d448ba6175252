"""Reads what a run tells the outside with the programs that it is for, and compares it with metrics.jsonl.

TensorBoard's own reader goes through the event files of a run (made with --report_to tensorboard): every step and evaluation
must be there once, with the values of metrics.jsonl as float32 has them. With --metrics URL, the endpoint of a job that is at
work (--metrics_port) is read by prometheus_client's parser. Exits 1 when something differs.
"""

import argparse
import json
import math
import struct
import sys
import urllib.request
from pathlib import Path

STEP_TAGS = {
    "train/loss": "loss",
    "train/grad_norm": "grad_norm",
    "train/learning_rate": "learning_rate",
    "train/epoch": "epoch",
    "train/tokens_per_second": "tokens_per_second",
    "train/step_seconds": "step_seconds",
    "train/communication_seconds": "communication_seconds",
    "train/peak_memory_bytes": "peak_memory_bytes",
}
EVALUATION_TAGS = {"eval/loss": "eval_loss", "eval/runtime": "eval_seconds"}


def float32(value):
    return math.nan if value is None else struct.unpack("f", struct.pack("f", value))[0]


def same(one, other):
    return one == other or (math.isnan(one) and math.isnan(other))


def compare_events(folder, records):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    found = set(events.Tags()["scalars"])
    wrong = 0
    for tags, key in ((STEP_TAGS, "loss"), (EVALUATION_TAGS, "eval_loss")):
        lines = [record for record in records if key in record]
        for tag, field in tags.items():
            expected = [(line["step"], float32(line[field])) for line in lines]
            seen = [(scalar.step, scalar.value) for scalar in events.Scalars(tag)] if tag in found else []
            agrees = len(seen) == len(expected) and all(
                step == wanted and same(value, number) for (step, value), (wanted, number) in zip(seen, expected)
            )
            print(f"{'ok' if agrees else 'DIFFERS'}  {tag}: {len(seen)} values, {len(expected)} in metrics.jsonl")
            wrong += not agrees
    files = sorted(path.name for path in folder.iterdir())
    print(f"{len(files)} event files in {folder}")
    return wrong


def compare_endpoint(url, read_records):
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(url, timeout=10) as answer:
        kind, text = answer.headers["Content-Type"], answer.read().decode()
    # Afterwards: it has the step that the endpoint told.
    records = read_records()
    families = list(text_string_to_metric_families(text))
    wrong = 0

    def check(what, agrees):
        nonlocal wrong
        print(f"{'ok' if agrees else 'DIFFERS'}  {what}")
        wrong += not agrees

    check(f"content type {kind}", kind == "text/plain; version=0.0.4; charset=utf-8")
    check("every family has help and a type", all(it.documentation and it.type in ("gauge", "counter") for it in families))
    check("every name has the prefix", all(it.name.startswith("zerofold_") for it in families))
    names = [sample.name for it in families for sample in it.samples]
    check("counters and only counters end in _total", all(
        (it.type == "counter") == all(sample.name.endswith("_total") for sample in it.samples) for it in families
    ))
    check("no unit but base units", not [name for name in names if name.endswith(("_ms", "_kb", "_mb", "_minutes", "_hours"))])
    values = {sample.name: sample.value for it in families for sample in it.samples if not sample.labels}
    step = next((it for it in reversed(records) if it.get("step") == values.get("zerofold_step") and "loss" in it), None)
    check("the step is one of metrics.jsonl", step is not None)
    for name, field in (("loss", "loss"), ("gradient_norm", "grad_norm"), ("learning_rate", "learning_rate")):
        value = values.get(f"zerofold_{name}", math.nan)
        check(f"zerofold_{name} {value}", step is not None and same(value, math.nan if step[field] is None else step[field]))
    print(f"{len(families)} families, {sum(len(it.samples) for it in families)} samples")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--events", type=Path, help="the folder of event files, where it is not the only one in RUN/runs")
    parser.add_argument("--metrics", help="the address of the job's endpoint, such as http://127.0.0.1:9400/metrics")
    options = parser.parse_args()

    def records():
        # The last line of a run that is at work may be a piece of one.
        text = (options.run / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    if options.metrics:
        wrong = compare_endpoint(options.metrics, records)
    else:
        folders = [options.events] if options.events else sorted((options.run / "runs").iterdir())
        if len(folders) != 1:
            sys.exit(f"error: {options.run / 'runs'} holds {len(folders)} folders\nhint: name one with --events")
        wrong = compare_events(folders[0], records())
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
