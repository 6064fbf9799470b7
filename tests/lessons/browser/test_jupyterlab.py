"""Lessons as a learner meets them: JupyterLab on a fresh checkout, in a real browser without a window. The exercise of lesson 04 is
answered wrongly and rightly; three solved lessons are run from top to end, and their sliders moved.

Skipped where selenium, JupyterLab, git, Chromium or its driver is not installed; none of them but JupyterLab is a requirement. Every step
leaves a screenshot in tmp_path, and a step that fails says which one it was and where its screenshot is.
"""
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from helpers import ROOT

from lessons.check import find, names

pytest.importorskip("selenium", reason="selenium is not installed")
pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")

from selenium import webdriver
from selenium.common.exceptions import TimeoutException, WebDriverException
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(DRIVER is None, reason="chromedriver is not installed"),
    pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed"),
    pytest.mark.filterwarnings("default"),                       # selenium's and its network libraries' warnings are not ours
]

NOTEBOOK, EXERCISE = "lessons/exercises/04_rope.ipynb", "04.rope_forward"
START, RUN, ANSWER = 120, 240, 60                                # limits in seconds, for a busy machine; nothing waits longer than it must
NOT_WRITTEN, RAN = "not written yet", re.compile(r"\[\d+\]:?")  # what a check says of a stub; the prompt of a cell that has run
WRONG = """\
def rope_forward(x, cos, sin):
    a, b = np.split(x, 2, -1)
    c, s = cos[:, None], sin[:, None]
    return np.concatenate([a * c - b * s, a * s + b * c], -1)"""
RIGHT = """\
def rope_forward(x, cos, sin):
    a, b = x[..., 0::2], x[..., 1::2]
    c, s = cos[:, None], sin[:, None]
    return np.stack([a * c - b * s, a * s + b * c], -1).reshape(x.shape)"""


# ---- a checkout, a server, a browser: each is gone afterwards, whatever happens ----
@pytest.fixture
def checkout(tmp_path):
    """What git tracks here, and nothing else: no caches, no results of earlier runs."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("the tests are not run from a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / "checkout" / name)
    return tmp_path / "checkout"


@pytest.fixture
def server(checkout, tmp_path):
    """(address, token) of a JupyterLab with the settings of a new user and short experiments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home, token = tmp_path / "home", secrets.token_hex(16)
    settings = home / "lab" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    quiet = '{"fetchNews": "false", "checkForUpdates": false}'   # no network, no question over the page
    (settings / "notification.jupyterlab-settings").write_text(quiet)
    folders = {"HOME": "", "IPYTHONDIR": "ipython", "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data",
               "JUPYTER_RUNTIME_DIR": "runtime", "JUPYTERLAB_SETTINGS_DIR": "lab", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONWARNINGS", "MPLBACKEND")}
    environment |= {name: str(home / folder) for name, folder in folders.items()} | {"LESSONS_FAST": "1"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
               "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={checkout}",
               "--ServerApp.allow_root=True"]
    log = tmp_path / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=checkout, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                   start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for_server(process, f"{address}/api/status?token={token}", log)
        yield address, token
    finally:
        _end(process, patience=30)                               # told to stop, it stops its kernels as well


def _wait_for_server(process, url, log):
    until = time.monotonic() + START
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start within {START} s:\n{log.read_text()[-3000:]}")


def _end(process, patience):
    """A process that leads its own group: asked to stop, and then made to, with all of its group."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


@pytest.fixture
def browser(tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    arguments = ["--headless=new", "--window-size=1300,1000", "--disable-dev-shm-usage", "--disable-gpu",
                 f"--user-data-dir={tmp_path / 'chromium'}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--no-sandbox")                         # Chromium refuses to run as root without it
    for argument in arguments:
        options.add_argument(argument)
    service = Service(DRIVER, popen_kw={"start_new_session": True})
    try:
        with webdriver.Chrome(options=options, service=service) as driver:
            driver.set_page_load_timeout(START)
            yield driver
    finally:
        if getattr(service, "process", None) is not None:
            _end(service.process, patience=10)


# ---- the notebook in the page ----
class Page:
    """What a learner sees and does. Cells are found by what stands in them."""

    def __init__(self, driver, folder):
        self.driver, self.folder, self.steps = driver, folder, 0

    @contextlib.contextmanager
    def step(self, what):
        """One step of the test: it takes a screenshot, and where it fails, its name is in the message."""
        self.steps += 1
        picture = self.folder / f"{self.steps}-{re.sub(r'[^a-z]+', '-', what.lower()).strip('-')}.png"
        started = time.monotonic()
        try:
            yield
        except (AssertionError, WebDriverException) as error:
            self._screenshot(picture)
            said = getattr(error, "msg", None) or error
            pytest.fail(f"step {self.steps}, {what}: {said}\nscreenshot: {picture}\nserver log: {self.folder / 'server.log'}")
        self._screenshot(picture)
        print(f"step {self.steps}, {what}: {time.monotonic() - started:.1f} s")

    def _screenshot(self, picture):
        with contextlib.suppress(WebDriverException):
            self.driver.save_screenshot(str(picture))

    def wait(self, seconds, condition, message):
        """The first true value of condition(). `message()` says what is there instead."""
        try:
            return WebDriverWait(self.driver, seconds, 0.1, ignored_exceptions=[WebDriverException]).until(lambda _: condition())
        except TimeoutException:
            raise AssertionError(f"not within {seconds} s: {message()}") from None

    def cell(self, start):
        """The code cell whose text starts so."""
        found = self.driver.execute_script(
            "return [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')].filter(cell =>"
            " (cell.querySelector('.cm-content')?.textContent ?? '').startsWith(arguments[0]))", start)
        assert len(found) == 1, f"{len(found)} cells start with {start!r}, and one must"
        return found[0]

    def source(self, start):
        script = "return [...arguments[0].querySelectorAll('.cm-line')].map(line => line.textContent).join('\\n')"
        return self.driver.execute_script(script, self.cell(start))

    def output(self, start):
        script = "return [...arguments[0].querySelectorAll('.jp-OutputArea-output')].map(output => output.textContent).join('\\n')"
        return self.driver.execute_script(script, self.cell(start))

    def pictures(self, start):
        """The data of the pictures in a cell's output that the browser could draw."""
        script = ("return [...arguments[0].querySelectorAll('.jp-OutputArea-output img')]"
                  ".filter(image => image.complete && image.naturalWidth > 0).map(image => image.src)")
        return self.driver.execute_script(script, self.cell(start))

    def one_picture(self, start):
        found = self.pictures(start)
        return found[0] if len(found) == 1 else ""

    def prompts(self):
        script = "return [...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.textContent)"
        return self.driver.execute_script(script)

    def visible(self, selector):
        return next((element for element in self.driver.find_elements(By.CSS_SELECTOR, selector) if element.is_displayed()), None)

    def click(self, selector):
        self.wait(ANSWER, lambda: self.visible(selector), lambda: f"nothing to click at {selector}").click()

    def show(self, element):
        """Scroll to it, and again until it stays: cells get their true height only when they come into sight."""
        script = "arguments[0].scrollIntoView({block: 'center'}); return arguments[0].getBoundingClientRect().top"
        places = []

        def still():
            places.append(self.driver.execute_script(script, element))
            return len(places) > 3 and max(places[-4:]) - min(places[-4:]) < 2

        self.wait(ANSWER, still, lambda: f"the page does not come to rest: {places[-4:]}")
        return element

    def write(self, start, text):
        """Put the caret into a cell and type, key by key, in place of all that stands there. The editor indents."""
        editor = self.show(self.cell(start)).find_element(By.CSS_SELECTOR, ".cm-content")
        editor.click()
        lines = [line.strip() for line in text.splitlines()]
        ActionChains(self.driver).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL).send_keys(Keys.ENTER.join(lines)).perform()
        self.wait(ANSWER, lambda: self.source(start) == text, lambda: f"typed, and in the cell stands\n{self.source(start)}")

    def run_two(self):
        """Shift+Enter runs the cell with the caret and goes on to the next, which is its check."""
        for _ in range(2):
            ActionChains(self.driver).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()


def run_all(page, url, notebook):
    """Open a notebook and run all of its cells, as the menu does: none may raise."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = sum(cell["cell_type"] == "code" for cell in cells)
    with page.step("open the notebook"):
        page.driver.get(url)
        page.wait(START, lambda: len(page.prompts()) == code, lambda: f"{len(page.prompts())} code cells are shown, and {code} must be")
        idle = ".jp-NotebookPanel .jp-Notebook-ExecutionIndicator[data-status='idle']"
        page.wait(START, lambda: page.visible(idle), lambda: "the kernel is not ready")

    with page.step("run all cells"):
        page.driver.find_element(By.XPATH, "//li[contains(@class, 'lm-MenuBar-item')][normalize-space()='Run']").click()
        page.click(".lm-Menu-item[data-command='runmenu:run-all']")
        page.wait(RUN, lambda: all(map(RAN.fullmatch, page.prompts())), lambda: f"the cells are at {page.prompts()}")
        errors = page.driver.find_elements(By.CSS_SELECTOR, ".jp-Notebook [data-mime-type='application/vnd.jupyter.error']")
        assert not errors, f"a cell raised:\n{errors[0].get_attribute('textContent')}"


# ---- the tests ----
def test_a_learner_in_jupyterlab(server, browser, checkout, tmp_path):
    address, token = server
    page = Page(browser, tmp_path)
    judged, written, slider = f'check("{EXERCISE}"', "def rope_forward(", "import ipywidgets"

    run_all(page, f"{address}/lab/tree/{NOTEBOOK}?token={token}", checkout / NOTEBOOK)

    with page.step("the untouched stub is refused"):
        page.show(page.cell(judged))
        for name in ("rope_tables", "rope_forward", "rope_backward", "to_rotate_half"):
            said = page.output(f'check("04.{name}"')
            assert f"04.{name}: {NOT_WRITTEN}" in said, f"the check of the stub says: {said!r}"

    with page.step("a wrong answer is named"):
        mistake = next(m for m in find(EXERCISE).mistakes if m.key == "rotate-half")
        page.write(written, WRONG)
        page.run_two()
        page.wait(ANSWER, lambda: f"✗ {EXERCISE}" in page.output(judged), lambda: f"the check says: {page.output(judged)!r}")
        said = page.output(judged)
        assert mistake.says in said, f"the mistake is {mistake.says!r}, and the check says: {said!r}"
        assert re.search(r"Worst at out\[[\d, ]+\]: \S+, and must be \S+\.", said), f"no number to compute again: {said!r}"

    with page.step("the right answer is accepted"):
        page.write(written, RIGHT)
        page.run_two()
        page.wait(ANSWER, lambda: f"✓ {EXERCISE}" in page.output(judged), lambda: f"the check says: {page.output(judged)!r}")
        assert "✗" not in page.output(judged), f"the check says: {page.output(judged)!r}"

    with page.step("the slider is there with its picture"):
        page.show(page.cell(slider))
        handle = page.wait(ANSWER, lambda: page.cell(slider).find_element(By.CSS_SELECTOR, ".noUi-handle"), lambda: page.output(slider))
        first = page.wait(ANSWER, lambda: page.one_picture(slider), lambda: f"{len(page.pictures(slider))} pictures stand under the slider")

    with page.step("the slider moves by one and the picture changes"):
        handle.click()
        ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
        page.wait(ANSWER, lambda: page.one_picture(slider) not in ("", first), lambda: "it is the same picture")
        second = page.one_picture(slider)

    with page.step("the slider is dragged and the picture changes"):
        ActionChains(browser).drag_and_drop_by_offset(handle, 60, 0).perform()
        page.wait(ANSWER, lambda: page.one_picture(slider) not in ("", first, second), lambda: "it is one of the pictures before")

    with page.step("the slider goes back and so does the picture"):
        handle.send_keys(Keys.HOME)
        page.wait(ANSWER, lambda: page.one_picture(slider) == first, lambda: "it is not the first picture")


@pytest.mark.parametrize(("name", "slider"), [("00_baselines", None), ("11_schedules", "def show("), ("13_train", "import ipywidgets")])
def test_a_solved_lesson_in_jupyterlab(name, slider, server, browser, checkout, tmp_path):
    """Every check says that the solution is right, every picture is drawn, and the slider, where there is one, changes its picture."""
    address, token = server
    page = Page(browser, tmp_path)
    run_all(page, f"{address}/lab/tree/lessons/{name}.ipynb?token={token}", checkout / "lessons" / f"{name}.ipynb")

    with page.step("its checks are passed and its pictures drawn"):
        said = browser.execute_script("return [...document.querySelectorAll('.jp-OutputArea-output')].map(o => o.textContent).join('\\n')")
        assert "✗" not in said
        assert "not written yet" not in said
        assert all(f"✓ {exercise}" in said for exercise in names(name[:2]))
        images = browser.find_elements(By.CSS_SELECTOR, ".jp-OutputArea-output img")
        assert len(images) > 1
        assert all(browser.execute_script("return arguments[0].complete && arguments[0].naturalWidth > 0", image) for image in images)

    if slider:
        with page.step("the slider changes the picture"):
            page.show(page.cell(slider))
            handle = page.wait(ANSWER, lambda: page.cell(slider).find_element(By.CSS_SELECTOR, ".noUi-handle"), lambda: page.output(slider))
            first = page.wait(ANSWER, lambda: page.one_picture(slider), lambda: f"{len(page.pictures(slider))} pictures stand there")
            handle.click()
            ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
            page.wait(ANSWER, lambda: page.one_picture(slider) not in ("", first), lambda: "it is the same picture")
