"""Rows of the table that are no speeds: losses, and collectives beside Gloo and plain memory."""

import statistics
from collections import defaultdict
from itertools import combinations

from cells import BACKENDS, PEERS
from table import name, row

FLOAT32, FIRST_BF16 = 1e-5, 2e-3  # relative


def distance(left, right):
    """The largest relative difference of a step that both have."""
    return max(abs(a - b) / abs(b) for a, b in zip(left, right))


def average(curve, others):
    return statistics.mean(distance(curve, other) for other in others)


def without(curves, key):
    return [curve for other, curve in curves.items() if other != key]


def largest(curves):
    return max(distance(a, b) for a, b in combinations(curves.values(), 2))


def loss_rows(figures):
    """Float32: the farthest of ours from any peer. bf16: how far ours is from the peers on average, as a multiple of the
    same of the peer that is farthest from the others: is ours one of them?"""
    for group in figures.groups:
        curves = {key[1:]: losses[0] for key, losses in figures.losses.items() if key[0] == group}
        ours = {key: losses for key, losses in curves.items() if key[1] in BACKENDS}
        theirs = {key: losses for key, losses in curves.items() if key[1] in PEERS}
        if not ours or not theirs:
            continue
        pairs = [(a, b) for a in ours.values() for b in theirs.values()]
        steps = min(map(len, (*ours.values(), *theirs.values())))
        first = max(distance(a[:1], b[:1]) for a, b in pairs)
        limit = FLOAT32 if group[1] == "float32" else FIRST_BF16
        text = f"loss {next(iter(ours.values()))[0]:.6f}, largest relative difference of any two sides"
        yield row(f"the same first loss, {name(group)}", first, limit, text, at_most=True)
        apart = max(distance(a[:steps], b[:steps]) for a, b in pairs)
        if group[1] == "float32":
            text = f"largest relative difference from a peer over {steps} steps"
            yield row(f"the same losses, {name(group)}", apart, FLOAT32, text, at_most=True)
        elif len(theirs) > 1:
            farthest = max(average(curve, without(theirs, key)) for key, curve in theirs.items())
            mine = max(average(curve, theirs.values()) for curve in ours.values())
            text = f"on average {mine:.1e} from the peers over {steps} steps, the farthest peer {farthest:.1e}; the largest "
            text += f"difference of a pair is {apart:.1e} with ours, {largest(theirs):.1e} between peers"
            yield row(f"the same losses, {name(group)}, to the peers' own", mine / farthest, 1.0, text, at_most=True)


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
