"""`crossprobe site person`: who may approve, where the site's policy asks for two."""

import json
from typing import Annotated

import typer

from common.options import Json, StateFolder, commands, examples

EXAMPLE = "crossprobe site person add 'Anna Berg' --state /srv/crossprobe"
app = commands(
    help="Look after who may approve, where the site's policy has `approvals_needed: 2`.",
    no_args_is_help=True,
    epilog=examples(EXAMPLE),
)


@app.callback()
def _group() -> None:
    """Keep `add` a command: typer makes a single command the group itself, unless there is a callback."""


@app.command(epilog=examples(EXAMPLE))
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="as it is written down with an approval")],
    state_folder: StateFolder,
    as_json: Json = False,
) -> None:
    """Add a person, who types a passphrase twice."""
    from clients.governance.persons import add_person
    from clients.governance.state import State

    state = State(state_folder)
    passphrase = ask_passphrase(name, new=True)
    added = add_person(state, name, passphrase)
    print(json.dumps({"added": added}) if as_json else f"added {added}: may approve, as one of two")


def ask_passphrase(name: str, *, new: bool = False) -> str:
    """Ask for a passphrase without showing it, on the error stream: the output may be read by a machine."""
    return str(typer.prompt(f"Passphrase of {name}", hide_input=True, confirmation_prompt=new, err=True))
