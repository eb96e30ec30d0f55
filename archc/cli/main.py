"""The entry point: runs a command and turns what goes wrong into diagnostics and exit codes.

0 ok · 1 the input is wrong · 2 usage · 3 verification mismatch · 4 target or device unavailable · 70 internal ·
124 timeout · 130 interrupted · 143 terminated
"""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import typer

from archc.cli.console import StdoutError, discard_stdout, note, open_streams, print_json, report
from archc.ir.diagnostics import CompileError, Diagnostic, did_you_mean

INTERNAL = 70
INTERRUPTED = 130
TERMINATED = 143

_UsageError: Any = typer.BadParameter.__base__  # typer may carry its own click: this name is right either way


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `archc` with the given arguments (the process's by default), and exit."""
    open_streams()
    heed_signals()
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


class Terminated(BaseException):
    """SIGTERM: what is unfinished is cleaned up on the way out, as after Ctrl-C."""


_heeded = 0  # the exit code for the signal that has come; TVM makes a RuntimeError of what its callbacks raise


def heed_signals() -> None:
    """Let SIGTERM raise `Terminated`, as Ctrl-C raises KeyboardInterrupt."""
    with contextlib.suppress(ValueError):  # not in the main thread
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as in `nohup archc … &`
                signal.signal(number, _heed)


def _heed(number: int, frame: object) -> NoReturn:
    global _heeded
    _heeded = 128 + number
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    raise Terminated


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code."""
    global _heeded
    as_json, code, _heeded = "--json" in arguments, 0, 0
    try:
        try:
            code = _run(arguments)
        except CompileError as e:
            code = _heeded or e.exit_code
            if not _heeded:
                report(e.diagnostics, as_json)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Terminated:
        code = TERMINATED
    except StdoutError as e:
        unwritten = _unwritten(e)
        code = code or unwritten
    except Exception:  # a mistake of ours: it becomes a report and exit code 70, never a traceback
        if not _heeded:
            return _internal(arguments, as_json)
        code = _heeded
    if code == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return code


def _run(arguments: list[str]) -> int:
    from archc.cli.app import app

    try:
        code = app(arguments, prog_name="archc", standalone_mode=False)
    except SystemExit as e:  # shell completion leaves this way
        code = e.code
    except _UsageError as e:
        return _usage(e, "--json" in arguments)
    return code if isinstance(code, int) else 0


def _usage(error: Any, as_json: bool) -> int:
    """A command line that is not understood."""
    context = error.ctx
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()  # `archc` alone: the help
        return 2
    help = f"`{context.command_path} --help` shows how it is used" if context else None
    message = re.sub(r"'(.*?)'", r"`\1`", _OWN_ADVICE.sub("", error.format_message()).rstrip("."))
    word, known = _mistaken(error, message)
    close = did_you_mean(word, known)
    help = f"{close} {help or ''}".rstrip() if close else help
    report([Diagnostic("E0028", message[:1].lower() + message[1:], help=help)], as_json)
    return 2


_OWN_ADVICE = re.compile(r"\. Did you mean .*| \(Possible options: .*| Did you mean .*|Value error, ", re.DOTALL)
"""What the library that parses command lines adds: it suggests what is not close, too."""


def _mistaken(error: Any, message: str) -> tuple[str, list[str]]:
    """The word of a command line that is not known, and those that could stand in its place."""
    if error.ctx is not None and (option := getattr(error, "option_name", None)):
        return option, [name for p in error.ctx.command.params for name in p.opts]
    if error.ctx is not None and (command := re.fullmatch(r"No such command `(.*)`", message)):
        return command[1], list(getattr(error.ctx.command, "commands", ()))
    if choice := re.search(r"`([^`]*)` is not one of (.*)", message):
        return choice[1], re.findall(r"`(.*?)`", choice[2])
    return "", []


def _unwritten(error: StdoutError) -> int:
    """The results have no reader, which is the reader's choice, or no room."""
    discard_stdout()
    if error.unread:
        return 0
    report([Diagnostic("E0608", "cannot write to stdout", label=str(error), help="choose another place")])
    return 1


def _internal(arguments: list[str], as_json: bool) -> int:
    """Keep the traceback in a file: it is for us, not for the user."""
    from archc import __version__

    text = f"archc {__version__}, Python {sys.version}\narguments: {arguments}\n\n{traceback.format_exc()}"
    with tempfile.NamedTemporaryFile("w", prefix="archc-report-", suffix=".txt", delete=False) as file:
        file.write(text)
    if as_json:
        print_json({"ok": False, "internal_error": file.name})
    told = f"archc: internal error; this is a bug in archc, not in your program.\nPlease report it with {file.name}"
    print(told, file=sys.stderr)
    note(traceback.format_exc(), at=1)
    return INTERNAL
