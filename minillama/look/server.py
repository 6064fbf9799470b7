"""The page's server: one person on one machine looks at one run.

    GET  /TOKEN/              the page, with the first view inside
    POST /TOKEN/api/NAME      NAME of ENDPOINTS: JSON in, JSON out; for bad input status 400 and {"error": one sentence}

It listens on 127.0.0.1 only. TOKEN is drawn at every start, so that no other page in the browser and no other user of the machine knows
the address; the Host header is checked, so that no other name can be made to lead here (DNS rebinding). Nothing is cached.
"""
import errno
import json
import os
import secrets
import sys
import threading
import traceback
import webbrowser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ..config import check_number
from ..errors import InputError
from .html import html, policy

MAX_DRAINED = 1 << 24                                            # bytes of a refused request that are read, or the answer gets lost
PATIENCE = 30                                                    # seconds that a request may take to arrive


# ------------------------------------------------------------------------------------------------------------- what may be asked

def _text(value, name, limit):
    """str of at most `limit` bytes of UTF-8; how many tokens they may be, the session says."""
    if not isinstance(value, str):
        raise InputError(f"{name} must be a text, got {json.dumps(value):.60}")
    size = len(value.encode("utf-8", "surrogatepass"))
    if size > limit:
        raise InputError(f"{name} must have at most {limit:,} bytes, got {size:,}")
    return value


def _text_or_none(value, name, limit):
    return None if value is None else _text(value, name, limit)


def _whole(value, name, limit):
    """int >= 0"""
    check_number(name, value, low=0, high=2**63 - 1)
    return value


def _heads(value, name, limit):
    """[[layer, head], ...] -> list of pairs"""
    pairs = [] if value is None else value
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise InputError(f"{name} must be a list of pairs [layer, head], got {json.dumps(value):.60}")
    return [(_whole(layer, "a layer", limit), _whole(head, "a head", limit)) for layer, head in pairs]


ENDPOINTS = {                                                    # each is the session's method of that name; its fields and their kinds
    "view":      {"text": _text, "checkpoint": _text_or_none, "off": _heads},
    "replace":   {"text": _text, "checkpoint": _text_or_none, "position": _whole, "id": _whole},
    "influence": {"text": _text, "checkpoint": _text_or_none, "position": _whole},
    "attention": {"text": _text, "checkpoint": _text_or_none, "position": _whole},
    "document":  {"source": _text_or_none, "seed": _whole},
    "compare":   {"run": _text, "text": _text},
}


def answer(session, name, body, limit):
    """What the session says to a request: dict. Raises InputError for anything that cannot be asked.

    body: bytes    JSON: an object with the fields of ENDPOINTS[name]
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):                         # UnicodeDecodeError is a ValueError
        raise InputError("a request must be JSON") from None
    if not isinstance(asked, dict):
        raise InputError(f"a request must be a JSON object, got {type(asked).__name__}")
    fields = ENDPOINTS[name]
    if unknown := sorted(set(asked) - set(fields)):
        raise InputError(f"a request {name} must have no field but {', '.join(fields)}, got {unknown[0]!r:.60}")
    return getattr(session, name)(**{field: read(asked.get(field), field, limit) for field, read in fields.items()})


# -------------------------------------------------------------------------------------------------------------------- the server

class _Server(ThreadingHTTPServer):
    """Holds what its handlers need. Views are computed one at a time: they share the run's weights and the machine's cores."""

    daemon_threads = True                                        # Ctrl-C does not wait for a view that is being computed
    allow_reuse_address = os.name != "nt"                        # on Windows it would let two programs share a port

    def __init__(self, session, view, port):
        super().__init__(("127.0.0.1", port), _Handler)
        self.session, self.computing = session, threading.Lock()
        self.token, self.port = secrets.token_urlsafe(16), self.server_address[1]
        self.max_text = session.max_text_bytes
        self.page = html(view | {"live": True}).encode()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/{self.token}/"

    def handle_error(self, request, client_address):
        """A browser that closes a page in the middle of an answer is no event."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    timeout = PATIENCE
    server_version, sys_version = "minillama", ""

    def do_GET(self):
        if self._is_for_us() and self._named("") is not None:
            self._send(200, self.server.page, "text/html; charset=utf-8")

    def do_POST(self):
        body = self._body()                                      # read first, refused or not: an answer to half a request gets lost
        if not self._is_for_us() or (name := self._named("api/")) is None:
            return
        if body is None:
            return self._send_json(413, {"error": f"a request must have at most {self._max_body:,} bytes and say how many"})
        try:
            with self.server.computing:
                said = answer(self.server.session, name, body, self.server.max_text)
            self._send_json(200, said)
        except InputError as error:
            self._send_json(400, {"error": str(error)})
        except MemoryError:
            self._send_json(400, {"error": "this needs more memory than there is: try a shorter text"})
        except OSError as error:
            self._send_json(400, {"error": f"{error.filename or 'a file'}: {error.strerror or error}"})
        except Exception:
            traceback.print_exc()
            self._send_json(500, {"error": "minillama failed here, which is a bug: the terminal shows where"})

    def _is_for_us(self):
        """The Host header is ours, or the request is refused."""
        ours = {f"{name}:{self.server.port}" for name in ("127.0.0.1", "localhost")}
        if self.headers.get("Host") in ours:
            return True
        self._send_json(403, {"error": f"this server answers to the host 127.0.0.1:{self.server.port} only"})
        return False

    def _named(self, folder):
        """What stands behind /TOKEN/ and a folder, if it is there to be asked. None, and refused, if it is not."""
        ours = f"/{self.server.token}/{folder}"
        name = self.path[len(ours):]
        if secrets.compare_digest(self.path[:len(ours)].encode(), ours.encode()) and (name in ENDPOINTS if folder else not name):
            return name
        self._send_json(404, {"error": "there is nothing at this address: the terminal shows the one of the page"})
        return None

    @property
    def _max_body(self):
        return 6 * self.server.max_text + 4096                   # JSON may spell a byte as \u00xx; what is not text is short

    def _body(self):
        """The request's body: bytes. None if it is too large or has no length."""
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdecimal() or len(length) > 18:
            return None
        if int(length) <= self._max_body:
            return self.rfile.read(int(length))
        left = min(int(length), MAX_DRAINED)
        while left > 0:
            left -= len(self.rfile.read(min(left, 1 << 16))) or left  # nothing read: it has ended early
        return None

    def _send_json(self, status, value):
        self._send(status, json.dumps(value, allow_nan=False, separators=(",", ":")).encode(), "application/json")

    def _send(self, status, body, kind):
        self.send_response(status)
        for name, value in {
            "Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store",
            "Content-Security-Policy": f"{policy(live=True)}; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        """Nothing: the terminal is for errors."""


def serve(session, text, port=0, open_browser=True):
    """Show a run's page until Ctrl-C.

    Args:
        session: has the methods that ENDPOINTS names, see data.py; where one raises InputError, the page shows its message
        text:    str     what the page shows first
        port:    int     0: any that is free
        open_browser: bool

    Raises:
        InputError: a text that cannot be viewed, or a port that cannot be had
    """
    with listen(session, text, port) as server:
        try:
            print(f"{server.url}   Ctrl-C ends it", flush=True)
            if open_browser:                                     # in a thread: a browser in the terminal returns when it is closed
                threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def listen(session, text, port=0):
    """The server of `serve`, not yet answering: a context manager with `url` and `serve_forever()`."""
    check_number("--port", port, low=0, high=65535)
    view = session.view(text)
    try:
        return _Server(session, view, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"--port must be a free one, got {port}, which another program uses: without --port one is chosen") from None
        raise InputError(f"--port must be one that may be used, got {port}: {error.strerror}") from None
