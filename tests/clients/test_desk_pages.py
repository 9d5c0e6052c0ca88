"""What the desk's pages show of studies, budget and ledger, whoever wrote it."""

import html
import re
from pathlib import Path
from typing import Literal

from tiny import content, study, write_site, write_study
from visitor import FORMS, PAGES, STUDY, Visitor, let_in, wait_for

from clients.data.site import load_site
from clients.governance.approval import approve
from clients.governance.ledger import Ledger, entry
from common.messages import EnrolRequest, Message
from common.study import load_study

WAYS: tuple[Literal["in", "out"], ...] = ("in", "out")


def test_the_page_shows_all_that_the_proposal_holds(browser: Visitor) -> None:
    proposal = browser.desk.case(STUDY.hash()).proposal
    assert proposal is not None
    page = html.unescape(browser.get(PAGES[3]).text)
    wanted = [*proposal.warnings, proposal.policy_hash, *proposal.tensors]
    wanted += [setting.words for stage in proposal.stages for setting in stage.settings]
    wanted += [name for shapes in proposal.tensors.values() for name in shapes]
    wanted += [f"{stage.sent_bytes:,}" for stage in proposal.stages]
    assert [words for words in wanted if words not in page] == []
    assert "has no differential privacy" in page
    assert page.index("Read this first") < page.index("What would leave") < page.index("Decide")


def test_the_desk_has_the_sites_name_before_the_data_were_looked_at_too(folder: Path, tmp_path: Path) -> None:
    with let_in(tmp_path, folder.rename(tmp_path / "site")) as browser:
        browser.desk.checked = None
        page = browser.get("/").text
        assert "The desk of north" in page
        assert "Not looked at yet" in page
        (browser.desk.folder / "site.yaml").write_text("name: [")
        assert "The desk of site" in browser.get("/").text


def test_differences_to_the_last_approved_study_are_marked(browser: Visitor) -> None:
    assert "No other study is approved here" in browser.get(PAGES[3]).text
    other = load_study(write_study(browser.desk.studies / "other.yaml", name="other", batch_size=8,
                                   stages=content()["stages"][:3]))  # fmt: skip
    site = load_site(browser.desk.folder)
    approve(browser.desk.state, site, other, by="Anna")
    page = browser.get(PAGES[3]).text
    assert "Compared with other, approved by Anna" in page
    assert re.search(r"pretrain: images behind each update.*</th><td>16</td><td>8</td>", page)
    assert '<th scope="row">stage infuse</th><td>-</td><td>part of it</td>' in page
    assert '<span class="changed">changed, was 16</span>' in page
    assert "changed, was" not in browser.get(f"/study/{other.hash()}").text


def test_a_void_approval_says_why(browser: Visitor) -> None:
    browser.post(FORMS[2], name="Anna", read="yes", seen=browser.seen(PAGES[3]))
    config = browser.desk.folder / "site.yaml"
    config.write_text(config.read_text().replace("min_update_patients: 1", "min_update_patients: 2"))
    browser.desk.check_data()
    wait_for(browser.desk)
    assert "does not hold</b>: approved by Anna" in browser.get("/").text
    assert "approved for the site&#39;s policy" in browser.get(PAGES[3]).text


def test_a_private_study_shows_its_budget_as_a_bar(browser: Visitor) -> None:
    private = load_study(
        write_study(
            browser.desk.studies / "private.yaml",
            name="private",
            privacy={"nominal_patients": 100, "noise_multiplier": 1.0, "epsilon_cap": 0.5},
            stages=content()["stages"][:1],
        )
    )
    page = browser.get(f"/study/{private.hash()}").text
    proposal = browser.desk.case(private.hash()).proposal
    assert proposal is not None
    assert proposal.budget is not None
    width = round(100 * min(proposal.budget.after / 0.5, 1), 2)
    assert f'width="{width}"' in page
    assert 'class="spent" width="0.0"' in page
    assert f"{proposal.budget.after:.3f} with this study" in page


def test_the_ledger_is_a_timeline_and_damage_is_told(browser: Visitor) -> None:
    state = browser.desk.state
    request = EnrolRequest(study=STUDY.hash())
    message = Message.of(request)
    ledger = Ledger(state.ledger)
    for way in WAYS:
        ledger.append(entry(way, message))
    page = browser.get("/ledger").text
    assert page.count('class="out"') == page.count('class="in"') == 1
    assert f"What left: 1 messages, {len(message.payload)} bytes" in page
    assert "study tiny" in page
    state.ledger.write_bytes(state.ledger.read_bytes().replace(b'"direction":"out"', b'"direction":"in"'))
    assert "not as the worker wrote it" in browser.get("/ledger").text


def test_what_others_wrote_is_text_and_never_markup(browser: Visitor, tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    (browser.desk.studies / "bad.yaml").write_text(f'name: "{bad}"\n"{bad}": 1\nstages: []\n')
    (browser.desk.studies / f"{bad.replace('/', '')}.yaml").write_text(f"- {bad}\n")
    site = load_site(browser.desk.folder)
    approve(browser.desk.state, site, study(name="hostile", initial={}), by=f"{bad}\"'><img src=x>")
    (browser.desk.state.folder / "approvals" / "<b>.json").write_text("{}")
    hostile = write_site(tmp_path / "hostile", "source")
    manifest = hostile / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("kept-hostile-train-0", bad).replace("probe-x", f"'{bad}'"))
    assert bad in manifest.read_text()
    for folder in (hostile, browser.desk.folder):
        browser.desk.folder = folder
        browser.desk.check_data()
        wait_for(browser.desk)
        assert browser.desk.background.work is None
        pages = [browser.get(path) for path in (*PAGES, f"/study/{study(name='hostile').hash()}")]
        assert [page.status for page in pages] == [200] * 6
        for page in pages:
            assert not re.search("<script|<img src=x|<b>[.]json", page.text)
        assert html.escape(bad) in pages[0].text
        assert html.escape(bad) in pages[5].text
    browser.desk.folder = hostile
    browser.desk.check_data()
    wait_for(browser.desk)
    assert html.escape(bad) in browser.get("/data").text
    refused = browser.post(f"/study/{'b' * 64}/withdraw", name=bad)
    assert refused.status == 409
    assert "<script" not in refused.text
