"""A whole run: enrol, all rounds, a checkpoint after each, the final model. The same over any transport."""

import contextlib
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors import SafetensorError
from safetensors.numpy import load

from common.components import BASELINE, ROLES, Role, Tensors
from common.errors import ContractError, RunError
from common.files import write_atomically
from common.fixed_point import check_room
from common.masking import check_agreeable
from common.messages import EnrolReply, EnrolRequest, Message
from common.run_folder import GO_ON, RunFolder
from common.stage import Round
from common.study import Study
from server import history, pause
from server.algorithm import init, lacking
from server.history import RoundRecord
from server.pause import Pause
from server.release import write_release
from server.rounds import run_round
from server.state import Participant, ServerState, load_state, save_state
from server.survivors import Survivors
from server.transport import ENROL_S, Transport, header_of

log = logging.getLogger("crossprobe.server")

#: Sites that are not there are asked again after this, in seconds.
ASK_AGAIN_S = 5.0
#: Refusals of a site that answered the study in another run.
ANSWERED_BEFORE = ("old-round", "round-answered")
#: A site's refusal of weights that look made rather than trained.
LOOKS_MADE = "implausible-weights"


def enrol(study: Study, transport: Transport, *, wait_s: float = 0.0) -> dict[str, Participant]:
    """Ask all sites who they are and return their participants.

    Args:
        wait_s: how long a role that is short is waited for: a site may still be starting.

    Raises:
        RunError: naming every site that said no, if a role has fewer sites than the quorum; or naming the study's
            bounds, if they leave no room for an exact sum under masks over the patients there are.
    """
    deadline = time.monotonic() + wait_s
    participants, noes = _ask(study, transport)
    while (short := _short(study, participants)) and time.monotonic() < deadline:
        if not participants and noes and all(why.startswith("not-approved") for why in noes.values()):
            break  # it is the study, not the sites
        time.sleep(ASK_AGAIN_S)
        more, noes = _ask(study, transport, participants)
        participants |= more
    answers = [f"  {site}: {why}" for site, why in noes.items()]
    if short:
        needs = ", ".join(f"needs {least} {role} site(s), found {count}" for role, (count, least) in short.items())
        raise RunError(
            f"study `{study.name}` {needs}:\n"
            + "\n".join(answers or ["  no other site answered"])
            + "\nConnect or approve the missing sites, then start again."
        )
    for no in answers:
        log.warning("not enrolled: %s", no.strip())
    _check_room(study, participants)
    return participants


def _check_room(study: Study, participants: Mapping[str, Participant]) -> None:
    """Check what each site would refuse its first masked round for: a sum over all patients that might overflow."""
    for role in study.secure_aggregation:
        patients = sum(one.patients for one in participants.values() if one.role == role)
        try:
            check_room(study.participation.max_norm, patients)
        except ContractError:
            raise RunError(
                f"study `{study.name}` sums updates under masks, exactly only while max_norm x patients is small: its "
                f"max_norm is {study.participation.max_norm:g}, and the {role} sites declare {patients} patients "
                "together. Lower participation.max_norm or participation.patients_cap; hospitals then approve again."
            ) from None


def _ask(
    study: Study, transport: Transport, known: Collection[str] = (), patience_s: float = ENROL_S
) -> tuple[dict[str, Participant], dict[str, str]]:
    """Ask all sites but the known; return the participants of those that take part, and why the others do not."""
    participants, noes = {}, {}
    request = Message.of(EnrolRequest(study=study.hash()))
    replies = transport.enrol(request.payload, list(known), patience_s)
    for site, payload in sorted(replies.items()):
        try:
            header = header_of(payload)
            if not isinstance(header, EnrolReply) or header.study != study.hash():
                raise ContractError("not-a-reply", "expected an enrolment in this study")
            if header.request != request.sha256:
                raise ContractError("old-reply", "expected an answer to this very question, found one to another")
            if header.site != site:
                raise ContractError(
                    "other-name", f"its site.yaml names it {header.site}, its keys are registered as {site}"
                )
            if header.patients == 0:
                raise ContractError("no-patients", "the site declares no training patients")
            if header.role in study.secure_aggregation and header.mask_key is None:
                raise ContractError("no-mask-key", "the site gives no key to sum its updates under masks with")
            if header.mask_key is not None:  # a bad one would stop every other site's round
                check_agreeable(bytes.fromhex(header.mask_key.key))
            patients = study.participation.counted(header.patients)
            participants[site] = Participant(header.role, patients, header.labelled_test, header.mask_key)
        except ContractError as error:
            noes[site] = str(error)
    return participants, noes


def _short(study: Study, participants: Mapping[str, Participant]) -> dict[Role, tuple[int, int]]:
    """Return each role that the study needs and that has too few sites: how many there are, how many it needs."""
    count = Counter(participant.role for participant in participants.values())
    return {role: (count[role], study.needs(role)) for role in ROLES if count[role] < study.needs(role)}


def initial_components(study: Study) -> Tensors:
    """Return all tensors from the study's seed, replaced where `study.initial` names a file.

    Raises:
        RunError: if a file cannot be read, is not the one named by its hash, or does not fit.
    """
    from common.networks import initial_networks  # torch: only where tensors are made

    networks = initial_networks(study)
    for owner, weights in study.initial.items():
        try:
            blob = weights.file.read_bytes()
            tensors = load(blob)
        except (OSError, SafetensorError, KeyError) as error:  # KeyError: of a kind of number that numpy lacks
            raise RunError(f"initial weights of `{owner}`: cannot read {weights.file}: {error}") from None
        sha256 = hashlib.sha256(blob).hexdigest()
        if sha256 != weights.sha256:
            raise RunError(
                f"initial weights of `{owner}`: {weights.file} has SHA-256 {sha256}, the study names {weights.sha256}."
            )
        # A baseline run's model is a source branch; here it takes the place it is asked for.
        prefix = "source_branch" if owner == "baseline" else owner
        renamed = {
            owner + k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith((prefix + ".", prefix + "/"))
        }
        try:
            if not renamed:
                raise RuntimeError(f"no tensor of `{prefix}` in it")
            networks.load(renamed)
        except RuntimeError as error:
            raise RunError(f"initial weights of `{owner}`: {weights.file} does not fit the network: {error}") from None
    return networks.export((*study.components, *BASELINE))


def run_study(
    study: Study,
    transport: Transport,
    run: Path,
    *,
    resume: bool = False,
    on_round: Callable[[RoundRecord], None] = lambda record: None,
    wait_s: float = 0.0,
    enrol_s: float = 0.0,
    key: Ed25519PrivateKey | None = None,
) -> ServerState:
    """Run a study to its end, or on from its last checkpoint; the same tensors either way.

    Args:
        run: folder of this run; must be new or empty unless `resume`.
        on_round: is told each round's record, counted or not, before its checkpoint.
        wait_s: how long another process that still writes the folder is waited for.
        enrol_s: how long a role that has too few sites at the start is waited for.
        key: signs the release.

    Between two attempts at a round the run pauses until the sites that it lacks are back, at most for the
    round's deadline.

    Raises:
        RunError: if the folder is in use by another run, nothing can be written, or a role stays below
            quorum for as many attempts as the study allows. The last checkpoint stays.
    """
    with RunFolder(run).only_one(wait_s):
        pause.clear(run)
        try:
            state = _run_study(study, transport, run, resume, on_round, enrol_s)
            write_release(RunFolder(run), study, state, key)
            return state
        finally:
            with contextlib.suppress(RunError):
                pause.clear(run)


def _run_study(
    study: Study,
    transport: Transport,
    run: Path,
    resume: bool,
    on_round: Callable[[RoundRecord], None],
    enrol_s: float,
) -> ServerState:
    state = load_state(RunFolder(run).checkpoint, study.hash()) if resume else None
    if state is None:
        _prepare(run, study)
        participants = enrol(study, transport, wait_s=enrol_s)
        state = init(study, participants, initial_components(study))
        save_state(RunFolder(run).checkpoint, state, study.hash())
    else:
        enrol(study, transport, wait_s=enrol_s)
        history.rewind(run, state.round)
    for round_ in study.rounds()[state.round :]:
        first_short = ""
        for attempts_left in reversed(range(study.participation.retries + 1)):
            state, record = run_round(study, state, round_, transport, Survivors(RunFolder(run).survivors))
            history.append(run, record)
            on_round(record)
            if record.counted:
                break
            if state.released and _looks_made(round_, record):
                log.warning("round %d: the last model looks made to sites; an earlier one is released", round_.index)
                state = replace(state, round=round_.index + 1)
                break
            _refuse_another_runs(record)
            first_short = first_short or _time_in(0.0)
            log.warning("round %d fell short of quorum, %d attempt(s) left", round_.index, attempts_left)
            if attempts_left:
                _pause(study, state, round_, record, transport, run, first_short, attempts_left)
        else:
            save_state(RunFolder(run).checkpoint, state, study.hash())
            raise RunError(
                f"round {round_.index} ({round_.stage.name}) fell short of quorum "
                f"{study.participation.retries + 1} times: {reasons(record)}. Everything is saved: bring the "
                "sites back, then start again with --resume."
            )
        save_state(RunFolder(run).checkpoint, state, study.hash())
    return state


def _pause(
    study: Study,
    state: ServerState,
    round_: Round,
    record: RoundRecord,
    transport: Transport,
    run: Path,
    since: str,
    attempts_left: int,
) -> None:
    """Wait until the sites that a round lacked say that they are there, at most for the round's deadline.

    A site that refused the round and answers now is there: whether it refuses again only the round can tell.
    """
    patience_s = study.participation.deadline_s
    deadline, until = time.monotonic() + patience_s, _time_in(patience_s)
    why = {name: f"{site.status}: {site.detail}" for name, site in record.sites.items()}
    there = {name for name, site in record.sites.items() if site.status == "ok"}
    while short := lacking(study, [state.participants[name].role for name in there], round_):
        away = {name: why[name] for name in sorted(why.keys() - there) if state.participants[name].role in short}
        pause.write(run, Pause(since, until, round_.index, round_.stage.name, attempts_left, short, away))
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            break
        back, noes = _ask(study, transport, there, min(left_s, ENROL_S))
        came = back.keys() & state.participants.keys()
        there |= came
        why |= {name: noes.get(name, "not connected") for name in away}
        if not came:
            time.sleep(min(ASK_AGAIN_S, max(0.0, deadline - time.monotonic())))
    pause.clear(run)


def _refuse_another_runs(record: RoundRecord) -> None:
    """Raise RunError where all sites that a round lacks answered it in another run: asking again changes nothing."""
    lacking = {name: site.detail for name, site in record.sites.items() if site.status != "ok"}
    if lacking and all(detail.startswith(ANSWERED_BEFORE) for detail in lacking.values()):
        raise RunError(
            f"round {record.round} ({record.stage}) was answered before, in another run, by {', '.join(lacking)}. Go "
            "on with that run: its --out and --resume. To start the study over, each of them stops its worker and "
            "approves again with `crossprobe site approve --restart`."
        )


def _looks_made(round_: Round, record: RoundRecord) -> bool:
    """Whether a round trains nothing, and lacks only sites whose own check refused to measure the model they received.

    They would refuse it each time. Such a model is not released; what was released before stays.
    """
    if any(task.trains for role in ROLES if (task := round_.stage.task_of(role)) is not None):
        return False
    lacking = [site for site in record.sites.values() if site.status != "ok"]
    return bool(lacking) and all(site.status == "refused" and site.detail.startswith(LOOKS_MADE) for site in lacking)


def _time_in(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="seconds")


def reasons(record: RoundRecord) -> str:
    """Return why a round lacks sites, each with what it said."""
    return "; ".join(f"{site} {s.status} {s.detail}".strip() for site, s in record.sites.items() if s.status != "ok")


def _prepare(run: Path, study: Study) -> None:
    folder = RunFolder(run)
    folder.refuse_a_run()
    with folder.writing():
        folder.history.unlink(missing_ok=True)
    content = {"hash": study.hash(), "study": json.loads(study.model_dump_json())}
    write_atomically(folder.study, yaml.safe_dump(content, sort_keys=False).encode(), then=GO_ON)
