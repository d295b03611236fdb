"""`make test-gpu` in miniature, so that it does not rot where there is no GPU."""

import json
import subprocess
import sys

import head
import pytest
from conftest import ENVIRONMENT, TRAINER

sys.path.insert(0, str(TRAINER.parents[2] / "tests/bench"))


@pytest.fixture(autouse=True)
def what_it_changes(monkeypatch):
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", head.LOGITS_AT_ONCE)


def cells_of(path) -> dict:
    """The cells of a result by (what, quantization)."""
    found: dict = {}
    for cell in json.loads(path.read_text())["cells"]:
        found.setdefault((cell["what"], cell["quantization"]), []).append(cell)
    return found


def test_it_runs_in_miniature(tmp_path, capsys):
    import gpu

    assert gpu.main(["--miniature", "--json", str(tmp_path / "result.json")]) == 0
    result, cells = json.loads((tmp_path / "result.json").read_text()), cells_of(tmp_path / "result.json")
    assert [(each["base"], each["quantization"]) for each in result["parity"]] == [("untied", None), ("untied", "nf4"), ("tied", None), ("tied", "nf4")]
    assert all(each["largest_difference"] < 1e-4 and each["head_in_chunks"] for each in result["parity"])
    for what in (("loraline", None), ("plain", None), ("loraline", "nf4")):
        assert [(cell["base"], cell["gradient_checkpointing"]) for cell in cells[what]] == [
            ("untied", False),
            ("untied", True),
            ("tied", False),
            ("tied", True),
        ]
        assert all(cell["tokens_per_second"] > 0 for cell in cells[what])
    assert {cell["note"] for cell in cells["trl", None]} == {"left out: trl, datasets not installed"}
    assert capsys.readouterr().out.count("tokens/s") == 12


def test_it_measures_trl_where_that_is_installed(tmp_path):
    """In the environment of `make bench-trl`, which has TRL and lacks bitsandbytes."""
    python, script = TRAINER.parents[2] / ".cache/bench-trl/bin/python", TRAINER.parents[2] / "tests/bench/gpu.py"
    subprocess.run([python, script, "--miniature", "--json", tmp_path / "result.json"], env=ENVIRONMENT, check=True)
    cells = cells_of(tmp_path / "result.json")
    assert len(cells["trl", None]) == 4 and all(cell["tokens_per_second"] > 0 for cell in cells["trl", None])
    assert {cell["note"] for cell in cells["loraline", "nf4"]} == {"left out: bitsandbytes not installed"}


def test_what_no_longer_fits_into_the_time_is_said_to_be_left_out(tmp_path, capsys):
    import gpu

    assert gpu.main(["--miniature", "--seconds", "0", "--json", str(tmp_path / "result.json")]) == 1
    assert {cell["note"] for what, cells in cells_of(tmp_path / "result.json").items() if what[0] != "trl" for cell in cells} == {"left out: no time"}
