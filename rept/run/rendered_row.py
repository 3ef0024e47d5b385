"""A training row as the model reads it, so that a wrong chat template is seen before it costs anything."""

from __future__ import annotations

from itertools import groupby
from typing import TypedDict

from rich.text import Text

from rept.data.datamodule import AttributionDataModule
from rept.types import Status
from rept.utils.console import console, say
from rept.utils.text import clip_middle, visible

TRIED_ROWS = 1000  # to find one that is not set aside
MOST_CHARACTERS = 1200  # of each part


class RenderedRow(TypedDict):
    """A training row's number and its text in parts, each with whether it is the response."""

    row: int
    parts: list[tuple[str, bool]]


def rendered_row(datamodule: AttributionDataModule) -> RenderedRow | None:
    """Returns the first training row that can be attributed, up to ``max_length``; None if none is found."""
    for row in range(min(TRIED_ROWS, len(datamodule.source("train")))):
        encoded = datamodule.encoded("train", row)
        if isinstance(encoded, Status):
            continue
        pieces = zip(encoded.response, (encoded.text[start:end] for start, end in encoded.pieces), strict=True)
        runs = [("".join(text for _, text in run), part) for part, run in groupby(pieces, key=lambda one: one[0])]
        return {"row": row, "parts": [(clip_middle(text, MOST_CHARACTERS), part) for text, part in runs]}
    return None


def show_rendered_row(shown: RenderedRow) -> None:
    """Prints the row, its response between marks, and shaded where the terminal has colours."""
    say(f"Training row {shown['row']} as the model reads it, the response between ⟦ and ⟧:")
    text = Text()
    for part, of_response in shown["parts"]:
        safe = visible(part)
        text.append(f"⟦{safe}⟧" if of_response else safe, style="black on #fdd0a2" if of_response else "dim")
    console.print(text, soft_wrap=True)
