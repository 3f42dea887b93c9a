"""The door: whatever happens behind it, a command ends with one of its exit codes and no traceback.

0 done · 1 regression (gate), failed cell (run) · 2 bad usage, or cannot compare · 3 undecided, or nothing measured ·
70 a fault of attnbench itself · 130 interrupted. Nothing is imported before signals are heeded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import typer

OWN_FAULT = 70
INTERRUPTED = 130


def main() -> NoReturn:
    """The entry point. Leaves the interpreter with the command's exit code."""
    try:
        from attnbench import interrupts

        interrupts.heed()
        code = _run()
        interrupts.end_at_once()
    except KeyboardInterrupt:  # the first interrupt, and those that follow soon are none of their own
        interrupts.end_at_once()
        code = INTERRUPTED
    except BaseException:  # it could not even be told: an operator's file has closed stderr
        code = OWN_FAULT
    _leave(code)


def _run() -> int:
    from attnbench import descendants
    from attnbench.commands import _standard_streams as standard_streams

    standard_streams.prepare()
    descendants.adopt()
    try:
        from attnbench.commands import _app as app

        return app.run()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseException as error:
        return _failed(error)


def _failed(error: BaseException) -> int:
    """Tells of what ended a command, in one paragraph on stderr. Returns the exit code."""
    import os
    import sys

    from click import Abort

    from attnbench.errors import BadInput, said

    if isinstance(error, BadInput):
        print(f"attnbench: {error}", file=sys.stderr)
        return 2
    if isinstance(error, (SystemExit, Abort)) and error.__context__ is not None:
        error = error.__context__  # click makes an exit of a broken pipe, and an Abort of EOFError
    if os.environ.get("ATTNBENCH_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    from attnbench import __version__

    print(
        f"attnbench: this should not have happened: {said(error)}. It is a fault of attnbench {__version__}, not of "
        "what you gave; what was measured is stored. Please open an issue in attnbench's repository, with the command "
        "and what it prints when ATTNBENCH_DEBUG=1 is set.",
        file=sys.stderr,
    )
    return OWN_FAULT


def _leave(code: int) -> NoReturn:
    """Not by way of the interpreter's own end: it puts signals back to killing, and waits for threads that an
    operator's file has left running."""
    import atexit
    import os

    from attnbench import descendants
    from attnbench.commands import _standard_streams as standard_streams

    try:
        descendants.end_all()
        atexit._run_exitfuncs()
        code = standard_streams.finish(code)
    finally:
        os._exit(code)


def __getattr__(name: str) -> Any:
    """`app`, with every verb, and `VERBS`: for tests and tools that call the commands in this process."""
    from attnbench.commands import _app as app

    if name == "VERBS":
        return app.VERBS
    if name != "app":
        raise AttributeError(name)
    whole: typer.Typer = app.assemble()
    return whole


if __name__ == "__main__":
    main()
