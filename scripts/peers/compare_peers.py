"""Measures Zerofold beside PyTorch DDP, FSDP2 and DeepSpeed ZeRO 1 to 3: the same steps, in turn, on this machine.

Each finished run is kept in the state folder, so that a command that was stopped goes on where it was. Other binaries,
versions or scripts start afresh. Needs a quiet machine, 16 GB of memory and 2 cores; about 3 hours, or 15 minutes with
--quick (one round, fewer rows).
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import agreement
import memory
import ours
import table
import theirs
from cells import LENGTH, PEERS, full_cells, quick_cells, wanted
from jobs import Failed, say, wait

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
ROWS = 320  # more than any run takes
ROWS_OF_TABLE = (
    table.speed_rows,
    table.slowest_rows,
    table.use_rows,
    table.scaling_rows,
    table.memory_rows,
    table.start_rows,
    agreement.collective_rows,
    agreement.loss_rows,
)
PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "numpy")


@dataclass
class Setup:
    """Where everything lies."""

    binaries: Path
    python: Path
    peers: Path
    state: Path
    demo_model: Path
    learning_rate: float = 1e-4

    def __post_init__(self):
        self.work, inputs = self.state / "work", self.state / "inputs"
        self.tcmalloc = self.peers / "libtcmalloc_minimal.so.4"
        self.models = {"T": inputs / "T", "S": self.demo_model}
        self.rows = {model: inputs / f"rows-{model}.jsonl" for model in self.models}

    def versions(self):
        found = {name: importlib.metadata.version(name) for name in PACKAGES}
        listed = (self.peers / "complete").read_text().split()
        found["deepspeed"] = next(line.split("==")[1] for line in listed if line.startswith("deepspeed=="))
        return found | {"tcmalloc": self.tcmalloc.resolve().name}

    def stamps(self):
        """Of the binaries: another when they are built anew."""
        return [(self.binaries / name).stat().st_mtime_ns for name in ("launch", "worker")]

    def fingerprint(self):
        """Of all that a figure depends on: binaries, versions, and how the peers are run."""
        digest = hashlib.sha256(json.dumps(self.versions(), sort_keys=True).encode())
        files = [self.binaries / "launch", self.binaries / "worker", *sorted(HERE.glob("*.py"))]
        for file in files:
            if file.name not in ("table.py", "agreement.py"):  # they only read what was measured
                digest.update(file.read_bytes())
        return digest.hexdigest()[:12]


def make_inputs(setup):
    inputs = setup.state / "inputs"
    if (inputs / "complete").exists():
        return
    tokenizer = REPOSITORY / "tests" / "fixtures" / "models" / "tiny-llama" / "tokenizer.json"
    data = REPOSITORY / "configs" / "demo" / "train.jsonl"
    words = [setup.python, HERE / "inputs.py", inputs, setup.demo_model, data, tokenizer, LENGTH, ROWS]
    subprocess.run([str(word) for word in words], check=True, stderr=subprocess.DEVNULL)
    (inputs / "complete").touch()


def run_collectives(cell, setup, folder):
    if cell.side == "ours":
        return ours.bench(setup, cell.processes)
    folder.mkdir(parents=True)
    output = folder / "answer.json"
    words = [HERE / "collectives.py", output]
    processes, logs = theirs.start_ranks(setup, words, folder, cell.processes)
    wait(processes, logs)
    return json.loads(output.read_text())


def run(cell, setup):
    """Does one cell and returns what is kept of it."""
    folder = setup.work / "cell"
    shutil.rmtree(folder, ignore_errors=True)
    setup.work.mkdir(parents=True, exist_ok=True)
    if cell.kind == "gemm":
        return {product["dtype"]: product["flops"] for product in ours.bench(setup, cell.processes, quick=True)["products"]}
    if cell.kind == "collectives":
        return run_collectives(cell, setup, folder)
    if cell.kind == "idle":
        idle = memory.libtorch(setup, folder) if cell.side == "ours" else memory.imports(setup, cell.side, folder)
        return {"bytes": idle}
    peak = memory.Peak() if cell.kind == "memory" else None
    side = theirs if cell.side in PEERS else ours
    records, first, last = side.run(cell, setup, folder, peak)
    result = {
        "losses": [record["loss"] for record in records],
        "grad_norm": records[0]["grad_norm"],
        "step_seconds": [record["step_seconds"] for record in records],
        "first_seconds": first,
        "last_seconds": last,
    }
    return result | ({"bytes": peak.bytes, "samples": peak.samples} if peak else {})


def file_of(cell, results):
    return results / f"{cell.key().replace(' ', '-')}.json"


def measure(cells, setup, results):
    """Does what is missing."""
    results.mkdir(parents=True, exist_ok=True)
    missing = [cell for cell in cells if not file_of(cell, results).exists()]
    if len(missing) < len(cells):
        say(f"{len(cells) - len(missing)} of {len(cells)} runs are there already")
    stamps = setup.stamps()
    for number, cell in enumerate(missing, 1):
        left = sum(other.seconds() for other in missing[number - 1 :]) / 60
        load, begin = os.getloadavg()[0], time.monotonic()
        result = run(cell, setup) | {"load": load, "seconds": time.monotonic() - begin}
        shutil.rmtree(setup.work / "cell", ignore_errors=True)
        if setup.stamps() != stamps:
            raise Failed(f"{setup.binaries} was built anew during {cell.key()}, which is not kept")
        partial = results / "partial"
        partial.write_text(json.dumps({"key": cell.key()} | result))
        partial.rename(file_of(cell, results))
        say(f"[{number}/{len(missing)}, about {left:.0f} minutes left] {cell.key()}: {summary(result)}")


def finished(cells, results):
    """Every cell that has been run, with its result."""
    return [(cell, json.loads(file.read_text())) for cell in cells if (file := file_of(cell, results)).exists()]


def summary(result):
    if "losses" in result:
        steps = " ".join(f"{seconds:.3f}" for seconds in result["step_seconds"])
        size = f", {result['bytes'] / 1e6:.0f} MB" if "bytes" in result else ""
        return f"first step after {result['first_seconds']:.2f} s, steps {steps} s, loss {result['losses'][0]:.6f}{size}"
    return f"{result['bytes'] / 1e6:.0f} MB" if "bytes" in result else f"{result['seconds']:.1f} s"


def say_what_changed(setup, fingerprint):
    """Says so when what was measured last had another fingerprint."""
    current = setup.state / "current"
    earlier = current.read_text() if current.exists() else fingerprint
    if earlier != fingerprint:
        say(f"binaries, versions or scripts changed: starting afresh (earlier results stay in {setup.state / earlier})")
    setup.state.mkdir(parents=True, exist_ok=True)
    current.write_text(fingerprint)


def main():
    parser = argparse.ArgumentParser(prog="scripts/compare_peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round and fewer rows: under 15 minutes")
    parser.add_argument("--only", action="append", metavar="WORDS", help='runs with these words, as "T bf16 stage 3"')
    parser.add_argument("--list", action="store_true", help="print the runs and about how long they take, and end")
    parser.add_argument("--table", action="store_true", help="run nothing; the table of what is there")
    parser.add_argument("--json", type=Path, help="write the table to this file too")
    parser.add_argument("--state", type=Path, default=REPOSITORY / "runs" / "compare_peers", help="where runs are kept")
    parser.add_argument("--binaries", type=Path, default=REPOSITORY / "target" / "release", help="where ours lie")
    parser.add_argument("--model", type=Path, default=REPOSITORY / ".models" / "SmolLM2-135M-Instruct", help="S's folder")
    parser.add_argument("--python", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--peers", type=Path, required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    cells = [cell for cell in (quick_cells() if options.quick else full_cells()) if wanted(cell.key(), options.only)]
    if options.list:
        for cell in cells:
            print(f"{cell.seconds() / 60:6.1f}  {cell.key()}")
        print(f"{sum(cell.seconds() for cell in cells) / 60:6.1f}  minutes together, {len(cells)} runs")
        return 0
    state = options.state.resolve()
    setup = Setup(options.binaries.resolve(), options.python, options.peers.resolve(), state, options.model.resolve())
    fingerprint = setup.fingerprint()
    results = state / fingerprint / ("quick" if options.quick else "full")
    if not options.table:
        say_what_changed(setup, fingerprint)
        if os.getloadavg()[0] > 0.5:
            say(f"warning: the load is {os.getloadavg()[0]:.1f}; figures of a busy machine are not worth much")
        make_inputs(setup)
        try:
            measure(cells, setup, results)
        except Failed as failure:
            say(f"error: {failure}\nhint: what is done is kept; the same command goes on from here")
            return 1
    figures = table.Figures(finished(cells, results))
    rows = [line for make in ROWS_OF_TABLE for line in make(figures)]
    table.print_table(rows)
    if options.json:
        answer = {"versions": setup.versions(), "cores": os.cpu_count(), "fingerprint": fingerprint, "rows": rows}
        options.json.write_text(json.dumps(answer, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
