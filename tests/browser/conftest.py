"""JupyterLab in a headless Chromium, as a user meets it; skips where either is missing."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
_FLAGS = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
_FLAGS += ["disable-component-update", "disable-sync", "js-flags=--expose-gc"]
_NO_NEWS = '{"fetchNews": "false", "checkForUpdates": false}'
_RUN_ALL = """async () => {
    const app = window.jupyterapp, pause = () => new Promise(resolve => setTimeout(resolve, 100));
    await app.restored;
    while (!app.shell.currentWidget?.context) await pause();
    const context = app.shell.currentWidget.context;
    await context.ready; await context.sessionContext.ready; await context.sessionContext.session.kernel.info;
    app.commands.execute("notebook:run-all-cells");
}"""


class Lab:
    """A page of JupyterLab with one notebook. foreign: what it asked of any other machine than this one."""

    def __init__(self, page, address: str, folder: Path):
        self.page, self._address, self.folder = page, address, folder
        self.foreign: list[str] = []
        page.on("request", lambda request: self._note(request.url))

    def _note(self, url: str) -> None:
        if not url.startswith((self._address, self._address.replace("http", "ws"), "data:", "blob:")):
            self.foreign.append(url)

    def open(self, notebook: str) -> None:
        """Open a notebook of the folder."""
        self.page.goto(f"{self._address}/lab/tree/{notebook}?reset&token=T")
        self.page.wait_for_selector(".jp-Notebook", timeout=60_000)

    def run_all(self) -> None:
        """Run all cells; returns once they are sent. (The Run menu does nothing on some cold loads.)"""
        self.page.evaluate(_RUN_ALL)

    def figure_version(self) -> int:
        """Number of the picture that the first figure shows; -1 before any."""
        return self.page.evaluate("() => Number(document.querySelector('.ddviz-figure')?.dataset.version ?? -1)")

    def wait_for_figure(self, after: int = 0, seconds: float = 60) -> None:
        """Wait until the first figure shows a picture newer than `after`."""
        newer = "after => Number(document.querySelector('.ddviz-figure')?.dataset.version ?? -1) > after"
        self.page.wait_for_function(newer, arg=after, timeout=1000 * seconds, polling=5)

    def command(self, name: str, **arguments: object) -> None:
        """Run one of JupyterLab's own commands."""
        self.page.evaluate(
            "([name, a]) => window.jupyterapp.commands.execute(name, a).then(() => null)", [name, arguments]
        )

    def press(self, css: str, key: str) -> float:
        """Press a key on a slider; returns the seconds until the first figure shows a newer picture."""
        before = self.figure_version()
        self.page.locator(f"{css} .noUi-handle").focus()
        began = time.monotonic()
        self.page.keyboard.press(key)
        self.wait_for_figure(before)
        return time.monotonic() - began

    def screenshot(self, name: str, css: str, place: int = 0) -> None:
        """Keep a picture of a part of the page, if DDVIZ_SCREENSHOTS names a folder for them."""
        if folder := os.environ.get("DDVIZ_SCREENSHOTS"):
            self.page.locator(css).nth(place).screenshot(path=Path(folder) / f"{name}.png")

    def memory(self) -> tuple[float, float]:
        """Mebibytes that the page's scripts and the kernels hold."""
        heap = self.page.evaluate("() => { gc(); return performance.memory.usedJSHeapSize / 2**20; }")
        kernels = [
            p for p in psutil.Process().children(recursive=True) if "ipykernel_launcher" in " ".join(p.cmdline())
        ]
        return heap, sum(kernel.memory_info().rss for kernel in kernels) / 2**20

    def text(self, css: str) -> str:
        """Text of the first element that a selector finds."""
        return self.page.locator(css).first.text_content() or ""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A Jupyter server on a copy of the notebooks, with settings and data of its own."""
    folder, home = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("home")
    for notebook in NOTEBOOKS.glob("*.ipynb"):
        shutil.copy(notebook, folder)
    names = ["JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"]
    names += ["JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR"]
    environment = os.environ | {name: str(home / name) for name in names}
    settings = home / "JUPYTERLAB_SETTINGS_DIR" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(_NO_NEWS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--port={port}", "--ip=127.0.0.1", "--no-browser", "--allow-root", "--ServerApp.port_retries=0"]
    options += ["--IdentityProvider.token=T", f"--ServerApp.root_dir={folder}"]
    options += ["--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"]
    with open(home / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(address + "/api/status?token=T", process, home / "log")
        yield address, folder
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; no longer than a module, since its event loop counts as running in this thread."""
    api = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright: pip install 'ddviz[dev]'")
    path = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
    if path is None:
        pytest.skip("browser tests need chromium (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[f"--{flag}" for flag in _FLAGS])
        yield browser
        browser.close()


@pytest.fixture
def lab(server: tuple[str, Path], browser) -> Iterator[Lab]:
    """A fresh page of JupyterLab, 1600 x 1000."""
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.set_default_timeout(60_000)
    yield Lab(page, *server)
    page.close()
    _shut_down_kernels(server[0])


def _shut_down_kernels(address: str) -> None:
    """End the kernels that a test left: they would take memory and time from the next."""
    with urllib.request.urlopen(f"{address}/api/kernels?token=T") as answer:
        kernels = [kernel["id"] for kernel in json.load(answer)]
    for kernel in kernels:
        request = urllib.request.Request(f"{address}/api/kernels/{kernel}?token=T", method="DELETE")
        urllib.request.urlopen(request).close()
