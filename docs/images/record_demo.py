"""
Runs `./loraline demo` in a terminal of 112 columns and writes what it prints to docs/images/demo.svg: the run, two of the four
questions, and the claims. What is left out (the trace, and the other questions) is marked by "…".

    .venv/bin/python docs/images/record_demo.py          from the root of a checkout, after `make setup`
"""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 112
OUT = Path(__file__).with_name("demo.svg")
# Without fonts of its own, which rich would fetch from another host.
SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">{backgrounds}<g class="{unique_id}-matrix" xml:space="preserve">{matrix}</g></g>
</svg>
"""


def run(command: list[str]) -> str:
    """What the command prints to a terminal. Progress goes to the standard error stream and is not part of it."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 60, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.DEVNULL, env=environment)
    os.close(writer)
    said = b""
    while True:
        try:
            part = os.read(reader, 65536)
        except OSError:  # Linux says so when the last writer has closed it
            break
        if not part:
            break
        said += part
    if process.wait() != 0:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{said.decode()}")
    return said.decode().replace("\r\n", "\n")


def excerpt(text: str) -> str:
    """Sections 1 and 2, two questions of section 3, and section 5."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).split("\n")
    lines = text.split("\n")

    def at(pattern: str, start: int = 0) -> int:
        return next(number for number in range(start, len(plain)) if re.search(pattern, plain[number]))

    questions = at(r"^3\. ")
    # A blank line stands before each question.
    third = [number for number in range(questions + 1, len(plain)) if re.match(r"   \S.*[?.]$", plain[number]) and plain[number - 1] == ""][2]
    claims = at(r"^5\. ")
    return "\n".join([*lines[: third - 1], "", "   …", *lines[claims - 1 :]]).rstrip()


if __name__ == "__main__":
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi("$ make demo\n\n" + excerpt(run(["./loraline", "demo"]))))
    console.save_svg(str(OUT), title="make demo", code_format=SVG)
    print(OUT)
