"""
How OpenMP's threads wait for each other.

A step of a small base is thousands of short parallel regions. A thread that sleeps between two of them has to be woken, which costs half of the
time on an idle virtual machine; one that spins keeps a core from whoever else wants it, and a step takes three times as long on a busy one. So
threads spin while there are cores enough, and sleep at once while others want them. What is computed is the same to the last bit.

libgomp reads its settings once. It stops spinning by itself while a process has more threads than there are cores, and that is how it is told here:
by a thread more that has a team of its own and does nothing.
"""

import os
import threading
import time
from pathlib import Path

SPINS = 50_000  # some 0.2 ms, longer than the gap between two regions
LOOKS_EVERY_S = 0.5
STAT = Path("/proc/stat")
LIMIT = Path("/sys/fs/cgroup/cpu.max")


def prepare() -> None:
    """Before torch is imported. Without /proc/stat nobody knows what others want, so threads sleep."""
    if (limit := threads_within(LIMIT)) is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(limit))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # no spinning at all while there are too many threads
    if STAT.exists():
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def threads_within(limit: Path) -> int | None:
    """
    How many threads a container's CPU limit has room for; None: there is no limit. torch takes a thread for each core of the node, and the kernel
    stops them all once they have used up what the container may use in a tenth of a second.
    """
    try:
        quota, period = limit.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # "max" is no number
        return None


def watch() -> None:
    """Starts the thread that decides, in a process that has forked already. It begins with sleeping, as another program may be starting."""
    if STAT.exists():
        threading.Thread(target=decide_for_ever, name="openmp", daemon=True).start()


def decide_for_ever() -> None:
    import torch

    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    if threads == 1:
        return
    sleeper = Sleeper()
    before = busy_seconds(cores), time.process_time(), time.monotonic()
    while True:
        time.sleep(LOOKS_EVERY_S)
        now = busy_seconds(cores), time.process_time(), time.monotonic()
        total, own, elapsed = (b - a for a, b in zip(before, now, strict=True))
        sleeper.is_wanted(must_sleep(others=(total - own) / elapsed, threads=threads, cores=len(cores)))
        before = now


def must_sleep(others: float, threads: int, cores: int) -> bool:
    """others: cores that other processes keep busy. A few percent are always somebody's."""
    return others + threads > cores + 0.25


def busy_seconds(cores: set[int]) -> float:
    """CPU time of all processes on these cores, and what the machine's host took away, since the machine started."""
    ticks = 0
    for line in STAT.read_text().splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name != "cpu" and int(name[3:]) in cores:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


class Sleeper:
    """A thread with a team: while it lives, this process has more threads than cores, so that none of them spins."""

    def __init__(self):
        self.leave: threading.Event | None = None
        self.is_wanted(True)

    def is_wanted(self, wanted: bool) -> None:
        if wanted and self.leave is None:
            self.leave = threading.Event()
            threading.Thread(target=self.stay, args=(self.leave,), name="openmp-sleeper", daemon=True).start()
        elif not wanted and self.leave is not None:
            self.leave.set()
            self.leave = None

    @staticmethod
    def stay(leave: threading.Event) -> None:
        import torch

        torch.ones(1 << 20).sum()  # large enough for a team
        leave.wait()
