"""What a data set is built on: the interface, and the types of its rows."""

from rept.data.datamodule import AttributionDataModule, SampleSource
from rept.data.samples import Sample, Span

__all__ = ["AttributionDataModule", "Sample", "SampleSource", "Span"]
