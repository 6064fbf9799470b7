"""The page as a reader meets it, in a real browser without a window: from a server, and as one file from disk with the network off.

Skipped where selenium, Chromium or its driver is not installed. What a test saw last is a screenshot in its tmp_path.
"""
import dataclasses
import json
import os
import re
import shutil
import threading

import pytest
from helpers import large_params

from minillama.look.data import Session
from minillama.look.html import PAGE, write_html
from minillama.look.server import listen
from minillama.run import checkpoint, folder
from minillama.run.config import settle
from minillama.text.corpus import document

pytest.importorskip("selenium", reason="selenium is not installed")

from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(DRIVER is None, reason="chromedriver is not installed"),
    pytest.mark.filterwarnings("default"),                       # selenium's and its network libraries' warnings are not ours
]

PATIENCE = 60                                                    # seconds, for a busy machine; nothing waits longer than it must
SHAPE = dict(dim=16, n_layers=2, n_heads=2, multiple_of=8, max_seq_len=256)
TEXT = document("stories", 5, 0).text[:150].rsplit(" ", 1)[0]
HOSTILE = ("</script><script>window.ran = 1</script><img src=x onerror='window.ran = 1'>{{script}} <!-- "
           "\u202eedirrevo\u202c \u2066\u200b\x00\x1b[31m\x7f\u0301 &amp; javascript:alert(1)")


# ---- a run, its pages, a browser ----
@pytest.fixture(scope="module")
def session(tmp_path_factory, builtin_tokenizer):
    """Weights so large that each head changes every loss."""
    out = tmp_path_factory.mktemp("page") / "loud"
    config = settle({"preset": "nano", "threads": 1, "model": SHAPE, "train": {"seq_len": 256}})
    config = dataclasses.replace(config, batch_splits=1)
    folder.create(out, config, builtin_tokenizer)
    for step in (1, 2):
        params = {name: array * (step / 2) for name, array in large_params(config.model).items()}
        checkpoint.save(out / "checkpoints", {"step": step, "params": params, "m": params, "v": params}, config.model,
                        builtin_tokenizer.model, keep=9)
    return Session(out)


@pytest.fixture(scope="module")
def server(session):
    with listen(session, TEXT) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    arguments = ["--headless=new", "--window-size=1300,1000", "--disable-dev-shm-usage", "--disable-gpu",
                 f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--no-sandbox")                         # Chromium refuses to run as root without it
    for argument in arguments:
        options.add_argument(argument)
    with webdriver.Chrome(options=options, service=Service(DRIVER)) as driver:
        driver.set_page_load_timeout(PATIENCE)
        yield driver


class Page:
    def __init__(self, driver):
        self.driver = driver

    def open(self, url, width=1300, height=1000):
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                    {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600})
        self.driver.get("about:blank")
        self.driver.get_log("performance")
        self.driver.get_log("browser")
        self.driver.get(url)
        return self

    def network(self, off):
        conditions = {"offline": off, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.driver.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)

    def __getitem__(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return self.js("return document.querySelector(arguments[0]).textContent", selector)

    def shown(self):
        """The text as its tokens show it, without <s> and what comes next."""
        return "".join(self.js("return [...document.querySelectorAll('.token .piece')].map(piece => piece.textContent)")[1:-1])

    def js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition, message):
        try:
            return WebDriverWait(self.driver, PATIENCE, 0.05).until(lambda _: condition())
        except TimeoutException:
            raise AssertionError(f"not within {PATIENCE} s: {message}") from None

    def requests(self):
        """Addresses of all that was asked for since `open`."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def complaints(self):
        """What the browser's console says: an error of the script, something that the policy forbids."""
        said = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        return [message for message in said if "status of 400" not in message]  # the page shows why, and that is tested

    def chosen(self):
        return int(self.js("return document.querySelector('.token.chosen').dataset.t"))

    def press(self, *keys):
        ActionChains(self.driver).send_keys(*keys).perform()

    def fill(self, selector, text):
        """Paste: sendKeys would type characters that no keyboard has."""
        script = "arguments[0].value = JSON.parse(arguments[1]); arguments[0].dispatchEvent(new Event('input'))"
        self.js(script, self[selector], json.dumps(text))

    def look_at(self, text):
        self.fill("#typed", text)
        self["#ask button[type=submit]"].click()

    def move(self, selector, value):
        self.js("arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))", self[selector], value)

    def is_quiet(self):
        return self.text("#busy") == ""


@pytest.fixture
def page(driver, tmp_path):
    yield Page(driver)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    Page(driver).network(off=False)
    driver.save_screenshot(str(tmp_path / "page.png"))


@pytest.fixture
def live(page, server):
    page.open(server.url)
    yield page
    assert page.complaints() == []
    assert all(url.startswith(server.url) or url == "data:," for url in page.requests())


@pytest.fixture
def on_disk(session, tmp_path):
    """Address of the file of a text."""
    def write(text, **more):
        write_html(tmp_path / "look.html", session.view(text, influence=True) | more)
        return (tmp_path / "look.html").as_uri()

    return write


def two_places(x):
    """A number as the page shows it."""
    return f"{x:.2f}".replace("-", "−")


def mean(view):
    return sum(token["loss"] for token in view["tokens"][1:]) / (len(view["tokens"]) - 1)


# ---- from the server ----
def test_a_typed_text_is_shown(live, session):
    live["#typed"].clear()
    live["#typed"].send_keys("Ann met Tom in the park.", Keys.CONTROL + Keys.ENTER)
    live.wait(lambda: "Ann" in live.text("#token-1"), "the new text")
    view = session.view("Ann met Tom in the park.")
    assert live.shown() == view["text"] and len(live.all(".token")) == len(view["tokens"]) + 1
    assert f"{len(view['tokens'])} tokens" in live.text("#facts") and f"{two_places(mean(view))} nats/token" in live.text("#facts")


def test_hovering_shows_a_token_and_where_it_looked(live, session):
    token = session.view(TEXT)["tokens"][3]
    ActionChains(live.driver).move_to_element(live["#token-3"]).perform()
    live.wait(lambda: live["#peek"].is_displayed(), "what the mouse is on")
    said = live.text("#peek")
    assert f"id {token['id']}" in said and token["bytes"] in said and f"{two_places(token['loss'])} nats" in said
    assert f"{two_places(token['known'])} nats" in said and token["options"][0].strip() in said
    assert live.all("#lines path")


def test_it_opens_at_what_was_lost_most(live, session):
    tokens = session.view(TEXT)["tokens"]
    assert live.chosen() == max(range(1, len(tokens)), key=lambda t: tokens[t]["loss"] - tokens[t]["known"])
    best = session.view(TEXT)["expected"][live.chosen() - 1][0]
    assert best[1] in live.text("#verdict") and "could have known" in live.text("#verdict") and "looked most at" in live.text("#verdict")


def test_a_head_is_switched_off_and_the_loss_changes(live, session):
    before, after = session.view(TEXT), session.view(TEXT, off=[(1, 0)])
    assert two_places(mean(before)) != two_places(mean(after))
    live["#head-1-0"].click()
    live["#switch"].click()
    live.wait(lambda: two_places(mean(after)) in live.text("#ablated"), f"{mean(after)} in {live.text('#ablated')!r}")
    assert two_places(mean(before)) in live.text("#ablated") and "layer 1, head 0" in live.text("#ablated")
    t = live.chosen()
    assert two_places(after["tokens"][t]["loss"] - before["tokens"][t]["loss"]) in live.text("#ablated")

    both = session.view(TEXT, off=[(1, 0), (0, 1)])              # two at once: the server computes it
    live["#head-0-1"].click()
    live["#switch"].click()
    live.wait(lambda: two_places(mean(both)) in live.text("#ablated"), f"{mean(both)} in {live.text('#ablated')!r}")
    live["#all-on"].click()
    assert live.text("#ablated") == "" and not live.all(".head-cell.off")


def test_heads_by_keyboard(live, session):
    live.js("document.querySelector('.head-cell[aria-checked=true]').focus()")
    live.press(Keys.ARROW_RIGHT)
    assert live.js("return document.activeElement.getAttribute('aria-checked')") == "true"
    assert not live["#follow"].is_selected()
    live.press("x")
    assert len(live.all(".head-cell.off")) == 1 and live.text("#ablated") != ""
    live.press("x")
    assert not live.all(".head-cell.off") and live.text("#ablated") == ""


def test_what_decided_it_is_asked_for(live, session):
    t = live.chosen()
    said = session.influence(TEXT, None, t)
    size, signed = max(zip(said["sensitivity"][:t], said["influence"][:t]))
    live.wait(lambda: live.all("#influence tbody tr"), "the influences")
    first = live.text("#influence tbody tr")
    assert two_places(size) in first and two_places(abs(signed)) in first


def test_a_token_is_replaced(live, session):
    t = live.chosen()
    live.wait(lambda: live["#victim"].is_enabled() and live.is_quiet(), "the choice of a token")
    live.js("document.querySelector('#victim').value = '1'; document.querySelector('#victim').dispatchEvent(new Event('change'))")
    vocabulary = session.view(TEXT)["vocabulary"]
    live["#substitute"].send_keys(" Zoe")
    live["#replace button"].click()
    loss = session.replace(TEXT, None, 1, vocabulary.index("▁Zoe"))["losses"][t]
    live.wait(lambda: f"to {two_places(loss)} (" in live.text("#replaced"), f"{loss} in {live.text('#replaced')!r}")
    live.fill("#substitute", "no such piece")
    live["#replace button"].click()
    live.wait(lambda: "vocabulary has no piece" in live.text("#replaced"), "what is wrong")


def test_a_document_is_taken(live):
    before = live.text("#text")
    live["#draw"].click()
    live.wait(lambda: live.text("#text") != before and live.is_quiet(), "another text")
    assert not live["#error"].is_displayed() and len(live.all(".token")) > 10


def test_checkpoints(live, session):
    first = session.view(TEXT, "step-000001")
    live.move("#checkpoint", 0)
    live.wait(lambda: f"{two_places(mean(first))} nats/token" in live.text("#then"), live.text("#then"))
    live["#open-checkpoint"].click()
    live.wait(lambda: "step-000001" in live.text("#facts"), live.text("#facts"))
    assert f"{two_places(mean(first))} nats/token" in live.text("#facts")


def test_beside_another_run(live, session, builtin):
    live.fill("#other", str(builtin))
    live["#compare button"].click()
    other = session.compare(str(builtin), TEXT)
    live.wait(lambda: f"{two_places(mean(other))}" in live.text("#compared"), live.text("#compared"))
    live.fill("#other", "runs/none")
    live["#compare button"].click()
    live.wait(lambda: live["#error"].is_displayed(), "a sentence")
    assert "runs/none" in live.text("#error")


@pytest.mark.parametrize("text, said", [("word " * 200, "at most 256 tokens"), ("a" * 2**20, "at most"), ("\ud800", "surrogate")])
def test_a_text_that_is_refused(page, server, text, said):
    page.open(server.url)
    before = page.text("#text")
    page.look_at(text)
    page.wait(lambda: page["#error"].is_displayed() and page.is_quiet(), "a sentence")
    assert said in page.text("#error") and len(page.text("#error")) < 250 and page.text("#text") == before
    page.look_at("Ann")
    page.wait(lambda: "Ann" in page.text("#token-1") and not page["#error"].is_displayed(), "the page goes on")


def test_a_refusal_stays(page, server):
    """The page asks for the influence of the chosen token by itself: an answer to that must not hide what was said of a bad text."""
    page.open(server.url)
    page.wait(page.is_quiet, "the page is ready")
    page.js("""
        const asked = window.fetch;
        window.fetch = async (url, options) => {
          const answer = await asked(url, options);
          if (url.endsWith("influence")) {
            await new Promise((resume) => setTimeout(resume, 1500));
            setTimeout(() => { window.late = true; }, 200);      // when the page has read it
          }
          return answer;
        };""")
    page["#text"].send_keys(Keys.ARROW_RIGHT)
    page.wait(lambda: "computing" in page.text("#busy"), "influence is asked for")
    page.look_at("\ud800")
    page.wait(lambda: page["#error"].is_displayed(), "a sentence")
    page.wait(lambda: page.js("return window.late === true"), "the late answer")
    assert page["#error"].is_displayed() and "surrogate" in page.text("#error")


def test_a_server_that_has_ended(page, session):
    with listen(session, "Ann") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        page.open(server.url)
        server.shutdown()
        thread.join()
    page.look_at("Tom")
    page.wait(lambda: "still running" in page.text("#error"), "a sentence")


@pytest.mark.parametrize("text", ["", "A", "\n", "é", "🙂 日本", "a" * 100, "مرحبا שלום"])
def test_small_and_foreign_texts(live, text):
    live.look_at(text)
    live.wait(live.is_quiet, "an answer")
    assert not live["#error"].is_displayed() and live["#typed"].get_property("value") == text
    for key in (Keys.END, Keys.ARROW_LEFT, Keys.HOME, Keys.ARROW_UP, Keys.ARROW_DOWN, "n", "p"):
        live["#text"].send_keys(key)


# ---- by keyboard ----
def test_arrows_move_the_chosen_token(live):
    last = len(live.all(".token")) - 1
    live["#text"].send_keys(Keys.HOME)
    assert live.chosen() == 1
    live.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert live.chosen() == 3 and "3" in live.text("#chosen-title") and live["#text"].get_attribute("aria-activedescendant") == "token-3"
    live.press(Keys.ARROW_LEFT)
    assert live.chosen() == 2
    top = live.js("return document.querySelector('#token-2').offsetTop")
    live.press(Keys.ARROW_DOWN)
    below = live.chosen()
    assert live.js(f"return document.querySelector('#token-{below}').offsetTop") > top
    live.press(Keys.ARROW_UP)
    assert live.js(f"return document.querySelector('#token-{live.chosen()}').offsetTop") == top
    live.press(Keys.END, Keys.ARROW_RIGHT)
    assert live.chosen() == last and "What comes next" in live.text("#chosen-title")


def test_focus_is_visible_and_everything_has_a_name(live):
    live.wait(lambda: live.all("#influence tr"), "the last answer")
    for control in live.all("button, input, select, textarea, canvas#map, [role=listbox], [role=radiogroup]"):
        if control.is_displayed():
            assert control.accessible_name, control.get_attribute("outerHTML")[:200]
    live["#text"].send_keys(Keys.TAB)
    outlines = ("const node = document.activeElement;"
                "return [node, node.closest('label') ?? node].map(node => getComputedStyle(node).outlineStyle)")
    for _ in range(12):
        assert set(live.js(outlines)) != {"none"}, live.js("return document.activeElement.outerHTML")
        live.press(Keys.TAB)


# ---- one file, from disk ----
def test_a_file_asks_nobody(page, on_disk, session):
    url = on_disk(TEXT)
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.network(off=True)
    page.open(url)
    assert page.shown() == TEXT
    view, after = session.view(TEXT), session.view(TEXT, off=[(0, 1)])
    page["#head-0-1"].click()
    page["#switch"].click()
    assert two_places(mean(after)) in page.text("#ablated") and two_places(mean(view)) in page.text("#ablated")
    page["#head-1-1"].click()
    page["#switch"].click()                                      # a file knows one head at a time
    assert two_places(mean(session.view(TEXT, off=[(1, 1)]))) in page.text("#ablated") and len(page.all(".head-cell.off")) == 1
    page.move("#checkpoint", 0)
    page.wait(lambda: "step-000001" in page.text("#then"), page.text("#then"))
    assert page.all("#influence tr")
    for form in ("#ask", "#replace", "#compare"):
        assert not page[f"{form} button"].is_enabled() and "look RUN" in page.text(f"{form} .why")
    assert page.complaints() == []
    assert set(page.requests()) <= {url, "data:,"}


def test_sampling(page, on_disk, session):
    page.open(on_disk(TEXT))
    t = page.chosen()
    probabilities = [entry[2] for entry in session.view(TEXT)["expected"][t - 1]]

    def shown():
        cells = page.js("return [...document.querySelectorAll('#bars tbody tr')].map(row => row.cells[2].textContent)")
        return [float(re.sub(r"[ %<]", "", text)) for text in cells]

    page.move("#top-k", 2)
    assert shown()[:3] == [pytest.approx(100 * p / sum(probabilities[:2]), abs=0.5) for p in probabilities[:2]] + [0]
    page.move("#top-k", 0)
    page.move("#temperature", 0)
    assert shown()[:2] == [100, 0]
    page.move("#temperature", 0.5)
    logits = session._forward(session.encode(TEXT), session.params()).logits[t - 1].astype(float)
    heated = sorted(pow(2.718281828459045, 2 * (logits - logits.max())), reverse=True)
    assert shown()[:3] == [pytest.approx(100 * p / sum(heated), abs=0.5) for p in heated[:3]]
    page.move("#temperature", 1)
    page.move("#top-p", 0.05)
    assert shown()[0] == pytest.approx(100 if probabilities[0] >= 0.05 else 100 * probabilities[0] / 0.05, abs=20)


def test_colours_of_the_text(page, on_disk):
    page.open(on_disk(TEXT))
    labels = [label.text for label in page.all("#colours label")]
    assert labels == ["lost", "loss", "where it looked", "what decided it"]
    seen = set()
    for label in labels:
        next(node for node in page.all("#colours label") if node.text == label).click()
        seen.add(page.text("#text"))
        assert page.all(".token .piece.warm, .token .piece.cool") and any(node.text for node in page.all(".token small"))
    assert len(seen) == len(labels)                              # other numbers under the tokens


@pytest.mark.parametrize("how", ["live", "file"])
def test_hostile_text_is_shown_and_never_run(page, server, on_disk, how):
    page.open(server.url if how == "live" else on_disk(HOSTILE, run=HOSTILE, checkpoint=HOSTILE))
    if how == "live":
        page.look_at(HOSTILE)
        page.wait(lambda: "window.ran" in page.shown(), "the text")
        assert not page["#error"].is_displayed(), page.text("#error")
    shown = page.shown()
    assert "</script><script>window.ran" in shown and "{{script}}" in shown and "&amp;" in shown
    for code in ("202E", "202C", "2066", "200B", "0000", "001B", "007F"):
        assert f"⟨U+{code}⟩" in shown
    body = page.text("#reading") + page.text("#panels") + page.text("header")
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b\x7f]", body)
    for _ in range(12):
        page["#text"].send_keys(Keys.ARROW_RIGHT)
    assert page.js("return [window.ran ?? null, document.images.length, document.scripts.length]") == [None, 0, 2]
    assert page.complaints() == []


def test_what_gets_in_nevertheless_does_not_run(page, on_disk):
    page.open(on_disk("Ann"))
    page.js("""
        const script = document.createElement('script');
        script.textContent = 'window.ran = 1';
        document.body.append(script);
        document.body.insertAdjacentHTML('beforeend', '<img src="x" onerror="window.ran = 2">');
        window.asked = fetch('http://127.0.0.1:9/').then(() => 'answered', (error) => error.name);
    """)
    assert page.driver.execute_async_script("const done = arguments[0]; window.asked.then(done)") == "TypeError"
    assert page.js("return window.ran ?? null") is None
    said = " ".join(page.complaints())
    assert all(rule in said for rule in ("script-src", "connect-src", "img-src"))


# ---- sizes and themes ----
@pytest.mark.parametrize("text", [TEXT, "x" * 110, "word " * 60])
def test_a_phone_scrolls_down_only(page, on_disk, text):
    page.open(on_disk(text, run="runs/" + "very-long-name" * 8), width=390, height=800)
    for number in range(len(page.all("#colours label"))):
        page.all("#colours label")[number].click()
        assert page.js("return document.documentElement.scrollWidth") <= 390
    assert page.js("return document.querySelector('#text').scrollWidth <= document.querySelector('#text').clientWidth + 1")
    assert page["#verdict"].rect["y"] < 1600                     # below the text, not below everything


def test_areas_of_a_laptop(page, on_disk):
    page.open(on_disk(TEXT), width=1300)
    assert page["#panels"].rect["x"] > page["#reading"].rect["x"] + page["#reading"].rect["width"]
    page.open(on_disk(TEXT), width=390)
    assert page["#panels"].rect["y"] >= page["#reading"].rect["y"] + page["#reading"].rect["height"]


def test_themes(page, on_disk):
    page.open(on_disk(TEXT))
    paper = "return getComputedStyle(document.body).backgroundColor"
    map_of = "return document.querySelector('#map').toDataURL()"
    light, drawn = page.js(paper), page.js(map_of)
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
    page.wait(lambda: page.js(map_of) != drawn, "the maps in dark")
    dark = page.js(paper)
    assert dark != light
    page["#theme"].click()
    assert "light" in page.text("#theme") and page.js(paper) == light and page.js(map_of) == drawn
    page["#theme"].click()
    assert "dark" in page.text("#theme") and page.js(paper) == dark


def test_a_long_text_stays_usable(page, wide, tmp_path):
    session = Session(wide)
    text = session._cut(" ".join(session.document("facts", seed)["text"] for seed in range(6)), 255)
    write_html(tmp_path / "long.html", session.view(text))
    assert (tmp_path / "long.html").stat().st_size < 3e6
    page.open((tmp_path / "long.html").as_uri(), height=800)
    assert len(page.all(".token")) == 257
    page["#text"].send_keys(Keys.END)
    assert page.js("""
        const box = document.querySelector('#scroll').getBoundingClientRect();
        const token = document.querySelector('.chosen').getBoundingClientRect();
        return token.top >= box.top && token.bottom <= box.bottom + 1 && box.bottom < innerHeight;
    """)
    ten = "const start = performance.now(); for (let t = 100; t < 110; t++) choose(t); return performance.now() - start"
    assert page.js(ten) < 5000                                   # milliseconds, on a busy machine


def test_text_can_be_read_on_every_colour():
    """WCAG's contrast of 4.5 : 1, in both themes, on the fullest orange and blue."""
    css = (PAGE / "look.css").read_text(encoding="utf-8")
    themes = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root[^{]*\{([^}]*)\}", css)]
    themes = [theme for theme in themes if theme]
    assert len(themes) == 3 and themes[1] == themes[2]           # dark by the system is dark by the switch

    def luminance(colour):
        parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        return sum(weight * (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4)
                   for weight, part in zip((0.2126, 0.7152, 0.0722), parts))

    for theme in themes:
        for ink, grounds in (("ink", ("paper", "card", "warm", "cool", "off")), ("muted", ("paper", "card")), ("accent", ("card",))):
            for ground in grounds:
                dark, light = sorted((luminance(theme[ink]), luminance(theme[ground])))
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground, theme)
