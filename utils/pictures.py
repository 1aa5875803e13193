"""The pictures beside a report: each drawn if its numbers are there, written, and removed where they no longer are.

PICTURES = {"recall_vs_fpr.png": (recall_vs_fpr, "the evaluation holds no model with recall and false positives")}
pictures = draw_all(PICTURES, guards, say=print)
write_pictures(directory, PICTURES, pictures)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from utils.files import write_atomic

T = TypeVar("T")
Pictures = dict[str, bytes]
"""PNGs by file name."""


def draw_all(
    figures: Mapping[str, tuple[Callable[[T], bytes | None], str]], of: T, say: Callable[[str], None]
) -> Pictures:
    """The PNGs that `of` has the numbers for; `say` hears of the others, and what they want."""
    pictures: Pictures = {}
    for name, (drawn, why) in figures.items():
        picture = drawn(of)
        if picture is None:
            say(f"{name}: not drawn, {why}")
        else:
            pictures[name] = picture
    return pictures


def write_pictures(directory: Path, names: Iterable[str], pictures: Pictures) -> list[Path]:
    """Write them, and remove of `names` what an earlier evaluation left that this one has no numbers for."""
    for name in names:
        if name not in pictures:
            (directory / name).unlink(missing_ok=True)
    for name, picture in pictures.items():
        write_atomic(directory / name, picture)
    return [directory / name for name in pictures]
