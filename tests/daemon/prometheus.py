"""A real Prometheus."""

import json
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tests.daemon.support import free_port
from tests.patience import PATIENCE, eventually

CONFIGURATION = """\
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: sockledger
    honor_labels: true
    static_configs: [{{targets: ['{target}'], labels: {labels}}}]
"""


class Prometheus:
    """A server that scrapes one daemon each second. *labels* are the target's."""

    def __init__(self, folder: Path, target: str, **labels: str) -> None:
        self._port = free_port()
        folder.mkdir()
        (folder / "prometheus.yml").write_text(CONFIGURATION.format(target=target, labels=json.dumps(labels)))
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            (
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{self._port}",
            ),
            stderr=self._log,
            env={"GOMAXPROCS": "2", "GOMEMLIMIT": "300MiB", "PATH": "/usr/bin"},
        )

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._log.close()

    def _get(self, path: str, **parameters: str) -> bytes:
        url = f"http://127.0.0.1:{self._port}{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            return bytes(response.read())

    def query(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        parameters = {"query": expression} | ({"time": repr(at)} if at else {})
        result: list[dict[str, Any]] = json.loads(self._get("/api/v1/query", **parameters))["data"]["result"]
        return result

    def value(self, expression: str, at: float | None = None) -> float:
        (only,) = self.query(expression, at)
        return float(only["value"][1])

    def scrapes(self) -> int:
        """How many there have been."""
        try:
            return sum(len(series["values"]) for series in self.query("up[10m]"))
        except OSError:
            return 0  # it starts

    def wait_for_scrapes(self, number: int) -> None:
        """Wait for as many more; so many that begin after now are one less."""
        wanted = self.scrapes() + number
        eventually(lambda: self.scrapes() >= wanted, "scrapes")

    def complaints(self) -> dict[str, float]:
        """Its own counters of samples that it would not take."""
        found = {}
        for line in self._get("/metrics").decode().splitlines():
            name, _, value = line.rpartition(" ")
            if name.startswith("prometheus_target_scrapes_") and float(value):
                found[name] = float(value)
        return found
