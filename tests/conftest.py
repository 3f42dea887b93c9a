"""One thread for all that tests start: on tensors so small a second thread only waits, and waiting spins."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in what is started from here
