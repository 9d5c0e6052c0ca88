"""The command `crossprobe`: finds the part that a command belongs to and imports only that."""

import errno
import logging
import os
import signal
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from common.errors import CrossProbeError
from common.options import examples
from common.version import software_version

#: Command -> the module whose `app` has it. These import torch, Flower and the rest only where a command uses them.
COMMANDS = {
    "demo": "simulations.cli",
    "simulate": "simulations.cli",
    "ablate": "simulations.cli",
    "audit": "simulations.cli",
    "phantom": "simulations.data_cli",
    "import": "simulations.data_cli",
    "rehearse": "simulations.cli",
    "site": "clients.cli",
    "worker": "clients.cli",
    "ledger": "clients.cli",
    "predict": "clients.cli",
    "export": "clients.cli",
    "doctor": "clients.cli",
    "provision": "server.cli",
    "check-kit": "server.cli",
    "study": "server.cli",
    "report": "server.cli",
}
#: Commands whose run goes on, and how.
GOES_ON = dict.fromkeys(("demo", "simulate"), "--resume continues the run") | {"ablate": "the same command goes on"}
#: What a disk or its owner refuses, wherever a command did not expect it.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
#: What a path cannot be, or a disk in the network that is away.
PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN)
CORRECT = "Correct the path, or see to it that its disk is there, then try again."
REMEDY = "Make room there or give a place that this user may read and write, then try again."
#: Exit codes of a shell for a process that was ended by a signal.
INTERRUPTED, BROKEN_PIPE, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGPIPE, 128 + signal.SIGTERM


class Commands(TyperGroup):
    """The commands by name; an error that a person is meant to read ends each as a message."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        return typer.main.get_group(import_module(COMMANDS[cmd_name]).app).commands[cmd_name]

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CrossProbeError as error:
            typer.echo(f"crossprobe {ctx.invoked_subcommand}: {error}", err=True)
            raise typer.Exit(1) from None
        except OSError as error:
            if error.errno not in (*DISK, *PATH):
                raise
            place = f"{error.filename}: " if error.filename else ""
            remedy = REMEDY if error.errno in DISK else CORRECT
            typer.echo(f"crossprobe {ctx.invoked_subcommand}: {place}{error.strerror}. {remedy}", err=True)
            raise typer.Exit(1) from None
        except RuntimeError as error:
            if "Symlink loop" not in str(error):  # pathlib's own, before Python 3.13
                raise
            typer.echo(f"crossprobe {ctx.invoked_subcommand}: {error}. {CORRECT}", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            more = GOES_ON.get(ctx.invoked_subcommand)
            typer.echo(f"\nstopped; what was saved is whole{f', {more}' if more else ''}", err=True)
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=Commands,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=examples(
        "crossprobe demo",
        "crossprobe phantom runs/sites --source lumify_like --target telemed_like",
        "crossprobe simulate configs/demo.yaml --sites runs/sites/* --out runs/first",
        "crossprobe site check /data/our-site",
        "crossprobe predict --model runs/first --images scans/ --out masks/ --spacing-mm 0.12",
        note="`crossprobe COMMAND --help` explains a command.",
    ),
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"crossprobe {software_version()}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Federated ultrasound segmentation for probes that nobody labelled."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 done, 1 a reported problem, 2 wrong usage, 130 Ctrl-C, 141 nobody reads the output any more (`| head`), 143 told
    to end, which leaves nothing half written either.
    """
    if not (Path(__file__).parent / "pyproject.toml").is_file():
        print(
            "crossprobe is an application and runs from its checkout (`make install`) or its container, not from an "
            f"installed copy such as {Path(__file__).parent}.",
            file=sys.stderr,
        )
        return 1
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    words = sys.argv[1:] if arguments is None else arguments
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # the worker and the desk have their own way
    try:
        try:
            typer.main.get_command(app).main(words, prog_name="crossprobe", obj=words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        pass
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):  # click's and rich's way to say it
            return end.code if isinstance(end.code, int) else int(end.code is not None)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where the rest of the output goes
    return BROKEN_PIPE


if __name__ == "__main__":
    sys.exit(main())
