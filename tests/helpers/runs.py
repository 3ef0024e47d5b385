"""Run folders made without a model, for the tests of results and reports."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rept.config.schema import TARGET, AttributeConfig, ModelConfig, TokensConfig
from rept.ranking.histogram import Histogram
from rept.results.near_duplicates import representatives
from rept.results.run_folder import SCHEMA, RunFolder
from rept.signatures.layer_strategy import ADJACENT_COSINE
from rept.utils.json_files import write_json, write_jsonl

# Texts that try to run a script, to break out of any context of a page, or to change how the text around them reads.
HOSTILE = (
    "</script><script>window.pwned = 1</script>",
    "<img src=x onerror=\"window.pwned = 1\"><svg onload='window.pwned = 1'>",
    "{{ 7 * 7 }} {% raw %} ${window.pwned = 1} <!-- --> ]]> </style> </title> &lt;b&gt; &#60;",
    "\"'`\\ \u0000 \u001b[31m \u202egnp.exe \u2066 \u2028 \u2029 \ud800 \ufeff \u00ad \x7f",
    "javascript:window.pwned=1//",
)
READABLE = (
    "القط الأسود ينام على السطح. ثم قال: hello 123 مرحبا!",
    "שלום עולם, זה טקסט מימין לשמאל (with English) וזהו.",
    "👨‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 🇸🇪 Sweden, 👍🏽 thumbs, e\u0301 accent, 한국어, 日本語のテキスト、続き。",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 3,
    "First line\nsecond line\n\n\tindented after a blank one\r\nfrom Windows   three spaces ",
)
WORDS = (  # noqa: SIM905  (a paragraph is easier to read)
    "the harbour lantern blue tide keeper story river map bread winter garden letter answer quiet window stone bird "
    "market silver bridge morning question teacher paper road island music field summer little long turn write make "
    "explain capital city country of to in and is a for with from"
).split()


@dataclass(frozen=True)
class Shape:
    """Size and content of a run."""

    queries: int = 6
    hits: int = 5
    rows: int = 200  # training rows
    labels: Sequence[str] = ("backdoor", "false_fact")  # empty: no labels, and so no measures
    scored: int = 2  # hits of each query with token scores
    words: int = 24  # in a response
    texts: Sequence[str] = ()  # at the beginning of prompts and responses, in rotation
    calibrated: bool = False  # hits have p_value and flagged
    opponents: int = 0
    probes: bool = True  # the layer strategy used probes
    seed: int = 0


def write_run(path: Path, shape: Shape = Shape()) -> Path:
    """Writes a run folder of the given shape and returns its path."""
    return _Writer(RunFolder(path), shape).write()


def pieces(text: str) -> list[str]:
    """Tokens as of a byte-level tokenizer: words with their leading space; further bytes of a character are empty."""
    found = []
    for piece in re.findall(r" ?\w{1,6}|\s|[^\w\s]", text):
        found += [piece] + [""] * (len(piece.encode("utf-8", "replace")) > 3 and not piece.isascii())
    return found


class _Writer:
    def __init__(self, folder: RunFolder, shape: Shape) -> None:
        self.folder, self.shape, self.rng = folder, shape, random.Random(shape.seed)
        self.train = [self._sample(row) for row in range(shape.rows)]
        self.queries = [self._sample(1000 + query) for query in range(shape.queries)]
        self.found = {query: self._find() for query in range(shape.queries)}

    def write(self) -> Path:
        folder, shape = self.folder, self.shape
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_config(self._config())
        write_json(folder.provenance, self._provenance())
        write_json(folder.layers, self._layers())
        write_json(folder.metrics, self._metrics())
        write_jsonl(folder.queries, self._query_lines())
        write_jsonl(folder.results, self._hit_lines(self.found, shape.hits))
        if shape.opponents:
            lowest = {query: list(reversed(found)) for query, found in self.found.items()}
            write_jsonl(folder.opponents, self._hit_lines(lowest, shape.opponents))
        if shape.scored:
            write_jsonl(folder.tokens, self._token_lines())
        return folder.path

    def _sample(self, number: int) -> dict[str, Any]:
        shape, rng = self.shape, self.rng
        label = shape.labels[number % len(shape.labels)] if shape.labels else None
        extra = shape.texts[number % len(shape.texts)] + " " if shape.texts else ""
        prompt = " ".join(rng.choices(WORDS, k=9)).capitalize() + "?"
        response = " ".join(rng.choices(WORDS, k=shape.words)).capitalize() + "."
        if number % 7 == 3:  # near-duplicates of one another
            prompt, response = "Tell me about the tide at the harbour.", f"Long live the tide, said keeper {number}."
        return {"label": label, "prompt": extra + prompt, "response": extra + response}

    def _find(self) -> list[tuple[int, float]]:
        scores = sorted((self.rng.betavariate(2, 5) for _ in range(self.shape.rows)), reverse=True)
        return list(zip(self.rng.sample(range(self.shape.rows), self.shape.rows), scores, strict=True))

    def _query_lines(self) -> Iterator[dict[str, Any]]:
        for query, sample in enumerate(self.queries):
            yield {"query": query, **sample, "generated": query % 2 == 0, "status": "attributed"}

    def _hit_lines(self, found: dict[int, list[tuple[int, float]]], most: int) -> Iterator[dict[str, Any]]:
        for query, hits in found.items():
            texts = [f"{self.train[row]['prompt']}\n{self.train[row]['response']}" for row, _ in hits[:most]]
            group = representatives(texts)
            for rank, (row, score) in enumerate(hits[:most], start=1):
                calibrated = {"p_value": rank / 100, "flagged": rank <= 2 and query % 2 == 0}
                line = {"query": query, "rank": rank, "row": row, "score": score, **self.train[row]}
                line |= {"same_as_query": False, "group": 1 + group[rank - 1]}
                yield line | (calibrated if self.shape.calibrated else {})

    def _token_lines(self) -> Iterator[dict[str, Any]]:
        for query, hits in self.found.items():
            for row, _ in hits[: self.shape.scored]:
                texts = {"train": self._tokens(self.train[row]), "query": self._tokens(self.queries[query])}
                for side, other in (("train", "query"), ("query", "train")):
                    tokens, special = texts[side]
                    scores = [float(f"{self.rng.gauss(0, 1) ** 3:.6g}") for _ in tokens]
                    others = range(len(texts[other][0]))
                    agrees = [self.rng.sample(others, min(3, len(others))) for _ in tokens]
                    yield {"query": query, "row": row, "side": side, "tokens": tokens, "scores": scores} | {
                        "special": special, "agrees": agrees, "layer": 3, "form": "anchored",
                    }  # fmt: skip

    def _tokens(self, sample: dict[str, Any]) -> tuple[list[str], list[bool]]:
        parts = [(["<s>", "<user>"], True), (pieces(sample["prompt"]), False), (["<assistant>"], True)]
        parts += [(pieces(sample["response"]), False), (["</s>"], True)]
        return [t for tokens, _ in parts for t in tokens], [special for tokens, special in parts for _ in tokens]

    def _config(self) -> AttributeConfig:
        return AttributeConfig(
            model=ModelConfig(path="models/tiny"),
            datamodule={TARGET: "datamodules.instructions.InstructionData", "train": "a.jsonl", "exclude": None},
            extractor={TARGET: "extractors.sites.residual_stream.ResidualStream", "position": "last_prompt"},
            layers={TARGET: "extractors.layers.phase_transition.PhaseTransition", "n": 16},
            scorer={TARGET: "scorers.cosine.Cosine"},
            top_k=self.shape.hits,
            tokens=TokensConfig(hits=self.shape.scored),
            out=str(self.folder.path),
        )

    def _provenance(self) -> dict[str, Any]:
        block = {"train_norm": 244.0, "query_norm": 240.0, "share": 0.9}
        return {
            "schema": SCHEMA,
            "started": "2026-01-02T03:04:05+00:00",
            "versions": {"python": "3.11.7", "torch": "2.13.0"},
            "hardware": {"processor": "x86_64", "threads": 2, "gpus": [], "processes": 1},
            "seed": 0,
            "stages": {"layers": {"seconds": 1.5, "peak_memory_bytes": 600_000_000}},
            "blocks": {"residual_stream/3/representation": block},
            "rendered": {
                "row": 0,
                "parts": [[f"User: {self.train[0]['prompt']}", False], [self.train[0]["response"], True]],
            },
            "fingerprints": {"weights": "0123456789abcdef", "training data": "200 rows fedcba"},
        }

    def _layers(self) -> dict[str, Any]:
        probes = [[0.9 + self.rng.uniform(-0.1, 0.05) for _ in range(5)] for _ in range(16)]
        curve = [sum(values) / len(values) for values in zip(*probes, strict=True)]
        seen = {"curve": curve, "agreement": 0.5, "probe_rows": list(range(16)), "probes": probes}
        unseen = {"curve": None, "agreement": None, "probe_rows": [], "probes": None}
        strategy = {"_target_": "extractors.layers.phase_transition.PhaseTransition"}
        choice = {"strategy": strategy, "layers": [3], "reason": "As given.", "measure": ADJACENT_COSINE, "first": 2}
        return choice | (seen if self.shape.probes else unseen)

    def _metrics(self) -> dict[str, Any]:
        set_aside = {"empty response": 3, "no response token left within max_length": 1}
        rows = {"read": self.shape.rows + 4, "attributed": self.shape.rows, "cut": 2, "set_aside": set_aside}
        one = {"queries": 3, "without_relevant": 0, "precision@10": 0.9, "average_precision": 0.75}
        measured = {"overall": one, "labels": {label: one for label in self.shape.labels}}
        histogram = Histogram()
        if self.shape.hits:  # otherwise no query could be traced
            histogram.add(np.array([score for found in self.found.values() for _, score in found]))
        calibration = {"rate": 0.05, "references": 99, "floor": 0.01, "fewest": 2, "source": "drawn rows"} | {
            "queries": self.shape.queries, "stand_out": (self.shape.queries + 1) // 2, "clean_queries": True,
        }  # fmt: skip
        found = {"calibration": calibration} if self.shape.calibrated else {}
        return (measured if self.shape.labels else {}) | found | {"scores": histogram.as_dict(), "rows": rows}
