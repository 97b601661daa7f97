"""Review without a browser: what is shown, the session, the server's door, sheets, and the command."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest

from gristmill.decisions import DecisionLog, effective, opinions
from gristmill.errors import InputError, RecipeError, StoreError, UsageError
from gristmill.review import queue
from gristmill.review.server import bind, serving
from gristmill.review.session import Session, status
from gristmill.review.sheet import import_sheet, write_sheet
from gristmill.review.shown import show
from gristmill.sample import stratified
from tests.rows import rollout, table, write

CALL = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": "x"}'}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "found"}


def said(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}


@pytest.fixture
def made(tmp_path: Path) -> queue.Queue:
    """Three tasks with three attempts each, of reward 0, 0.5 and 1."""
    rows = [
        rollout(f"answer {task}.{repeat}", task=task, repeat=repeat, reward=repeat / 2, accuracy=repeat / 4)
        for task in range(3)
        for repeat in range(3)
    ]
    tables, _ = table(tmp_path, rows)
    return queue.sampled([tables], stratified([tables], low=1, middle=1, high=2, seed=0), 0)


@pytest.fixture
def session(made: queue.Queue, tmp_path: Path) -> Session:
    return Session(made, DecisionLog(tmp_path / "log.jsonl"), "ada", title="test")


# ---- what is shown


def test_a_conversation_is_shown_with_calls_results_and_reasoning() -> None:
    output = [{"type": "reasoning", "summary": [{"text": "hm"}]}, CALL, RESULT, said("done")]
    row = rollout(output=output, judge_words="fine")
    row["responses_create_params"]["tools"] = [{"type": "function", "name": "look", "parameters": {"type": "object"}}]
    shown = show(orjson.dumps(row))
    assert [(m.role, m.policy) for m in shown.messages] == [
        ("user", False),
        ("assistant", True),
        ("tool", False),
        ("assistant", True),
    ]
    first, result = shown.messages[1:3]
    assert first.reasoning == "hm"
    assert json.loads(first.calls[0].arguments) == {"at": "x"}
    assert (result.name, result.text, result.answers) == ("look", "found", "c1")
    assert shown.tools[0].name == "look"
    assert json.loads(shown.fields) == {"judge_words": "fine"}
    assert shown.preview == "done"


def test_what_has_no_chat_form_is_shown_as_it_is_with_the_reason() -> None:
    shown = show(orjson.dumps(rollout(output=[{"type": "web_search_call", "query": "x"}, said("yes")])))
    assert shown.problem.startswith("unsupported_item: output[0]")
    assert [item.title for item in shown.items] == ["input[0] user", "output[0] web_search_call", "output[1] message"]
    assert '"query": "x"' in shown.items[1].text
    assert shown.preview == shown.problem


def test_a_row_that_cannot_be_trained_on_says_so() -> None:
    assert show(orjson.dumps(rollout("  "))).warning.startswith("empty_answer")


def test_lone_surrogates_and_huge_numbers_are_shown() -> None:
    line = json.dumps(rollout("a\ud800b", odd=10**400)).encode()
    shown = show(line)
    assert shown.problem  # no chat form, but it can be looked at
    assert "a\N{REPLACEMENT CHARACTER}b" in shown.items[-1].text
    assert len(shown.digest) == 64


def test_the_digest_names_what_was_seen() -> None:
    one, same, other = (show(orjson.dumps(rollout(text))) for text in ("a", "a", "b"))
    assert one.digest == same.digest != other.digest


def test_every_real_row_can_be_shown(shared: Path, tmp_path: Path) -> None:
    from gristmill.ingest import ingest

    files = sorted(path for path in shared.glob("*.jsonl") if path.stat().st_size < 300_000)
    everything = queue.everything([ingest(files, tmp_path / "table").tables])
    session = Session(everything, DecisionLog(tmp_path / "log.jsonl"), "ada", title="all")
    for one in everything.rollouts[::5]:
        value = session.rollout(one.rollout_id)
        orjson.dumps(value)
        assert value["messages"] or (value["problem"] and value["items"])


# ---- queue and session


def test_a_queue_has_the_sample_and_the_other_attempts(made: queue.Queue) -> None:
    assert len(made.rollouts) == 4
    assert {one.stratum for one in made.rollouts} == {"low", "middle", "high"}
    for one in made.rollouts:
        attempts = made.attempts(one)
        assert [other.reward for other in attempts] == [1, 0.5, 0]
        assert one in attempts


def test_a_queue_of_all_is_in_input_order(tmp_path: Path) -> None:
    tables, _ = table(tmp_path, [rollout("a", reward=1.0), rollout("b", task=1, reward=None), rollout("c", task=2)])
    everything = queue.everything([tables])
    assert [show(one.raw()).preview for one in everything.rollouts] == ["a", "c"]


def test_a_queue_of_those_that_a_condition_holds_for(tmp_path: Path) -> None:
    rows = [rollout(f"a{i}", task=i // 2, repeat=i % 2, reward=float(i % 2), accuracy=i / 4) for i in range(4)]
    tables, _ = table(tmp_path, rows)
    found = queue.everything([tables], ["reward = 0", "accuracy > 0.1"])
    assert [show(one.raw()).preview for one in found.rollouts] == ["a2"]
    assert [one.reward for one in found.attempts(found.rollouts[0])] == [1, 0]  # others stand beside it all the same
    judged = {found.rollouts[0].rollout_id: "reject"}
    assert queue.everything([tables], ["decision = 'reject'"], judged).rollouts == found.rollouts
    assert len(queue.everything([tables], ["decision IS NULL"], judged).rollouts) == 3
    with pytest.raises(UsageError, match="no rollout is like that"):
        queue.everything([tables], ["reward > 5"])
    with pytest.raises(RecipeError, match=r"--where.*acuracy.*accuracy"):
        queue.everything([tables], ["acuracy > 0"])


def test_a_rollout_that_is_in_two_tables_comes_once(tmp_path: Path) -> None:
    first, _ = table(tmp_path / "1", [rollout("a"), rollout("b", task=1)])
    second, _ = table(tmp_path / "2", [rollout("b", task=1), rollout("c", task=2)])
    assert len(queue.everything([first, second]).rollouts) == 3


def test_the_materialized_inputs_are_shown(tmp_path: Path) -> None:
    write(
        tmp_path / "rollouts_materialized_inputs.jsonl",
        [{"_ng_task_index": 0, "_ng_rollout_index": 0, "expected": "42", "responses_create_params": {}}],
    )
    tables, _ = table(tmp_path, [rollout("41"), rollout("40", repeat=1)])
    everything = queue.everything([tables])
    assert json.loads(everything.rollouts[0].task_fields() or "") == {"expected": "42"}
    assert everything.rollouts[1].task_fields() is None


def test_a_decision_is_on_disk_with_who_when_and_what_was_seen(session: Session) -> None:
    one = session.queue.rollouts[0]
    answer = session.decide(one.rollout_id, "reject", ["wrong"], "a note")
    assert answer["opinions"] == [{"reviewer": "ada", "judgement": "reject", "tags": ("wrong",), "note": "a note"}]
    (entry,) = DecisionLog(session.log.path).entries()
    assert (entry.rollout_id, entry.task_key, entry.reviewer) == (one.rollout_id, one.task_key, "ada")
    assert entry.shown == session.rollout(one.rollout_id)["digest"]
    assert effective([entry]) == {one.rollout_id: "reject"}


def test_undo_goes_back_over_rollouts_to_the_start(session: Session) -> None:
    first, second = (one.rollout_id for one in session.queue.rollouts[:2])
    session.decide(first, "accept")
    session.decide(second, "reject")
    assert [session.undo()["id"] for _ in range(3)] == [second, first, None]
    assert effective(session.log.entries()) == {}


def test_undo_leaves_other_reviewers_and_other_queues_alone(session: Session) -> None:
    one = session.queue.rollouts[0].rollout_id
    Session(session.queue, session.log, "bob", title="test").decide(one, "reject")
    session.log.append(session.log.entries()[0].model_copy(update={"reviewer": "ada", "rollout_id": "elsewhere"}))
    assert session.undo()["id"] is None


def test_progress_and_status_count_the_queue_only(session: Session) -> None:
    first, second, *_ = (one.rollout_id for one in session.queue.rollouts)
    outside = next(key for key in session.queue.known if key not in {one.rollout_id for one in session.queue.rollouts})
    bob = Session(session.queue, session.log, "bob", title="test")
    session.decide(first, "accept", ["good"])
    bob.decide(first, "reject", note="no")
    bob.decide(second, "accept")
    session.decide(outside, "accept")
    assert session.progress() == (4, 2, 1)
    found = status(session.queue, session.log)
    assert (found.accepted, found.rejected, found.undecided) == (1, 1, 2)
    assert found.reviewers == {"ada": 1, "bob": 2}
    assert found.tags == {"good": 1}
    assert [one.reviewer for one in found.disagreements[first]] == ["ada", "bob"]


def test_nobody_can_decide_on_what_is_not_there(session: Session) -> None:
    with pytest.raises(KeyError):
        session.decide("nothing", "accept")
    with pytest.raises(UsageError, match="at most"):
        session.decide(session.queue.rollouts[0].rollout_id, "comment", note="x" * 20_001)
    assert session.log.entries() == ()


def test_the_log_is_damaged_under_the_session(session: Session) -> None:
    session.decide(session.queue.rollouts[0].rollout_id, "accept")
    session.log.path.write_bytes(b"nonsense\n")
    with pytest.raises(StoreError, match="line 1"):
        session.state()


# ---- the door


class Door:
    """Plain requests, with headers as one likes."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        self.address, self.token = (parts.hostname, parts.port), parts.path.strip("/")

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, bytes, dict]:
        connection = http.client.HTTPConnection(*self.address, timeout=10)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, sent)
        response = connection.getresponse()
        result = response.status, response.read(), {k.lower(): v for k, v in response.getheaders()}
        connection.close()
        return result


def test_only_the_token_opens(session: Session) -> None:
    with serving(session) as url:
        door = Door(url)
        assert door.ask(f"/{door.token}/")[0] == 200
        wrong = door.token[:-1] + ("a" if door.token[-1] != "a" else "b")
        for path in (
            "/",
            "/favicon.ico",
            f"/{wrong}/",
            f"/{door.token}",
            "//",
            f"/{wrong}/api/state",
            "/api/state",
            "/é/",
        ):
            status, body, _ = door.ask(path.encode().decode("latin-1") if path.isascii() else "/%C3%A9/")
            assert (status, body) == (404, b"not found\n"), path
        assert door.ask(f"/{wrong}/api/undo", "POST", b"{}")[0] == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:80"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": ""},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
)
def test_requests_from_elsewhere_are_refused_even_with_the_token(session: Session, headers: dict[str, str]) -> None:
    with serving(session) as url:
        door = Door(url)
        assert door.ask(f"/{door.token}/api/state", **headers)[0] == 404
        body = orjson.dumps({"rollout_id": session.queue.rollouts[0].rollout_id, "decision": "accept"})
        assert door.ask(f"/{door.token}/api/decisions", "POST", body, **headers)[0] == 404
    assert session.log.entries() == ()


@pytest.mark.parametrize("host", ["localhost:1234", "127.0.0.1", "[::1]:8080", "localhost"])
def test_a_tunnel_to_this_machine_may_have_another_port(session: Session, host: str) -> None:
    with serving(session) as url:
        door = Door(url)
        assert door.ask(f"/{door.token}/api/state", Host=host)[0] == 200


def test_a_link_from_another_page_leads_here(session: Session) -> None:
    """A terminal may itself be a web page."""
    with serving(session) as url:
        door = Door(url)
        came = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
        assert door.ask(f"/{door.token}/", **came)[0] == 200
        assert door.ask(f"/{door.token}/api/undo", "POST", b"{}", **came)[0] == 404


def test_answers_carry_the_policy(session: Session) -> None:
    with serving(session) as url:
        door = Door(url)
        one = session.queue.rollouts[0].rollout_id
        for path in ("", "review.js", "review.css", "api/state", f"api/rollouts/{one}", f"api/rollouts/{one}/raw"):
            status, _, headers = door.ask(f"/{door.token}/{path}")
            assert status == 200, path
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert "set-cookie" not in headers and "server" not in headers
        _, raw, headers = door.ask(f"/{door.token}/api/rollouts/{one}/raw")
        assert raw == session.queue.rollouts[0].raw()
        assert headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"rollout_id": "x", "decision": "undo"}',
        b'{"rollout_id": 1, "decision": "accept"}',
        b"x" * (1 << 19),
    ],
)
def test_nonsense_is_refused_in_one_sentence(session: Session, body: bytes) -> None:
    with serving(session) as url:
        door = Door(url)
        status, answer, _ = door.ask(f"/{door.token}/api/decisions", "POST", body)
        assert status in (400, 413)
        assert set(orjson.loads(answer)) == {"error"}
        assert door.ask(f"/{door.token}/api/rollouts/nothing")[0] == 404
        assert door.ask(f"/{door.token}/api/undo")[0] == 405
    assert session.log.entries() == ()


def test_a_taken_port_is_said() -> None:
    first = bind()
    try:
        with pytest.raises(UsageError, match="cannot be used"):
            bind(int(first.url.split(":")[2].split("/")[0]))
    finally:
        first.listening.close()


# ---- sheets


def test_a_sheet_goes_out_and_comes_back(session: Session, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.jsonl"
    session.decide(session.queue.rollouts[0].rollout_id, "accept", ["t"], "n")
    assert write_sheet(session.queue, session.log, "ada", sheet) == 4
    assert import_sheet(sheet, session.log, "ada") == (0, 1, 3, 0)  # nothing was filled in
    lines = [orjson.loads(line) for line in sheet.read_bytes().splitlines()]
    assert lines[0]["decision"] == "accept"
    assert [message["role"] for message in lines[0]["messages"]] == ["user", "assistant"]
    assert lines[0]["messages"][-1]["content"].startswith("answer")
    lines[1] |= {"decision": "reject", "note": "elsewhere", "their_own_field": 1}
    lines[2] |= {"decision": "accept", "reviewer": "eve"}
    lines.append({"rollout_id": "not here", "decision": "accept"})
    sheet.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    assert import_sheet(sheet, session.log, "ada", list(session.queue.known)) == (3, 1, 1, 1)
    assert import_sheet(sheet, session.log, "ada") == (0, 4, 1, 0)  # once is enough
    held = {(one.rollout_id, one.reviewer): one for one in opinions(session.log.entries())}
    assert held[lines[1]["rollout_id"], "ada"].note == "elsewhere"
    assert held[lines[2]["rollout_id"], "eve"].judgement == "accept"


def test_a_sheet_has_calls_as_chat_has_them_and_what_has_no_chat_form_as_it_is(tmp_path: Path) -> None:
    rows = [rollout(output=[CALL, RESULT, said("done")]), rollout(output=[{"type": "web_search_call"}], task=1)]
    tables, _ = table(tmp_path, rows)
    write_sheet(queue.everything([tables]), DecisionLog(tmp_path / "log.jsonl"), "ada", tmp_path / "sheet.jsonl")
    good, raw = (orjson.loads(line) for line in (tmp_path / "sheet.jsonl").read_bytes().splitlines())
    assert good["messages"][1]["tool_calls"][0]["function"]["name"] == "look"
    assert good["messages"][2] == {"role": "tool", "content": "found", "tool_call_id": "c1", "name": "look"}
    assert (raw["messages"], raw["problem"][:16]) == ([], "unsupported_item")
    assert raw["items"][1]["title"] == "output[0] web_search_call"


def test_a_log_can_be_imported_into_another(session: Session, tmp_path: Path) -> None:
    one, two = (rollout.rollout_id for rollout in session.queue.rollouts[:2])
    session.decide(one, "accept")
    session.decide(two, "reject")
    session.undo()
    other = DecisionLog(tmp_path / "other.jsonl")
    assert import_sheet(session.log.path, other, "bob")[:2] == (3, 0)
    assert import_sheet(session.log.path, other, "bob")[:2] == (0, 3)
    assert opinions(other.entries()) == opinions(session.log.entries())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"decision": "accept"}', "line 2: expected a JSON object with `rollout_id`"),
        ("accept", "line 2: expected a JSON object"),
        ('{"rollout_id": "x", "decision": "yes"}', "line 2: `decision`"),
        ('{"rollout_id": "x", "decision": "accept", "time": "noon"}', "line 2: `time`"),
    ],
)
def test_a_bad_sheet_adds_nothing(session: Session, tmp_path: Path, line: str, words: str) -> None:
    sheet = tmp_path / "sheet.jsonl"
    sheet.write_text('{"rollout_id": "x", "decision": "accept"}\n' + line + "\n")
    with pytest.raises(InputError, match=words):
        import_sheet(sheet, session.log, "ada")
    assert session.log.entries() == ()


# ---- the command


def gristmill(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gristmill", "review", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write(tmp_path / "r.jsonl", [rollout(f"a{i}", task=i // 2, repeat=i % 2, reward=float(i % 2)) for i in range(8)])
    return tmp_path


def test_the_command_serves_until_ctrl_c(files: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "gristmill", "review", "r.jsonl", "--all", "--reviewer", "ada", "--json"],
        cwd=files,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    door = Door(process.stdout.readline().strip())
    state = orjson.loads(door.ask(f"/{door.token}/api/state")[1])
    assert len(state["queue"]) == 8
    body = orjson.dumps({"rollout_id": state["queue"][0]["id"], "decision": "reject"})
    assert door.ask(f"/{door.token}/api/decisions", "POST", body)[0] == 200
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert json.loads(out) | {"tags": {}} == {
        "rollouts": 8,
        "accepted": 0,
        "rejected": 1,
        "undecided": 7,
        "reviewers": {"ada": 1},
        "tags": {},
        "disagreements": {},
    }
    assert "1 of 8" not in out
    assert (files / "workspace" / "reviews" / "decisions.jsonl").read_text().count("\n") == 1


def test_export_import_and_status(files: Path) -> None:
    sample = ("r.jsonl", "--low", "2", "--high", "2")
    done = gristmill(*sample, "--export", "sheet.jsonl", cwd=files)
    assert (done.returncode, done.stdout[:18]) == (0, "4 rollouts written"), done.stderr
    lines = [orjson.loads(line) for line in (files / "sheet.jsonl").read_bytes().splitlines()]
    for who, judgement in (("ada", "accept"), ("bob", "reject")):
        filled = [line | {"decision": judgement, "note": f"{who}\x1b[31m"} for line in lines[:2]]
        (files / f"{who}.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in filled))
        done = gristmill(
            "r.jsonl", "--low", "2", "--high", "2", "--import", f"{who}.jsonl", "--reviewer", who, cwd=files
        )
        assert done.stdout.startswith("2 decisions added"), done.stderr
    done = gristmill(*sample, "--status", cwd=files)
    assert "r.jsonl: 4 rollouts, 0 accepted, 2 rejected, 2 undecided" in done.stdout
    assert "2 disagreed on" in done.stdout
    assert "\x1b" not in done.stdout
    found = json.loads(gristmill(*sample, "--status", "--json", cwd=files).stdout)
    assert {len(held) for held in found["disagreements"].values()} == {2}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.jsonl"], "no such file: nothing.jsonl"),
        (["nothing"], "neither a file nor a recipe that ran"),
        (["r.jsonl", "--low", "0", "--middle", "0", "--high", "0"], "the sample is empty"),
        (["r.jsonl", "--import", "absent.jsonl"], "absent.jsonl cannot be read"),
        (["r.jsonl", "--export", "no/such/folder.jsonl"], "cannot be written"),
    ],
)
def test_wrong_use_is_one_sentence(files: Path, arguments: list[str], words: str) -> None:
    done = gristmill(*arguments, cwd=files)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_page_is_in_the_wheel() -> None:
    root = Path(__file__).parents[1]
    ignored = subprocess.run(
        ["git", "check-ignore", *(str(p) for p in (root / "gristmill" / "review" / "static").iterdir())],
        cwd=root,
        capture_output=True,
        env=os.environ,
    )
    assert ignored.returncode in (1, 128)  # none is ignored, so the wheel has them; or this is no checkout
