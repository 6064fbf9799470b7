"""The page as one file: look.html with its style, its script and a view inside. It opens from disk, and asks nobody for anything.

The Content-Security-Policy is the second lock. The first: a text reaches the page as JSON, and the script shows it by `textContent`
only. The policy lets run one script, known by its hash, and lets nothing be fetched but, of a live page, its own server's answers.
"""
import base64
import hashlib
import json
import re
from pathlib import Path

from ..errors import InputError
from ..files import write_text

PAGE = Path(__file__).parent / "page"


def html(view):
    """The page that shows a view (see data.py): str. With view["live"] it asks the server that it came from for more.

    Raises InputError for a view with a number that is not finite, which JSON cannot hold.
    """
    try:
        data = json.dumps(view, allow_nan=False, separators=(",", ":"))  # ASCII: a lone surrogate stays an escape
    except ValueError:
        raise InputError("a view must hold finite numbers only: the model's weights are broken, or its training has diverged") from None
    parts = {"policy": policy(view.get("live")), "style": _read("look.css"), "script": _read("look.js"),
             "view": data.replace("<", "\\u003c")}               # nothing in it can end its <script>
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _read("look.html"))


def policy(live):
    """The Content-Security-Policy of a page: str."""
    allowed = {"default-src": "'none'", "script-src": _hash("look.js"), "style-src": _hash("look.css"), "img-src": "data:",
               "connect-src": "'self'" if live else "'none'", "base-uri": "'none'", "form-action": "'none'"}
    return "; ".join(f"{what} {source}" for what, source in allowed.items())


def write_html(path, view):
    """Write the page of a view as one file, complete or not at all. It is not live."""
    write_text(path, html(view | {"live": False}))


def _read(name):
    return (PAGE / name).read_text(encoding="utf-8")             # line ends become \n, as a browser hashes them


def _hash(name):
    return f"'sha256-{base64.b64encode(hashlib.sha256(_read(name).encode()).digest()).decode()}'"
