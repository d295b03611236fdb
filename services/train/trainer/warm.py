"""
A process that makes runs quickly: it has imported everything and loaded one base, and forks itself for each run.

    python warm.py SOCKET BASE

It listens on the Unix socket SOCKET and speaks the protocol of ../src/trainer-host/trainer-socket.ts: one connection is one run. When the
connection ends, its run is killed. When this process ends, all its runs are.

A forked run is a process of its own with a directory, signals, limits and an end of its own, exactly like `python train.py DIR`, and
shares with others only memory that none of them changes. So nothing of one run can reach the next, and the same bytes come out. That
needs care in one place: threads do not survive a fork. Until then everything here is done in one thread, the base is loaded too, and
no gradient is computed. For the same reason it is not for machines with a GPU, whose driver cannot be forked.
"""

import ctypes
import gc
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import train

PR_SET_PDEATHSIG = 1  # prctl: the signal that a process gets when its parent ends


@dataclass
class Run:
    """What one connection asked for."""

    connection: socket.socket
    received: bytes = b""
    pid: int | None = None

    def say(self, message: dict) -> None:
        with suppress(OSError):  # the other side is gone, which the loop sees next
            self.connection.sendall((json.dumps(message) + "\n").encode())

    def kill(self, which: signal.Signals) -> None:
        if self.pid is not None:
            with suppress(ProcessLookupError):
                if which == signal.SIGKILL:
                    os.killpg(self.pid, which)
                else:
                    os.kill(self.pid, which)


@dataclass
class Warm:
    listener: socket.socket
    base: Path
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    runs: list[Run] = field(default_factory=list)
    threads: int = 1

    def prepare(self) -> None:
        """Imports what a run needs, also what its libraries import late, and loads the base."""
        import canonicalise  # noqa: F401
        import loop  # noqa: F401
        import preferences  # noqa: F401
        import probes  # noqa: F401
        import pyarrow.compute  # noqa: F401
        import torch

        self.threads = torch.get_num_threads()
        torch.set_num_threads(1)
        os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # transformers would load in threads
        self.load()
        gc.collect()
        gc.freeze()  # a collection in a run would write to all objects, and so copy their memory

    def load(self) -> None:
        import compute

        train.warm_base = None  # first, so that two bases are never in memory
        try:
            train.warm_base = train.WarmBase(self.base, compute.native_type())
        except Exception:
            traceback.print_exc()  # each run finds out by itself what is wrong, and says so

    def serve(self) -> None:
        waking, woken = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(waking, False)
        signal.set_wakeup_fd(woken)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # an end of a run wakes the loop
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.register(waking, selectors.EVENT_READ)
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is self.listener:
                    run = Run(self.listener.accept()[0])
                    self.runs.append(run)
                    self.selector.register(run.connection, selectors.EVENT_READ, run)
                elif key.data is None:
                    os.read(waking, 4096)
                else:
                    self.hear(key.data)
            for run in [run for run in self.runs if run.pid is not None]:
                self.note_end(run)

    def hear(self, run: Run) -> None:
        try:
            received = run.connection.recv(65_536)
        except OSError:
            received = b""
        if not received:
            run.kill(signal.SIGKILL)
            self.selector.unregister(run.connection)
            run.connection.close()
            if run.pid is None:
                self.runs.remove(run)
            return
        *lines, run.received = (run.received + received).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "kill" in message:
                run.kill(signal.Signals[message["kill"]])
            elif run.pid is None:
                self.start(run, message["start"])

    def start(self, run: Run, wanted: dict) -> None:
        if train.warm_base is None or not train.warm_base.is_current():
            self.load()
        parent = os.getpid()
        run.pid = os.fork()
        if run.pid == 0:
            try:
                self.become(parent, wanted)
                code = train.main(Path(wanted["work"]))
                sys.stdout.flush()
                sys.stderr.flush()
            except BaseException:
                traceback.print_exc()
                code = 1
            os._exit(code)
        with suppress(OSError):  # the run does it too; whoever comes first
            os.setpgid(run.pid, run.pid)
        run.say({"started": {"pid": run.pid}})

    def become(self, parent: int, wanted: dict) -> None:
        """In the forked process: as if it had been started by itself."""
        import torch

        os.setpgid(0, 0)
        die_with_parent()
        if os.getppid() != parent:
            os._exit(1)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for key in list(self.selector.get_map().values()):
            os.close(key.fd)
        self.selector.close()
        for target, file, flags in ((0, os.devnull, os.O_RDONLY), (1, wanted["logFile"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)):
            opened = os.open(file, flags, 0o644)
            os.dup2(opened, target)
            os.close(opened)
        os.dup2(1, 2)
        os.chdir(wanted["work"])
        torch.set_num_threads(self.threads)

    def note_end(self, run: Run) -> None:
        assert run.pid is not None
        if os.waitid(os.P_PID, run.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        run.kill(signal.SIGKILL)  # what it left of its group; before it is reaped, so that its number is still its own
        code = os.waitstatus_to_exitcode(os.waitpid(run.pid, 0)[1])
        run.say({"exited": {"code": code if code >= 0 else None, "signal": signal.Signals(-code).name if code < 0 else None}})
        if run.connection.fileno() != -1:
            self.selector.unregister(run.connection)
            run.connection.close()
        self.runs.remove(run)


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python warm.py SOCKET BASE (see the top of this file)")
    die_with_parent()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen(64)  # before the imports: who connects meanwhile waits, and sees it if this process ends
    warm = Warm(listener, Path(sys.argv[2]))
    warm.prepare()
    warm.serve()
