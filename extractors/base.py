"""Base classes of extractors: the interface, and the readers of sites."""

from extractors.sites.reader import SingleSite, SiteExtractor
from rept.signatures.extractor import Extractor

__all__ = ["Extractor", "SingleSite", "SiteExtractor"]
