"""Each code of the package has a page, and the message on it is the one that fedtune prints."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from support.gate import certified, gate_settings

import fedtune.coordinator
from fedtune.coordinator.gate.server import Gate
from fedtune.coordinator.gate.settings import GateSettings
from fedtune.coordinator.gate.traffic import read_traffic
from fedtune.coordinator.problems import FIXES
from fedtune.errors import FedtuneError

PAGES = Path(__file__).parents[2] / "docs" / "reference" / "errors"


def taken() -> None:
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        first.listen()
        listen = f"127.0.0.1:{first.getsockname()[1]}"
        Gate(gate_settings(certified(Path("c")), listen=(listen,))).start()


def open_to_all() -> None:
    GateSettings(
        listen=("0.0.0.0:9092",),
        superlink="0.0.0.0:9091",
        certificate=Path("server.pem"),
        key=Path("server.key"),
        authority=Path("ca.pem"),
    )


def ended() -> None:
    gate = Gate(gate_settings(certified(Path("c"))))
    gate.start()
    gate.stop()
    gate.check()


def notes() -> None:
    Path("state").mkdir()
    Path("state/traffic.json").write_text("{}")
    read_traffic(Path("state/traffic.json"))


RAISE: dict[str, Callable[[], object]] = {
    "FT650": taken,
    "FT651": open_to_all,
    "FT652": ended,
    "FT653": notes,
}


@pytest.mark.parametrize("code", RAISE)
def test_the_page_of_an_error_shows_the_message_that_is_printed(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FedtuneError) as caught:
        RAISE[code]()
    # The port is another one each time.
    message = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:9092", str(caught.value.problems[0]))
    assert message.startswith(f"{code}: ")
    page = (PAGES / f"{code}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {code}: ")
    assert "\n## What to do\n" in page
    assert "\n".join(f"    {line}" for line in message.splitlines()) in page


def test_every_code_that_the_package_raises_is_on_this_list() -> None:
    sources = Path(fedtune.coordinator.__file__).parent.rglob("*.py")
    raised = {code for source in sources for code in re.findall(r'"(FT65[0-3])"', source.read_text())}
    assert raised == set(RAISE) == {code for code in FIXES if code < "FT654"}
    assert {page.stem for page in PAGES.glob("FT65[0-3].md")} == set(RAISE)
