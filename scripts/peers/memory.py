"""Memory of ranks: the proportional set size (Pss), which counts a page that several processes share once in all.

Both sides are sampled alike, from outside. What imports and libtorch take is measured by as many processes as a run has
that load the same and do nothing.
"""

import contextlib
import re
import socket
import time

from cells import RANKS
from jobs import Failed, end, start, tail
from ours import ENVIRONMENT
from theirs import HERE, start_ranks

READY_SECONDS = 120


def pss(pid):
    """Bytes; 0 when the process has just ended."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            return 1024 * int(re.search(r"^Pss:\s+(\d+) kB", file.read(), re.MULTILINE)[1])
    except (OSError, TypeError):  # a process that ends has an empty file, or none
        return 0


class Peak:
    """The most that any rank had, over all samples."""

    def __init__(self):
        self.bytes, self.samples = 0, 0

    def __call__(self, pids):
        self.bytes = max([self.bytes, *map(pss, pids)])
        self.samples += 1


def settled(processes, logs):
    """Pss of a rank once it no longer grows."""
    last = -1
    while True:
        if any(process.poll() is not None for process in processes):
            raise Failed(f"a process that should do nothing ended\n{tail(logs[0])}")
        now = max(pss(process.pid) for process in processes)
        if now > 0 and abs(now - last) < 1 << 20:
            return now
        last = now
        time.sleep(1.0)


def imports(setup, peer, folder):
    """What a peer's imports take in each of its ranks."""
    folder.mkdir(parents=True)
    words = [HERE / "train_peer.py", "--idle", peer]
    processes, logs = start_ranks(setup, words, folder, deepspeed=peer.startswith("zero"))
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not all("ready" in log.read_text(errors="replace") for log in logs):
            if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
                raise Failed(f"the imports of {peer} did not get ready\n{tail(logs[0])}")
            time.sleep(0.1)
        return settled(processes, logs)
    finally:
        end(processes)


def libtorch(setup, folder):
    """What a worker takes with libtorch loaded, before it has begun: it waits for a control plane that never answers."""
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.socket())
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        shared = ENVIRONMENT | {
            "WORLD_SIZE": str(RANKS),
            "LOCAL_WORLD_SIZE": str(RANKS),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(silent.getsockname()[1]),
            "ZEROFOLD_CONTROL": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "ZEROFOLD_CONFIG": str(setup.work / "config.resolved.yaml"),
            "ZEROFOLD_GENERATION": "1",
        }
        processes, logs = [], [folder / f"rank-{rank}.log" for rank in range(RANKS)]
        stack.callback(end, processes)
        for rank, log in enumerate(logs):
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(start([setup.binaries / "worker", "train"], shared | ranks, log))
        time.sleep(1.0)
        return settled(processes, logs)
