"""The entry point: runs a command and turns what goes wrong into diagnostics and exit codes.

0 ok · 1 the input is wrong · 2 usage · 3 verification mismatch · 4 target or device unavailable · 70 internal ·
124 timeout · 130 interrupted
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import NoReturn

from archc.cli.console import report
from archc.ir.diagnostics import CompileError

INTERNAL = 70
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `archc` with the given arguments (the process's by default), and exit."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code."""
    from archc.cli.app import app

    try:
        app(arguments, prog_name="archc")
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    except CompileError as e:
        report(e.diagnostics, as_json="--json" in arguments)
        return e.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader went away: `archc summary … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        return _internal(arguments)
    return 0


def _internal(arguments: list[str]) -> int:
    """Keep the traceback in a file: it is for us, not for the user."""
    from archc import __version__

    text = f"archc {__version__}, Python {sys.version}\narguments: {arguments}\n\n{traceback.format_exc()}"
    with tempfile.NamedTemporaryFile("w", prefix="archc-report-", suffix=".txt", delete=False) as file:
        file.write(text)
    print(
        f"archc: internal error; this is a bug in archc, not in your program.\nPlease report it with {file.name}",
        file=sys.stderr,
    )
    return INTERNAL
