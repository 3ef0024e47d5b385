"""The fingerprint of a data set."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from rept.types import Status
from rept.utils.digests import text_digest


def of_samples(source: Any) -> str:
    """Of every row of a source, in order."""
    made = hashlib.sha256()
    for row in range(len(source)):
        sample = source[row]
        if isinstance(sample, Status):
            made.update(bytes([sample]))
        else:
            parts = (
                json.dumps([dict(m) for m in sample.messages]),
                str(sample.response),
                str(sample.label),
                str(sample.spans),
            )
            made.update(text_digest(*parts).encode())
    return f"{len(source)} rows {made.hexdigest()[:32]}"
