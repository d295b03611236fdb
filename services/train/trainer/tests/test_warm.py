"""Runs that a warm process makes: the same bytes as a process of its own, and nothing of one reaches the next."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ENVIRONMENT, TRAINER, Directory, make_tiny_base


class Warm:
    """A warm process, and what a courier does with it."""

    def __init__(self, folder: Path):
        self.base = folder / "base"
        self.socket = folder / "socket"
        # Two threads: with one, none would be lost by the fork.
        environment = ENVIRONMENT | {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
        self.process = subprocess.Popen([sys.executable, str(TRAINER / "warm.py"), str(self.socket), str(self.base)], env=environment)
        self.environment = environment

    def start(self, run: Directory):
        connection = socket.socket(socket.AF_UNIX)
        for _ in range(600):
            try:
                connection.connect(str(self.socket))
                break
            except OSError:
                time.sleep(0.05)
        say(connection, {"start": {"launch": [], "work": str(run.path), "logFile": str(run.path) + ".log"}})
        answers = connection.makefile()
        return connection, answers, json.loads(answers.readline())["started"]["pid"]

    def run(self, run: Directory) -> dict:
        connection, answers, _ = self.start(run)
        exited = json.loads(answers.readline())["exited"]
        connection.close()
        return exited

    def run_cold(self, run: Directory) -> int:
        return subprocess.run([sys.executable, str(TRAINER / "train.py"), str(run.path)], env=self.environment).returncode


def say(connection: socket.socket, message: dict) -> None:
    connection.sendall((json.dumps(message) + "\n").encode())


def wait_until(true) -> None:
    for _ in range(600):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("not within 30 s")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[-1][0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("warm")
    (folder / "base").mkdir()
    make_tiny_base(folder / "base")
    made = Warm(folder)
    yield made
    made.process.kill()
    made.process.wait()


SUCCEEDED = {"code": 0, "signal": None}
DROPOUT = {"lora": {"lora_dropout": 0.1}}  # draws random numbers in every step


def outcome(run: Directory) -> tuple:
    result = run.result
    return result["adapter"], result["loss_history"], result["evaluation"], result["probes"], result["environment"]


def test_runs_have_the_bytes_of_a_process_of_their_own_whatever_came_before(directory, warm):
    cold = directory("cold", base=warm.base, **DROPOUT)
    assert warm.run_cold(cold) == 0
    for name, options in (("first", DROPOUT), ("other", {"lora": {"r": 8, "target_modules": ["q_proj"]}, "training": {"seed": 1}}), ("again", DROPOUT)):
        run = directory(name, base=warm.base, **options)
        assert warm.run(run) == SUCCEEDED
        assert (outcome(run) == outcome(cold)) == (name != "other")


def test_a_run_that_fails_says_why_and_its_log_is_its_own(directory, warm):
    wrong = directory("wrong", base=warm.base, lora={"target_modules": ["nothing"]})
    assert warm.run(wrong) == {"code": 1, "signal": None}
    assert wrong.result["error"]["code"] == "NO_TARGET_MODULES"
    assert "NO_TARGET_MODULES" in Path(f"{wrong.path}.log").read_text() or "nothing in the base" in Path(f"{wrong.path}.log").read_text()
    assert warm.run(directory("right", base=warm.base)) == SUCCEEDED


LONG = {"training": {"num_train_epochs": 1000}}


def test_a_run_is_killed_when_its_courier_is_gone_and_others_go_on(directory, warm):
    killed, other = directory("killed", base=warm.base, **LONG), directory("other", base=warm.base, training={"num_train_epochs": 20})
    connection, _, pid = warm.start(killed)
    beside, answers, _ = warm.start(other)
    wait_until(lambda: (killed.path / "progress.jsonl").exists() and killed.lines("step"))
    connection.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: not is_running(pid))
    assert json.loads(answers.readline())["exited"] == SUCCEEDED
    beside.close()


def test_signals_reach_the_run_and_a_stopped_one_goes_on_from_its_checkpoint(directory, warm):
    whole, stopped = (directory(name, base=warm.base, training={"num_train_epochs": 30}) for name in ("whole", "stopped"))
    assert warm.run(whole) == SUCCEEDED
    connection, answers, _ = warm.start(stopped)
    wait_until(lambda: (stopped.path / "progress.jsonl").exists() and stopped.lines("step"))
    say(connection, {"kill": "SIGTERM"})
    assert json.loads(answers.readline())["exited"] == {"code": 75, "signal": None}
    assert warm.run(stopped) == SUCCEEDED
    assert outcome(stopped) == outcome(whole)

    connection, answers, _ = warm.start(directory("ended", base=warm.base, **LONG))
    say(connection, {"kill": "SIGKILL"})
    assert json.loads(answers.readline())["exited"] == {"code": None, "signal": "SIGKILL"}


def test_a_base_that_was_exchanged_is_read_again(directory, warm, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = {name: weight * 0.9 for name, weight in load_file(warm.base / "model.safetensors").items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    shutil.move(tmp_path / "model.safetensors", warm.base / "model.safetensors")
    cold, run = directory("cold", base=warm.base), directory("run", base=warm.base)
    assert warm.run_cold(cold) == 0 and warm.run(run) == SUCCEEDED
    assert outcome(run) == outcome(cold)


def test_its_runs_end_with_it(directory, tmp_path):
    (tmp_path / "base").mkdir()
    make_tiny_base(tmp_path / "base")
    warm = Warm(tmp_path)
    _, _, pid = warm.start(directory("orphan", base=warm.base, **LONG))
    os.kill(warm.process.pid, signal.SIGKILL)
    warm.process.wait()
    wait_until(lambda: not is_running(pid))
