"""Writes `src/report/gitleaks-rules.ts` from the `gitleaks.toml` of a release of gitleaks.

go mod download github.com/zricethezav/gitleaks/v8@v8.30.1
python packages/datasets/write-gitleaks-rules.py v8.30.1 DIR > packages/datasets/src/report/gitleaks-rules.ts

DIR is the module's folder. Rules that need a file's name are left out: a record has none.
"""

import json
import sys
import tomllib
from pathlib import Path
from typing import Any


def allowlist_of(raw: dict[str, Any]) -> dict[str, Any]:
    return {
        "target": raw.get("regexTarget", "secret"),
        "regexes": raw.get("regexes", []),
        "stopwords": [word.lower() for word in raw.get("stopwords", [])],
    }


def rule_of(raw: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": raw["id"],
        "regex": raw["regex"],
        "keywords": [word.lower() for word in raw["keywords"]],
        "entropy": raw.get("entropy", 0),
        "group": raw.get("secretGroup", 0),
        # A list that also asks for a file's name never allows anything here.
        "allowed": [allowlist_of(one) for one in raw.get("allowlists", []) if "paths" not in one],
    }


def main(version: str, module: Path) -> None:
    raw = tomllib.loads((module / "config" / "gitleaks.toml").read_text(encoding="utf-8"))
    owner = next(line for line in (module / "LICENSE").read_text(encoding="utf-8").splitlines() if line.startswith("Copyright"))
    rules = [rule_of(rule) for rule in raw["rules"] if "regex" in rule and "path" not in rule]
    print(f"/** gitleaks' rules for secrets, {version} (github.com/gitleaks/gitleaks, MIT, {owner}), by write-gitleaks-rules.py. Regexes are RE2's. */")
    print("interface AllowList { readonly target: string; readonly regexes: readonly string[]; readonly stopwords: readonly string[] }")
    print("interface GitleaksRule { readonly id: string; readonly regex: string; readonly keywords: readonly string[];")
    print("/** A secret has more bits per character than this. */ readonly entropy: number;")
    print("/** Group that holds the secret; 0: the first one that is not empty. */ readonly group: number;")
    print("readonly allowed: readonly AllowList[] }")
    print(f"export const allowedEverywhere: AllowList = {json.dumps(allowlist_of(raw['allowlist']))};")
    print(f"export const gitleaksRules: readonly GitleaksRule[] = {json.dumps(rules)};")


main(sys.argv[1], Path(sys.argv[2]))
