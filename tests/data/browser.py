"""Chromium on a page, spoken to through its debugging protocol: what it shows, every request, every message
of the console."""

import asyncio
import json
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import pytest

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--remote-debugging-port=0",
    "--window-size=1440,1000",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 300  # seconds
AXE = find_spec("axe_playwright_python")
needs_axe = pytest.mark.skipif(AXE is None, reason="`make setup EXTRAS=axe` installs axe-core")
BARRIERS = """axe.run({ preload: false, resultTypes: ["violations"] }).then((results) => results.violations
  .filter((found) => ["serious", "critical"].includes(found.impact))
  .flatMap((found) => found.nodes.map((node) => `${found.id}: ${node.html}: ${node.failureSummary}`)))"""


class Browser:
    """A browser with one page. `requests`: addresses it asked for; `messages`: of the console, and uncaught
    errors."""

    def __init__(self, executable: str, profile: Path) -> None:
        self.requests: list[str] = []
        self.messages: list[str] = []
        self.number = 0
        self.process = subprocess.Popen(
            [executable, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.loop = asyncio.new_event_loop()
        try:
            self.loop.run_until_complete(self._connect(profile / "DevToolsActivePort"))
        except BaseException:
            self.close()
            raise

    async def _connect(self, port: Path) -> None:
        end = time.monotonic() + PATIENCE
        while not (port.is_file() and port.read_text().count("\n")):
            assert self.process.poll() is None and time.monotonic() < end, "chromium does not start"
            await asyncio.sleep(0.05)
        self.session = aiohttp.ClientSession()
        address = f"http://127.0.0.1:{port.read_text().splitlines()[0]}/json/list"
        async with self.session.get(address) as answer:
            page = next(target for target in await answer.json(content_type=None) if target["type"] == "page")
        self.socket = await self.session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self._send(f"{domain}.enable")

    async def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self.socket.receive(PATIENCE)).data)
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        method, parameters = message["method"], message["params"]
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.messages.append(json.dumps(parameters))

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol and its answer."""
        return self.loop.run_until_complete(self._send(method, **parameters))

    def open(self, address: str) -> None:
        """Go to a page and wait until it is loaded, its pictures too."""
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=address)
        end = time.monotonic() + PATIENCE
        while self.value("document.readyState") != "complete" or self.value("location.href") == "about:blank":
            assert time.monotonic() < end, f"{address} does not load"
            time.sleep(0.02)

    def value(self, expression: str) -> Any:
        """What JavaScript gives in the page."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def barriers(self) -> list[str]:
        """What axe-core calls serious or critical in the page as it is now, light and dark: rule, element,
        remedy."""
        script = Path(AXE.submodule_search_locations[0], "axe.min.js").read_text(encoding="utf-8")
        self.value(f"{script}; true")
        barriers = []
        for scheme in ("light", "dark"):
            media = [{"name": "prefers-color-scheme", "value": scheme}]
            self.send("Emulation.setEmulatedMedia", features=media)
            answer = self.send("Runtime.evaluate", expression=BARRIERS, awaitPromise=True, returnByValue=True)
            assert "exceptionDetails" not in answer, answer
            barriers += [f"{scheme}: {barrier}" for barrier in answer["result"]["value"]]
        self.send("Emulation.setEmulatedMedia", features=[])
        return barriers

    def press(self, *keys: str) -> None:
        """Keys by their names; a single letter is typed."""
        codes = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, " ": 32}
        for key in keys:
            text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
            self.send(
                "Input.dispatchKeyEvent",
                type="keyDown",
                key=key,
                windowsVirtualKeyCode=codes.get(key, 0),
                **text,
            )
            self.send(
                "Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=codes.get(key, 0)
            )

    def close(self) -> None:
        """End the browser."""
        if hasattr(self, "session"):
            self.loop.run_until_complete(self.session.close())
        self.loop.close()
        self.process.terminate()
        self.process.wait(PATIENCE)
