"""The report: a run folder as a page that people read, and as pictures for papers."""
