"""What a measuring command leaves: its figures for machines, and beside them the page that stands in the documents."""

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from common.files import PUBLIC, write_atomically
from simulations.simulate import hardware


def origin(module: str, seed: int) -> dict[str, object]:
    """Return what figures come from: the command as it was given, hardware and seed."""
    return {"command": shlex.join(["python", "-m", module, *sys.argv[1:]]), "hardware": hardware(), "seed": seed}


def publish(out: Path, figures: Mapping[str, object], page: str) -> None:
    """Write OUT.json and OUT.md. Raises RunError."""
    write_atomically(out.with_suffix(".json"), (json.dumps(figures, indent=1) + "\n").encode(), mode=PUBLIC)
    write_atomically(out.with_suffix(".md"), page.encode(), mode=PUBLIC)
