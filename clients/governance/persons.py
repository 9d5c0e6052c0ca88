"""The people who may approve where a site's policy asks for two: each with a name and a passphrase of their own.

    persons.json   in the state folder: name -> salt and scrypt hash (RFC 7914) of the passphrase

This keeps one person at the command or the desk from being two. Who may write to the state folder can write any
approval there, with or without it.
"""

import base64
import hashlib
import hmac
import json
import secrets
import unicodedata
from collections.abc import Mapping

from clients.data.site import Site
from clients.governance.approval import Approval, approval_of, approve, withdraw
from clients.governance.state import State, write
from common.errors import SiteStateError
from common.strict_text import parse_json
from common.study import Study

VERSION = 1
#: Letters of a passphrase at least; some words are easy to keep and hard to guess.
SHORTEST = 12
#: Letters of a name at most, so that a page and an approval hold it.
LONGEST_NAME = 80
#: 32 MiB and about a tenth of a second for each guess.
_COST = {"n": 2**15, "r": 8, "p": 1, "maxmem": 2**26}


class PersonError(SiteStateError):
    """A name or passphrase that is not right; nothing was changed."""


def name_of(text: str) -> str:
    """Return a person's name as it is written down. Raises PersonError."""
    name = " ".join(text.split())
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise PersonError(f"expected a name of at most {LONGEST_NAME} letters. Nothing was changed.")
    return name


def add_person(state: State, name: str, passphrase: str) -> str:
    """Add a person and return the name as it is written down.

    Raises:
        PersonError: if the name is taken, in whatever letters, or the passphrase is short.
        SiteStateError: if it cannot be written.
    """
    name, persons = name_of(name), _read(state)
    if _same(name) in map(_same, persons):
        raise PersonError(f"there is a person called {name} already. Give a name that tells the two apart.")
    if len(passphrase) < SHORTEST:
        raise PersonError(f"expected a passphrase of at least {SHORTEST} letters, found {len(passphrase)}.")
    salt = secrets.token_bytes(16)
    persons[name] = {"salt": _text(salt), "hash": _text(_hash(passphrase, salt))}
    write(state.persons, json.dumps({"version": VERSION, "persons": persons}, indent=1).encode())
    return name


def check_person(state: State, name: str, passphrase: str) -> str:
    """Return a person's name as it is written down, if the passphrase is theirs.

    Raises:
        PersonError: the same for a wrong passphrase and for nobody of this name.
    """
    persons = _read(state)
    known = next((own for own in persons if _same(own) == _same(name_of(name))), None)
    entry = persons[known] if known else {"salt": _text(b"nobody"), "hash": ""}
    right = hmac.compare_digest(_text(_hash(passphrase, base64.b64decode(entry["salt"]))), entry["hash"])
    if known is None or not right:
        raise PersonError(
            "name and passphrase do not belong together. Nothing was changed. A person is added with: crossprobe site "
            "person add NAME"
        )
    return known


def approve_as(
    state: State,
    site: Site,
    study: Study,
    *,
    name: str,
    passphrase: str,
    coordinator: str = "",
    sites: Mapping[str, str] | None = None,
) -> Approval:
    """Approve as one of two: the first is written down and does not hold yet, the second completes it.

    An approval of two that holds is returned as it is.

    Raises:
        PersonError: if name and passphrase do not belong together, or it is the first person once more.
        SiteStateError: if it cannot be written.
    """
    name = check_person(state, name, passphrase)
    before = approval_of(state, study.hash())
    keys = (coordinator, sites or {})
    if before is None or before.stale(site.config) or (before.coordinator, before.sites) != keys:
        # the other one approved something else
        return approve(state, site, study, by=name, coordinator=coordinator, sites=sites)
    if not before.void(site.config):
        return before
    if _same(before.by) == _same(name):
        raise PersonError(f"{name} approved this study already: another person has to approve it too.")
    return approve(state, site, study, by=before.by, second=name, coordinator=coordinator, sites=sites)


def approve_by_policy(
    state: State,
    site: Site,
    study: Study,
    *,
    name: str,
    passphrase: str = "",
    coordinator: str = "",
    sites: Mapping[str, str] | None = None,
    restart: bool = False,
) -> Approval:
    """Approve alone or as one of two, as the site's policy asks.

    Args:
        passphrase: the person's, where the policy asks for two.
        restart: let the study begin again at its first round, with the worker stopped. That is another look at the
            patients: where two approve, what either gave before ends, and both give it again.

    Raises:
        PersonError: as `approve_as` does.
        SiteStateError: if it cannot be written, or, with `restart`, the worker runs.
    """
    two = site.config.policy.approvals_needed > 1
    if restart:
        if two:
            check_person(state, name, passphrase)  # before anything is changed
        with state.locked():
            before = approval_of(state, study.hash()) if two else None
            looked = state.answered(study.hash()).round >= 0  # else the first of two began it again already
            if before is not None and (looked or not before.void(site.config)):
                withdraw(state, study.hash(), by=name)
            state.start_over(study.hash())
    if two:
        return approve_as(state, site, study, name=name, passphrase=passphrase, coordinator=coordinator, sites=sites)
    return approve(state, site, study, by=name, coordinator=coordinator, sites=sites)


def _read(state: State) -> dict[str, dict[str, str]]:
    try:
        content = parse_json(state.persons.read_bytes(), origin=state.persons.name)
        persons = {str(name): {key: str(entry[key]) for key in ("salt", "hash")} for name, entry in
                   content["persons"].items()}  # fmt: skip
        if content["version"] != VERSION:
            raise ValueError
        return persons
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise SiteStateError(f"{state.persons} is damaged. Restore it from your backup.") from None


def _hash(passphrase: str, salt: bytes) -> bytes:
    text = unicodedata.normalize("NFKC", passphrase).encode()
    return hashlib.scrypt(text, salt=salt, dklen=32, **_COST)


def _same(name: str) -> str:
    """Return what two ways to write one name have in common."""
    return unicodedata.normalize("NFKC", name).casefold()


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
