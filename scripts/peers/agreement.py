"""Rows of the table that are no speeds: losses, and collectives beside Gloo and plain memory."""

import statistics
from collections import defaultdict
from itertools import combinations

from cells import BACKENDS, PEERS
from table import name, row

FLOAT32, FIRST_BF16 = 1e-5, 2e-3  # relative


def distance(left, right):
    return max(abs(a - b) / abs(b) for a, b in zip(left, right))


def loss_rows(figures):
    """Float32: the farthest of ours from any peer. bf16: that, as a multiple of the farthest two peers are apart."""
    for group in figures.groups:
        curves = {key[1:]: losses[0] for key, losses in figures.losses.items() if key[0] == group}
        ours = {key: losses for key, losses in curves.items() if key[1] in BACKENDS}
        theirs = {key: losses for key, losses in curves.items() if key[1] in PEERS}
        if not ours or not theirs:
            continue
        pairs = [(a, b) for a in ours.values() for b in theirs.values()]
        steps = min(map(len, curves.values()))
        first = max(distance(a[:1], b[:1]) for a, b in pairs)
        limit = FLOAT32 if group[1] == "float32" else FIRST_BF16
        text = f"loss {next(iter(ours.values()))[0]:.6f}, largest relative difference of any two sides"
        yield row(f"the same first loss, {name(group)}", first, limit, text, at_most=True)
        apart = max(distance(a[:steps], b[:steps]) for a, b in pairs)
        if group[1] == "float32":
            text = f"largest relative difference from a peer over {steps} steps"
            yield row(f"the same losses, {name(group)}", apart, FLOAT32, text, at_most=True)
        elif len(theirs) > 1:
            peers = max(distance(a[:steps], b[:steps]) for a, b in combinations(theirs.values(), 2))
            text = f"{apart:.1e} from a peer over {steps} steps, peers from each other {peers:.1e}"
            yield row(f"the same losses, {name(group)}, to the peers' own", apart / peers, 1.0, text, at_most=True)


def collective_rows(figures):
    """Ours over shm (of `launch bench`) to Gloo through PyTorch, and to a plain copy or add."""
    for processes in sorted({processes for processes, _ in figures.collectives}):
        seconds, memory = defaultdict(list), defaultdict(list)
        for answer in figures.collectives.get((processes, "ours"), []):
            for rate in answer["collectives"]:
                seconds[rate["collective"], rate["bytes"], rate["backend"]].append(rate["seconds"])
        for answer in figures.collectives.get((processes, "torch"), []):
            for size, times in answer.items():
                if not size.isdigit():
                    continue
                for kind in ("all_gather", "reduce_scatter"):
                    seconds[kind, int(size), "torch"].append(times[kind])
                # A gather writes all of it once. A reduction reads as many parts as there are ranks and writes one; an
                # addition reads two and writes one.
                memory["all_gather", int(size)].append(times["copy"])
                memory["reduce_scatter", int(size)].append(times["add"] * (processes + 1) / 3)
        for (kind, size, side), times in sorted(seconds.items()):
            if side != "shm" or not seconds[kind, size, "torch"] or size == 1 << 20:
                continue
            ours, theirs = statistics.median(times), statistics.median(seconds[kind, size, "torch"])
            what = f"{kind}, {size >> 10} KiB, N = {processes}"
            text = f"{1e3 * ours:.3f} against {1e3 * theirs:.3f} ms"
            if size == 64 << 10:
                yield row(f"{what}, Gloo's time to ours", theirs / ours, 10, text)
                continue
            goal = 6 if kind == "all_gather" else 8
            yield row(f"{what}, Gloo's time to ours", theirs / ours, goal, text)
            plain = statistics.median(memory[kind, size])
            text = f"{1e3 * plain:.3f} ms of a plain {'copy' if kind == 'all_gather' else 'add'}"
            yield row(f"{what}, of what memory gives", plain / ours, 0.8, text)
