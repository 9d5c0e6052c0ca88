"""The command `crossprobe` as a user meets it: help, examples, exit codes, completion, refusals of bad values."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml
from hospital import SECRET
from processes import processes_of
from pydantic import ValidationError
from tiny import content, write_study

from clients.governance.ledger import Ledger, entry
from clients.governance.state import State
from common.baseline import baseline_of
from common.options import MAX_SEED
from common.run_folder import RunFolder
from common.study import Study, load_study
from crossprobe import COMMANDS, app, main

ROOT = Path(__file__).parent.parent
HEAD = "HEAD-FROM-THE-COORDINATOR"


def every_command() -> Iterator[tuple[str, click.Command]]:
    """Every command and action with its words after `crossprobe`."""
    root: Any = typer.main.get_command(app)
    for name in COMMANDS:
        command = root.get_command(None, name)
        yield name, command
        for action, inner in getattr(command, "commands", {}).items():
            yield f"{name} {action}", inner


EVERY = dict(every_command())


def run(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "crossprobe", *words], capture_output=True, text=True, check=False, timeout=60, **more
    )


def examples_of(command: click.Command) -> list[list[str]]:
    """The words of each example of a command's help, without what stands before `crossprobe`."""
    text = (command.epilog or "").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if re.match(r"  .*crossprobe ", line)]
    return [shlex.split(line[line.index("crossprobe ") :])[1:] for line in lines]


def test_help_imports_nothing_heavy() -> None:
    script = "\n".join(
        [
            "import sys, contextlib, io, crossprobe",
            "with contextlib.redirect_stdout(io.StringIO()):",
            f"    codes = {{crossprobe.main([*words.split(), '--help']) for words in {['', *EVERY]!r}}}",
            "print(codes, {name.partition('.')[0] for name in sys.modules}",
            "      & {'torch', 'flwr', 'monai', 'numpy', 'grpc', 'pydantic', 'ray', 'scipy', 'PIL'})",
        ]
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "{0} set()\n"


@pytest.mark.parametrize("words", ["", *EVERY])
def test_every_command_has_examples_that_it_understands(words: str) -> None:
    examples = examples_of(EVERY[words] if words else typer.main.get_command(app))
    assert examples
    for example in examples:
        name = next(known for known in (" ".join(example[:2]), example[0]) if known in EVERY)
        assert words in ("", name, name.split()[0])
        given = [f"{0:064x}" if word == HEAD else word for word in example[len(name.split()) :]]
        EVERY[name].make_context(name, given)  # raises where an option, a value or an argument is wrong


def test_examples_are_printed_as_they_are_to_be_copied(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["provision", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "    crossprobe provision study.yaml --out kits --address fl.example.org --port 443 \\\n" in shown
    assert "\\[" not in shown


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--help"], 0, ""),
        (["--version"], 0, ""),
        ([], 2, "Usage: crossprobe"),
        (["nonsense"], 2, "No such command 'nonsense'"),
        (["study"], 2, "Usage: crossprobe study"),
        (["study", "check"], 2, "Missing argument 'STUDY'"),
        (["predict", "--nonsense"], 2, "No such option '--nonsense'"),
        (["study", "check", "no-such.yaml"], 1, "crossprobe study: cannot read the study no-such.yaml"),
        (["worker", "--socket", "w.sock"], 2, "give --site and --state, or --check"),
        (["report", "no-such-run"], 1, "crossprobe report:"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_the_exit_code_says_whether_it_was_done_refused_or_misused(words: list[str], code: int, said: str) -> None:
    done = run(*words)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert bool(done.stderr) == (code != 0)


BAD = [
    ("demo --seed -5", "--seed"),
    ("demo --seed 2147483648", "--seed"),
    ("demo --seed one", "--seed"),
    ("simulate study.yaml --sites a b --seed -1", "--seed"),
    ("ablate ablation.yaml --jobs 0", "--jobs"),
    ("phantom out", "--source or --target"),
    ("phantom out --source nobody", "--source"),
    ("phantom out --source lumify_like --train -1", "--train"),
    ("phantom out --source lumify_like --val -3", "--val"),
    ("phantom out --source lumify_like --frames 0", "--frames"),
    ("phantom out --source lumify_like --seed -1", "--seed"),
    ("phantom out --target lumify_like --train 0 --test 0", "a target site needs a patient"),
    ("import busbra a b c", "give DIR and OUT"),
    ("import elsewhere a b", "DATASET"),
    ("import busbra a b --seed -1", "--seed"),
    ("predict --model m --images i --out o --spacing-mm nan", "--spacing-mm"),
    ("provision study.yaml --out kits --port 0", "--port"),
    ("provision study.yaml --out kits --port 65536", "--port"),
    ("provision study.yaml --out kits --address https://x", "--address"),
    ("ledger verify --state s --head abc", "64 characters"),
    ("site disclosure study.yaml --role nobody", "--role"),
]


@pytest.mark.parametrize(("line", "said"), BAD, ids=[line for line, _ in BAD])
def test_a_bad_value_is_wrong_usage_and_writes_nothing(
    line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["rich", "plain"])
@pytest.mark.parametrize("lines", [1, 1000], ids=["in the last flush", "before"])
def test_a_reader_that_goes_away_ends_a_command_quietly(
    lines: int, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    ledger = Ledger(State.create(tmp_path / "state", SECRET).ledger)
    for _ in range(lines):
        ledger.append(entry("in", b"x"))
    command = [sys.executable, "-m", "crossprobe", "ledger", "show", "--state", str(tmp_path / "state"), *more]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(("told", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_is_told_to_end_leaves_nothing(told: signal.Signals, code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "crossprobe", "phantom", "sites", "--source", "lumify_like", "--train", "5000"]
    marker = f"CROSSPROBE_TEST={tmp_path}"
    environment = os.environ | {"CROSSPROBE_TEST": str(tmp_path), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("sites/.*.part/new/images/*.png")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # a terminal sends Ctrl-C to the whole group, a supervisor its signal to the process
    (os.killpg if told == signal.SIGINT else os.kill)(process.pid, told)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert told == signal.SIGTERM or "stopped" in said
    assert "--resume" not in said  # which it does not have
    assert "Traceback" not in said
    assert processes_of(marker) == set()
    assert list((tmp_path / "sites").iterdir()) == []


def test_the_shell_completes_commands_actions_and_options() -> None:
    def completed(words: str) -> set[str]:
        place = str(len(words.split(" ")) - 1)
        environment = {"_CROSSPROBE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": place}
        return set(run(env=os.environ | environment).stdout.split())

    assert completed("crossprobe s") == {"simulate", "site", "study"}
    assert completed("crossprobe site d") == {"desk", "desk-forward", "disclosure", "dry-run"}
    assert completed("crossprobe phantom out --so") == {"--source"}
    assert completed("crossprobe phantom out --source l") == {"lumify_like", "laptop_held_out"}


@pytest.mark.parametrize("name", ["demo", "rehearse"])
def test_a_commands_own_study_is_found_from_any_folder(name: str) -> None:
    (study,) = (option for option in EVERY[name].params if option.name == "study_file")
    assert Path(study.default).is_absolute()
    assert Path(study.default).is_file()
    assert str(ROOT) not in EVERY[name].get_help(click.Context(EVERY[name]))


def test_the_command_takes_the_seeds_that_a_study_takes() -> None:
    assert Study.model_validate(content() | {"seed": MAX_SEED}).seed == MAX_SEED
    with pytest.raises(ValidationError):
        Study.model_validate(content() | {"seed": MAX_SEED + 1})


def test_one_option_takes_the_words_of_a_shells_star() -> None:
    command = EVERY["simulate"]
    together = command.make_context("simulate", ["study.yaml", "--sites", "a", "b", "c", "--out", "run"]).params
    apart = command.make_context("simulate", ["--sites", "a", "--sites", "b", "--sites=c", "--out=run", "study.yaml"])
    assert [str(site) for site in together["sites"]] == ["a", "b", "c"]
    assert str(together["study_file"]) == "study.yaml"
    assert str(together["out"]) == "run"
    assert [str(site) for site in apart.params["sites"]] == ["a", "b", "c"]


def test_every_place_that_names_the_version_names_the_same() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    images = re.findall(r"image: crossprobe-\w+:(\S+)", (ROOT / "docker-compose.yml").read_text("utf-8"))
    assert len(images) == 5
    assert set(images) == {version}
    for template in (ROOT / "server" / "federation").glob("*.j2"):
        assert version not in template.read_text("utf-8"), f"{template.name}: write {{{{ version }}}}"
    assert str(yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"]) == version
    assert re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.M)[0] == version
    assert run("--version").stdout == f"crossprobe {version}\n"


def test_a_copy_outside_its_checkout_says_in_one_sentence_where_it_runs(tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    for file in ("crossprobe.py", "common/errors.py", "common/options.py", "common/version.py"):
        (tmp_path / file).write_bytes((ROOT / file).read_bytes())
    done = run("--help", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "from its checkout" in done.stderr


def test_overwriting_phantom_sites_takes_the_old_ones_away_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--train", "1", "--calibrate", "0", "--val", "0", "--test", "0", "--frames", "1"]
    out = tmp_path / "sites"
    assert main(["phantom", str(out), "--source", "lumify_like", "--source", "cart_dev", *few]) == 0
    (out / "ours").mkdir()
    (out / "ours" / "phantom.txt").write_text("not a phantom site")
    assert main(["phantom", str(out), "--source", "lumify_like", *few, "--overwrite"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["ours", "source-1-lumify-like"]
    (out / "source-1-lumify-like" / "notes.txt").write_text("mine")
    assert main(["phantom", str(out), "--target", "lumify_like", *few, "--overwrite"]) == 1
    assert "notes.txt" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == ["ours", "source-1-lumify-like"]


def test_a_refused_demo_leaves_the_sites_of_the_run_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn, begun = [], []
    monkeypatch.setattr("simulations.phantom.demo.write_sites", lambda *_, **__: drawn.append(1) or [])
    monkeypatch.setattr("simulations.cli.simulate_and_show", lambda *_, resume, **__: begun.append(resume))
    run = RunFolder(tmp_path / "run")
    words = ["demo", "--out", str(run.path)]
    assert main([*words, "--resume"]) == 0  # stopped while its sites were drawn
    assert (drawn, begun) == ([1], [False])
    run.baseline.make()
    demo = baseline_of(load_study(ROOT / "configs" / "demo.yaml"))
    run.baseline.study_input.write_text(yaml.safe_dump(demo.model_dump(mode="json")))
    assert main(words) == 0  # nothing of it was kept yet, and nobody asked to go on
    assert (drawn.pop(), begun.pop()) == (1, False)
    run.baseline.checkpoint.mkdir()
    run.baseline.state.write_text("{}")
    assert main([*words, "--seed", "1"]) == 1  # minutes of the baseline, and the sites that it began with
    assert "already holds a run" in capsys.readouterr().err
    assert main([*words, "--resume", "--seed", "1"]) == 1
    assert "another study or seed" in capsys.readouterr().err
    assert drawn == [1]
    assert main([*words, "--resume"]) == 0
    assert begun == [False, True]


def test_a_run_in_the_place_of_a_file_is_refused(
    tmp_path: Path, pair: Sequence[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    sites = ["--sites", *map(str, pair)]
    assert main(["simulate", str(write_study(tmp_path / "study.yaml")), *sites, "--out", str(file)]) == 1
    shown = capsys.readouterr().err
    assert str(file) in shown
    assert "Traceback" not in shown
    assert file.read_text() == "mine"


def test_a_rehearsal_in_the_place_of_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["rehearse", "--out", str(tmp_path / "file")]) == 1
    assert "Choose another --out" in capsys.readouterr().err
