"""Starts the processes of one run of either side, follows its metrics file, and ends whatever is left."""

import json
import os
import signal
import subprocess
import sys
import time

POLL_SECONDS = 0.005
LIMIT_SECONDS = 3600


class Failed(Exception):
    """A run that did not end well; the message tells which, and the end of its log."""


def start(command, environment, log, core=None):
    """A process in a session of its own, so that it can be ended with all that it started; on one core, if that is told."""
    mine = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})  # inherited
    try:
        with open(log, "wb") as output:
            return subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=os.environ | environment,
                start_new_session=True,
            )
    finally:
        os.sched_setaffinity(0, mine)


def end(processes):
    for process in processes:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def tail(log):
    return log.read_text(errors="replace")[-3000:] if log.exists() else ""


def wait(processes, logs, tick=None):
    """Waits until all have ended well, and calls `tick` again and again meanwhile; it tells how long to sleep."""
    deadline = time.monotonic() + LIMIT_SECONDS
    try:
        while any(process.poll() is None for process in processes):
            if any(process.poll() not in (None, 0) for process in processes) or time.monotonic() > deadline:
                break
            time.sleep(tick() if tick else 0.1)
        # The one that failed first, before those that waited for it in vain.
        for process, log in sorted(zip(processes, logs), key=lambda pair: pair[0].poll() is None):
            if process.poll() != 0:
                what = "did not end in time" if process.poll() is None else f"ended with status {process.poll()}"
                raise Failed(f"{' '.join(map(str, process.args))} {what}\n{tail(log)}")
    finally:
        end(processes)


def follow(processes, logs, metrics, steps, begin, watch=None):
    """Waits for a run of so many steps. Returns their records, and the seconds from `begin` (time.time() before the
    command) to the first record and to the last, by the times at which the file was written. `watch` is called again and
    again until the last step."""
    first = None

    def tick():
        nonlocal first
        if first is None and metrics.exists() and metrics.stat().st_size > 0:
            first = metrics.stat().st_mtime - begin
        if watch and count(metrics) < steps:
            watch()
            return 0.02
        # Once the steps have begun, nothing is looked at but whether they have ended.
        return 0.005 if first is None else 0.1

    wait(processes, logs, tick)
    records = read(metrics)
    if len(records) != steps:
        raise Failed(f"{metrics} has {len(records)} steps, {steps} were asked for; see {logs[0]}")
    last = metrics.stat().st_mtime - begin
    return records, last if first is None else first, last


def count(metrics):
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def read(metrics):
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [record for record in records if "grad_norm" in record]


def say(text):
    print(text, file=sys.stderr, flush=True)
