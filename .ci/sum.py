"""Sums the JUnit reports of vitest and pytest, and says once more why tests failed: who reads this may have only the end of it.

usage: sum.py REPORTS_DIR EXIT_STATUS_OF_MAKE WHAT_MAKE_SAID

A skipped test counts as failed: here everything that tests need is installed, so skipping one hides something.
"""

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

SUITES = ["test-unit", "test-integration", "test-python", "test-e2e", "test-faults", "test-api-server", "test-cluster-e2e"]

LINES = 30  # of each failure

def main(reports: Path, make_status: int, said: Path) -> int:
    total = {"passed": 0, "failed": 0, "skipped": 0}
    for suite in SUITES:
        report = reports / f"{suite}.xml"
        try:
            cases = list(ET.parse(report).getroot().iter("testcase"))
        except (OSError, ET.ParseError) as error:
            print(f"{suite}: no report, counted as failed ({error})")
            total["failed"] += 1
            continue
        if not cases:
            print(f"{suite}: not one test ran, counted as failed; see below")
            total["failed"] += 1
            continue
        found = {"passed": 0, "failed": 0, "skipped": 0}
        for case in cases:
            outcomes = {child.tag for child in case}
            outcome = "failed" if outcomes & {"failure", "error"} else "skipped" if "skipped" in outcomes else "passed"
            found[outcome] += 1
            if outcome != "passed":
                print(f"{outcome.upper()} {suite}: {case.get('classname')} > {case.get('name')}")
                for child in case:
                    if child.tag in ("failure", "error"):
                        print("\n".join(lines(child.text or child.get("message") or "")[:LINES]))
        print(f"{suite}: " + ", ".join(f"{count} {name}" for name, count in found.items()))
        for name, count in found.items():
            total[name] += count
    if make_status != 0:
        if total["failed"] == 0:
            print(f"make ended with {make_status} although no test failed (lint, types or a crash); counted as failed")
            total["failed"] = 1
        print("what make said last:")
        print("\n".join([line for line in lines(said.read_text(errors="replace")) if "❯" not in line][-LINES:]))
    total["failed"] += total["skipped"]
    print(f"{total['passed']} passed, {total['failed']} failed")
    return 1 if total["failed"] or make_status else 0


def lines(text: str) -> list[str]:
    """Without colours and empty ones, indented."""
    return [f"    {line[:400]}" for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if line.strip()]


sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
