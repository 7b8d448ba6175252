"""From results to rows: medians, ratios of medians, goals; printing."""

import statistics
from collections import defaultdict

from cells import BACKENDS, PEERS, PEERS_OF_STAGE, RANKS, SCALING, STAGES, model_flops, tokens_of_step

SPEED_GOALS = {  # over, model, type
    ("shm", "T", "bf16"): 1.35,
    ("shm", "S", "bf16"): 1.25,
    ("shm", "T", "float32"): 1.2,
    ("shm", "S", "float32"): 1.2,
    ("gloo", "T", "bf16"): 1.2,
    ("gloo", "S", "bf16"): 1.2,
    ("gloo", "T", "float32"): 1.05,
    ("gloo", "S", "float32"): 1.05,
}
GEMM_GOALS = {"bf16": 0.8, "float32": 0.9}
GEMM_INSTEAD = 0.92  # a float32 row is met by this share of the GEMM rate too: no peer can be beaten by more than there is
GEMM_NAMES = {"bf16": "bfloat16", "float32": "float32"}


def row(what, ratio, goal, figure, at_most=False, instead=False, spread=None):
    """`instead` tells that the goal's alternative is reached."""
    reached = ratio <= goal if at_most else ratio >= goal
    return {
        "what": what,
        "ratio": ratio,
        "goal": f"{'<=' if at_most else '>='} {goal:g}",
        "met": bool(reached or instead),
        "figure": figure,
        "spread": spread,
    }


def step_seconds(cell, result):
    """The median step, with what lay outside of the measured steps shared out: the same for both sides."""
    times = result["step_seconds"]
    warm_up = 2 if cell.side == "fsdp2-compiled" and len(times) < 8 else 1
    between = result["last_seconds"] - result["first_seconds"]
    outside = max(0.0, between - sum(times[1:])) / max(1, len(times) - 1)
    return statistics.median(times[warm_up:] or times) + outside


class Figures:
    """Of each side the figures of its rounds."""

    def __init__(self, done):
        self.speed, self.start, self.losses = defaultdict(dict), defaultdict(list), defaultdict(list)
        self.gemm, self.memory, self.idle = defaultdict(list), {}, {}
        self.collectives = defaultdict(list)
        for cell, result in done:
            group = (cell.model, cell.dtype, cell.accumulation)
            if cell.kind == "step":
                seconds = step_seconds(cell, result)
                self.speed[group, cell.stage, cell.side][cell.round] = tokens_of_step(cell) / seconds
                self.losses[group, cell.stage, cell.side].append(result["losses"])
                if cell.side not in SCALING:
                    self.start[group, cell.stage, cell.side].append(result["first_seconds"] - seconds)
            elif cell.kind == "gemm":
                self.gemm[group].append(result[GEMM_NAMES[cell.dtype]])
            elif cell.kind == "memory":
                self.memory[cell.model, cell.dtype, cell.stage, cell.side] = result["bytes"]
            elif cell.kind == "idle":
                self.idle[cell.side] = result["bytes"]
            else:
                self.collectives[cell.processes, cell.side].append(result)
        self.groups = list(dict.fromkeys(group for group, _, _ in self.speed))

    def median(self, group, stage, side):
        rounds = self.speed.get((group, stage, side))
        return statistics.median(rounds.values()) if rounds else None

    def best(self, group, stages):
        """The stage and name of the fastest peer of these stages."""
        peers = [(stage, peer) for stage in stages for peer in PEERS_OF_STAGE[stage] if self.median(group, stage, peer)]
        return max(peers, key=lambda pair: self.median(group, *pair), default=None)

    def spread(self, group, mine, other, factor=1.0):
        """The smallest and the largest ratio of a round."""
        mine, other = self.speed[(group, *mine)], self.speed[(group, *other)]
        ratios = [mine[turn] / other[turn] / factor for turn in mine if turn in other]
        return [min(ratios), max(ratios)] if ratios else None

    def use(self, group, stage, side):
        """Share of the GEMM rate."""
        tokens = self.median(group, stage, side)
        return model_flops(group[0], tokens) / statistics.median(self.gemm[group]) if tokens and self.gemm[group] else None


def name(group):
    model, dtype, accumulation = group
    return f"{model} {dtype} accumulation {accumulation}"


def speed_rows(figures):
    for group in figures.groups:
        model, dtype, _ = group
        for backend in BACKENDS:
            for stage in STAGES:
                mine, best = figures.median(group, stage, backend), figures.best(group, [stage])
                if mine is None or best is None:
                    continue
                theirs, use = figures.median(group, *best), figures.use(group, stage, backend)
                text = f"{mine:.0f} against {theirs:.0f} tokens/s of {best[1]}"
                text += f", {100 * use:.0f} % of the GEMM rate" if use else ""
                yield row(
                    f"tokens/s, {name(group)}, stage {stage} over {backend}", mine / theirs,
                    SPEED_GOALS[backend, model, dtype], text,
                    instead=backend == "shm" and dtype == "float32" and use is not None and use >= GEMM_INSTEAD,
                    spread=figures.spread(group, (stage, backend), best),
                )  # fmt: skip


def slowest_rows(figures):
    for group in figures.groups:
        mine = [stage for stage in STAGES if figures.median(group, stage, "shm")]
        best = figures.best(group, STAGES)
        if len(mine) < len(STAGES) or best is None:
            continue
        slowest = min(mine, key=lambda stage: figures.median(group, stage, "shm"))
        ours, theirs = figures.median(group, slowest, "shm"), figures.median(group, *best)
        text = f"stage {slowest}: {ours:.0f} against {theirs:.0f} tokens/s of {best[1]}"
        spread = figures.spread(group, (slowest, "shm"), best)
        yield row(f"slowest stage against the fastest peer, {name(group)}", ours / theirs, 1.0, text, spread=spread)


def use_rows(figures):
    for group in figures.groups:
        for stage in STAGES:
            use = figures.use(group, stage, "shm")
            if use:
                rate = statistics.median(figures.gemm[group])
                text = f"{use * rate / 1e9:.0f} of {rate / 1e9:.0f} GFLOP/s"
                yield row(f"share of the GEMM rate, {name(group)}, stage {stage}", use, GEMM_GOALS[group[1]], text)


def scaling_rows(figures):
    for group in figures.groups:
        two = figures.median(group, 3, "shm")
        for side, jobs in SCALING.items():
            one = figures.median(group, 3, side)
            if two and one:
                factor = RANKS / jobs
                words = "one process alone, twice" if jobs == 1 else "two processes that know nothing of each other"
                text = f"{two:.0f} against {factor * one:.0f} tokens/s of {words}"
                spread = figures.spread(group, (3, "shm"), (3, side), factor)
                yield row(f"scaling, {name(group)}, stage 3, N = 2 to {side}", two / one / factor, 0.95, text, spread=spread)


def memory_rows(figures):
    for (model, dtype, stage, side), ours in figures.memory.items():
        peers = {peer: figures.memory.get((model, dtype, stage, peer)) for peer in PEERS_OF_STAGE[stage]}
        if side != "shm" or None in peers.values():
            continue
        what = f"peak memory of a rank, {model} {dtype}, stage {stage}"
        leanest = min(peers, key=peers.get)
        text = f"{ours / 1e6:.0f} against {peers[leanest] / 1e6:.0f} MB of {leanest}"
        yield row(f"{what}, as it is", ours / peers[leanest], 0.6, text, at_most=True)
        if "ours" in figures.idle and all(peer in figures.idle for peer in peers):
            net = {peer: size - figures.idle[peer] for peer, size in peers.items()}
            leanest, ours = min(net, key=net.get), ours - figures.idle["ours"]
            text = f"{ours / 1e6:.0f} against {net[leanest] / 1e6:.0f} MB of {leanest}, without "
            text += f"{figures.idle['ours'] / 1e6:.0f} and {figures.idle[leanest] / 1e6:.0f} MB of libtorch and imports"
            yield row(f"{what}, without imports", ours / net[leanest], 0.75 if stage < 2 else 0.85, text, at_most=True)


def start_rows(figures):
    """Of every stage on T at accumulation 1: our slowest start, the peers' quickest."""
    for group in figures.groups:
        if group[0] != "T" or group[2] != 1:
            continue
        starts = {key[1:]: statistics.median(values) for key, values in figures.start.items() if key[0] == group}
        ours = max((seconds for (_, side), seconds in starts.items() if side == "shm"), default=None)
        theirs = min(((seconds, side) for (_, side), seconds in starts.items() if side in PEERS), default=None)
        if ours is None or theirs is None:
            continue
        text = f"{ours:.2f} s against {theirs[0]:.2f} s of {theirs[1]}"
        yield row(f"command to first step less a step, {name(group)}, seconds", ours, 0.5, text, at_most=True)
        yield row(f"command to first step, {name(group)}, against the quickest", ours / theirs[0], 0.1, text, at_most=True)


def printed(value):
    return f"{value:.3g}" if value < 0.1 else f"{value:.2f}"


def print_table(rows):
    if not rows:
        print("nothing to compare yet")
        return
    width = max(len(line["what"]) for line in rows)
    for line in rows:
        spread = line["spread"]
        rounds = f" ({printed(spread[0])} to {printed(spread[1])})" if spread and spread[0] != spread[1] else ""
        ratio = printed(line["ratio"]) + rounds
        print(f"{'met  ' if line['met'] else 'SHORT'} {line['what']:<{width}} {ratio:<20} {line['goal']:<8} {line['figure']}")
    print(f"\n{sum(line['met'] for line in rows)} of {len(rows)} met; ratios of medians, in brackets of single rounds")
