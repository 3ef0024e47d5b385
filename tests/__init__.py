"""The tests, in processes of one thread each: they share the processor, and results are compared bit for bit."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and torch are imported
