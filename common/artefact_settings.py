"""Which artefacts of ultrasound a training view may have, and how strong: what a study says of them. Torch-free."""

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field

#: What `common.artefacts` can draw into a training image.
Artefact = Literal[
    "reverberation",
    "shadow",
    "depth_blur",
    "speckle",
    "near_field_clutter",
    "time_gain",
    "compression",
    "calipers",
    "depth_setting",
    "field_of_view",
]


def _whole_bank(value: object) -> object:
    """Give every artefact the strength that a study writes as a single number."""
    return dict.fromkeys(get_args(Artefact), value) if isinstance(value, int | float) else value


#: Artefact -> strength in [0, 1]; a number stands for all of them at that strength.
Artefacts = Annotated[dict[Artefact, Annotated[float, Field(gt=0, le=1)]], BeforeValidator(_whole_bank)]
