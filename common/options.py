"""What the commands of all parts share: their options, the form of their help, several words after one option."""

import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import typer.core
from typer.core import TyperCommand

from common.spreadsheet import decimal

typer.core.HAS_RICH = False  # its boxes would break the examples in the middle of an option, its tracebacks show values

#: The seeds that a study may have, so that the command line refuses what the YAML would.
MAX_SEED = 2**31 - 1

Json = Annotated[bool, typer.Option("--json", help="print the result for machines")]
StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="study file (YAML)")]
SiteFolder = Annotated[Path, typer.Option("--site", metavar="DIR", help="folder with site.yaml and manifest.csv")]
StateFolder = Annotated[Path, typer.Option("--state", metavar="DIR", help="the site's state folder; not the data's")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run")]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="the same seed gives the same bytes")]
TensorBoard = Annotated[
    Path | None, typer.Option("--tensorboard", metavar="DIR", help="also write losses, score and Dice for TensorBoard")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what this command wrote there before")]
OneNetwork = Annotated[
    Literal["source_branch", "target_branch", "student"] | None,
    typer.Option(help="one network alone: a branch, at half the cost, or the student of a study that distils"),
]
#: Where the SuperLink is, for a shell or a container that always talks to the same one.
ADDRESS_VARIABLE, CA_VARIABLE = "CROSSPROBE_ADDRESS", "CROSSPROBE_CA"
#: The folder of the coordinator's signing keys, for the ServerApp and its commands.
KEYS_VARIABLE = "CROSSPROBE_SIGNING_KEYS"
Address = Annotated[
    str, typer.Option(metavar="HOST:PORT", help=f"the SuperLink's, as this machine sees it; else {ADDRESS_VARIABLE}")
]
Ca = Annotated[
    Path | None, typer.Option(metavar="FILE", help=f"the kit's ca.crt; else {CA_VARIABLE}", show_default=False)
]


def commands(**more: Any) -> typer.Typer:
    """Return a group of commands with plain help, whose examples can be copied."""
    return typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, **more)


def examples(*lines: str, note: str = "") -> str:
    """Return the end of a command's help: lines to copy, kept as they are, and a note."""
    return "\b\nexamples:\n" + "\n".join(f"  {line}" for line in lines) + (f"\n\n{note}" if note else "")


def only(main: Callable[..., None], *lines: str, option: str = "") -> None:
    """Run a function as the one command of a module, `python -m ...`.

    Args:
        lines: examples of it.
        option: takes several words, see `several`.
    """
    app = commands()
    app.command(cls=several(option) if option else None, epilog=examples(*lines))(main)
    app()


def number(text: str | float) -> float:
    """Return a number as people type it, with a decimal point or comma, and no `nan`. Raises BadParameter."""
    try:
        value = decimal(str(text).strip())
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise typer.BadParameter(f"expected a number such as 0.12, found {text}")
    return value


def typed(context: typer.Context) -> str:
    """Return the command as the user typed it, for the record of what it made."""
    words = context.find_root().obj
    return shlex.join(["crossprobe", *(sys.argv[1:] if words is None else words)])


def several(option: str) -> type[TyperCommand]:
    """Return a kind of command whose `option` takes all words up to the next one: `--sites runs/sites/*`."""

    class Several(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            given: list[str] = []
            current = ""
            for word in args:
                if word.startswith("-"):
                    current = word
                elif current == option != given[-1]:
                    given.append(option)
                given.append(word)
            return super().parse_args(ctx, given)

    return Several
