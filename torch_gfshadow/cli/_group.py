"""The command group: every mistake of a user is one line on stderr and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, Never

import click

from torch_gfshadow.errors import GFShadowError

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells report it."""

# click 8.1 prints the help of a bare group itself, later versions raise
_HELP_ASKED: tuple[type[Exception], ...] = tuple(
    filter(None, [getattr(click.exceptions, "NoArgsIsHelpError", None)])
)

TRACEBACK = "TORCH_GFSHADOW_TRACEBACK"


class OneLineErrors(click.Group):
    """A group whose errors are one line; ``TORCH_GFSHADOW_TRACEBACK=1`` shows where from."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and exit; without ``standalone_mode`` return or raise instead."""
        run = super().main
        if not standalone_mode:
            return run(args, prog_name, complete_var, standalone_mode=False, **extra)
        _tolerate_any_encoding()
        try:
            code = run(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.ClickException as error:
            if isinstance(error, _HELP_ASKED):
                error.show()
                sys.exit(error.exit_code)
            _fail(_usage_message(error), error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            _fail("Interrupted.", INTERRUPTED)
        except BrokenPipeError:  # the reader, `head` for example, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except (GFShadowError, ValueError, OSError, ImportError) as error:
            if os.environ.get(TRACEBACK, "0") not in ("", "0"):
                raise
            _fail(str(error) or type(error).__name__, 2)
        sys.exit(code if isinstance(code, int) else 0)


def _usage_message(error: click.ClickException) -> str:
    message = error.format_message().rstrip()
    if message[-1:] not in ".?!":
        message += "."
    context = getattr(error, "ctx", None)
    if context is not None:
        message += f" See `{context.command_path} --help`."
    return message


def _fail(message: str, code: int) -> Never:
    click.echo(f"gfshadow: {' '.join(message.split())}", err=True)
    sys.exit(code)


def _tolerate_any_encoding() -> None:
    # λ and ± must not end a run on a terminal that lacks them
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
