"""`crossprobe study watch`: shows a run that goes on to whoever has the token on this machine, and to nobody else."""

import http.client
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fabricated import PAIR, SOURCE, TARGET, entry, evaluation, fabricate, study_with_baseline

from common.baseline import baseline_of
from common.errors import RunError
from common.run_folder import RunFolder
from server import history, pause
from server.history import SiteRecord
from server.pause import Pause
from server.report.live import Run, live_page
from server.watch import WatchServer, content_policy

ROOT = Path(__file__).parents[2]
#: Seconds after the third fabricated round.
SOON = datetime(2026, 11, 23, 3, 51, tzinfo=UTC)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WatchServer]:
    run = fabricate(tmp_path / "run", done=3)
    with WatchServer(run) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def ask(
    server: WatchServer, path: str | None = None, *, method: str = "GET", host: str | None = None
) -> tuple[int, dict[str, str], str]:
    """What the server answers to one request; `path` and `host` are sent as they are."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.putrequest(method, path or f"/?token={server.token}", skip_host=True)
    connection.putheader("Host", f"127.0.0.1:{server.server_port}" if host is None else host)
    connection.endheaders()
    reply = connection.getresponse()
    content = reply.status, dict(reply.getheaders()), reply.read().decode()
    connection.close()
    return content


def shown(run: Path, now: datetime = SOON) -> str:
    return re.sub(r"\s+", " ", live_page(Run.read(run), now))


def test_whoever_has_the_address_sees_the_run(server: WatchServer) -> None:
    status, headers, page = ask(server)
    assert status == 200
    assert "Round 3, stage refine" in page
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert ask(server, host=f"localhost:{server.server_port}")[0] == 200


@pytest.mark.parametrize("path", ["/", "/?token=", "/?token=wrong", "/?Token={}", "/?token={}&token={}", "/?token={}x"])
def test_without_the_token_nothing_is_shown(server: WatchServer, path: str) -> None:
    status, _, page = ask(server, path.replace("{}", server.token))
    assert status == 403
    assert "refine" not in page
    assert server.token not in page


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{}", "127.0.0.1", "127.0.0.1.evil.example:{}", ""])
def test_another_name_for_this_machine_is_refused(server: WatchServer, host: str) -> None:
    status, _, page = ask(server, host=host.replace("{}", str(server.server_port)))
    assert status == 421
    assert "refine" not in page


@pytest.mark.parametrize(
    "path",
    [
        "/history.jsonl",
        "/../study.yaml",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/checkpoint/state.json",
        "/[",
        "x",
    ],
)
def test_no_path_names_a_file(server: WatchServer, path: str) -> None:
    status, _, page = ask(server, f"{path}?token={server.token}")
    assert status == 404
    assert page == "There is one page only, at /.\n"
    assert ask(server, path)[0] == 403  # and without the token not even that is told


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_nothing_can_be_changed(server: WatchServer, method: str) -> None:
    before = {file: file.stat().st_mtime_ns for file in server.watcher.folder.path.rglob("*")}
    assert ask(server, method=method)[0] == 405
    assert ask(server)[0] == 200
    assert {file: file.stat().st_mtime_ns for file in server.watcher.folder.path.rglob("*")} == before


def test_neither_a_silent_nor_a_garbled_nor_a_broken_connection_keeps_others_out(
    server: WatchServer, capfd: pytest.CaptureFixture[str]
) -> None:
    address = ("127.0.0.1", server.server_port)
    with socket.create_connection(address), socket.create_connection(address) as garbled:
        garbled.sendall(b"\x16\x03\x01 <script>\r\n\r\n")
        assert b"<script>" not in garbled.recv(4096)
        with socket.create_connection(address) as broken:
            broken.sendall(f"GET /?token={server.token} HTTP/1.1\r\nHost: 127.0.0.1:{address[1]}\r\n\r\n".encode())
            broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed by a reset
        assert ask(server)[0] == 200
    assert capfd.readouterr().err == ""


def test_head_has_no_body(server: WatchServer) -> None:
    status, headers, body = ask(server, method="HEAD")
    assert (status, body) == (200, "")
    assert int(headers["Content-Length"]) > 1000


def test_only_loopback_is_listened_on(server: WatchServer) -> None:
    assert server.server_address[0] == "127.0.0.1"


def test_policy_allows_the_page_its_own_style_and_script_alone(server: WatchServer) -> None:
    _, headers, page = ask(server)
    policy = headers["Content-Security-Policy"]
    assert policy == content_policy(page)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert len(re.findall(r"<script", page)) == 1
    assert not re.search(r'https?:|<link|@import|url\(| style="| on\w+="', page)
    assert content_policy(page.replace("every_ms = 3000", "every_ms = 1")) != policy


def test_page_follows_the_run_to_its_report(server: WatchServer, tmp_path: Path) -> None:
    run = server.watcher.folder.path
    assert "3 of 7 rounds are done" in ask(server)[2]
    later = fabricate(tmp_path / "later", done=5)
    os.replace(run, tmp_path / "before")
    os.replace(later, run)
    assert "5 of 7 rounds are done" in ask(server)[2]
    finished = fabricate(tmp_path / "finished", evaluated={"east": evaluation((0.061, 0.021, 0.099))})
    RunFolder(finished).release.mkdir()
    os.replace(run, tmp_path / "between")
    os.replace(finished, run)
    assert "All rounds are done; the model is being written." in ask(server)[2]
    RunFolder(run).model.write_bytes(b"")
    _, headers, page = ask(server)
    assert "beats the baseline by 6.1 Dice points" in page
    assert "script-src 'none'" in headers["Content-Security-Policy"]
    assert not RunFolder(run).report.exists()  # it reads only
    RunFolder(run).report.write_text("<p>with pictures</p>")
    assert ask(server)[2] == "<p>with pictures</p>"


def test_damaged_run_is_told_and_the_page_goes_on(server: WatchServer) -> None:
    state = RunFolder(server.watcher.folder.path).state
    whole = state.read_text()
    state.write_text("{")
    status, _, words = ask(server)
    assert status == 503
    assert "it is damaged" in words
    assert "Traceback" not in words
    state.write_text(whole)
    assert ask(server)[0] == 200


def test_each_site_is_in_slow_lost_or_refused_and_why(tmp_path: Path) -> None:
    participants = {"a": SOURCE, "b": TARGET, "c": TARGET, "d": TARGET, "e": SOURCE, "new": TARGET}
    study = study_with_baseline()
    late_but_in = replace(entry("source", "supervise", 2, {}), seconds=0.6 * study.participation.deadline_s)
    sites = {
        "a": entry("source", "supervise", 2, {}),
        "b": SiteRecord("target", "self_train", "late", "no reply within 5 s"),
        "c": SiteRecord("target", "self_train", "failed", "its SuperNode is gone (Flower's error code 5)"),
        "d": SiteRecord("target", "self_train", "refused", "policy: at most 2 rounds"),
        "e": late_but_in,
    }
    run = fabricate(tmp_path / "run", participants, done=1, changes={0: {"sites": sites}})
    html = shown(run)
    states = re.findall(r'scope="row">(\w+)<span.*?<span class="state [\w-]+">([\w ]+)</span>.*?"why">(.*?)</td>', html)
    assert states == [
        ("c", "lost", "its SuperNode is gone (Flower&#39;s error code 5)"),
        ("d", "refused", "policy: at most 2 rounds"),
        ("b", "slow", "no reply within 5 s"),
        ("e", "slow", "its last reply took more than half the deadline"),
        ("new", "not asked yet", "–"),
        ("a", "in", "–"),
    ]


def test_pause_names_who_is_waited_for(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", done=3)
    why = {"east": "failed: its SuperNode is gone"}
    pause.write(run, Pause("03:00", "03:30", 3, "refine", 2, {"target": (0, 1)}, why))
    html = shown(run)
    assert "paused until east can be reached again" in html
    assert '<span class="state paused">paused</span>' in html
    assert "after 2 more attempt(s) the run ends" in html
    pause.clear(run)
    assert "paused" not in re.sub("<style>.*</style>", "", shown(run))


def test_time_left_is_what_rounds_of_the_stage_took() -> None:
    from server.history import RoundRecord

    study = study_with_baseline()
    names = [round_.stage.name for round_ in study.rounds()]
    records = [RoundRecord(i, names[i], "2026-11-23T03:50:11+00:00", 10.0 * (i + 1), {}) for i in range(3)]
    assert history.time_left(study, 0, [], timedelta()) is None
    expected = sum({names[0]: 10.0, names[1]: 20.0, names[2]: 30.0}.get(name, 20.0) for name in names[3:])
    assert history.time_left(study, 3, records, timedelta()) == pytest.approx(expected)
    assert history.time_left(study, 3, records, timedelta(seconds=5)) == pytest.approx(expected - 5)


def test_run_that_fell_silent_or_ended_is_not_called_going_on(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", done=3)
    assert "refine, goes on." in shown(run)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    assert "the run has most likely ended" in shown(run, tomorrow)
    RunFolder(run).flower.write_text("{}")  # resumed
    os.utime(RunFolder(run).flower, (tomorrow.timestamp() - 5,) * 2)
    assert "refine, goes on." in shown(run, tomorrow)
    RunFolder(run).error.write_text("round 3 fell short of <quorum>")
    html = shown(run, tomorrow)
    assert "Ended with an error" in html
    assert "round 3 fell short of &lt;quorum&gt;" in html


def test_refused_replies_and_bytes_are_shown_and_hostile_text_is_escaped(tmp_path: Path) -> None:
    hostile = '"><script>alert(1)</script>'
    sites = {"north": SiteRecord("source", "supervise", "refused", hostile, bytes_to=5_000_000)}
    html = shown(fabricate(tmp_path / "run", PAIR, done=1, changes={0: {"sites": sites}}))
    assert html.count("<script") == 1
    assert '<td data-label="reason">&#34;&gt;&lt;script&gt;alert(1)&lt;/script&gt;</td>' in html
    assert html.count('<td class="n" data-label="MB to sites">5.00</td>') == 2  # the stage's and the total


def test_run_that_enrols_has_a_page(tmp_path: Path) -> None:
    assert "Sites are being enrolled" in shown(tmp_path)


def test_a_simulations_baseline_is_followed_before_its_study(tmp_path: Path) -> None:
    fabricate(
        tmp_path / "run" / "baseline", {"north": SOURCE}, study=baseline_of(study_with_baseline(), rounds=4), done=3
    )
    html = shown(tmp_path / "run")
    assert "The baseline first: Round 3, stage baseline, goes on." in html
    assert "3 of 4 rounds are done" in html


def test_of_many_sites_only_those_that_are_not_in_are_listed(tmp_path: Path) -> None:
    participants = {f"site-{i:03d}": TARGET for i in range(300)} | {"north": SOURCE}
    lost = {"site-007": SiteRecord("target", "self_supervise", "failed", "gone")}
    well = {name: entry("target", "self_supervise", 0, {}) for name in participants if name not in (*lost, "north")}
    sites = {**lost, **well, "north": entry("source", "supervise", 0, {})}
    html = shown(fabricate(tmp_path / "run", participants, done=1, changes={0: {"sites": sites}}))
    assert re.findall(r'<th scope="row">([\w-]+)<span class="role"', html) == ["site-007"]
    assert '<span class="state in">in</span> 300' in html
    assert len(html) < 200_000


def test_folder_that_is_not_there_and_a_taken_port_are_told(server: WatchServer, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="expected a run's folder"):
        WatchServer(tmp_path / "nowhere")
    with pytest.raises(RunError, match="Give another --port"):
        WatchServer(tmp_path, server.server_port)


def test_ctrl_c_ends_it_cleanly(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", done=3)
    command = [sys.executable, str(ROOT / "crossprobe.py"), "study", "watch", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout
        assert re.match(r"open http://127\.0\.0\.1:\d+/\?token=[\w-]{43}\n", process.stdout.readline())
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.endswith("no longer watching; the run goes on\n")
    assert errors == ""
