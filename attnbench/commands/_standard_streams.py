"""The standard streams of a command: open, writable in every encoding, and no cause of a lost result."""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from typing import Any, TextIO, cast

from attnbench.terminal import escaped

READABLE = "attnbench.readable"
"""The error handler: a character that an encoding lacks becomes the nearest one of ASCII, so that columns stay."""

_NEAREST = str.maketrans("×·−–—…≤≥→←↓µ±≈‖’‘“”│┃─━†", "x.---.<>><vu~~|''\"\"||--+") | str.maketrans(
    "₀₁₂₃₄⁰¹²³⁴⁵⁶⁸⁻▁▂▃▄▅▆▇█", "0123401234568-12345678"
)


def prepare() -> None:
    """Opens those of 0, 1 and 2 that are closed, and makes stdout and stderr write any text."""
    _open_closed()
    codecs.register_error(READABLE, _nearest)
    sys.stdout = _writer(sys.stdout, 1)
    sys.stderr = _writer(sys.stderr, 2)


def lost() -> str:
    """Why stdout could not be written so far; empty where it could, or where its reader has ended."""
    try:
        sys.stdout.flush()
    except (AttributeError, OSError, ValueError) as error:
        return f"it was closed or exchanged meanwhile ({error})"
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    failed = raw.error if isinstance(raw, _Raw) else None
    return "" if failed is None or failed.errno == errno.EPIPE else str(failed.strerror or failed)


def finish(code: int) -> int:
    """Flushes both. Returns the exit code: `code`, but 2 where that is 0 and stdout could not be written."""
    reason = lost()
    if reason:
        print(
            f"attnbench: stdout could not be written: {reason}. Nothing that was measured is lost: it is in the run "
            "folder. Make room or write elsewhere, and show it again.",
            file=sys.stderr,
        )
        code = code or 2
    sys.stderr.flush()
    return code


def _open_closed() -> None:
    """Else the next file that is opened would have the number of a standard stream."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one


def _nearest(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_NEAREST)
    return "".join(c if c.isascii() else "?" for c in text), error.end


class _Raw(io.FileIO):
    """Writes until an error, and discards the rest. error: that error."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        while self.error is None:
            try:
                written = cast("int | None", super().write(view))
                if written is not None:
                    return written
                select.select([], [self], [])  # whoever shares this stream has made it non-blocking
            except OSError as error:
                self.error = error
        return len(view)


class _Lines(io.TextIOWrapper):
    """Plain text of any origin, with control characters escaped. rich, whose styles are control characters, writes past
    it and escapes by itself: see `terminal.console`."""

    def write(self, text: str, /) -> int:
        super().write(escaped(text, lines=True))
        return len(text)

    @property
    def rich_proxied_file(self) -> _Styled:
        """Where rich writes in place of this stream."""
        return _Styled(self)


class _Styled:
    def __init__(self, stream: _Lines) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return io.TextIOWrapper.write(self._stream, text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _writer(stream: Any, number: int) -> TextIO:
    if sys.platform == "win32" and stream is not None:  # its console takes no bytes
        stream.reconfigure(errors=READABLE)
        return cast(TextIO, stream)
    raw = _Raw(number, "w", closefd=False)
    return _Lines(
        io.BufferedWriter(raw),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors=READABLE,
        line_buffering=number == 2 or raw.isatty(),
        write_through=getattr(stream, "write_through", False),
    )
