"""The entry point: every command ends with one of its exit codes and without a traceback.

0 done · 1 regression (gate), failed cell (run) · 2 bad usage, or not comparable · 3 undecided, or nothing measured ·
70 internal error · 130 interrupted. Signal handlers are installed before anything else is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import typer

INTERNAL_ERROR = 70
INTERRUPTED = 130

RARELY = (200_000, 30, 30)
"""When garbage is collected, as mypy has it. Imports make no garbage, but Python looks for it whenever there are more
objects: that is a fifth of torch's import, and half a second of a command that predicts memory."""


def main() -> NoReturn:
    """Runs the command line. Ends the interpreter with the command's exit code."""
    try:
        from attnbench import interrupts

        interrupts.heed()
        code = _run()
        interrupts.end_at_once()
    except KeyboardInterrupt:  # the first interrupt; those that follow within a second count as the same one
        interrupts.end_at_once()
        code = INTERRUPTED
    except BaseException:  # the message could not be printed: an operator's file has closed stderr
        code = INTERNAL_ERROR
    _leave(code)


def _run() -> int:
    import gc

    from attnbench import descendants
    from attnbench.commands import _standard_streams as standard_streams

    gc.set_threshold(*RARELY)
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
    """Prints what ended a command, as one paragraph on stderr. Returns the exit code."""
    import os
    import sys

    from click import Abort

    from attnbench.errors import BadInput, described

    if isinstance(error, BadInput):
        print(f"attnbench: {error}", file=sys.stderr)
        return 2
    if isinstance(error, (SystemExit, Abort)) and error.__context__ is not None:
        error = error.__context__  # click turns a broken pipe into an exit, and EOFError into Abort
    if os.environ.get("ATTNBENCH_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    from attnbench import __version__

    print(
        f"attnbench: internal error: {described(error)}. This is a bug in attnbench {__version__}, not in your input; "
        "what was measured is stored. Please open an issue in attnbench's repository, with the command and its output "
        "with ATTNBENCH_DEBUG=1 set.",
        file=sys.stderr,
    )
    return INTERNAL_ERROR


def _leave(code: int) -> NoReturn:
    """Ends the process without the interpreter's finalisation, which restores the default signal handlers and waits
    for threads that an operator's file has left running."""
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
    """`app` (every verb) and `VERBS`, for tests and tools that call commands in this process."""
    from attnbench.commands import _app as app

    if name == "VERBS":
        return app.VERBS
    if name != "app":
        raise AttributeError(name)
    all_verbs: typer.Typer = app.assemble()
    return all_verbs


if __name__ == "__main__":
    main()
