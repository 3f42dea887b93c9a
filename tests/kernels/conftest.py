"""What is in interpreted/ runs in processes of its own, which test_interpreted.py starts."""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
