"""How the pages are made: their templates beside this file, everything escaped, and how numbers are written."""

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from server.report.conclusions import points

ROLE_WORDS = {"source": "source, labelled", "target": "target, unlabelled"}


def environment() -> Environment:
    """Return the environment of the templates."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["roles"] = ROLE_WORDS
    made.filters |= {
        "percent": lambda share: f"{100 * share:.1f}",
        "points": points,
        "words": lambda name: name.replace("_", " "),
        "megabytes": lambda count: f"{count / 1e6:,.2f}",
        "duration": duration,
        "base64": lambda content: base64.b64encode(content).decode(),
    }
    return made


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it: `42 s`, `12 min`, `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
