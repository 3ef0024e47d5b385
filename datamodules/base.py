"""The base class of data sets and the types of their rows."""

from rept.data.datamodule import AttributionDataModule
from rept.data.samples import Sample, SampleSource, Span

__all__ = ["AttributionDataModule", "Sample", "SampleSource", "Span"]
