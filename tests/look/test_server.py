"""The server by itself, before a session that only notes what it is asked: who gets an answer, and what a bad request gets."""
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from helpers import ROOT

from minillama.errors import InputError
from minillama.look.html import html, policy, write_html
from minillama.look.server import ENDPOINTS, listen, serve

HOSTILE = "</script><script>alert(1)</script><!-- \u202e \x00 \ud800 {{script}} <img src=x onerror=alert(1)>"
GOOD = {
    "view": {"text": "a", "checkpoint": "step-000001", "off": [[0, 1]]},
    "replace": {"text": "a", "checkpoint": None, "position": 1, "id": 5},
    "influence": {"text": "a", "checkpoint": None, "position": 1},
    "attention": {"text": "a", "checkpoint": None, "position": 1},
    "document": {"source": None, "seed": 3},
    "compare": {"run": "runs/other", "text": "a"},
}


class Notes:
    """A session that writes down its calls, and answers with a view that says nothing."""

    max_text_bytes = 100

    def __init__(self):
        self.calls, self.inside, self.most = [], 0, 0

    def __getattr__(self, name):
        if name not in ENDPOINTS:
            raise AttributeError(name)

        def method(*values, **fields):
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.calls.append((name, fields))
            text = values[0] if values else fields.get("text")
            if text == "slow":
                time.sleep(0.05)
            self.inside -= 1
            if text == "refused":
                raise InputError("the text must be another one, got 'refused'")
            if text == "bug":
                raise ZeroDivisionError
            if text == "large":
                raise MemoryError
            return {"text": text, "asked": name}

        return method


@pytest.fixture
def notes():
    return Notes()


@pytest.fixture
def server(notes):
    with listen(notes, HOSTILE) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        notes.calls.clear()
        yield server
        server.shutdown()
        thread.join()


def request(server, method, path, body=None, **headers):
    """(status, headers, body)"""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response.status, response.headers, data


def post(server, name, asked, **headers):
    """(status, what the JSON says)"""
    body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    status, _, data = request(server, "POST", f"/{server.token}/api/{name}", body, **headers)
    return status, json.loads(data)


def is_sentence(text):
    return isinstance(text, str) and 10 < len(text) < 250 and "\n" not in text and "Traceback" not in text


# ---- the page ----
def test_page(server):
    status, headers, body = request(server, "GET", f"/{server.token}/")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert body.decode() == html({"text": HOSTILE, "asked": "view", "live": True})
    assert headers["Cache-Control"] == "no-store" and headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == f"{policy(live=True)}; frame-ancestors 'none'"
    assert server.server_address[0] == "127.0.0.1"


def test_policy_lets_nothing_out():
    for live in (True, False):
        rules = dict(rule.split(" ", 1) for rule in policy(live).split("; "))
        assert rules["default-src"] == "'none'" and rules["connect-src"] == ("'self'" if live else "'none'")
        assert rules["script-src"].startswith("'sha256-") and "unsafe" not in policy(live) and "http" not in policy(live)


def test_a_text_stays_data():
    page = html({"text": HOSTILE})
    assert page.count("<script") == 2 and page.count("</script") == 2 and "onerror=alert" in page and "<img" not in page
    data = page.split('id="view">')[1].split("</script>")[0]
    assert json.loads(data) == {"text": HOSTILE}


def test_numbers_that_json_cannot_hold_are_refused():
    with pytest.raises(InputError, match="finite"):
        html({"entropy": [float("nan")]})


def test_a_file_is_never_live(tmp_path):
    write_html(tmp_path / "look.html", {"text": "a", "live": True})
    page = (tmp_path / "look.html").read_text(encoding="utf-8")
    assert '"live":false' in page and "connect-src 'none'" in page


# ---- who gets an answer ----
@pytest.mark.parametrize("host", ["evil.example", "evil.example:{}", "127.0.0.1", "127.0.0.1:1", ""])
def test_another_host_is_refused(server, notes, host):
    for method, path in (("GET", ""), ("POST", "api/view")):
        status, _, body = request(server, method, f"/{server.token}/{path}", json.dumps(GOOD["view"]), Host=host.format(server.port))
        assert status == 403 and is_sentence(json.loads(body)["error"]) and notes.calls == []


def test_localhost_is_us(server):
    assert request(server, "GET", f"/{server.token}/", Host=f"localhost:{server.port}")[0] == 200


def test_nothing_without_the_token(server, notes):
    wrong = "x" * len(server.token)
    ours = f"/{server.token}"
    for path in ("/", "", f"/{wrong}/", f"{ours[:-1]}/", ours, "//", f"{ours}/look.js", f"{ours}/../", f"{ours}/?", "/%C3%A9/"):
        status, _, body = request(server, "GET", path)
        assert status == 404 and server.token.encode() not in body, path
    for path in (f"/{wrong}/api/view", "/api/view", f"{ours}/view", f"{ours}/api/", f"{ours}/api/__init__", f"{ours}/api/max_text_bytes"):
        assert request(server, "POST", path, json.dumps(GOOD["view"]))[0] == 404, path
    assert notes.calls == []


def test_a_token_is_drawn_at_every_start(notes, server):
    with listen(notes, "a") as other:
        assert other.token != server.token and len(other.token) >= 20


def test_other_methods_are_refused(server):
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD"):
        assert request(server, method, f"/{server.token}/")[0] == 501


# ---- what is asked ----
@pytest.mark.parametrize("name", ENDPOINTS)
def test_each_endpoint_is_the_method_of_its_name(server, notes, name):
    status, said = post(server, name, GOOD[name])
    fields = GOOD[name] | ({"off": [(0, 1)]} if "off" in GOOD[name] else {})
    assert status == 200 and notes.calls == [(name, fields)]
    assert said == {"text": fields.get("text"), "asked": name}


def test_views_are_computed_one_at_a_time(server, notes):
    threads = [threading.Thread(target=post, args=(server, "view", {"text": "slow"})) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(notes.calls) == 4 and notes.most == 1


@pytest.mark.parametrize("name, asked", [
    ("view", b""), ("view", b"{"), ("view", b"\xff"), ("view", b"[" * 500), ("view", []), ("view", "text"), ("view", None), ("view", 1),
    ("view", {}), ("view", {"text": 1}), ("view", {"text": None}), ("view", {"text": ["a"]}), ("view", {"text": "a", "more": 1}),
    ("view", {"text": "a" * 101}), ("view", {"text": "é" * 51}), ("view", {"text": "a", "checkpoint": 1}),
    ("view", {"text": "a", "checkpoint": "s" * 101}),
    ("view", {"text": "a", "off": 1}), ("view", {"text": "a", "off": [[0]]}), ("view", {"text": "a", "off": [[0, -1]]}),
    ("view", {"text": "a", "off": [[0, True]]}), ("view", {"text": "a", "off": [[0, 1.5]]}), ("view", {"text": "a", "off": ["01"]}),
    ("replace", {"text": "a", "position": "1", "id": 2}), ("replace", {"text": "a", "position": 1}),
    ("replace", {"text": "a", "position": 1, "id": 10**40}),
    ("influence", {"text": "a", "position": -1}), ("attention", {"text": "a", "position": None}),
    ("document", {"source": 1, "seed": 1}), ("document", {"source": None, "seed": 0.5}), ("document", {"source": None, "seed": 2**63}),
    ("compare", {"text": "a"}), ("compare", {"run": 5, "text": "a"}),
])
def test_bad_input_is_one_sentence(server, notes, name, asked):
    status, said = post(server, name, asked)
    assert status == 400 and list(said) == ["error"] and is_sentence(said["error"]) and notes.calls == []


def test_numbers_longer_than_python_reads(server):
    status, said = post(server, "document", b'{"source": null, "seed": ' + b"9" * 4400 + b"}")
    assert status == 400 and is_sentence(said["error"])


def test_what_the_session_refuses_is_shown(server):
    assert post(server, "view", {"text": "refused"}) == (400, {"error": "the text must be another one, got 'refused'"})
    status, said = post(server, "view", {"text": "large"})
    assert status == 400 and "memory" in said["error"]


def test_a_bug_is_said_in_the_terminal(server, capfd):
    status, said = post(server, "view", {"text": "bug"})
    assert status == 500 and is_sentence(said["error"]) and "ZeroDivisionError" not in said["error"]
    assert "ZeroDivisionError" in capfd.readouterr().err
    assert post(server, "view", {"text": "a"})[0] == 200


def test_a_megabyte_is_refused_and_the_answer_arrives(server, notes):
    status, said = post(server, "view", {"text": "a" * 2**20})
    assert status == 413 and is_sentence(said["error"]) and notes.calls == []


@pytest.mark.parametrize("length", ["-1", "x", "", "9" * 40, "1e3", "²"])
def test_a_length_that_is_none(server, notes, length):
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        head = f"POST /{server.token}/api/view HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.makefile("rb").readline().startswith(b"HTTP/1.0 413")
    assert notes.calls == []


def test_a_browser_that_leaves_is_no_event(server, capfd):
    for _ in range(3):
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closed with a reset
        connection.sendall(f"GET /{server.token}/ HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
        connection.close()
    assert request(server, "GET", f"/{server.token}/")[0] == 200
    assert capfd.readouterr().err == ""


# ---- its start and its end ----
def test_a_port_in_use_is_one_sentence(notes, server):
    with pytest.raises(InputError, match=f"--port must be a free one, got {server.port}"):
        serve(notes, "a", server.port, open_browser=False)


@pytest.mark.parametrize("port", [-1, 65536, "80", 1.5, True])
def test_a_port_that_is_none(notes, port):
    with pytest.raises(InputError, match="--port must be"):
        serve(notes, "a", port, open_browser=False)


def test_a_first_text_that_is_refused(notes):
    with pytest.raises(InputError, match="another one"):
        serve(notes, "refused", open_browser=False)


PROGRAM = """\
import signal
from test_server import Notes
from minillama.look.server import serve
signal.signal(signal.SIGINT, signal.default_int_handler)         # as the command line does: a shell's background job ignores it
serve(Notes(), 'a', open_browser=False)
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to another process")
def test_ctrl_c_ends_it():
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "look")])
    with subprocess.Popen([sys.executable, "-c", PROGRAM], env=os.environ | {"PYTHONPATH": paths}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            line = process.stdout.readline()
            host, port = line.split()[0].split("/")[2].split(":")
            with socket.create_connection((host, int(port)), timeout=20):  # a request that never comes does not hold it up
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0 and err == "" and "Ctrl-C ends it" in line and out.strip() == ""
