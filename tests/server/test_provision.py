"""Kits: keys that nobody else can read, a certificate for every address, an authority that is made once."""

import os
import stat
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from tiny import write_study

from clients.node.keys import fingerprint_of, make_node_keys
from common.errors import RunError, SiteStateError
from common.fingerprint import fingerprint
from common.signing import read_public_key
from common.study import load_study
from crossprobe import main
from server.federation.authority import expiry, hosts_of, key_fingerprint, make_server_certificate
from server.federation.provision import (
    KitSite,
    add_sites,
    parse_site,
    provision,
    renew_server,
    signing_fingerprint,
    valid_host,
)
from server.signed import SITES as SITE_KEYS
from simulations.processes import free_port

SITES = [KitSite("north", "source"), KitSite("east", "target")]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "study.yaml")


def make(study: Path, out: Path, **more: bool) -> list[Path]:
    return provision(load_study(study), study, out, SITES, host="fl.example.org", port=443, **more)


@pytest.mark.parametrize("kind", ["encrypted", "rsa"])
def test_an_authoritys_key_that_cannot_be_used_is_a_message(
    kind: str, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(study, tmp_path / "kits")
    key, hidden = ec.generate_private_key(ec.SECP384R1()), serialization.BestAvailableEncryption(b"secret")
    own = key if kind == "encrypted" else rsa.generate_private_key(65537, 2048)
    locked = hidden if kind == "encrypted" else serialization.NoEncryption()
    content = own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    (tmp_path / "kits" / "ca" / "ca.key").write_bytes(content)
    assert main(["provision", "--out", str(tmp_path / "kits"), "--renew"]) == 1
    assert "Restore it from your backup" in capsys.readouterr().err


def test_no_key_or_secret_is_readable_by_others(study: Path, tmp_path: Path) -> None:
    make(study, tmp_path / "kits")
    private = [path for path in (tmp_path / "kits").rglob("*") if path.suffix in (".key", ".secret")]
    assert {path.name for path in private} == {"ca.key", "server.key", "coordinator.key", "superexec.secret"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    assert not (tmp_path / "kits" / "coordinator" / "ca.key").exists()


def test_nobody_else_may_enter_a_kit_nor_what_its_services_will_write_there(study: Path, tmp_path: Path) -> None:
    """The SuperLink makes its `superlink.db` by itself, with whatever mode: the folder around it is closed."""
    before = os.umask(0o000)
    try:
        kits = make(study, tmp_path / "kits")
    finally:
        os.umask(before)
    folders = [*kits, tmp_path / "kits" / "ca", *(path for kit in kits for path in kit.rglob("*") if path.is_dir())]
    assert {"state", "runs", "study", "north", "coordinator"} <= {folder.name for folder in folders}
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}


def test_a_hospitals_kit_holds_no_private_file(study: Path, tmp_path: Path) -> None:
    make(study, tmp_path / "kits")
    names = {str(path.relative_to(tmp_path / "kits" / "north")) for path in (tmp_path / "kits" / "north").rglob("*")}
    assert names == {
        "compose.yaml",
        "compose.gpu.yaml",
        ".env",
        "ca.crt",
        "README.md",
        "study",
        "study/study.yaml",
        "study/coordinator.pub",
        "state",
        "node",
        "archive",
        "intake",
        "models",
        "predictions",
    }


def test_the_certificate_names_every_address_that_connects(study: Path, tmp_path: Path) -> None:
    make(study, tmp_path / "kits")
    certificate = x509.load_pem_x509_certificate((tmp_path / "kits" / "coordinator" / "server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"fl.example.org", "localhost", "superlink", "proxy"}
    assert {str(address) for address in names.get_values_for_type(x509.IPAddress)} == {"127.0.0.1"}
    assert expiry(tmp_path / "kits" / "coordinator" / "server.crt") > datetime.now(UTC)


def test_a_study_that_lacks_a_role_among_the_named_sites_is_told(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["provision", str(study), "--out"]
    assert main([*words, str(tmp_path / "one"), "--site", "north:source"]) == 0
    assert "needs 1 target site(s) and 0 are named" in capsys.readouterr().out
    assert main([*words, str(tmp_path / "both"), "--site", "north:source", "--site", "east:target"]) == 0
    assert "are named" not in capsys.readouterr().out


def test_an_authority_is_made_once(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "kits"
    make(study, out)
    before = (out / "ca" / "ca.crt").read_bytes()
    with pytest.raises(RunError, match="give --overwrite"):
        make(study, out)
    assert (out / "ca" / "ca.crt").read_bytes() == before
    make(study, out, overwrite=True)
    assert (out / "ca" / "ca.crt").read_bytes() != before
    assert (out / "north" / "ca.crt").read_bytes() == (out / "ca" / "ca.crt").read_bytes()


def test_a_new_authority_leaves_the_signing_key_that_hospitals_approved(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "kits"
    north = make(study, out)[1]
    before = (out / "coordinator" / "signing" / "coordinator.key").read_bytes()
    make(study, out, overwrite=True)
    assert (out / "coordinator" / "signing" / "coordinator.key").read_bytes() == before
    found = signing_fingerprint(out)
    assert fingerprint(read_public_key(north / "study" / "coordinator.pub")) == found
    assert found in (out / "coordinator" / "README.md").read_text()
    assert found not in (north / "README.md").read_text()  # it came with the kit, and would prove nothing


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("host", ["fl.example.org", "localhost", "192.0.2.7", "2001:db8::1"])
def test_a_site_is_added_without_touching_what_is_there(host: str, study: Path, tmp_path: Path) -> None:
    whole, grown = tmp_path / "whole", tmp_path / "grown"
    west = KitSite("west", "target")
    provision(load_study(study), study, whole, [*SITES, west], host=host, port=443)
    provision(load_study(study), study, grown, SITES, host=host, port=443)
    before = content(grown)
    assert add_sites(load_study(study), study, grown, [west]) == [grown / "west"]
    assert {name: blob for name, blob in content(grown).items() if not name.startswith("west/")} == before
    made, asked = content(grown / "west"), content(whole / "west")
    for name, origin in {"ca.crt": "ca/ca.crt", "study/coordinator.pub": "coordinator/signing/coordinator.pub"}.items():
        assert made.pop(name) == before[origin]
        del asked[name]
    assert made == asked


def test_a_site_is_added_while_the_authority_is_in_a_safe(study: Path, tmp_path: Path) -> None:
    make(study, tmp_path / "kits")
    (tmp_path / "kits" / "ca").rename(tmp_path / "safe")
    add_sites(load_study(study), study, tmp_path / "kits", [KitSite("west", "target")])
    assert (tmp_path / "kits" / "west" / "ca.crt").read_bytes() == (tmp_path / "safe" / "ca.crt").read_bytes()


@pytest.mark.parametrize("host", ["fl.example.org", "2001:db8::1"])
def test_the_servers_certificate_is_renewed_under_the_same_authority_and_nothing_else_changes(
    host: str, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, kit = tmp_path / "kits", tmp_path / "kits" / "coordinator"
    provision(load_study(study), study, out, SITES, host=host, port=443)
    names = hosts_of(kit / "server.crt")
    make_server_certificate(out / "ca", kit, names, days=1)
    before = content(out)
    assert main(["provision", "--out", str(out), "--renew"]) == 0
    assert f"ends on {datetime.now(UTC).year + 2}" in capsys.readouterr().out
    after = content(out)
    assert {name for name in after if after[name] != before.get(name)} == {
        "coordinator/server.crt",
        "coordinator/server.key",
    }
    assert stat.S_IMODE((kit / "server.key").stat().st_mode) == 0o600
    assert hosts_of(kit / "server.crt") == names
    certificate = x509.load_pem_x509_certificate((kit / "server.crt").read_bytes())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate((out / "north" / "ca.crt").read_bytes()))
    key = serialization.load_pem_private_key((kit / "server.key").read_bytes(), password=None)
    assert key.public_key() == certificate.public_key()


def test_a_certificate_that_cannot_be_renewed_stays(study: Path, tmp_path: Path) -> None:
    make(study, tmp_path / "kits")
    make(study, tmp_path / "other")
    before = content(tmp_path / "kits" / "coordinator")
    (tmp_path / "kits" / "ca").rename(tmp_path / "safe")
    with pytest.raises(RunError, match="cannot read the certificate"):
        renew_server(tmp_path / "kits")
    (tmp_path / "other" / "ca").rename(tmp_path / "kits" / "ca")
    with pytest.raises(RunError, match="is not the authority of"):
        renew_server(tmp_path / "kits")
    for more in ([str(study)], ["--site", "west:target"], ["--address", "x"], ["--add"], ["--overwrite"]):
        assert main(["provision", "--out", str(tmp_path / "kits"), "--renew", *more]) == 2
    assert main(["provision", "--out", str(tmp_path / "kits")]) == 2
    assert content(tmp_path / "kits" / "coordinator") == before


def test_a_site_that_cannot_be_added_changes_nothing(study: Path, tmp_path: Path) -> None:
    of, out, west = load_study(study), tmp_path / "kits", KitSite("west", "target")
    with pytest.raises(RunError, match="leave --add out"):
        add_sites(of, study, out, [west])
    make(study, out)
    before = content(out)
    with pytest.raises(RunError, match="north already; nothing was changed"):
        add_sites(of, study, out, [west, SITES[0]])
    with pytest.raises(RunError, match="names must differ"):
        add_sites(of, study, out, [west, west])
    assert content(out) == before


@pytest.mark.parametrize(
    "more", [[], ["--site", "west:target", "--port", "1"], ["--site", "west:target", "--overwrite"]]
)
def test_adding_takes_sites_and_nothing_that_would_change_the_federation(
    more: list[str], study: Path, tmp_path: Path
) -> None:
    make(study, tmp_path / "kits")
    before = content(tmp_path / "kits")
    assert main(["provision", str(study), "--out", str(tmp_path / "kits"), "--add", *more]) == 2
    assert content(tmp_path / "kits") == before


def test_a_kit_says_what_to_do_about_a_key_that_nobody_registered(study: Path, tmp_path: Path) -> None:
    make(study, tmp_path / "kits")
    text = " ".join((tmp_path / "kits" / "east" / "README.md").read_text().split())
    # These words are Flower's, see test_federation_refusals.py; the rest is what a data manager can do.
    for words in ("docker compose logs supernode", "Exit Code: 305", "Failed to activate SuperNode"):
        assert words in text
    assert "as `east`" in text
    assert "site keygen" in text


@pytest.mark.parametrize(
    "text", ["north", "north:both", ":source", "North:source", "../x:source", "coordinator:source"]
)
def test_a_site_that_cannot_be_one_is_refused(text: str) -> None:
    with pytest.raises(RunError, match="a site is NAME:ROLE"):
        parse_site(text)


@pytest.mark.parametrize("text", ["https://fl.example.org", "fl.example.org:443", "", "a b", "-x"])
def test_an_address_that_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="without port or scheme"):
        valid_host(text)


def test_a_nodes_key_is_made_once_and_never_open(tmp_path: Path) -> None:
    made = make_node_keys(tmp_path / "node")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "node").iterdir()}
    assert modes == {
        "node": 0o600, "superexec.secret": 0o600, "runtime.key": 0o600, "node.pub": 0o644, "runtime.crt": 0o644
    }  # fmt: skip
    with pytest.raises(SiteStateError, match="made once"):
        make_node_keys(tmp_path / "node")
    assert fingerprint_of(tmp_path / "node" / "node.pub") == key_fingerprint(tmp_path / "node" / "node.pub") == made


def test_the_fingerprint_is_that_of_ssh_keygen(tmp_path: Path) -> None:
    made = make_node_keys(tmp_path / "node")
    try:
        done = subprocess.run(
            ["ssh-keygen", "-l", "-f", tmp_path / "node" / "node.pub"], capture_output=True, text=True, check=True
        )
    except FileNotFoundError:
        pytest.skip("ssh-keygen is not installed here")
    assert done.stdout.split()[:2] == ["384", made]


def test_a_stolen_key_signs_nothing_any_more_also_where_the_superlink_is_away(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CROSSPROBE_SIGNING_KEYS", raising=False)
    assert main(["provision", str(study), "--out", str(tmp_path / "kits"), "--site", "north:source"]) == 0
    link = ["--address", f"localhost:{free_port()}", "--ca", str(tmp_path / "kits/coordinator/ca.crt")]
    keys = tmp_path / "signing"
    (keys / SITE_KEYS).mkdir(parents=True)
    (keys / SITE_KEYS / "north.pub").write_bytes(b"stolen")
    assert main(["study", "unregister", "north", *link]) == 1
    assert "CROSSPROBE_SIGNING_KEYS" in capsys.readouterr().err
    assert main(["study", "unregister", "north", "--keys", str(keys), *link]) == 1
    shown = capsys.readouterr()
    assert "takes the signature of north" in shown.out
    assert "Check that the SuperLink runs" in shown.err
    assert not (keys / SITE_KEYS / "north.pub").exists()


def test_the_commands_say_what_to_do_next(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CROSSPROBE_ADDRESS", raising=False)
    assert main(["provision", str(study), "--out", str(tmp_path / "kits"), "--site", "north:source"]) == 0
    assert "README.md" in capsys.readouterr().out
    more = ["--add", "--site", "west:target"]
    assert main(["provision", str(study), "--out", str(tmp_path / "kits"), *more]) == 0
    assert "crossprobe study register west" in capsys.readouterr().out
    assert main(["study", "run", str(study), "--out", str(tmp_path / "run")]) == 1
    assert "Give --address HOST:PORT and --ca FILE" in capsys.readouterr().err
    assert main(["study", "status", str(tmp_path / "run")]) == 1
    assert "crossprobe study run" in capsys.readouterr().err
    (tmp_path / "not-a-key").write_text("hello")
    keys = [str(tmp_path / "not-a-key")] * 2
    assert main(["study", "register", "north", *keys, "--address", "localhost:1"]) == 1
    assert "Ask the site for its node.pub" in capsys.readouterr().err


def test_new_kits_take_the_study_from_a_kit_that_they_replace(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "kits"
    make(study, out)
    own = out / "coordinator" / "study" / "study.yaml"
    make(own, out, overwrite=True)
    assert own.read_bytes() == study.read_bytes()
    assert (out / "north" / "ca.crt").read_bytes() == (out / "ca" / "ca.crt").read_bytes()
