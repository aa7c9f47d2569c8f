"""Questions, texts and photo-like images as people have them, in a JSONL folder."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

QUESTIONS = (
    ("What colour is the cup?", "The cup stands on the table. It is red.", "red", (200, 150)),
    ("图中杯子是什么颜色？", "这张图片里有一只红色的杯子，放在桌子上。", "红色。", (150, 200)),
    ("How many dogs 🐶 are there?", "I see 🐱‍👤 and 👩🏽‍🚀, so 12 dogs.", "12", (320, 90)),
    (
        "What is $\\frac{1}{2}+\\frac{1}{2}$ in the picture?",
        "We have $\\frac{1}{2}+\\frac{1}{2}=1$ and \\boxed{1}.",
        "\\boxed{1}",
        (90, 240),
    ),
    (
        "Locate the cup, output JSON.",
        "The object is at [312, 45, 518, 233].",
        '```json\n[\n\t{"bbox_2d": [312, 45, 518, 233], "label": "cup"}\n]\n```',
        (240, 240),
    ),
    (
        "List what you see.",
        "- a cup\n- a table\n  * nested",
        "- a red cup\n- a blue table",
        (61, 399),
    ),
    ("What is the total?", "The total reads 1234567.89 USD.", "1,234,567.89", (28, 28)),
)
"""Question, thinking, answer, and the width and height of the image, as people have them."""


def write_data(folder: Path) -> Path:
    """`QUESTIONS` as a JSONL folder with photo-like images and a box each, two splits alike."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = []
    for number, (question, thinking, answer, (width, height)) in enumerate(QUESTIONS):
        coarse = rng.integers(0, 255, (max(height // 12, 1), max(width // 12, 1), 3), np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        image.save(folder / "images" / f"{number}.png")
        row = {
            "id": f"r{number}",
            "image": f"images/{number}.png",
            "question": question,
            "answer": answer,
            "thinking": thinking,
            "boxes": [[0.2, 0.1 + 0.05 * number, 0.6, 0.5 + 0.05 * number]],
            "family": "ab"[number % 2],
        }
        lines.append(json.dumps(row, ensure_ascii=False))
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder
