"""RepT: which training samples taught a language model its behaviour, and which words in them?

>>> import rept                                                        # doctest: +SKIP
>>> result = rept.trace(model, tokenizer, train, queries)              # doctest: +SKIP
>>> result.hits(0)                                                     # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rept.correction.repair import Repair
    from rept.errors import UsageError
    from rept.evaluation.repairing import repair
    from rept.results.trace import Trace
    from rept.run.pipeline import trace

__all__ = ["Repair", "Trace", "UsageError", "repair", "trace"]
_HOMES = {
    "Repair": "rept.correction.repair",
    "Trace": "rept.results.trace",
    "UsageError": "rept.errors",
    "repair": "rept.evaluation.repairing",
    "trace": "rept.run.pipeline",
}


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used: torch and transformers take seconds, and `--help` must be fast."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rept' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
