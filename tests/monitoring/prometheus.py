"""A real Prometheus, and the files in monitoring/."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tests.running import PATIENCE, ROOT, Daemon

FOLDER = ROOT / "monitoring"
CONFIG = FOLDER / "prometheus.yml"
RULES = FOLDER / "rules" / "vmstack.rules.yml"
DASHBOARD = FOLDER / "dashboards" / "vmstack.json"

_T = TypeVar("_T")


def missing() -> str:
    """Why there is no Prometheus to test with; empty if there is."""
    absent = [tool for tool in ("prometheus", "promtool") if shutil.which(tool) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def promtool(*arguments: str | Path, text: str = "") -> str:
    """What promtool says, which has to be content; text: its standard input."""
    command = ["promtool", *map(str, arguments)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class Prometheus(Daemon):
    """Use it in a ``with`` statement. Its query API is at ``ask``."""

    def __init__(self, config: Path, data: Path) -> None:
        """config: its file. data: a folder for what it gathers."""
        super().__init__()
        self.command = [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={data}",
            "--web.listen-address=127.0.0.1:0",
        ]

    def wait_ready(self) -> None:
        """Return when it answers."""
        port = self.wait_for(r" address=127\.0\.0\.1:([1-9][0-9]*)")[1]
        self.url = f"http://127.0.0.1:{port}"
        self.wait_for("Server is ready")

    def ask(self, path: str, **parameters: str) -> Any:  # noqa: ANN401  whatever the API has there
        """The data of an answer that is a success."""
        answer = self.get(f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        assert answer.status == 200, answer.text
        assert answer.json["status"] == "success"
        return answer.json["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What an expression gives now."""
        found: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return found


def until(ask: Callable[[], _T]) -> _T:
    """What is asked for as soon as there is some of it, or what there was instead when patience ended."""
    deadline = time.monotonic() + 2 * PATIENCE
    while not (found := ask()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    read: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return read


def panels() -> list[dict[str, Any]]:
    """All of its panels, rows left out."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    """Every query of the dashboard, as it stands there."""
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def variables() -> dict[str, str]:
    """The query of each variable that has one."""
    found = dashboard()["templating"]["list"]
    return {variable["name"]: variable["query"]["query"] for variable in found if variable["type"] == "query"}


def series_named(text: str) -> set[str]:
    """The series of ours that expressions name; what our rules record is not among them."""
    return set(re.findall(r"(?<![:a-z_])vmstack_[a-z0-9_]+(?![:a-z0-9_(?])", text))
