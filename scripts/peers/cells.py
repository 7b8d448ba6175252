"""What is measured, as data: every run of either side, in the order in which they take turns."""

from dataclasses import dataclass

LENGTH, BATCH, RANKS = 512, 2, 2  # tokens of a row, rows of a micro-batch, processes

# Of each model: matrix parameters (an embedding that is only looked up multiplies nothing), layers, hidden size.
MODELS = {
    "T": {"matrices": 6 * (384 * (384 + 128 + 128 + 384) + 3 * 384 * 1024) + 384 * 8192, "layers": 6, "hidden": 384},
    "S": {"matrices": 30 * (576 * (576 + 192 + 192 + 576) + 3 * 576 * 1536) + 576 * 49152, "layers": 30, "hidden": 576},
}
TYPES = ("bf16", "float32")
STAGES = (0, 1, 2, 3)
# The peers of each stage, as wrap_peer.py calls them.
PEERS_OF_STAGE = {
    0: ("ddp",),
    1: ("zero1",),
    2: ("fsdp2-keep", "zero2"),
    3: ("fsdp2", "fsdp2-compiled", "zero3"),
}
PEERS = tuple(peer for peers in PEERS_OF_STAGE.values() for peer in peers)
BACKENDS = ("shm", "gloo")
# What scaling is measured by: one job of one process, and two at once that know nothing of each other.
SCALING = {"alone": 1, "pair": 2}
SECONDS_OF_MICRO_BATCH = {"T": {"bf16": 0.6, "float32": 1.1}, "S": {"bf16": 5.5, "float32": 10.5}}


@dataclass(frozen=True)
class Cell:
    """One run of one side. What does not apply is None."""

    kind: str  # step, memory, gemm, idle or collectives
    side: str  # one of BACKENDS, PEERS or SCALING; else ours or torch
    model: str | None = None
    dtype: str | None = None
    accumulation: int | None = None
    stage: int | None = None
    processes: int = RANKS
    jobs: int = 1  # how many such jobs run at once
    steps: int = 0  # with the first, which warms up
    round: int = 1

    def key(self):
        words = [self.kind, self.model, self.dtype]
        words += ["accumulation", self.accumulation] if self.accumulation else []
        words += ["stage", self.stage] if self.stage is not None else []
        words += ["processes", self.processes] if self.kind == "collectives" else []
        return " ".join(str(word) for word in [*words, self.side, "round", self.round] if word is not None)

    def seconds(self):
        """About how long it takes on 2 cores of 2026."""
        if self.kind not in ("step", "memory"):
            return {"gemm": 5, "idle": 8, "collectives": 15}[self.kind]
        peer = self.side in PEERS
        speed = 1.6 if peer else 0.7 if self.side == "alone" else 1
        seconds = SECONDS_OF_MICRO_BATCH[self.model][self.dtype] * speed
        return (8 if peer else 1) + self.steps * self.accumulation * seconds


def step_cells(model, dtype, accumulation, rounds, steps, stages=STAGES, scaling=()):
    """Rounds of: the GEMM rate, and then of each stage ours and its peers."""
    for turn in range(1, rounds + 1):
        common = {"model": model, "dtype": dtype, "accumulation": accumulation, "round": turn}
        yield Cell("gemm", "ours", **common)
        for stage in stages:
            for side in (*BACKENDS, *PEERS_OF_STAGE[stage]):
                # What is compiled is compiled in the first step, and a part of it again in the second.
                more = 1 if side == "fsdp2-compiled" and steps < 8 else 0
                yield Cell("step", side, stage=stage, steps=steps + more, **common)
        for name in scaling:
            yield Cell("step", name, stage=3, steps=steps, processes=1, jobs=SCALING[name], **common)


def memory_cells(model, dtype, stages=STAGES):
    for stage in stages:
        for side in ("shm", *PEERS_OF_STAGE[stage]):
            yield Cell("memory", side, model, dtype, 1, stage, steps=3)


def collective_cells(processes, rounds):
    for turn in range(1, rounds + 1):
        for side in ("ours", "torch"):
            yield Cell("collectives", side, processes=processes, round=turn)


def full_cells():
    for dtype in TYPES:
        # Eight steps: their losses are compared too.
        yield from step_cells("T", dtype, 1, rounds=5, steps=8, scaling=("alone", "pair"))
        yield from step_cells("T", dtype, 8, rounds=5, steps=2)
        yield from step_cells("S", dtype, 1, rounds=3, steps=3, scaling=("alone",))
    for model in MODELS:
        for dtype in TYPES:
            yield from memory_cells(model, dtype)
    yield from (Cell("idle", side) for side in ("ours", *PEERS))
    for processes in (2, 4):
        yield from collective_cells(processes, rounds=3)


def quick_cells():
    for dtype in TYPES:
        yield from step_cells("T", dtype, 1, rounds=1, steps=8, scaling=("alone",))
    yield from step_cells("T", "bf16", 8, rounds=1, steps=2, stages=(3,))
    yield from step_cells("S", "bf16", 1, rounds=1, steps=2, stages=(3,))
    yield from memory_cells("T", "bf16")
    yield from (Cell("idle", side) for side in ("ours", *PEERS))
    yield from collective_cells(2, rounds=1)


def wanted(key, filters):
    """Whether the words of one of the filters stand in the key, in their order; without filters everything is."""

    def fits(words):
        rest = iter(key.split())
        return all(word in rest for word in words)

    return not filters or any(fits(text.split()) for text in filters)


def tokens_of_step(cell):
    return cell.processes * cell.jobs * cell.accumulation * BATCH * LENGTH


def model_flops(model, tokens):
    """Of forward and backward: 6 for each matrix parameter and token, and causal attention, which sees half a row."""
    shape = MODELS[model]
    return tokens * (6 * shape["matrices"] + 6 * shape["layers"] * shape["hidden"] * LENGTH)
