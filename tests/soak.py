"""Many rounds between two hospitals over wires, with processes killed and wires cut at random from a seed.

    make soak                                    200 rounds, seed 1
    make soak SOAK='--rounds 40 --seed 7'        others
    python tests/soak.py --tell docs/soak        write docs/performance.md's section anew from that folder

Each service is started again by its restart policy, a run whose ServerApp was killed by `--resume`. Then: was every
round counted once, by both sites; is the model bit for bit that of an undisturbed run; did no site answer a round in
two ways; is each ledger whole; does no process grow. What was seen is written to soak.json in `--out`. Exit code 1 if
any of it is not so. Needs root, iproute2 and nginx-light.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from memory import Sample, chart, growth, resident_mb
from networked import NetworkedFederation, missing
from tiny import content, write_site, write_study
from wire import Weather

from clients.governance.ledger import read as read_ledger
from common.run_folder import RunFolder
from simulations.federation import one_interrupt
from simulations.publication import PERFORMANCE, insert

KINDS = ("worker", "supernode", "clientapp", "superlink", "serverapp", "cut")
#: Share of rounds in which something happens.
OFTEN = 0.12
#: When, in seconds after the round began, and how long a cut lasts: below and above the 60 s that Flower waits.
AT_S, CUT_S = (0.0, 12.0), (5.0, 90.0)
#: More than this in MB a round is growth: 20 MB in a study of 200 rounds.
FLAT_MB = 0.1
#: What is said of memory; all else that is found is about rounds, bits and ledgers.
GROWS = "grows by"
NOTHING_LOST = "every round counted once, by both sites, and the model is the undisturbed run's bit for bit"
#: A round that takes longer is stuck.
STUCK_S = 900.0


@dataclass(frozen=True)
class Event:
    """What happens in a round."""

    round: int
    kind: str
    site: str
    at_s: float
    lasts_s: float


def plan(seed: int, rounds: int, sites: list[str]) -> dict[int, Event]:
    """Return what happens in which round; the same for the same arguments."""
    dice = random.Random(seed)
    return {
        index: Event(
            index, dice.choice(KINDS), dice.choice(sites), round(dice.uniform(*AT_S), 1), round(dice.uniform(*CUT_S), 1)
        )
        for index in range(rounds)
        if dice.random() < OFTEN
    }


class Soak:
    """A run that is disturbed by a plan, and what was seen of it."""

    def __init__(self, federation: NetworkedFederation, events: dict[int, Event]) -> None:
        self.federation, self.events = federation, dict(events)
        self.memory: dict[str, list[Sample]] = defaultdict(list)
        self.happened: list[Event] = []
        self.ends: list[tuple[int, int, str]] = []
        self.mended: dict[str, float] = {}
        self.done, self.since = 0, time.monotonic()

    def run(self) -> None:
        """Run the study to its end."""
        more: tuple[str, ...] = ()
        while True:
            with self.federation.running(*more) as running:
                while running.poll() is None:
                    self._look()
                    time.sleep(0.5)
            self._look()
            said = self.federation.said.read_text().strip().splitlines()
            self.ends.append((self.done, running.returncode, said[-1] if said else ""))
            if running.returncode == 0 or len(self.ends) > len(self.happened) + 1:
                return
            more = ("--resume",)

    def _look(self) -> None:
        self.federation.tend()
        now = time.monotonic()
        for site, until in list(self.mended.items()):
            if now >= until:
                self.federation.wires[site].weather = Weather()
                del self.mended[site]
        done = sum(record.counted for record in self.federation.records())
        if done > self.done:
            self._sample(done - 1)
            self.done, self.since = done, now
        assert now - self.since < STUCK_S, f"round {self.done} is stuck\n{self.federation.logs()}"
        event = self.events.get(self.done)
        due = RunFolder(self.federation.run_folder).nodes.exists() and now - self.since > (event.at_s if event else 0)
        if event and due and self._happens(event):
            print(f"round {event.round}: {event.kind} of {event.site}", flush=True)
            self.happened.append(self.events.pop(self.done))

    def _happens(self, event: Event) -> bool:
        """Do it; return False if there is no app to be killed yet."""
        if event.kind == "cut":
            self.federation.wires[event.site].weather = Weather(cut=True)
            self.mended[event.site] = time.monotonic() + event.lasts_s
        elif event.kind in ("worker", "supernode"):
            self.federation.kill(f"{event.site}-{event.kind}")
        elif event.kind == "superlink":
            self.federation.kill("coordinator-superlink")
        else:
            key = "coordinator-serverapp" if event.kind == "serverapp" else f"{event.site}-superexec"
            apps = self.federation.apps(key, f"flwr-{event.kind}")
            for pid in apps:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return bool(apps)
        return True

    def _sample(self, index: int) -> None:
        """Note the memory of all that lives as long as the run; a ClientApp is a new process in each round."""
        pids: dict[str, list[int]] = {key: [process.pid] for key, process in self.federation.processes.items()}
        pids["coordinator-superexec"] = pids.pop("coordinator-serverapp")
        pids["coordinator-proxy"] = self.federation.apps("coordinator-proxy", "nginx")
        pids["study-serverapp"] = self.federation.apps("coordinator-serverapp", "flwr-serverapp")
        for name, group in pids.items():
            with contextlib.suppress(OSError):  # it is down
                if group:
                    mb = sum(resident_mb(pid) for pid in group)
                    self.memory[name].append(Sample(index, group[0], round(mb, 2)))


def findings(soak: Soak, rounds: int, undisturbed: bytes) -> list[str]:
    """Return all that is not as it should be."""
    federation, found = soak.federation, []
    counted = [record for record in federation.records() if record.counted]
    if [record.round for record in counted] != list(range(rounds)):
        found.append(f"expected rounds 0 to {rounds - 1} once each, found {[r.round for r in counted]}")
    absent = [(r.round, name, s.status) for r in counted for name, s in r.sites.items() if s.status != "ok"]
    found += [f"counted without a site that it needs: {absent}"] if absent else []
    if RunFolder(federation.run_folder).model.read_bytes() != undisturbed:
        found.append("the model is not the undisturbed run's")
    for name in federation.names:
        answers = defaultdict(set)
        for entry in read_ledger(federation.kits / name / "state" / "ledger.jsonl"):  # it checks the chain
            if entry["direction"] == "out" and entry["round"] is not None and not entry["refusal"]:
                answers[entry["round"]].add(entry["sha256"])
        twice = [index for index, different in answers.items() if len(different) > 1]
        found += [f"{name} answered rounds in two ways: {twice}"] if twice else []
        lost = sorted(set(range(rounds)) - answers.keys())
        found += [f"{name}'s ledger lacks rounds {lost}"] if lost else []
    killed = sum(event.kind == "serverapp" for event in soak.happened)
    failed = [end for end in soak.ends if end[1]]
    if len(failed) != killed:
        found.append(f"expected a run to end early {killed} times, as its ServerApp was killed, found {failed}")
    for name, samples in soak.memory.items():
        slope = growth(samples)
        if slope is not None and slope[0] > FLAT_MB:
            found.append(f"{name} {GROWS} {slope[0]:.3f} MB a round, more than {FLAT_MB}")
    return found


def written(soak: Soak, options: argparse.Namespace, seconds: float, found: list[str]) -> dict[str, Any]:
    """Return what soak.json holds."""
    model = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), ":")
    records = soak.federation.records()
    slopes = {name: growth(samples) for name, samples in sorted(soak.memory.items())}
    return {
        "command": f"python tests/soak.py --rounds {options.rounds} --seed {options.seed}",
        "hardware": f"{os.cpu_count()} cores, {model.partition(':')[2].strip()}",
        "software": f"Python {platform.python_version()}, torch {torch.__version__}, Linux {platform.release()}",
        "seconds": round(seconds),
        "median_round_s": round(sorted(r.seconds for r in records)[len(records) // 2], 1),
        "rounds_that_fell_short": sum(not record.counted for record in records),
        "happened": [asdict(event) for event in soak.happened],
        "restarts": dict(sorted(soak.federation.restarts.items())),
        "runs_ended": [{"round": at, "code": code, "said": said} for at, code, said in soak.ends],
        "findings": found,
        "flat_mb_a_round": FLAT_MB,
        "growth": {name: s and {"mb_a_round": round(s[0], 4), "rounds": s[1]} for name, s in slopes.items()},
        "memory": {name: [[s.round, s.pid, s.mb] for s in each] for name, each in sorted(soak.memory.items())},
    }


def section(result: dict[str, Any]) -> str:
    """Return what docs/performance.md says of a soak."""
    kinds = Counter(event["kind"] for event in result["happened"])
    what = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    rows = [
        f"| {name} | {len({pid for _, pid, _ in memory})} | {max(mb for *_, mb in memory):.0f} | "
        + (f"{grown['mb_a_round']:+.3f} over {grown['rounds']} |" if grown else "too few rounds |")
        for name, memory in result["memory"].items()
        for grown in [result["growth"][name]]
    ]
    grown = [each for each in result["findings"] if GROWS in each]
    lost = [each for each in result["findings"] if GROWS not in each]
    lines = [
        f"`{result['command']}` on {result['hardware']} ({result['software']}), beside other work: "
        f"{result['seconds'] / 60:.0f} minutes, {result['median_round_s']} s a round in the middle.",
        "",
        f"What happened: {what}. {result['rounds_that_fell_short']} attempts at a round fell short and were repeated.",
        "",
        "What was found: " + ". ".join(("; ".join(lost) or NOTHING_LOST, "; ".join(grown) or "no process grows")) + ".",
        "",
        f"| process | lives | most MB | MB a round (flat: at most {result['flat_mb_a_round']}) |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
        "![memory of each process over the rounds](soak/memory.svg)",
    ]
    return "\n".join(lines)


def tell(folder: Path) -> None:
    """Write a soak's picture, and its part of docs/performance.md."""
    result = json.loads((folder / "soak.json").read_text(encoding="utf-8"))
    memory = {name: [Sample(*each) for each in samples] for name, samples in result["memory"].items()}
    (folder / "memory.svg").write_text(chart(memory, 1 + max(each[-1].round for each in memory.values())))
    insert(PERFORMANCE, "soak", section(result))


def main() -> int:
    """Soak, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    parser.add_argument("--tell", type=Path, metavar="DIR", help="do not soak; write the page from this folder")
    options = parser.parse_args()
    if options.tell:
        tell(options.tell)
        return 0
    if lacking := missing():
        print(f"a soak cannot run here: {lacking}", file=sys.stderr)
        return 1
    stages = [stage for stage in content()["stages"] if stage["name"] in ("pretrain", "refine")]
    stages[-1] |= {"rounds": options.rounds - 3}  # and one to begin with, a score and an evaluation
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_interrupt())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="crossprobe-soak-"))
        root = Path(folder)
        sites = [write_site(root / "north", "source"), write_site(root / "east", "target", seed=1, gain=0.7)]
        patient = {"deadline_s": 240.0, "retries": 20}
        study = write_study(root / "study.yaml", stages=stages, participation=patient)
        (root / "federation").mkdir()
        federation = stack.enter_context(NetworkedFederation(root / "federation", study, sites, seed=options.seed))
        soak = Soak(federation, plan(options.seed, options.rounds, federation.names))
        federation.start_coordinator()
        federation.register()
        federation.start_sites()
        began = time.monotonic()
        soak.run()
        seconds = time.monotonic() - began
        found = findings(soak, options.rounds, federation.undisturbed(root / "undisturbed"))
        result = written(soak, options, seconds, found)
        (options.out / "soak.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
    print("\n".join(found) or f"{options.rounds} rounds, {len(soak.happened)} disturbances, nothing lost")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
