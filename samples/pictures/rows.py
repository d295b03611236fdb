"""
Writes sixty pictures of coloured shapes with what they show, as a dataset in one file, and twelve others to ask about.

    python samples/pictures/rows.py shapes.zip unseen/      then: loraline run shapes.zip --base smollm2-135m-pictures --name shapes

The ZIP holds data.jsonl ({"image", "question", "answer"}) and the pictures that its rows name; unseen/ gets one picture of each kind, named by
what it shows (blue-circle.png).
"""

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
from shapes import KINDS, draw

QUESTION = "What is in the picture?"
ROWS = 60


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    archive, unseen = Path(sys.argv[1]), Path(sys.argv[2])
    random = np.random.default_rng(1)
    rows = []
    with zipfile.ZipFile(archive, "w") as file:
        for number in range(ROWS):
            shape, colour = KINDS[number % len(KINDS)]
            picture = io.BytesIO()
            draw(shape, colour, random).save(picture, "PNG")
            name = f"images/{number}.png"
            file.writestr(name, picture.getvalue())
            rows.append({"image": name, "question": QUESTION, "answer": f"A {colour} {shape}."})
        file.writestr("data.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    unseen.mkdir(parents=True, exist_ok=True)
    for shape, colour in KINDS:
        draw(shape, colour, random).save(unseen / f"{colour}-{shape}.png")


if __name__ == "__main__":
    main()
