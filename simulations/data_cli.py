"""`crossprobe phantom` and `import`: the researcher's site folders, simulated or out of a public data set."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import typer

from common.options import Json, Overwrite, Seed, commands, examples
from simulations.phantom.devices import PROFILES
from simulations.show import counter, progress_bar

app = commands()


def _probes(values: list[str] | None) -> list[str] | None:
    """Refuse what is neither `PROFILE` nor `NAME=PROFILE`. Raises BadParameter."""
    from common.names import NAME
    from simulations.phantom.population import DRAWN

    for text in values or ():
        name, equals, profile = text.rpartition("=")
        if profile not in PROFILES and not DRAWN.fullmatch(profile):
            raise typer.BadParameter(f"expected a profile of {', '.join(PROFILES)}, or drawn-N; found {profile!r}")
        if equals and not re.fullmatch(NAME, name):
            raise typer.BadParameter(f"expected a name of small letters, digits and hyphens; found {name!r}")
    return values


Probes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]PROFILE",
        callback=_probes,
        autocompletion=lambda incomplete: [profile for profile in PROFILES if profile.startswith(incomplete)],
        help=f"such a site, seen with this probe, by default named after role, number and probe; repeat. Probes: "
        f"{', '.join(PROFILES)}; drawn-N is number N of a random population",
    ),
]
#: None: as in the demo.
Patients = Annotated[int | None, typer.Option(min=0, max=100_000, metavar="N", help="such patients a site")]


@app.command(
    epilog=examples(
        "crossprobe phantom runs/sites --source lumify_like --target telemed_like",
        "crossprobe phantom runs/many --source lumify_like --source lumify_like --target telemed_like --train 20",
    )
)
def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder to write the site folders into")],
    source: Probes = None,
    target: Probes = None,
    train: Patients = None,
    calibrate: Patients = None,
    val: Patients = None,
    test: Patients = None,
    frames: Annotated[int, typer.Option(min=1, max=1000, help="frames a patient")] = 3,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write folders of phantom sites.

    They hold simulated paediatric wrists, seen with simulated probes.
    """
    from simulations.phantom.demo import PATIENTS, write_sites

    if not source and not target:
        raise click.UsageError("give at least one --source or --target")
    asked = {"train": train, "calibrate": calibrate, "val": val, "test": test}
    counts: dict[Any, Any] = {
        role: {split: count if asked[split] is None else asked[split] for split, count in usual.items()}
        for role, usual in PATIENTS.items()
    }
    for role, profiles in (("source", source), ("target", target)):
        if profiles and not any(counts[role].values()):
            raise click.UsageError(f"a {role} site needs a patient: at least one of its counts above 0")
    with progress_bar() as bar:
        folders = write_sites(
            out,
            source=source or (),
            target=target or (),
            seed=seed,
            patients=counts,
            frames=frames,
            workers=os.cpu_count() or 1,
            overwrite=overwrite,
            on_site=lambda name: counter(bar, name),
        )
    _tell(folders, as_json)


@app.command(
    "import",
    epilog=examples(
        "crossprobe import busbra ~/busbra runs/busbra",
        "BUSBRA_DIR=~/busbra crossprobe import busbra runs/busbra",
        "crossprobe import busbra ~/busbra runs/busbra-logiq5-unlabelled --target ge-logiq5",
        "crossprobe import busbra ~/busbra runs/busbra-few --labelled 30",
    ),
)
def import_(
    dataset: Annotated[
        Literal["busbra"],
        typer.Argument(metavar="DATASET", help="busbra: BUS-BRA, doi:10.1002/mp.16812, a site for each scanner"),
    ],
    folders: Annotated[list[Path], typer.Argument(metavar="[DIR] OUT", help="DIR defaults to $BUSBRA_DIR")],
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITE",
            click_type=click.Choice(["ge-logiq7", "ge-logiq5"]),
            help="a labelled scanner that plays an unlabelled one: only its test patients keep their masks; repeat",
        ),
    ] = None,
    labelled: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="at most so many training patients with masks a scanner: few labels"),
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make site folders from a public data set.

    The data set itself is yours to get and to cite. The seed decides the split by patient.
    """
    from simulations.importers.busbra import import_busbra

    *given, out = folders
    if len(given) > 1 or (not given and not os.environ.get("BUSBRA_DIR")):
        raise click.UsageError("give DIR and OUT, or set BUSBRA_DIR and give OUT")
    origin = given[0] if given else Path(os.environ["BUSBRA_DIR"])
    made = import_busbra(origin, out, seed=seed, overwrite=overwrite, targets=target or (), labelled=labelled)
    _tell(made, as_json)


def _tell(folders: Sequence[Path], as_json: bool) -> None:
    """Print the site folders that a command made."""
    print(json.dumps([str(folder) for folder in folders]) if as_json else "\n".join(map(str, folders)))
