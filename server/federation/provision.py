"""Startup kits: one folder for the coordinator, one for each hospital, cut out of the one compose file.

ca/           the authority's key; belongs on no server
coordinator/  compose.yaml, .env, certificates, the SuperExec's secret, signing keys, proxy.conf, README.md
SITE/         compose.yaml, compose.gpu.yaml, .env, ca.crt, study with the coordinator's public key, README.md, and room
              for what is made at the site: its own keys, its folder out of the archive, models and predictions
"""

import filecmp
import json
import os
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from common.components import ROLES, Role
from common.errors import RunError
from common.files import PUBLIC, private_folder, write_atomically
from common.fingerprint import fingerprint
from common.names import NAME
from common.signing import PRIVATE_KEY, PUBLIC_KEY, SITES, make_keys, read_public_key, text_of
from common.study import Study
from common.version import software_version
from server.federation.authority import (
    CA_CERTIFICATE,
    CA_KEY,
    SERVER_CERTIFICATE,
    THEN,
    expiry,
    hosts_of,
    make_authority,
    make_server_certificate,
)

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = "docker-compose.yml"
#: What the coordinator's own services call it, beside the address that hospitals use.
LOCAL_NAMES = ("localhost", "127.0.0.1", "superlink", "proxy")
COORDINATOR = "coordinator"
#: In the coordinator's kit, see `server.signed`.
SIGNING = "signing"
#: Folders of a hospital's kit that it comes with empty.
ROOMS = ("state", "node", "archive", "intake", "models", "predictions")
#: In a hospital's `.env`, beside the coordinator's address and the containers' user.
SITE_VARIABLES = {"SITE_KIT": ".", "SITE_DATA": "./site", "SITE_ARCHIVE": "./archive", "SITE_DESK_PORT": "8600"}
#: Services that a coordinator runs; a hospital runs those with its role's prefix.
_COORDINATOR_SERVICES = ("superlink", "serverapp", "proxy", "console")


@dataclass(frozen=True)
class KitSite:
    """A site as the coordinator plans it; its `name` is bound to its key at registration."""

    name: str
    role: Role


def parse_site(text: str) -> KitSite:
    """Return the site of a text `NAME:ROLE`. Raises RunError."""
    name, _, role = text.partition(":")
    for known in ROLES:
        if role == known and re.fullmatch(NAME, name) and name not in (COORDINATOR, "ca"):
            return KitSite(name, known)
    raise RunError(
        f"a site is NAME:ROLE, with a name of small letters, digits and dashes and the role {' or '.join(ROLES)}; "
        f"found `{text}`. Give for example --site north-clinic:source"
    )


def provision(
    study: Study, file: Path, out: Path, sites: Sequence[KitSite], *, host: str, port: int, overwrite: bool = False
) -> list[Path]:
    """Write all kits and return their folders, the coordinator's first.

    Args:
        study: the checked study.
        file: its file, which every kit gets a copy of.
        host: name or address by which hospitals reach the coordinator.
        overwrite: replace an existing authority; every site then needs its new kit.

    Raises:
        RunError: if `out` holds an authority already, two sites share a name, or nothing can be written.
    """
    if (out / "ca" / CA_KEY).exists() and not overwrite:
        raise RunError(
            f"{out} holds a federation's authority already; nothing was changed. With another, every hospital would "
            "have to get a new ca.crt: if you want that, give --overwrite; else choose another --out folder."
        )
    _check_names(sites)
    compose, content = read_compose(), file.read_bytes()  # which may be the copy in a kit that is written anew
    try:
        private_folder(out / "ca")
        make_authority(out / "ca")
        kits = [_coordinator_kit(compose, study, content, out, sites, host, port)]
        kits += [_site_kit(compose, study, content, out, site, host, port) for site in sites]
    except OSError as error:
        raise RunError(f"cannot write the kits to {out}: {error.strerror}. Choose another --out folder.") from None
    return kits


def add_sites(study: Study, file: Path, out: Path, sites: Sequence[KitSite]) -> list[Path]:
    """Write the kits of further sites beside those in `out`, which stay byte for byte as they are.

    Address, port and authority are those of the coordinator's kit; the authority's key is not needed.

    Raises:
        RunError: if `out` has no coordinator's kit, a site's folder is there already, two sites share a
            name, or nothing can be written.
    """
    _check_names(sites)
    host, port = _address_of(out / COORDINATOR)
    there = [site.name for site in sites if (out / site.name).exists()]
    if there:
        raise RunError(
            f"{out} has a folder of {', '.join(there)} already; nothing was changed. Choose another name, or move the "
            "folder away if it was left half written."
        )
    if not (out / COORDINATOR / SIGNING / PUBLIC_KEY).exists():
        raise RunError(
            f"{out / COORDINATOR} is of an older version and has no signing keys; nothing was changed. Make them with: "
            f"crossprobe study keygen {out / COORDINATOR / SIGNING}"
        )
    compose, content = read_compose(), file.read_bytes()
    try:
        return [_site_kit(compose, study, content, out, site, host, port) for site in sites]
    except OSError as error:
        raise RunError(f"cannot write the kits to {out}: {error.strerror}. Make room, or check its rights.") from None


def renew_server(out: Path) -> datetime:
    """Give the coordinator's kit a new server key and certificate of the same authority, and return their end.

    The names are those of the certificate before. Nothing else is written: hospitals keep their `ca.crt`.

    Raises:
        RunError: if `out` has no authority or no coordinator's kit, the two do not belong together, the
            authority itself has ended, or nothing can be written.
    """
    authority, kit = out / "ca", out / COORDINATOR
    hosts = hosts_of(kit / SERVER_CERTIFICATE)
    end = expiry(authority / CA_CERTIFICATE)
    if not (kit / CA_CERTIFICATE).exists() or not filecmp.cmp(authority / CA_CERTIFICATE, kit / CA_CERTIFICATE, False):
        raise RunError(
            f"{authority} is not the authority of {kit}; nothing was changed. Bring back the folder `ca` of it."
        )
    if end < datetime.now(UTC):
        raise RunError(
            f"the authority itself ended on {end:%Y-%m-%d}; nothing was changed. Make a new one with --overwrite: "
            "every hospital then needs its new ca.crt."
        )
    make_server_certificate(authority, kit, hosts)
    return min(end, expiry(kit / SERVER_CERTIFICATE))


def signing_fingerprint(out: Path) -> str:
    """Return the fingerprint of the key that signs the requests of the coordinator of `out`. Raises RunError."""
    return fingerprint(read_public_key(out / COORDINATOR / SIGNING / PUBLIC_KEY))


def _check_names(sites: Sequence[KitSite]) -> None:
    if len({site.name for site in sites}) < len(sites):
        raise RunError(f"site names must differ, found {', '.join(site.name for site in sites)}. Change a --site.")


def _address_of(kit: Path) -> tuple[str, int]:
    """Return the name and port by which hospitals reach the coordinator of a kit. Raises RunError."""
    try:
        lines = (kit / ".env").read_text(encoding="utf-8").splitlines()
        variables = dict(line.partition("=")[::2] for line in lines)
        return hosts_of(kit / SERVER_CERTIFICATE)[0], int(variables["COORDINATOR_PORT"])
    except (OSError, KeyError, ValueError):
        raise RunError(
            f"expected a coordinator's kit in {kit}, with its .env, found none. Give as --out the folder that "
            "`crossprobe provision` made, or leave --add out to make the first kits."
        ) from None


def _coordinator_kit(
    compose: dict[str, Any], study: Study, content: bytes, out: Path, sites: Sequence[KitSite], host: str, port: int
) -> Path:
    kit = out / COORDINATOR
    for folder in (".", "state", "runs", "sites", f"{SIGNING}/{SITES}"):
        private_folder(kit / folder)
    if not (kit / SIGNING / PRIVATE_KEY).exists():  # with --overwrite it stays: approvals name it
        make_keys(kit / SIGNING)
    make_server_certificate(out / "ca", kit, (host, *LOCAL_NAMES))
    write_public(kit / CA_CERTIFICATE, (out / "ca" / CA_CERTIFICATE).read_bytes())
    write_atomically(kit / "superexec.secret", secrets.token_bytes(32), then=THEN)
    write_public(kit / "proxy.conf", (ROOT / "deploy" / "proxy.conf").read_bytes())
    own = select_services(compose, lambda name: name in _COORDINATOR_SERVICES)
    variables = {"COORDINATOR_KIT": ".", "COORDINATOR_PORT": str(port)}
    ends = f"{expiry(kit / SERVER_CERTIFICATE):%Y-%m-%d}"
    _common_files(kit, content, variables)
    write_public(kit / "compose.yaml", _compose_file(own))
    known = signing_fingerprint(out)
    words = {"study": study, "sites": sites, "host": host, "port": port, "ends": ends, "fingerprint": known}
    write_public(kit / "README.md", _readme("kit_coordinator.md.j2", **words))
    return kit


def _site_kit(
    compose: dict[str, Any], study: Study, content: bytes, out: Path, site: KitSite, host: str, port: int
) -> Path:
    kit = out / site.name
    for folder in (".", *ROOMS):
        private_folder(kit / folder)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    # From the coordinator's kit: `ca/` may be in a safe by the time a site is added.
    write_public(kit / CA_CERTIFICATE, (out / COORDINATOR / CA_CERTIFICATE).read_bytes())
    _common_files(kit, content, SITE_VARIABLES | {"COORDINATOR_ADDRESS": address})
    coordinator = read_public_key(out / COORDINATOR / SIGNING / PUBLIC_KEY)
    write_public(kit / "study" / PUBLIC_KEY, f"{text_of(coordinator)}\n".encode())
    for name, text in site_files(compose, study, site, address).items():
        write_public(kit / name, text)
    return kit


def site_files(compose: dict[str, Any], study: Study, site: KitSite, address: str) -> dict[str, bytes]:
    """Return what decides how a hospital's containers run, by file: the same from any checkout of this version."""
    own = select_services(compose, lambda name: name.startswith(f"{site.role}-"), prefix=site.role)
    return {
        "compose.yaml": _compose_file(own),
        "compose.gpu.yaml": (ROOT / "deploy" / "compose.gpu.yaml").read_bytes(),
        "README.md": _readme("kit_site.md.j2", study=study, site=site, address=address),
    }


def _common_files(kit: Path, content: bytes, variables: dict[str, str]) -> None:
    # Containers of root's kits run as the image's own user; the README says how to give it the files.
    user = {"CROSSPROBE_UID": os.getuid() or 1000, "CROSSPROBE_GID": os.getgid() or 1000}
    private_folder(kit / "study")
    write_public(kit / "study" / "study.yaml", content)
    write_public(kit / ".env", "".join(f"{key}={value}\n" for key, value in (variables | user).items()).encode())


def write_public(path: Path, content: bytes) -> None:
    """Write a file that anybody may read who may enter its kit. Raises RunError."""
    write_atomically(path, content, then=THEN, mode=PUBLIC)


def select_services(compose: dict[str, Any], chosen: Callable[[str], bool], *, prefix: str = "") -> dict[str, Any]:
    """Return a compose file with only the chosen services, and the networks and volumes that they use.

    Args:
        chosen: says of a service's name whether it stays.
        prefix: of a role, taken off all names: `${SOURCE_X}` becomes `${SITE_X}`.
    """
    services = {name: dict(service) for name, service in compose["services"].items() if chosen(name)}
    for service in services.values():
        service.pop("build", None)  # a kit has no source code; its README says how to get the images
    networks = {network for service in services.values() for network in service.get("networks", ())}
    mounts = {volume.partition(":")[0] for service in services.values() for volume in service.get("volumes", ())}
    own = {
        "services": services,
        "networks": {name: value for name, value in compose["networks"].items() if name in networks},
        "volumes": {name: value for name, value in compose["volumes"].items() if name in mounts},
    }
    text = json.dumps({key: value for key, value in own.items() if value})
    if prefix:
        text = text.replace(f"${{{prefix.upper()}_", "${SITE_").replace(f"{prefix}-", "")
    cut: dict[str, Any] = json.loads(text)
    return cut


def _compose_file(services: dict[str, Any]) -> bytes:
    return yaml.safe_dump(services, sort_keys=False, width=110).encode()


def read_compose() -> dict[str, Any]:
    try:
        compose: dict[str, Any] = yaml.safe_load((ROOT / COMPOSE).read_text(encoding="utf-8"))
    except OSError:
        raise RunError(
            f"expected {COMPOSE} beside the code, found none in {ROOT}. Run it from a checkout or an image."
        ) from None
    return compose


def _readme(template: str, **values: object) -> bytes:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        autoescape=False,
    )
    return environment.get_template(template).render(version=software_version(), **values).encode()


def valid_host(text: str) -> str:
    """Return a host's name or address. Raises ValueError."""
    try:
        return str(ip_address(text))
    except ValueError:
        if re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*", text):
            return text
        raise ValueError(f"expected a host's name or address, without port or scheme, found `{text}`") from None
