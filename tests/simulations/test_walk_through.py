"""The documents' walk-through, run block by block as a reader would."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_walk_through_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "walk-through.md").read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"docs/walk-through.md, block {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert re.search(r"unlabelled +infusion +Dice 0\.\d{3}", printed)
    assert re.search(r"\n2 refine \{'labelled': [\d.]+, 'unlabelled': [\d.]+\} score 0", printed)
    assert printed.splitlines()[-1].startswith("(300, 400) 0.")
    work = tmp_path / "runs" / "walk-through"
    assert len(list((work / "segmented" / "masks").rglob("*.png"))) == 11
    assert (work / "run" / "report.html").read_text("utf-8").count("data:image/webp") > 10
