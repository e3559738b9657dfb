"""The command line as a user of one server calls it."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from orchestrator.cli.app import app
from tests.support.processes import wait_for
from tests.support.server import Server

SLEEPS = 'kind: command\nname: sleeps\ncommand: [sleep, "300"]\n'


class Shell:
    """Calls `fleetune` as a user of that server."""

    def __init__(self, here: Server, folder: Path) -> None:
        self.url, self.folder = here.url, folder
        self.token = ""

    @property
    def environment(self) -> dict[str, str]:
        return {"FLEETUNE_URL": self.url, "FLEETUNE_HOME": str(self.folder / "home"), "FLEETUNE_TOKEN": self.token}

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, arguments, env=self.environment)
        return result.exit_code, result.stdout, result.stderr

    def good(self, *arguments: str) -> str:
        code, printed, errors = self(*arguments)
        assert code == 0, errors
        return printed

    def file(self, text: str, name: str = "job.yaml") -> str:
        (self.folder / name).write_text(text)
        return str(self.folder / name)

    def command(self, script: str, name: str = "does", more: str = "") -> str:
        return self.file(
            f"kind: command\nname: {name}\ncommand: [sh, -c, {json.dumps(script)}]\n{more}", f"{name}.yaml"
        )

    def state(self, job: str) -> str:
        return str(json.loads(self.good("status", job, "--json"))["state"])

    def sleeping(self) -> str:
        job = self.good("submit", self.file(SLEEPS)).strip()
        wait_for(lambda: self.state(job) == "running", "it runs")
        return job
