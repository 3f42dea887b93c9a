"""On the import path of a fleet: its shards neither measure the hardware's rates nor foresee, see `running.lean`."""

import sys

if sys.orig_argv[1:4] == ["-m", "attnbench", "run"]:
    from tests import running

    exec(running.LEAN + running.NO_RATES + running.NO_FORECAST)
