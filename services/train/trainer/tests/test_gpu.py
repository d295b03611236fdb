"""`make test-gpu` in miniature, so that it does not rot where there is no GPU."""

import json
import sys

import head
import pytest
from conftest import TRAINER

sys.path.insert(0, str(TRAINER.parents[2] / "tests/bench"))


@pytest.fixture(autouse=True)
def what_it_changes(monkeypatch):
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", head.LOGITS_AT_ONCE)


def test_it_runs_in_miniature(tmp_path, capsys):
    import gpu

    assert gpu.main(["--miniature", "--json", str(tmp_path / "result.json")]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert [each["base"] for each in result["parity"]] == ["untied", "tied"]
    assert all(each["largest_difference"] < 1e-4 and each["head_in_chunks"] for each in result["parity"])
    assert all(cell["tokens_per_second"] > 0 for cell in result["cells"])
    assert len(result["cells"]) == 8
    assert capsys.readouterr().out.count("tokens/s") == 8


def test_what_no_longer_fits_into_the_time_is_said_to_be_left_out(tmp_path, capsys):
    import gpu

    assert gpu.main(["--miniature", "--seconds", "0", "--json", str(tmp_path / "result.json")]) == 1
    assert {cell["note"] for cell in json.loads((tmp_path / "result.json").read_text())["cells"]} == {"left out: no time"}
