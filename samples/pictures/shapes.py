"""Small pictures of coloured shapes: what they show, and how they are drawn. No two are equal: size, place, shade and background vary."""

import math

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (235, 210, 50)}
SHAPES = ("circle", "square", "triangle")
KINDS = [(shape, colour) for shape in SHAPES for colour in COLOURS]
FINENESS = 4  # drawn so many times larger, then made smaller, for smooth edges


def draw(shape: str, colour: str, random: np.random.Generator, size: int = 64) -> Image.Image:
    """A picture of `size` x `size` pixels."""
    full = size * FINENESS
    image = Image.new("RGB", (full, full), tuple(random.integers(225, 256, 3).tolist()))
    radius = random.uniform(0.22, 0.36) * full
    x, y = random.uniform(radius, full - radius, 2)
    fill = tuple(np.clip(np.array(COLOURS[colour]) + random.integers(-15, 16, 3), 0, 255).tolist())
    corners = {
        "circle": [(math.cos(angle), math.sin(angle)) for angle in np.linspace(0, 2 * math.pi, 90)],
        "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
        "triangle": [(0, -1), (0.95, 0.8), (-0.95, 0.8)],
    }
    ImageDraw.Draw(image).polygon([(x + a * radius, y + b * radius) for a, b in corners[shape]], fill=fill)
    return image.resize((size, size), Image.Resampling.LANCZOS)
