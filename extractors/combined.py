"""Several extractors in one signature, for scorers that read what more than one of them gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rept.errors import UsageError
from rept.signatures.extractor import Extractor, ReadsAllPositions
from rept.types import FIELDS, TEXT, Batch, Key, PreTrainedModel, PreTrainedTokenizerBase, Signature


class Combined(Extractor):
    """The fields of several extractors, each of which keeps its name.

    What belongs to no layer (a text's bytes, an embedding of another model) is entered beside the fields of every site
    and layer that the others read, so that a scorer finds both in one place.

    Args:
        extractors: objects (in a configuration, each with a ``_target_``).

    Raises:
        UsageError: none is given, two give fields of one name, or several learn from different numbers of rows; when
            called: one gives several blocks of a field that belong to no layer; when all positions are read for token
            scores: none of them can.
    """

    def __init__(self, extractors: Sequence[Extractor]) -> None:
        if not extractors or not all(isinstance(part, Extractor) for part in extractors):
            raise UsageError(f"Expected extractor.extractors to list extractors, but got {list(extractors)}.")
        self.extractors = list(extractors)
        self.fields = tuple(field for part in extractors for field in part.fields)
        if len(set(self.fields)) < len(self.fields):
            raise UsageError(f"Expected extractors with fields of different names, but got {', '.join(self.fields)}.")
        self.symmetric = all(part.symmetric for part in extractors)
        self.comparable = all(part.comparable for part in extractors if part.fields != (TEXT,))
        learning = {part.fit_rows for part in extractors if part.fit_rows != 0}
        if len(learning) > 1:
            raise UsageError("Expected extractors that learn to take the same number of rows; set their fit_rows.")
        self.fit_rows = next(iter(learning), 0)

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        for part in self.extractors:
            part.attach(model, tokenizer)

    def content(self) -> Mapping[str, str]:
        return {name: value for part in self.extractors for name, value in part.content().items()}

    def fit(self, model: PreTrainedModel, batches: Iterable[Batch]) -> None:
        rows = list(batches)
        for part in self.extractors:
            if part.fit_rows != 0:
                part.fit(model, rows)

    def __call__(self, model: PreTrainedModel, batch: Batch, layers: Sequence[int]) -> Signature:
        found = {key: block for part in self.extractors for key, block in part(model, batch, layers).items()}
        places = dict.fromkeys(key[:2] for key in found if key.layer)
        beside = [key.field for key in found if not key.layer]
        if places and len(set(beside)) < len(beside):
            raise UsageError(
                f"Expected one block of each field beside those of layers, but got {len(beside)} of "
                f"{', '.join(dict.fromkeys(beside))}: set each=false in extractor.extractors."
            )
        return {
            Key(*place, key.field): block
            for key, block in found.items()
            for place in ((key[:2],) if key.layer or not places else places)
        }

    def all_positions(
        self, model: PreTrainedModel, batch: Batch, layers: Sequence[int], fields: Sequence[str] = FIELDS
    ) -> Signature:
        """Those of the first extractor that reads all positions."""
        for part in self.extractors:
            if isinstance(part, ReadsAllPositions):
                return part.all_positions(model, batch, layers, fields)
        raise UsageError("None of extractor.extractors reads all positions, as token scores need: set tokens.hits=0.")
