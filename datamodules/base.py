"""What a data set is built on: the interface, and the types of its rows."""

from rept.data.datamodule import AttributionDataModule
from rept.data.samples import Sample, SampleSource, Span

__all__ = ["AttributionDataModule", "Sample", "SampleSource", "Span"]
