"""``python -m anchoropt_plugin describe`` against a misbehaving local server."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from anchoropt_plugin import __main__
from anchoropt_plugin.commands.describe.client import sentences_in
from anchoropt_plugin.method import descriptions

pytest.importorskip("openai", reason="openai is not installed: pip install -e '.[describe]'")

ROOT = Path(__file__).parents[2]


class Server(ThreadingHTTPServer):
    """A server with a ``script``: the answers for each class, in turn, then good answers."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: dict[str, list] = {}
        self.asked: list[str] = []
        self.keys: set[str] = set()
        self.at_once = self.most = 0
        self.lock = threading.Lock()
        self.pause = 0.0
        self.over = threading.Event()

    def handle_error(self, *_):
        """Ignore clients that disconnect: the tests make them."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][0]["content"]
        name = re.search(r"<(.*?)>", question)[1]
        server = self.server
        with server.lock:
            server.asked.append(name)
            server.keys.add(self.headers["Authorization"])
            server.at_once += 1
            server.most = max(server.most, server.at_once)
            step = server.script.get(name, [])
            what = step.pop(0) if step else 200
        time.sleep(server.pause)
        if what == "hang":
            server.over.wait(30)
        with server.lock:
            server.at_once -= 1
        text = "\n".join(f"{n}. A photo of a {name}, seen {n} times." for n in (1, 2, 3))
        self.answer(what, text)

    def answer(self, what, text):
        good = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}
        if what == "no json":
            status, body = 200, b"<html>"
        elif isinstance(what, dict):
            status, body = 200, json.dumps(what).encode()
        elif isinstance(what, int) and what != 200:
            status, body = what, json.dumps({"error": {"message": f"told {what}"}}).encode()
        else:
            status, body = 200, json.dumps(good).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("retry-after-ms", "10")
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True  # the client has disconnected

    def log_message(self, *_):
        pass


def saying(content):
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": content}}]}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def words_for(server, out, *words):
    flags = ["--base-url", server.url, "--model", "m", "--per-class", "3", "--output", str(out)]
    return ["describe", *flags, "--template", "Tell {count} things of <{name}>.", *words]


def describe(server, out, *words):
    return __main__.main(words_for(server, out, *words))


def test_stage_one_reads_the_file(server, tmp_path, capsys):
    out = tmp_path / "d.json"
    assert describe(server, out, "red_fox", "badger") == 0
    (fox, _) = descriptions.read(out, ["Red Fox", "badger"], limit=10)
    assert fox == [f"A photo of a red fox, seen {n} times." for n in (1, 2, 3)]
    assert server.keys == {"Bearer a key"} and sorted(server.asked) == ["badger", "red fox"]
    assert "2 classes described, 0 already there" in capsys.readouterr().out


def test_classes_that_are_done_are_not_asked_for_again(server, tmp_path, capsys):
    out = tmp_path / "d.json"
    existing = {"Badger": ["A b.", "A c.", "A d."], "owl": ["Too few."], "other": ["Stays."]}
    out.write_text(json.dumps(existing))
    assert describe(server, out, "badger", "owl", "Owl") == 0
    assert server.asked == ["owl"]
    there = json.loads(out.read_text())
    assert there["Badger"] == existing["Badger"] and there["other"] == existing["other"]
    assert len(there["owl"]) == 3 and len(there) == 3
    first, last = capsys.readouterr().out.splitlines()
    assert (
        first.startswith("1 requests, one for each class that is not yet in") and "up to 3" in first
    )
    assert last.startswith("1 classes described, 2 already there")


def test_temporary_errors_are_retried(server, tmp_path):
    few = saying("One sentence alone.")
    server.script = {"fox": [429, 500, 503, 200], "owl": [few, {"choices": []}], "bat": [429] * 5}
    assert describe(server, tmp_path / "d.json", "fox", "owl", "bat") == 0
    assert [server.asked.count(name) for name in ("fox", "owl", "bat")] == [4, 3, 6]


def test_classes_that_fail_are_listed_and_the_rest_is_written(server, tmp_path, capsys):
    out = tmp_path / "d.json"
    server.script = {
        "limited": [429] * 9,
        "broken": [500] * 9,
        "silent": ["hang"] * 9,
        "short": [saying("Too short.")] * 9,
        "empty": [saying(None)] * 9,
        "odd": ["no json"] * 9,
        "strange": [{"choices": [{"text": 1}]}] * 9,
    }
    names = [*server.script, "fine"]
    assert describe(server, out, *names, "--retries", "1", "--timeout", "0.5") == 1
    assert list(json.loads(out.read_text())) == ["fine"]
    said = capsys.readouterr()
    assert "1 classes described" in said.out and "7 failed" in said.out
    for why in ("told 429", "told 500", "timed out", "the last: 'Too short.'"):
        assert why in said.err
    server.script.clear()
    server.asked.clear()
    assert describe(server, out, *names) == 0
    assert sorted(server.asked) == sorted(names[:-1])


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_permanent_error_ends_the_command_in_one_line(server, tmp_path, capsys, status):
    server.script = {"fox": [status]}
    assert describe(server, tmp_path / "d.json", "fox", "owl", "bat", "--jobs", "1") == 2
    assert server.asked == ["fox"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {server.url}") and f"told {status}" in line


def test_the_number_of_requests_comes_before_the_first(server, tmp_path, capfd):
    server.pause = 3.0
    asking = threading.Thread(target=describe, args=(server, tmp_path / "d.json", "fox", "owl"))
    asking.start()
    while not server.asked:
        time.sleep(0.01)
    assert capfd.readouterr().out.startswith("2 requests, one for each class")
    asking.join()


def test_an_endpoint_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = Server()
    server.server_close()
    assert describe(server, tmp_path / "d.json", "fox", "--retries", "0") == 2
    assert "Connection error" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_simultaneous_requests(server, tmp_path):
    server.pause = 0.1
    names = [f"bird {n}" for n in range(8)]
    assert describe(server, tmp_path / "d.json", *names, "--jobs", "3") == 0
    assert server.most == 3


def test_a_kill_loses_no_answer_that_was_written(server, tmp_path):
    out = tmp_path / "d.json"
    names = [f"bird {n}" for n in range(6)]
    server.script = {name: ["hang"] for name in names[3:]}
    words = words_for(server, out, *names, "--jobs", "1")
    process = subprocess.Popen([sys.executable, "-m", "anchoropt_plugin", *words], cwd=ROOT)
    end = time.monotonic() + 60
    while server.asked.count("bird 3") < 1 and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(json.loads(out.read_text())) == names[:3]
    server.script.clear()
    server.asked.clear()
    assert describe(server, out, *names) == 0
    assert sorted(server.asked) == names[3:]


def test_ctrl_c_ends_it_at_once(server, tmp_path, capfd):
    server.script = {"fox": ["hang"]}
    words = words_for(server, tmp_path / "d.json", "fox")
    process = subprocess.Popen([sys.executable, "-m", "anchoropt_plugin", *words], cwd=ROOT)
    end = time.monotonic() + 60
    while not server.asked and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert capfd.readouterr().err.splitlines()[-1] == "interrupted"


def test_class_names_of_a_file_and_of_a_data_set(server, tmp_path, monkeypatch):
    listed = tmp_path / "names.txt"
    listed.write_text("fox\n\nowl\n")
    assert describe(server, tmp_path / "a.json", "--classes-file", str(listed)) == 0
    assert sorted(server.asked) == ["fox", "owl"]
    monkeypatch.chdir(ROOT)
    config = ["--dataset-config-file", "configs/datasets/digits.yaml", "--root", str(tmp_path)]
    assert describe(server, tmp_path / "b.json", *config) == 0
    assert len(json.loads((tmp_path / "b.json").read_text())) == 10
    assert "nine" in server.asked


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give exactly one of: class names, --classes-file, --dataset"),
        (["fox", "--classes-file", "x"], "give exactly one of"),
        (["fox", "--per-class", "0"], "--per-class is 0, but must be 1 or more"),
        (["fox", "--timeout", "0"], "--timeout is 0.0"),
        (["fox", "--template", "Tell me."], "{name} is missing"),
        (["fox", "--template", "{name} {colour}"], "not 'colour'"),
        (["fox", "--output", "nowhere/d.json"], "the folder nowhere is missing"),
        (["--classes-file", "nowhere.txt"], "cannot open nowhere.txt"),
    ],
)
def test_invalid_arguments(server, tmp_path, capsys, words, says):
    assert describe(server, tmp_path / "d.json", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line and not server.asked


def test_a_file_that_holds_no_descriptions(server, tmp_path, capsys):
    out = tmp_path / "d.json"
    out.write_text("[1]")
    assert describe(server, out, "fox") == 2
    assert "are not of the form" in capsys.readouterr().err and out.read_text() == "[1]"


def test_without_openai_or_its_key(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    words = ["describe", "--model", "m", "--output", str(tmp_path / "d.json"), "fox"]
    assert __main__.main(words) == 2
    assert "OPENAI_API_KEY is not set" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "openai", None)
    assert __main__.main(words) == 2
    assert "pip install 'anchoropt-plugin[describe]'" in capsys.readouterr().err


def test_sentences_that_do_not_name_their_class_are_told(server, tmp_path, capsys):
    refusal = saying("Sure, happy to help!\nA photo of two red foxes.\nI cannot describe it.")
    server.script = {"red fox": [refusal], "owl": [saying("\n".join(["An owl sits."] * 3))]}
    assert describe(server, tmp_path / "d.json", "red_fox", "owl") == 0
    out = capsys.readouterr().out
    assert "Note: 2 sentences do not have the name of their class, such as red_fox: 'Sure, " in out
    assert server.asked.count("owl") == 2, "one sentence three times is one sentence"


def test_marks_around_sentences_are_removed():
    answer = "Here are three:\n- “An owl sits.”\n2) An owl flies.\n\n* **An owl sleeps.**\n"
    assert sentences_in(answer, 3) == ["An owl sits.", "An owl flies.", "An owl sleeps."]
    assert sentences_in(answer, 2) == ["An owl sits.", "An owl flies."]
    assert sentences_in(answer, 4) == []
