"""One virtual site as a process of its own, beside its SuperNode, for as long as the SuperNode lives.

``python tests/support/site_process.py SPEC.json``; what it does goes, a JSON object a line, to ``records``.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from flwr.app import Context, Message

from fedtune.config.wire import config_from_json
from fedtune.federation.client import build_client_app
from fedtune.federation.site import Site
from fedtune.simulation.sites import load_sites
from fedtune.site.executor import Executor

__all__ = ["SiteSpec"]


@dataclass(frozen=True, kw_only=True)
class SiteSpec:
    """What a site's process is told.

    Attributes:
        config: The configuration it works by, as JSON.
        index: Which site of the partition it is.
        runtime_address: Where its SuperNode hands out tasks.
        secret_file: The secret they share.
        records: Where it writes what it does.
    """

    config: str
    index: int
    runtime_address: str
    secret_file: str
    records: str

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path


def main(path: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    spec = SiteSpec(**json.loads(Path(path).read_text(encoding="utf-8")))

    def record(event: str, **values: object) -> None:
        with Path(spec.records).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"event": event, "pid": os.getpid(), **values}) + "\n")

    def answer(message: Message, context: Context, digest: str) -> Message:
        record("bundle", sha256=digest)
        return app(message, context)

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    site = load_sites(config_from_json(spec.config)).site(spec.index)

    def find_site(_: Context) -> Site:
        record("message", model=id(site.model()))
        return site

    app = build_client_app(find_site)
    executor = Executor(
        answer,
        runtime_address=spec.runtime_address,
        auth_secret=Path(spec.secret_file).read_bytes(),
    )
    record("ready", site=site.name)
    with closing(executor):
        executor.run(stop)


if __name__ == "__main__":
    main(sys.argv[1])
