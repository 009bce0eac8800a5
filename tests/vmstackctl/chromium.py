"""A real browser without a window, which tells what it finds wrong with a page."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from tests.running import PATIENCE

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or ""


class Seen(msgspec.Struct, frozen=True):
    """A page as the browser had it. value: what the script gave. wrong: messages of the console, exceptions, breaches
    of its policy. requests: addresses that were asked for, without those of data within the page. screenshot: PNG, of
    the whole page.
    """

    value: Any
    wrong: list[str]
    requests: list[str]
    screenshot: bytes


def look(page: Path, script: str, *, width: int = 1280, dark: bool = False) -> Seen:
    """Open a file and run a script in it. width: of the window."""
    # What the browser keeps is large, and its last writes may come after its end.
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        work = _look(page.resolve().as_uri(), script, Path(profile), width, dark)
        return asyncio.run(asyncio.wait_for(work, 2 * PATIENCE))


async def _look(address: str, script: str, profile: Path, width: int, dark: bool) -> Seen:
    async with _browser(profile) as devtools:
        target = await devtools.ask("Target.createTarget", url="about:blank")
        attached = await devtools.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        devtools.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await devtools.ask(f"{domain}.enable")
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        await devtools.ask("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await devtools.ask("Emulation.setEmulatedMedia", features=[scheme])
        await devtools.ask("Page.navigate", url=address)
        await devtools.event("Page.loadEventFired")
        ran = await devtools.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in ran, ran
        size = (await devtools.ask("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = await devtools.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return Seen(
            value=ran["result"].get("value"),
            wrong=[str(params) for method, params in devtools.events if method in _WRONG],
            requests=[
                params["request"]["url"]
                for method, params in devtools.events
                if method == "Network.requestWillBeSent" and not params["request"]["url"].startswith("data:")
            ],
            screenshot=base64.b64decode(shot["data"]),
        )


_WRONG = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed")


class _Devtools:
    """events: all that have come so far. session: of the page, once there is one."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.session = ""
        self._socket = socket
        self._numbers = itertools.count(1)

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:  # noqa: ANN401  whatever the method takes
        number = next(self._numbers)
        session = {"sessionId": self.session} if self.session else {}
        await self._socket.send_json({"id": number, "method": method, "params": params, **session})
        while (message := await self._next()).get("id") != number:
            pass
        assert "error" not in message, (method, message)
        result: dict[str, Any] = message["result"]
        return result

    async def event(self, method: str) -> None:
        """Return when it has come, or come before."""
        while all(method != known for known, _ in self.events):
            await self._next()

    async def _next(self) -> dict[str, Any]:
        message: dict[str, Any] = await self._socket.receive_json()
        if "method" in message:
            self.events.append((message["method"], message["params"]))
        return message


@contextlib.asynccontextmanager
async def _browser(profile: Path) -> AsyncIterator[_Devtools]:
    # Root is not allowed to have the sandbox, and the page is our own.
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        *("--headless=new", *sandbox, "--disable-gpu", "--disable-dev-shm-usage"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"),
        *("--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"),
        env=dict(os.environ) | {"HOME": str(profile)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        where = await _port(profile / "DevToolsActivePort", process)
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"ws://127.0.0.1:{where}", max_msg_size=0) as socket,
        ):
            yield _Devtools(socket)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _port(file: Path, process: asyncio.subprocess.Process) -> str:
    """Port and path of its DevTools, once it has written them down."""
    while True:
        assert process.returncode is None, f"the browser ended with {process.returncode}"
        with contextlib.suppress(FileNotFoundError, ValueError):
            port, path = (await asyncio.to_thread(file.read_text)).split()
            return port + path
        await asyncio.sleep(0.05)
