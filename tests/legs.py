"""Runs the legs of the tests, side by side where they do not compete, and reports where the time went.

usage: legs.py [--limit SECONDS] [--no-skips] LEG... | all

A leg is a target of the Makefile; LEGS below has its resources. It starts as soon as the legs that it needs have ended and enough cores are
free. Its output is kept in .cache/reports/LEG.log and printed as a whole when it ends, so that outputs do not mix. At the limit all running
legs are ended and counted as failed. A leg that may be left out does not begin without time enough, and what the limit takes from it is no failure; the
report says so. The report at the end: why tests failed (repeated, as a reader may see only the end); a table of legs; the slowest tests; and as last line `N passed, N failed`,
which sums the JUnit reports of vitest and pytest.

--no-skips: a skipped test counts as failed. For CI, where everything that tests need is installed, so that a skip would hide an error.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / ".cache/reports"
LINES = 30  # of each failure
SLOWEST = 10
HEARTBEAT_S = 60
LEFT_OUT = "left out"
# Time for a leg to end after its report. vitest waits for ever if a process that a failed test left behind holds its output open.
AFTER_REPORT_S = 60


@dataclass
class Leg:
    """The resources of a leg."""

    cores: int = 1  # cores that it keeps busy
    alone: frozenset[str] = frozenset()  # resources that only one leg may have at a time
    apart: tuple[str, ...] = ()  # legs that must not run beside it
    needs: tuple[str, ...] = ()  # legs that must have succeeded before
    tests: bool = True  # it writes a JUnit report
    takes_s: float | None = None  # on a slow machine. It is left out where less than that is left before the limit; None: it is never left out


engine = frozenset({"engine"})  # vLLM, or the training of a real base: two at once need twice the memory
node = frozenset({"node"})
# A node of its own with two engines, so nothing heavy runs beside it. Its rules for packets are the machine's, which containers of others need; and like
# the API server's leg it packs a release.
node_alone = ("test-engine", "test-e2e", "test-integration", "test-images", "test-api-server")
# Legs in the order in which they are started if possible: those with an engine wait for each other, and others run beside them. The node comes last.
LEGS = {
    "cluster-bin": Leg(cores=0, tests=False),  # has a low priority, so that it takes little from others while it is not needed yet
    "check": Leg(tests=False),
    "test-engine": Leg(alone=engine),
    "test-e2e-quick": Leg(alone=engine),
    "test-e2e": Leg(alone=engine),
    "test-python": Leg(),  # its bases are tiny
    "test-integration": Leg(),  # two workers, which mostly wait
    "test-api-server": Leg(needs=("cluster-bin",)),
    "test-cluster-e2e": Leg(alone=node, needs=("cluster-bin",), apart=node_alone),
    "test-unit": Leg(),
    "test-faults": Leg(alone=engine),
    "test-cluster-attempts": Leg(alone=node, needs=("cluster-bin", "test-cluster-e2e"), apart=node_alone, takes_s=1000),
    "test-images": Leg(needs=("test-cluster-e2e",), takes_s=700),
    "test-cluster-more": Leg(alone=node, needs=("cluster-bin", "test-cluster-e2e"), apart=node_alone, takes_s=1800),
}
QUICK = {"test-e2e-quick"}  # part of another leg


@dataclass
class Case:
    name: str
    seconds: float
    outcome: str  # passed | failed | skipped
    why: str = ""


@dataclass
class Result:
    leg: str
    status: str  # "ok", or what was wrong
    wall_s: float = 0
    cpu_s: float = 0
    cases: list[Case] = field(default_factory=list)

    def count(self, outcome: str) -> int:
        return sum(case.outcome == outcome for case in self.cases)


@dataclass
class Running:
    process: subprocess.Popen
    started: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=float("inf"), metavar="SECONDS")
    parser.add_argument("--no-skips", action="store_true")
    parser.add_argument("legs", nargs="+", choices=[*LEGS, "all"], metavar="LEG")
    options = parser.parse_args()
    legs = [leg for leg in LEGS if leg not in QUICK] if options.legs == ["all"] else options.legs
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` ends what runs
    return 1 if report(run(legs, options.limit), options.no_skips) else 0


def run(legs: list[str], limit_s: float) -> list[Result]:
    """Results in the order of `legs`."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    waiting, running, done = list(legs), {}, {}
    cores = max(2, os.cpu_count() or 2)
    told = began
    try:
        while waiting or running:
            for leg in [leg for leg in waiting if ready(leg, running, done, legs, cores)]:
                # Checked again, because the leg before may have taken the resources.
                if not ready(leg, running, done, legs, cores):
                    continue
                waiting.remove(leg)
                left_s = began + limit_s - time.monotonic()
                if left_s < (LEGS[leg].takes_s or 0):
                    done[leg] = Result(leg, out_of_time(leg, f"{left_s:.0f} s were left, and it may take {LEGS[leg].takes_s:.0f}"))
                    continue
                broken = [need for need in LEGS[leg].needs if need in done and done[need].status != "ok"]
                if broken:
                    done[leg] = Result(leg, f"not run, since {broken[0]} failed")
                    continue
                say(f"{leg} begins", began)
                running[leg] = start(leg)
            time.sleep(0.1)
            now = time.monotonic()
            for leg, of in list(running.items()):
                ended = over(of)
                if ended is None and hangs(leg):
                    end([of])
                    ended = "did not end after its report", 0
                if ended is None:
                    continue
                del running[leg]
                status, cpu_s = ended
                done[leg] = Result(leg, status, now - of.started, cpu_s)
                print("\n" + (REPORTS / f"{leg}.log").read_text(errors="replace").rstrip())
                say(f"{leg}: {done[leg].status} after {now - of.started:.0f} s", began)
            if now - began > limit_s:
                for leg, of in running.items():
                    done[leg] = Result(leg, out_of_time(leg, f"ended at the limit of {limit_s:.0f} s"), now - of.started)
                    print("\n" + "\n".join((REPORTS / f"{leg}.log").read_text(errors="replace").splitlines()[-LINES:]))
                for leg in waiting:
                    done[leg] = Result(leg, out_of_time(leg, f"not begun before the limit of {limit_s:.0f} s"))
                break
            if now - told > HEARTBEAT_S:
                told = now
                say("running: " + ", ".join(f"{leg} ({now - of.started:.0f} s)" for leg, of in running.items()), began)
    finally:
        end(list(running.values()))
    for result in done.values():
        if LEGS[result.leg].tests and result.wall_s > 0:  # a report of an earlier time may be there
            read_cases(result)
    return [done[leg] for leg in legs]


def out_of_time(leg: str, why: str) -> str:
    return why if LEGS[leg].takes_s is None else f"{LEFT_OUT}: {why}. Run it: make {leg}"


def ready(leg: str, running: dict[str, Running], done: dict[str, Result], legs: list[str], cores: int) -> bool:
    wanted = LEGS[leg]
    if any(need in legs and need not in done for need in wanted.needs):
        return False
    if any(LEGS[other].alone & wanted.alone or other in wanted.apart or leg in LEGS[other].apart for other in running):
        return False
    taken = sum(LEGS[other].cores for other in running)
    return wanted.cores == 0 or taken == 0 or taken + wanted.cores <= cores


def start(leg: str) -> Running:
    (REPORTS / f"{leg}.xml").unlink(missing_ok=True)
    # A separate make, without the settings of a make that may have started this program.
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    # Tests start hundreds of processes from the same sources, and most of a start is compiling them.
    env.setdefault("NODE_COMPILE_CACHE", str(ROOT / ".cache/node"))
    with open(REPORTS / f"{leg}.log", "wb") as log:
        process = subprocess.Popen(
            ["make", "--no-print-directory", leg],
            cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    if LEGS[leg].cores == 0:
        # Linux shares cores among sessions first, and `nice` only says how a session's share is divided.
        with suppress(OSError):
            Path(f"/proc/{process.pid}/autogroup").write_text("5")
    return Running(process, time.monotonic())


def over(of: Running) -> tuple[str, float] | None:
    """Status and CPU seconds with all descendants, or None while it runs."""
    pid, status, usage = os.wait4(of.process.pid, os.WNOHANG)
    if pid == 0:
        return None
    of.process.returncode = os.waitstatus_to_exitcode(status)
    status = "ok" if of.process.returncode == 0 else f"ended with {of.process.returncode}"
    return status, usage.ru_utime + usage.ru_stime


def hangs(leg: str) -> bool:
    try:
        file = (REPORTS / f"{leg}.xml").stat()
    except FileNotFoundError:
        return False
    # vitest makes the file when it begins and fills it when it ends.
    return file.st_size > 0 and time.time() - file.st_mtime > AFTER_REPORT_S


def end(running: list[Running]) -> None:
    def tell(number: int) -> None:
        for of in running:
            with suppress(ProcessLookupError):
                os.killpg(of.process.pid, number)

    tell(signal.SIGTERM)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(of.process.poll() is None for of in running):
        time.sleep(0.1)
    tell(signal.SIGKILL)


def read_cases(result: Result) -> None:
    try:
        cases = list(ET.parse(REPORTS / f"{result.leg}.xml").getroot().iter("testcase"))
    except (OSError, ET.ParseError) as error:
        if result.status == "ok":
            result.status = f"no report: {error}"
        return
    for case in cases:
        found = {child.tag: child for child in case}
        bad = found.get("failure", found.get("error"))
        outcome = "failed" if bad is not None else "skipped" if "skipped" in found else "passed"
        why = "" if bad is None else bad.text or bad.get("message") or ""
        result.cases.append(Case(f"{case.get('classname')} > {case.get('name')}", float(case.get("time") or 0), outcome, why))
    if not cases and result.status == "ok":
        result.status = "not one test ran"


def report(results: list[Result], no_skips: bool) -> int:
    """@returns how many failed"""
    passed = failed = 0
    print("\n=== results")
    for result in results:
        for case in result.cases:
            if case.outcome == "failed" or (no_skips and case.outcome == "skipped"):
                print(f"{case.outcome.upper()} {result.leg}: {case.name}")
                print("\n".join(clean(case.why)[:LINES]), end="\n" if case.why else "")
        bad = result.count("failed") + (result.count("skipped") if no_skips else 0)
        if result.status.startswith(LEFT_OUT):
            print(f"{result.leg} was {result.status}")
        elif result.status != "ok" and bad == 0:
            print(f"FAILED {result.leg}: {result.status}. It said last:")
            log = REPORTS / f"{result.leg}.log"
            print("\n".join([line for line in clean(log.read_text(errors="replace")) if "❯" not in line][-LINES:]) if log.exists() else "")
            bad = 1
        passed += result.count("passed")
        failed += bad
    print(f"\n{'leg':18}{'seconds':>8}{'CPU s':>8}{'passed':>8}{'failed':>8}{'skipped':>9}")
    for result in results:
        counts = [result.count(outcome) for outcome in ("passed", "failed", "skipped")]
        numbers = f"{counts[0]:8}{counts[1]:8}{counts[2]:9}" if LEGS[result.leg].tests else " " * 25
        print(f"{result.leg:18}{result.wall_s:8.0f}{result.cpu_s:8.0f}{numbers}  {'' if result.status == 'ok' else result.status}".rstrip())
    slowest = sorted(((case.seconds, result.leg, case.name) for result in results for case in result.cases), reverse=True)[:SLOWEST]
    if slowest:
        print("\nslowest tests, in seconds")
    for seconds, leg, name in slowest:
        print(f"{seconds:8.1f}  {leg}: {name}"[: shutil.get_terminal_size((160, 24)).columns])
    print(f"\n{passed} passed, {failed} failed", flush=True)
    return failed


def clean(text: str) -> list[str]:
    """Lines without colours and empty ones, indented."""
    return [f"    {line[:400]}" for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if line.strip()]


def say(what: str, began: float) -> None:
    print(f"=== {time.monotonic() - began:4.0f} s  {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
