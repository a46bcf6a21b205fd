"""Small data sets made on the spot, which both models can learn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["draw_art", "draw_faces"]


def draw_faces(folder: Path, count: int = 48) -> Path:
    """Fill `real/` and `fake/` with so many JPEGs each: smooth pictures, the fakes with a fine grid over them."""
    rng = np.random.default_rng(1)
    for label in ("real", "fake"):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            coarse = rng.integers(40, 215, size=(6, 6, 3)).astype(np.uint8)
            picture = np.asarray(Image.fromarray(coarse).resize((72, 72), Image.Resampling.BICUBIC)).astype(np.int16)
            if label == "fake":
                picture[::2, ::2] += 14
            pixels = picture.clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number:03d}.jpg", quality=92)
    return folder


def draw_art(folder: Path, count: int = 72) -> Path:
    """Write metadata.csv and images/: pictures in tiers S, A, B, C, the better ones the sharper."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(2)
    lines = ["image_id,filename,tier,group,split,quality"]
    for number in range(count):
        part = number / count
        tier, split = number % 4, "train" if part < 2 / 3 else ("val" if part < 5 / 6 else "test")
        fine = rng.integers(0, 255, size=(60, 72, 3)).astype(np.float64)
        coarse = np.asarray(Image.fromarray(rng.integers(40, 215, size=(5, 6, 3)).astype(np.uint8)).resize((72, 60)))
        share = 0.32 - 0.09 * tier + 0.02 * rng.normal()
        picture = ((1 - share) * coarse + share * fine).clip(0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / "images" / f"{number:03d}.jpg", quality=95)
        lines.append(f"art{number:03d},{number:03d}.jpg,{'SABC'[tier]},g{number // 2},{split},{4 - tier}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
