"""report.html: opens offline, runs nothing, says the verdict, and has every number."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.synthetic_run import SITES, synthetic_run

from fedtune.errors import RunError
from fedtune.observability.events import (
    ClientEvaluated,
    Clustered,
    Event,
    EventLog,
    RunFinished,
    RunStarted,
    Sites,
    Split,
)
from fedtune.observability.progress_lines import event_text
from fedtune.observability.progress_state import ProgressState
from fedtune.observability.report_html import render_report, write_report

EVIL = "<script>document.title='owned'</script><img src=x onerror=fail()>"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects elements, their nesting faults, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.faults: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        self.faults += self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += f"{data} "

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def many_sites() -> list[Event]:
    names = [f"Hospital {number:02d}" for number in range(40)]
    sites = dict(zip(names, list(SITES.values()) * 7, strict=False))
    return synthetic_run(rows_and_base=sites)


RUNS = {
    "complete": synthetic_run(),
    "without baselines": synthetic_run(baselines=False, failure=False, method="alternating"),
    "unfinished": synthetic_run(finish=False, baselines=False)[:30],
    "just started": synthetic_run()[:1],
    "empty": [],
    "one site": synthetic_run(names=["Eye"]),
    "many sites": many_sites(),
    "long": synthetic_run(rounds=40),
    "natural split": [
        replace(event, split=Split(sites=tuple(SITES), labels=("a", "b", "c", "d", "e", "f"), counts=tuple(
            tuple(100 if column == row else 0 for column in range(6)) for row in range(6))))
        if isinstance(event, Sites) else event
        for event in synthetic_run()
    ],
}  # fmt: skip


@pytest.mark.parametrize("events", RUNS.values(), ids=RUNS.keys())
def test_any_run_gives_a_well_formed_page_without_script_or_anything_to_fetch(events: list[Event]) -> None:
    text = render_report(events)
    page = Page(text)
    assert page.faults == []
    assert {"script", "img", "iframe", "object", "embed", "form", "a"}.isdisjoint(
        tag for tag, _ in page.elements
    )
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert "style" not in attributes
        assert attributes.get("href", "data:,") == "data:,"
        assert "src" not in attributes
    assert re.findall(r"https?://[^\"'<\s]+", text.replace("http://www.w3.org/2000/svg", "")) == []
    assert "@import" not in text
    assert "url(" not in text


@pytest.mark.parametrize("events", RUNS.values(), ids=RUNS.keys())
def test_the_same_events_give_the_same_bytes(events: list[Event]) -> None:
    assert render_report(events) == render_report(list(events))


def test_the_verdict_is_the_headline_and_names_the_site_it_does_not_hold_for() -> None:
    page = Page(render_report(synthetic_run()))
    assert "Federating helped 5 of 6 sites." in page.text
    assert "It did not help Ear (2.57 federated, 2.54 alone)." in page.text
    assert len(page.of("h1")) == 1


def test_everything_a_person_should_see_is_there() -> None:
    page = Page(render_report(synthetic_run()))
    for words in (
        "3.17 → 2.54", "4 min 5 s", "9.3 MiB", "1.6 GiB", "inexact", "relative error at most 0.31",
        "the loss is not a number at step 3 of 8", "no reply within 120 s", "Athetosis",
        "Slow, writhing, involuntary movements", "training.learning_rate", "0.001", "AMD EPYC 9B14",
        "134,515,008", "5,840 rows at 6 sites", "3 bad rows were left out", "Morphological",
    ):  # fmt: skip
        assert words in page.text, words
    for name in SITES:
        assert page.text.count(name) > 5


def test_clusters_are_shown_with_their_members_and_what_they_gave_them() -> None:
    events = [
        replace(event, personal_loss=event.loss - 0.25)
        if isinstance(event, ClientEvaluated) and event.round and event.loss is not None
        else event
        for event in synthetic_run()
    ]
    names = [each.name for event in events if isinstance(event, Sites) for each in event.sites]
    made = Clustered(
        round=2, clusters=(tuple(names[:2]), tuple(names[2:])), joined=tuple(names), similarity_within=0.5,
        similarity_between=-0.25, merge_distances=(1.5, 0.75, 0.5, 0.25, 0.25),
    )  # fmt: skip
    page = render_report([*events, made])
    section = page[page.index("<h2>Clusters</h2>") :].partition("</section>")[0]
    for said in ("+0.50", "−0.25", "distance of 1.50", "at 0.75", " and ".join(names[:2])):
        assert said in section
    assert "Each site&#x27;s cluster" in page or "Each site's cluster" in page
    assert "Own models" in page
    assert "<h2>Clusters</h2>" not in render_report(events)
    state = ProgressState()
    assert "round 2  clusters made: 1: Nervous system, Skeletal system; 2: Eye" in event_text(made, state)
    later = replace(made, joined=("Ear",), merge_distances=())
    assert "Ear joined a cluster: 1: " in event_text(later, state)


def test_every_picture_has_a_name_and_its_numbers_in_a_table() -> None:
    page = Page(render_report(synthetic_run()))
    pictures = page.of("svg")
    assert len(pictures) == 3 * 2 + 4  # three across the page, each for a phone too, and four small ones
    assert all(picture["role"] == "img" and picture["aria-label"] for picture in pictures)
    regions = [
        attributes["aria-label"] for attributes in page.of("div") if attributes.get("role") == "region"
    ]
    assert regions == [
        "Losses of every site", "Failures", "Held-out loss by site and round", "Rows at each site",
        "All rounds", "Configuration",
    ]  # fmt: skip
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.of("th"))


def test_labels_are_shown_at_the_site_that_holds_them_whatever_the_order_of_sites() -> None:
    def label_rows(events: list[Event]) -> dict[str, str]:
        table = render_report(events).partition('aria-label="Rows at each site"')[2].partition("</table>")[0]
        return {row[1]: row[0] for row in re.findall(r"(<tr><th scope=\"row\">(.*?)</th>.*?</tr>)", table)}

    events = synthetic_run()
    shuffled: list[Event] = [
        replace(event, sites=tuple(sorted(event.sites, key=lambda site: site.name)))
        if isinstance(event, Sites)
        else event
        for event in events
    ]
    assert list(label_rows(shuffled)) == sorted(SITES)
    assert label_rows(shuffled) == label_rows(events)


def test_a_failed_run_says_so_first_with_its_reason() -> None:
    end = RunFinished(
        status="failed", reason="FT601: 3 of 6 replied", seconds=90.0, load_seconds=3.0, peak_memory_mib=1.0
    )
    text = Page(render_report([*synthetic_run(baselines=False, finish=False), end])).text
    assert text.index("This run failed") < text.rindex("The federated model beats")
    assert "FT601: 3 of 6 replied" in text


def test_no_text_of_a_run_becomes_markup_wherever_it_stands() -> None:
    def spoil(value: object) -> object:
        if isinstance(value, str):
            return EVIL + value
        if isinstance(value, dict):
            return {EVIL + str(key): spoil(item) for key, item in value.items()}
        return [spoil(item) for item in value] if isinstance(value, list) else value

    def spoilt_event(event: Event) -> Event:
        match event:
            case RunStarted():
                facts = {"config": spoil(event.config), "machine": spoil(event.machine)}
                return replace(event, name=EVIL, version=EVIL, **facts)  # type: ignore[arg-type]
            case Sites(split=Split() as split):
                labels = tuple(EVIL + label for label in split.labels)
                return replace(event, split=replace(split, labels=labels))
            case RunFinished():
                return replace(event, status="failed", reason=EVIL)
            case _:
                texts = ("prompt", "reference", "before", "after", "hash", "quantization", "code", "reason")
                return replace(event, **{key: EVIL for key in texts if hasattr(event, key)})

    names = [EVIL + name for name in SITES]
    events = [spoilt_event(event) for event in synthetic_run(names=names)]
    spoilt = render_report(events)
    assert "<script" not in spoilt
    assert "<img" not in spoilt
    assert Page(spoilt).faults == []
    clean, page = Page(render_report(synthetic_run())), Page(spoilt)
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in clean.elements} | {"strong"}


def test_the_report_is_written_from_the_log_alone_and_replaces_an_older_one_whole(tmp_path: Path) -> None:
    log = tmp_path / "rounds.jsonl"
    with EventLog(log) as events:
        for event in synthetic_run():
            events.append(event)
    (tmp_path / "report.html").write_text("old")
    assert write_report(log, tmp_path / "report.html") == tmp_path / "report.html"
    assert (tmp_path / "report.html").read_text() == render_report(synthetic_run())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["report.html", "rounds.jsonl"]
    with pytest.raises(RunError, match="FT706"):
        write_report(tmp_path / "no.jsonl", tmp_path / "report.html")


def test_the_page_stays_small() -> None:
    assert len(render_report(synthetic_run()).encode()) < 100_000


def chromium(folder: Path, url: str, *arguments: str) -> tuple[bytes, list[str], list[str]]:
    """Open a page; return what is on stdout, the console's lines, and what the page asked the network for."""
    assert CHROMIUM is not None
    log = folder / "net.json"
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            # Nothing can be reached, by the page or by the browser itself; what was asked for is in the log.
            "--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}",
            "--enable-logging=stderr", "--v=0", *arguments, url,
        ],
        capture_output=True, check=True, timeout=120,
    )  # fmt: skip
    console = [line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    asked = [event.get("params", {}) for event in json.loads(log.read_text(errors="replace"))["events"]]
    by_page = [
        params["url"]
        for params in asked
        if re.match("https?:|wss?:", params.get("url", ""))
        and params.get("initiator", "not an origin") != "not an origin"
    ]
    return done.stdout, console, by_page


in_a_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="neither chromium nor google-chrome is on this machine"
)


@pytest.fixture
def page_url(tmp_path: Path) -> str:
    names = [*list(SITES)[:-1], EVIL]
    return write_report(synthetic_run(names=names), tmp_path / "report.html").as_uri()


@pytest.mark.e2e
@in_a_browser
def test_a_browser_shows_the_verdict_runs_no_script_and_asks_no_network(
    tmp_path: Path, page_url: str
) -> None:
    dom, console, asked = chromium(tmp_path, page_url, "--dump-dom")
    title, text = re.search("<title>(.*?)</title>", dom.decode()), Page(dom.decode()).text  # type: ignore[var-annotated]
    assert title is not None
    assert title[1].startswith("Federating helped 5 of 6 sites.")
    assert "It did not help <script>" in text
    assert console == []  # a blocked style, a refused request or a script's error would be told here
    assert asked == []


@pytest.mark.e2e
@in_a_browser
def test_the_browser_test_would_see_a_script_and_a_request(tmp_path: Path) -> None:
    control = tmp_path / "control.html"
    control.write_text(
        f"<title>mine</title>{EVIL}<img src='http://example.invalid/x.png'><script>throw 1</script>"
    )
    dom, console, asked = chromium(tmp_path, control.as_uri(), "--dump-dom")
    assert b"<title>owned</title>" in dom
    assert console != []
    assert asked == ["http://example.invalid/x.png"]


@pytest.mark.e2e
@in_a_browser
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (500, "light")])
def test_a_screenshot_has_the_page_on_it(tmp_path: Path, page_url: str, width: int, scheme: str) -> None:
    shot = tmp_path / "shot.png"
    flag = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    chromium(tmp_path, page_url, f"--window-size={width},2400", flag, f"--screenshot={shot}")
    content = pixels(shot.read_bytes())
    assert len(content) > 50_000  # an empty page of this size takes some 10 kB
    # The first pixel of a PNG is stored as it is, whatever the filter of its row.
    background = sum(zlib.decompress(content)[1:4]) / 3
    assert background < 50 if scheme == "dark" else background > 230


def pixels(png: bytes) -> bytes:
    """Return the compressed pixels of a PNG."""
    data, at = b"", 8
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        data += png[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += length + 12
    return data
