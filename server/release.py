"""The released model as a folder that may be passed on; see `common.release`.

The same run, with the same audit, gives the same bytes. Nothing in it is of a single site: no name, no count of
patients, no measure; but an audit's figures are those of the worst site, which is not named.
"""

from collections.abc import Mapping
from pathlib import Path

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jinja2 import Environment, StrictUndefined
from safetensors.numpy import save

from common.audit_record import load_audit
from common.components import ROLES, STUDENT, Tensors, select
from common.errors import ContractError, RunError
from common.files import PUBLIC, whole_folder, write_atomically
from common.messages import digest
from common.release import CARD, FILES, SIGNATURE, STUDY, SUMS, WEIGHTS, find_release, sums_of
from common.run_folder import RunFolder
from common.signing import Sealed, sign
from common.simulated import simulated_coordinator_key
from common.study import Study, read_study_of_run
from common.version import software_version
from server.audit_card import NOT_AUDITED, audited
from server.state import ServerState, fused_tensors, load_state

# Here and not in a file: Flower's bundle of an app takes no template, and the ServerApp writes the card.
_CARD = """\
# Model card: {{ study.name }}

{{ kind }} one structure in ultrasound images, trained by federated learning: no image left a site.
**Research software, no medical device. Nobody has shown that it is safe or useful for any patient.**

| | |
| --- | --- |
| study | `{{ study.name }}`, SHA-256 `{{ study.hash() }}`; all its settings are in `{{ files.study }}` |
| weights | `{{ files.weights }}`, SHA-256 `{{ weights }}`, {{ "{:,}".format(parameters) }} numbers, float32 |
| software | CrossProbe {{ software }} |
| network | {{ study.network.kind }}, channels {{ study.network.channels | join(", ") }} |
{% for public in publics %}
| public weights | it began with those of {{ public }} |
{% endfor %}
{% if study.student %}
| student | {{ study.student.kind }}, channels {{ study.student.channels | join(", ") }}, taught by the others |
{% endif %}
| input | one grey image, {{ grid }} |
| output | probability in [0, 1] of each pixel; the mask is above 0.5 |
| sites | {% for role, count in sites.items() %}{{ count }} {{ role }}{{ ", " if not loop.last }}{% endfor %} |
| rounds | {{ rounds }} |
{% if chosen is not none %}
| chosen | the model of round {{ chosen }}, by {{ chosen_by }} |
{% endif %}

## What bounds what it tells of a patient
{% if study.privacy %}
Differential privacy of all images of a patient, at delta {{ study.privacy.delta }}, with noise
{{ study.privacy.noise_multiplier }} and clip {{ study.privacy.max_gradient_norm }}. A site stopped at epsilon
{{ study.privacy.epsilon_cap }} at the latest; what other models tell of the same patients comes on top.
{% else %}
**Nothing.** It was trained without differential privacy: whoever has the weights may find out whether a patient was in
the training data, and parts of images may be rebuilt from them. Treat the weights as personal data.
{% endif %}

## What an audit found
{{ audited }}

## What was not shown
- How well it works on any probe, hospital or patient group. The measures of this run are of single sites and stay with
  the coordinator. Measure it on labelled images of your own before you rely on a mask.
- That it leaves out no group of patients: nothing here knows age, sex or origin.
- That masks are right where the image is unlike those of the training: another organ, view, depth or device.

## Use
`sha256sum -c {{ files.sums }}` in this folder, then
`crossprobe predict --model THIS-FOLDER --images scans/ --out segmented/`
{%- if study.image.spacing_mm %} with `--spacing-mm`, the side of the images' pixels{% endif %}.
Where `{{ files.signature }}` is here too, `--coordinator-key FILE` also checks that the coordinator signed it. Take
the key, or its fingerprint, by another way than this folder.
"""


def write_release(
    run: RunFolder,
    study: Study,
    state: ServerState,
    key: Ed25519PrivateKey | None = None,
    audit: Path | None = None,
) -> Path:
    """Write a finished run's release, whole or not at all, and return its folder.

    Args:
        key: the coordinator's, which signs it.
        audit: record of an audit of this very model, for the card. Without one a whole release of this model keeps its
            card, which may tell of an audit: a finished run is resumed without the record.

    Raises:
        RunError: if the audit is not of this model.
        CrossProbeError: if it cannot be written; the release before it is intact.
    """
    tensors = final_model(study, state)
    weights = save(dict(sorted(tensors.items())))
    contents = {WEIGHTS: weights, STUDY: _study(study)}
    card = None if audit else _card_of(run, contents)
    if card is None:
        found = audited(load_audit(audit, study=study.hash(), weights=digest(weights))) if audit else NOT_AUDITED
        card = _card(study, state, tensors, digest(weights), found).encode()
    contents[CARD] = card
    contents[SUMS] = sums_of(contents)
    sums, signature = run.release / SUMS, run.release / SIGNATURE
    if key is not None:
        contents[SIGNATURE] = sign(contents[SUMS], key, "release")
    elif signature.is_file() and sums.is_file() and sums.read_bytes() == contents[SUMS]:
        contents[SIGNATURE] = signature.read_bytes()  # a finished run is resumed without the key that signed it
    with whole_folder(run.release, FILES, overwrite=True) as new:
        new.chmod(0o700)  # as the run's
        for name, content in contents.items():
            write_atomically(new / name, content)
    return run.release


def _card_of(run: RunFolder, contents: Mapping[str, bytes]) -> bytes | None:
    """Return the card of a run's whole release, if it is one of these contents; nobody but its maker changed it."""
    try:
        release = find_release(run.release)
        same = all((release / name).read_bytes() == content for name, content in contents.items())
        return (release / CARD).read_bytes() if same else None
    except (OSError, RunError):
        return None


def export_release(
    run: RunFolder, out: Path | None = None, key: Ed25519PrivateKey | None = None, audit: Path | None = None
) -> Path:
    """Return a finished run's release, checked, or a checked copy of it in a new folder.

    Args:
        key: the coordinator's, which then signs it.
        audit: see `write_release`; the card is written anew with it. A release that a simulation signed is signed again
            by its key, which everybody can make.

    Raises:
        RunError: if the run is not finished, the release was changed, the audit is not of it, or a signed release
            would lose its signature.
        CrossProbeError: if it cannot be written; nothing was changed.
    """
    study = read_study_of_run(run.path)
    state = load_state(run.checkpoint, study.hash())
    if state is None or state.round < len(study.rounds()):
        raise RunError(f"{run.path} holds no finished run. Continue it with --resume.")
    if out is not None and out.exists():
        raise RunError(f"{out} is there already. Choose a new folder with --out; nothing was changed.")
    if (run.release / SUMS).exists():
        find_release(run.release)  # what somebody changed is not written over
    if audit is not None and key is None:
        key = _simulations_key(run, study)
    if audit is not None and key is None and (run.release / SIGNATURE).exists():
        raise RunError(
            f"{run.release} is signed, and its card would become another. Give --keys, so that it is signed again; "
            "nothing was changed."
        )
    if audit is not None or not (run.release / SUMS).exists():
        write_release(run, study, state, key, audit)
    elif key is not None:
        write_atomically(run.release / SIGNATURE, sign((run.release / SUMS).read_bytes(), key, "release"))
    folder = find_release(run.release, key.public_key() if key else None)
    if out is None:
        return folder
    with whole_folder(out, FILES, overwrite=False) as new:
        for name in FILES:
            if (folder / name).exists():  # not every release is signed
                write_atomically(new / name, (folder / name).read_bytes(), then="run the command again", mode=PUBLIC)
    return find_release(out)


def _simulations_key(run: RunFolder, study: Study) -> Ed25519PrivateKey | None:
    """Return the key of a simulation if it signed the run's release: everybody has it, so nobody need give it."""
    key = simulated_coordinator_key(study)
    try:
        Sealed((run.release / SUMS).read_bytes(), (run.release / SIGNATURE).read_bytes()).check(
            key.public_key(), "release"
        )
    except (OSError, ContractError):
        return None
    return key


def final_model(study: Study, state: ServerState) -> Tensors:
    """Return what a finished run releases: both branches and the head, and the student where there is one.

    Of a study that trains one branch, that branch.
    """
    if not study.fused:
        return {name: x for name, x in state.components.items() if name.startswith("source_branch.")}
    return (state.released or fused_tensors(state.components)) | select(state.components, STUDENT)


def _study(study: Study) -> bytes:
    content = study.model_dump(mode="json")
    for weights in content["initial"].values():
        weights["file"] = Path(weights["file"]).name  # the folders of the coordinator's machine are nobody's business
    return yaml.safe_dump({"hash": study.hash(), "study": content}, sort_keys=False).encode()


def _card(study: Study, state: ServerState, tensors: Tensors, weights: str, audited: str) -> str:
    grid = study.image
    page = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(_CARD)
    return page.render(
        study=study,
        publics=sorted({network.began_as for network in (study.network, study.student) if network} - {""}),
        kind="Two networks, and a small one that weighs them: they mark" if study.fused else "A network that marks",
        weights=weights,
        parameters=sum(x.size for x in tensors.values()),
        software=software_version(),
        grid=f"{grid.size} x {grid.size} pixels"
        + (f" of {grid.spacing_mm} mm" if grid.spacing_mm else ", letterboxed"),
        sites={role: sum(site.role == role for site in state.participants.values()) for role in ROLES},
        rounds=state.round,
        chosen=state.released_round,
        chosen_by="a label-free score" + (" and Dice on labelled validation patients" if state.best_val_dice else ""),
        audited=audited,
        files={"signature": SIGNATURE, "weights": WEIGHTS, "study": STUDY, "sums": SUMS},
    )
