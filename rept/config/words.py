"""Where the YAML files of words are: those of RepT, and a user's own in the folder that REPT_CONFIGS names."""

from __future__ import annotations

import os
from pathlib import Path

from rept.errors import UsageError

OWN = "REPT_CONFIGS"  # environment variable; not simply ./configs, which many projects have for other tools
_PACKAGE = Path(__file__).parents[1]
# A wheel has the folder inside the package, a clone beside it.
CONFIGS = next(folder / "configs" for folder in (_PACKAGE, _PACKAGE.parent) if (folder / "configs").is_dir())


def words_of(group: str) -> dict[str, Path]:
    """Returns the files that can be chosen for a group, by name: ``configs/GROUP/NAME.yaml``.

    Raises UsageError if REPT_CONFIGS does not name a folder, or a file in it has the name of one of RepT.
    """
    words = {path.stem: path for path in sorted((CONFIGS / group).glob("*.yaml"))}
    if own := os.environ.get(OWN):
        if not Path(own).is_dir():
            raise UsageError(f"Expected {OWN} to name a folder with GROUP/NAME.yaml files, but got {own}.")
        for path in sorted((Path(own) / group).glob("*.yaml")):
            if words.setdefault(path.stem, path) != path:
                raise UsageError(f"RepT itself has a word {group}={path.stem}: rename {path}.")
    return words
