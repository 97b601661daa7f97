"""The review page in a real browser: what a person does, and what a hostile rollout tries."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gristmill.decisions import DecisionLog, effective
from gristmill.review import queue
from gristmill.review.server import serving
from gristmill.review.session import Session
from tests.rows import rollout, table

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
Page = Any

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
HOSTILE = (
    "<script>window.owned = 1</script><img src=x onerror='window.owned = 2'>"
    "<svg onload='window.owned=3'></svg><a href=\"javascript:window.owned=4\">x</a>"
)
MEGABYTE = ("0123456789abcdef" * 4 + "\n") * 16132  # 1,048,580 characters
ARABIC = "هذا نص عربي مع English في الوسط."

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


def text(words: str) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": words}]}


def rows() -> list[dict[str, Any]]:
    """Two attempts at a task, then one hostile, one long, one right-to-left, one that has no chat form."""
    call = {"type": "function_call", "call_id": "c", "name": "read", "arguments": '{"path": "<b>x</b>"}'}
    result = {"type": "function_call_output", "call_id": "c", "output": MEGABYTE}
    hostile_call = {**call, "name": HOSTILE, "arguments": '{"a": "' + HOSTILE.replace('"', '\\"') + '"}'}
    hostile_result = {**result, "output": HOSTILE}
    thought = {"type": "reasoning", "summary": [{"text": HOSTILE}]}
    hostile = rollout(
        output=[thought, hostile_call, hostile_result, text(HOSTILE)],
        task=1,
        question=HOSTILE,
        judge=HOSTILE,
        **{HOSTILE: 0.5, "label": HOSTILE[:60]},
    )
    hostile["responses_create_params"]["tools"] = [{"type": "function", "name": HOSTILE, "description": HOSTILE}]
    hostile["agent_ref"] = {"name": HOSTILE}
    return [
        rollout("first answer", reward=1.0, accuracy=0.5),
        rollout("second answer", repeat=1, reward=0.0),
        hostile,
        rollout(output=[call, result, text("long " * 8000)], task=2),
        rollout(ARABIC, task=3, question=ARABIC),
        rollout(output=[{"type": "web_search_call", "query": HOSTILE}], task=4),
    ]


class Desk:
    """A server for one reviewer, and a page that must stay quiet and ask nobody else."""

    def __init__(self, browser: Any, session: Session, url: str, **look: Any) -> None:
        self.session, self.url = session, url
        self.ids = [one.rollout_id for one in session.queue.rollouts]
        self.trouble: list[str] = []
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | look))
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.page.on("pageerror", lambda error: self.trouble.append(f"error: {error}"))
        self.page.on("console", lambda message: self.trouble.append(f"console: {message.text}"))
        self.page.on("dialog", lambda dialog: self.trouble.append(f"dialog: {dialog.message}"))
        self.page.on("request", self._ours)

    def _ours(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:")):
            self.trouble.append(f"request: {request.url}")

    def open(self, index: int | None = None) -> Page:
        self.page.goto("about:blank")
        self.page.goto(self.url + ("" if index is None else f"#{self.ids[index]}"))
        self.shows(index or 0)
        return self.page

    def shows(self, index: int) -> None:
        """Wait until a rollout of the queue is on the page."""
        playwright.expect(self.page.locator("#rollout")).to_have_text(f"Rollout {index + 1} of {len(self.ids)}")

    def says(self, words: str) -> None:
        playwright.expect(self.page.locator("#said")).to_have_text(words)

    def counts(self, words: str) -> None:
        playwright.expect(self.page.locator("#count")).to_have_text(words)

    def judgements(self) -> dict[int, str]:
        """As they are on disk."""
        found = effective(DecisionLog(self.session.log.path).entries())
        return {self.ids.index(key): judgement for key, judgement in found.items()}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> queue.Queue:
    tables, _ = table(tmp_path_factory.mktemp("rollouts"), rows())
    return queue.everything([tables])


@pytest.fixture
def desk(browser: Any, everything: queue.Queue, tmp_path: Path) -> Iterator[Desk]:
    session = Session(everything, DecisionLog(tmp_path / "log.jsonl"), "ada", title="rows")
    with serving(session) as url:
        desk = Desk(browser, session, url)
        yield desk
        desk.context.close()
    assert desk.trouble == []


def test_accept_reject_undo_and_reload(desk: Desk) -> None:
    page = desk.open()
    page.keyboard.press("a")
    desk.shows(1)
    page.keyboard.press("r")
    desk.shows(2)
    assert desk.judgements() == {0: "accept", 1: "reject"}
    desk.counts("2 of 6 decided")
    page.keyboard.press("u")
    desk.shows(1)
    desk.says("Taken back: rejected")
    assert desk.judgements() == {0: "accept"}
    page.reload()
    desk.shows(1)  # where it was, nothing lost
    desk.counts("1 of 6 decided")
    page.keyboard.press("k")
    desk.shows(0)
    playwright.expect(page.locator("#accept")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("u")
    desk.says("Taken back: accepted")
    page.keyboard.press("u")
    desk.says("There is nothing of yours to take back")
    assert desk.judgements() == {}


def test_buttons_do_what_the_keys_do(desk: Desk) -> None:
    page = desk.open()
    page.click("#reject")
    desk.shows(1)
    page.click("#next")
    desk.shows(2)
    page.click("#previous")
    desk.shows(1)
    page.click("#undo")
    desk.shows(0)
    assert desk.judgements() == {}


def test_a_new_page_begins_at_the_first_undecided(desk: Desk) -> None:
    page = desk.open()
    page.keyboard.press("a")
    desk.shows(1)
    page.goto("about:blank")
    page.goto(desk.url)
    desk.shows(1)


def test_a_key_held_or_hit_twice_decides_only_what_was_seen(desk: Desk) -> None:
    page = desk.open()
    page.evaluate(
        "for (const repeat of [false, false, true])"
        " document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'a', repeat, bubbles: true}))"
    )
    desk.shows(1)
    page.keyboard.press("j")
    desk.shows(2)
    assert desk.judgements() == {0: "accept"}


def test_tags_and_notes_are_kept_with_and_without_a_judgement(desk: Desk) -> None:
    page = desk.open()
    page.keyboard.press("t")
    page.keyboard.type("a rather good one")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#tags")).to_contain_text("a rather good one")
    page.keyboard.press("Escape")
    page.keyboard.press("n")
    page.keyboard.type("jar")  # keys inside a field are text
    page.keyboard.press("Escape")
    playwright.expect(page.locator("#opinions")).to_contain_text("jar")
    assert desk.judgements() == {}
    page.reload()
    playwright.expect(page.locator("#note")).to_have_value("jar")
    page.keyboard.press("a")
    desk.shows(1)
    assert page.input_value("#note") == ""
    (last,) = [one for one in desk.session.log.entries() if one.decision == "accept"]
    assert (last.tags, last.note, last.reviewer) == (("a rather good one",), "jar", "ada")


def test_a_note_that_is_being_written_survives_leaving(desk: Desk) -> None:
    page = desk.open()
    page.fill("#note", "half a thou")
    page.click("#next")
    desk.shows(1)
    page.keyboard.press("k")
    desk.shows(0)
    playwright.expect(page.locator("#note")).to_have_value("half a thou")
    page.reload()
    desk.shows(0)
    playwright.expect(page.locator("#note")).to_have_value("half a thou")


def test_the_filter_goes_through_the_undecided(desk: Desk) -> None:
    page = desk.open()
    page.keyboard.press("j")
    desk.shows(1)
    page.keyboard.press("a")
    desk.shows(2)
    page.keyboard.press("f")
    desk.says("5 of 6 rollouts")
    page.keyboard.press("k")
    desk.shows(0)
    page.select_option("#filter", "accept")
    desk.shows(1)


def test_all_decided(desk: Desk) -> None:
    page = desk.open()
    for index in range(5):
        page.keyboard.press("a" if index else "r")
        desk.shows(index + 1)
    page.keyboard.press("a")
    playwright.expect(page.locator(".done")).to_contain_text("5 accepted, 1 rejected.")
    desk.counts("6 of 6 decided")


def test_other_attempts_stand_beside_it_and_can_be_opened(desk: Desk) -> None:
    page = desk.open()
    attempts = page.locator("#attempts button")
    assert attempts.count() == 2
    assert attempts.nth(0).get_attribute("aria-current") == "true"
    playwright.expect(attempts.nth(1)).to_contain_text("second answer")
    attempts.nth(1).click()
    desk.shows(1)
    playwright.expect(page.locator(".message.policy")).to_contain_text("second answer")
    page.go_back()
    desk.shows(0)


def test_on_a_narrow_page_a_button_leads_to_the_attempts(desk: Desk) -> None:
    desk.page.set_viewport_size({"width": 390, "height": 844})
    page = desk.open()
    page.click("#to-attempts")
    playwright.expect(page.locator("#attempts-title")).to_be_in_viewport()
    assert page.evaluate("location.hash.slice(1)") == desk.ids[0]
    desk.shows(0)


def test_an_address_from_another_sample_leads_to_the_start(desk: Desk) -> None:
    desk.page.goto(desk.url + "#" + "0" * 32)
    desk.shows(0)
    desk.trouble = [one for one in desk.trouble if "404" not in one]  # the browser notes the failed request


def test_two_reviewers_see_that_they_disagree(desk: Desk, browser: Any) -> None:
    page = desk.open()
    page.keyboard.press("a")
    desk.shows(1)
    bob = Session(desk.session.queue, DecisionLog(desk.session.log.path), "bob", title="rows")
    with serving(bob) as url:
        other = Desk(browser, bob, url)
        theirs = other.open(0)
        playwright.expect(theirs.locator("#opinions")).to_contain_text("ada accepted")
        theirs.fill("#note", "wrong unit")
        theirs.keyboard.press("Escape")
        theirs.keyboard.press("r")
        other.shows(1)
        other.counts("1 of 6 decided, 1 disagreed on")
        assert other.trouble == []
        other.context.close()
    page.keyboard.press("k")
    desk.shows(0)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # she comes back to her page
    playwright.expect(page.locator("#opinions")).to_contain_text("bob rejected")
    playwright.expect(page.locator("#opinions")).to_contain_text("wrong unit")
    playwright.expect(page.locator("#opinions")).to_contain_text("Reviewers disagree")
    assert desk.judgements() == {0: "reject"}


def test_hostile_content_is_text(desk: Desk) -> None:
    page = desk.open(2)
    page.keyboard.press("o")  # every fold
    for fold in page.locator("#more details").all():
        fold.locator("summary").click()
    playwright.expect(page.locator("#more details").last).to_contain_text("responses_create_params")
    shown = page.locator("main").inner_text()
    assert shown.count("<script>window.owned = 1</script>") >= 6  # prompt, thought, call, result, answer, tool
    assert page.evaluate("window.owned") is None
    assert page.locator("main script, main img, main svg, main a[href^='javascript']").count() == 0
    page.fill("#note", HOSTILE)
    page.fill("#tag", HOSTILE[:60])
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#tags li")).to_have_count(1)
    page.reload()
    playwright.expect(page.locator("#tags li")).to_have_count(1)
    assert page.evaluate("window.owned") is None


def test_the_policy_stops_what_the_page_itself_would_not_do(desk: Desk) -> None:
    """Inline code, HTML from a string and other hosts are refused by the browser."""
    page = desk.open()
    assert (
        page.evaluate("try { document.body.innerHTML = '<p>x</p>'; 'done' } catch (error) { error.name }")
        == "TypeError"
    )
    refused = page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'done', (error) => error.name)")
    assert refused == "TypeError"
    page.evaluate(
        "const s = document.createElement('style'); s.textContent = 'body{display:none}'; document.head.append(s)"
    )
    assert page.evaluate("getComputedStyle(document.body).color") != "rgb(255, 0, 0)"
    assert desk.trouble and all("Content Security Policy" in one or "TrustedHTML" in one for one in desk.trouble)
    desk.trouble.clear()


def test_a_megabyte_stays_folded_until_it_is_asked_for(desk: Desk) -> None:
    page = desk.open(3)
    size = page.evaluate("document.documentElement.textContent.length")
    assert size < 40_000
    fold = page.locator("details", has_text="result of read")
    playwright.expect(fold.locator("summary")).to_contain_text("1,048,580 characters")
    fold.locator("summary").click()
    playwright.expect(fold.locator("pre")).to_contain_text("0123456789abcdef")
    assert page.evaluate("document.documentElement.textContent.length") < 100_000
    while fold.locator("button.more").count():
        fold.locator("button.more").click()
    assert page.evaluate(
        "[...document.querySelectorAll('details pre')].some((pre) => pre.textContent.length === 1048580)"
    )
    page.keyboard.press("a")
    desk.shows(4)


def test_right_to_left_text_runs_from_the_right(desk: Desk) -> None:
    page = desk.open(4)
    for message in page.locator(".message pre").all():
        assert message.evaluate("(node) => node.matches(':dir(rtl)')")
        box = message.bounding_box()
        start = message.evaluate(
            "(node) => { const range = document.createRange(); range.setStart(node.firstChild, 0);"
            " range.setEnd(node.firstChild, 1); return range.getBoundingClientRect().right; }"
        )
        assert abs(start - (box["x"] + box["width"])) < 4
    assert page.locator("#rollout").evaluate("(node) => node.matches(':dir(ltr)')")


def test_what_has_no_chat_form_is_shown_raw_with_the_reason(desk: Desk) -> None:
    page = desk.open(5)
    playwright.expect(page.locator("#warning")).to_contain_text("unsupported_item")
    playwright.expect(page.locator("#conversation")).to_contain_text("output[0] web_search_call")


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_no_width_scrolls_sideways(browser: Any, everything: queue.Queue, tmp_path: Path, width: int) -> None:
    session = Session(everything, DecisionLog(tmp_path / "log.jsonl"), "a-reviewer-with-a-long-name", title="x" * 80)
    with serving(session) as url:
        desk = Desk(browser, session, url, viewport={"width": width, "height": 844})
        page = desk.open()
        for index in range(len(desk.ids)):
            desk.shows(index)
            page.keyboard.press("o")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, index
            for name in ("#accept", "#reject", "#undo", "#previous", "#next"):
                box = page.locator(name).bounding_box()
                assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["height"] >= 44, name
            page.keyboard.press("j")
        desk.context.close()
        assert desk.trouble == []


def test_keys_can_be_switched_off_and_help_lists_them(desk: Desk) -> None:
    page = desk.open()
    page.keyboard.press("?")
    playwright.expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("a")  # no decision behind a dialog
    page.uncheck("#keys-on")
    page.keyboard.press("Escape")
    page.keyboard.press("a")
    page.reload()
    desk.shows(0)
    page.keyboard.press("a")
    page.click("#next")
    desk.shows(1)
    assert desk.judgements() == {}


def test_everything_has_a_name_for_those_who_listen(desk: Desk) -> None:
    page = desk.open(2)
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input, textarea, select, summary")]
            .filter((node) => node.checkVisibility())
            .filter((node) => !(node.innerText.trim() || node.getAttribute("aria-label") || node.labels?.length))
            .map((node) => node.outerHTML)"""
    )
    assert nameless == []
    assert page.evaluate("document.activeElement.id") == "rollout"  # a screen reader hears where it is
    assert page.locator("#said[role=status], #problem[role=alert]").count() == 2


def test_a_server_that_is_gone_is_said_and_nothing_is_pretended(
    browser: Any, everything: queue.Queue, tmp_path: Path
) -> None:
    session = Session(everything, DecisionLog(tmp_path / "log.jsonl"), "ada", title="rows")
    with serving(session) as url:
        desk = Desk(browser, session, url)
        page = desk.open()
    page.keyboard.press("a")
    playwright.expect(page.locator("#problem")).to_contain_text("does not answer")
    desk.counts("0 of 6 decided")
    desk.shows(0)
    desk.context.close()


def test_a_decision_that_cannot_be_saved_is_said(desk: Desk) -> None:
    page = desk.open()
    desk.session.log.path.mkdir()
    page.keyboard.press("a")
    playwright.expect(page.locator("#problem")).to_be_visible()
    desk.shows(0)
    os.rmdir(desk.session.log.path)
    page.keyboard.press("a")
    desk.shows(1)
    playwright.expect(page.locator("#problem")).to_be_hidden()
    assert desk.judgements() == {0: "accept"}
    desk.trouble = [one for one in desk.trouble if "500" not in one]  # the browser notes the failed request


def test_a_wrong_token_shows_nothing(desk: Desk) -> None:
    page = desk.page
    answer = page.goto(desk.url[:-2] + "/")
    assert answer.status == 404
    assert page.locator("body").inner_text().strip() == "not found"
    desk.trouble.clear()
