"""Every bomb once into every command that opens images, so that none is left to chance: the first cases of a run."""

from pathlib import Path

import numpy as np

from crossprobe import main
from simulations.fuzz import cases, damage

COMMANDS = ("new", "check", "predict")
#: How many there are.
COUNT = len(COMMANDS) * len(damage.BOMBS)


def bomb(number: int, folder: Path) -> cases.Case:
    """Write the bomb of a number below `COUNT` into `folder`, which is there and empty, and return what is run."""
    command, kind = COMMANDS[number % len(COMMANDS)], list(damage.BOMBS)[number // len(COMMANDS)]
    content, images, out = damage.BOMBS[kind](), folder / "in", folder / "out"
    arguments = ["site", "check", str(images)]
    if command == "check":
        cases.site(np.random.default_rng(0), folder)
        (images / "site.yaml").write_bytes(cases.SITE_TEXT)
        (images / "images/0.png").write_bytes(content)
    else:
        images.mkdir()
        (images / "bomb").write_bytes(content)
    if command == "new":  # all that it can be asked to do
        arguments = ["site", "new", str(images), str(out), "--role", "target", "--patient-pattern", "(.)"]
        arguments += ["--keep-outside", "--keep-frames"]
    if command == "predict":
        cases.write_release(folder / "model")
        arguments = ["predict", "--model", str(folder / "model"), "--images", str(images), "--out", str(out)]
    return cases.Case(f"{command}: {kind}", lambda: main(arguments))
