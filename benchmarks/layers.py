"""Which layers each layer strategy chooses over many probe sets, next to the average precision of each layer.

    python attribute.py ... extractor=several_positions extractor.fields=[representation,gradient] \\
        scorer.fields=[representation_last_prompt] layers=every each=true out=RUN
    python benchmarks/layers.py RUN [--sets 20] [--rows 64 16] [scorer=... ...]

The signatures of RUN are ranked at each layer, by the run's scorer or the one given, to measure the average precision
of each layer. Then every strategy of configs/layers that reads a probe runs with seeds 0 to sets - 1, each of which
draws its own probe rows, and the choices of each layer are counted; a strategy that chooses several layers counts for
each of them. The strategies read states from RUN's store (rounded to float16) instead of the model: the model does not
run, and everything takes about a minute. Prints one table in Markdown.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from extractors.sites.residual_stream import ResidualStream
from rept.config.compose import compose
from rept.config.plug_ins import build
from rept.config.schema import AttributeConfig
from rept.errors import UsageError
from rept.results.run_folder import RunFolder
from rept.run.prepare import prepare
from rept.run.rescore import rescore
from rept.run.sample_rows import choose_layers
from rept.signatures.layer_strategy import LayerStrategy
from rept.store.reader import AttributionStore
from rept.types import Key
from rept.utils.progress import progress

PROBED = ("phase_transition", "stable_phase_transition", "gradient_norm", "deepest_drops", "labelled_probe")
PLAIN = ("last", "fraction")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run made with layers=every each=true")
    parser.add_argument("changes", nargs="*", help="other settings, such as scorer=cosine")
    parser.add_argument("--sets", type=int, default=20, help="probe sets")
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 16], help="rows of a probe set")
    arguments = parser.parse_args()
    source = RunFolder(arguments.run)
    config = compose(AttributeConfig, arguments.changes, base=source.open_existing())
    with stored(source):
        chosen = dict(choices(config, arguments.rows, arguments.sets))
    for line in table(by_layer(source, config), chosen):
        print(line)


@contextmanager
def stored(source: RunFolder) -> Iterator[None]:
    """Makes the strategies read the residual stream of training rows from a store instead of the model."""
    store = AttributionStore(source.store, "train")

    def read(site, model, batch, layers):
        wanted = [Key(site.name, layer, field) for layer in layers for field in site.fields]
        kept = {key: key._replace(field=f"{key.field}_{site.position}") for key in wanted}
        blocks = store.read(batch.row.numpy(), list(kept.values()))
        return {key: blocks[kept[key]] for key in wanted}

    with patch.object(ResidualStream, "__call__", read):
        yield


def choices(config: AttributeConfig, rows: Sequence[int], sets: int) -> Iterator[tuple[str, Counter[int]]]:
    """How often each layer was chosen, by strategy and number of probe rows."""
    job = prepare(config)
    plans = [(name, f"`{name}`, {n} rows", [f"layers.n={n}"], sets) for name in PROBED for n in rows]
    plans = [(name, f"`{name}`", [], 1) for name in PLAIN] + plans
    with progress("Choosing layers", total=sum(plan[-1] for plan in plans), unit="probe sets") as advance:
        for name, title, more, times in plans:
            job.strategy = build(compose(AttributeConfig, [f"layers={name}", *more]).layers, LayerStrategy)
            found: Counter[int] = Counter()
            for seed in range(times):
                job.config.seed = seed  # of the probe rows
                found.update(choose_layers(job)[0].layers)
                advance(1)
            yield title, found


def by_layer(source: RunFolder, config: AttributeConfig) -> list[float]:
    """The average precision of each single layer."""
    config.each, config.calibration.rate = True, None
    with TemporaryDirectory() as folder:
        each = rescore(source, RunFolder(Path(folder) / "ranked"), config).metrics["each"]
    found = {int(place.partition("/")[2]): measured.get("overall") for place, measured in each.items()}
    if len(found) < 2 or not all(found.values()):
        raise UsageError(f"Expected {source.path} to be a run with layers=every and labels of rows and queries.")
    return [found[layer]["average_precision"] for layer in sorted(found)]


def table(precision: Sequence[float], chosen: dict[str, Counter[int]]) -> Iterator[str]:
    layers = range(1, len(precision) + 1)
    yield "| | " + " | ".join(f"layer {layer}" for layer in layers) + " |"
    yield "| --- |" + " --- |" * len(precision)
    yield "| average precision | " + " | ".join(f"{one:.3f}" for one in precision) + " |"
    for title, found in chosen.items():
        yield f"| {title} | " + " | ".join(str(found[layer] or "") for layer in layers) + " |"


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        raise SystemExit(str(error)) from None
