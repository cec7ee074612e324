"""README.md and the pages of docs/, run as written: shell commands, Python, requests to the service; links and names checked.

Comments in Markdown say what a code block needs: `long` and `data` blocks (minutes, or benchmark data) are not run; `served`
blocks talk to a running service. A comment `# prints: text` in a block is output that it must print; ` ...` at its end stands for
the rest of the line.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from agent.settings import Serving, Settings, TenantSettings
from store.paths import default_store, remember_last_store
from tests.helpers.recommending import FILMS
from tests.helpers.serving import Service, process

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in FILES}
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>long|data|served) -->\n)?^```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


def blocks(page: str, kind: str, mark: str | None = None) -> list[str]:
    """The code blocks of a page of this language and mark."""
    return [found["code"] for found in BLOCK.finditer(PAGES[page]) if found["kind"] == kind and found["mark"] == mark]


def pages_with(*kinds: str, mark: str | None = None) -> list[str]:
    """The pages that have such code blocks."""
    return [page for page in PAGES if any(blocks(page, kind, mark) for kind in kinds)]


def run(kind: str, code: str, **options: object) -> None:
    """Run the code; assert that it succeeds and prints the output that it announces."""
    command = ["bash", "-euo", "pipefail", "-c", code] if kind == "sh" else [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    for expected in re.findall(r"^# prints: (.+)$", code, re.MULTILINE):
        assert expected.removesuffix(" ...") in done.stdout


@pytest.fixture
def after_demo(films_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the demo data, and stores as `evoke index eval/films` makes them, by default and as stores/films."""
    for name in [name for name in os.environ if name.startswith(("EVOKE_", "OPENAI_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("EVOKE_DEADLINE", "400")
    (tmp_path / "eval").symlink_to(ROOT / "eval")
    for store in (tmp_path / "stores" / "films", default_store(FILMS)):
        shutil.copytree(films_store, store)
    remember_last_store(default_store(FILMS))
    return tmp_path


@pytest.fixture(scope="module")
def demo_service(films_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service over a copy of the demo store, one for all pages."""
    folder = tmp_path_factory.mktemp("served")
    with process(shutil.copytree(films_store, folder / "store"), folder) as running:
        yield running


@pytest.mark.parametrize("page", pages_with("sh", "python"))
def test_commands_and_python_run_as_written(page: str, after_demo: Path) -> None:
    for kind in ("sh", "python"):
        if code := "".join(blocks(page, kind)):
            run(kind, code, cwd=after_demo)


@pytest.mark.parametrize("page", pages_with("sh", "python", mark="served"))
def test_requests_to_the_service_run_as_written(page: str, demo_service: Service) -> None:
    for kind in ("python", "sh"):
        if code := "".join(blocks(page, kind, "served")):
            run(kind, code.replace("127.0.0.1:8080", demo_service.url.removeprefix("http://")))


@pytest.mark.parametrize("page", pages_with("toml"))
def test_toml_examples_are_settings(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for code in blocks(page, "toml"):
        Path("evoke.toml").write_text(code, encoding="utf-8")
        assert tomllib.loads(code).keys() <= Settings.load().model_fields_set


@pytest.mark.parametrize("page", pages_with("json"))
def test_json_examples_are_json(page: str) -> None:
    for code in blocks(page, "json"):
        json.loads(code)


@pytest.mark.parametrize("page", PAGES)
def test_settings_targets_and_folders_on_a_page_exist(page: str) -> None:
    source = "".join((ROOT / file).read_text(encoding="utf-8") for file in ("eval/cli.py", "agent/terminal/cli.py"))
    for name in re.findall(r"EVOKE_([A-Z_]+[A-Z])", PAGES[page]):
        assert name.lower() in Settings.model_fields or f'envvar="EVOKE_{name}"' in source, name
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for name in re.findall(r"(?:`|^)make ([a-z-]+)", PAGES[page], re.MULTILINE):
        assert name in targets, name
    for folder in re.findall(r"`((?:agent|docs|eval|prompts|store|tests)/(?:\w+/)*)`", PAGES[page]):
        assert (ROOT / folder).is_dir(), folder


def test_settings_page_describes_every_setting_with_its_default() -> None:
    fields = {f"EVOKE_{name.upper()}": field for name, field in Settings.model_fields.items()}
    fields |= {name: field for part in (Serving, TenantSettings) for name, field in part.model_fields.items()}
    lines = re.findall(r"^\|(.*`.*)\|$", PAGES["docs/settings.md"], re.MULTILINE)
    rows = [(names.strip(), default.strip()) for names, _, default in (line.split("|") for line in lines)]
    for name in fields.keys() - {"EVOKE_SERVE", "EVOKE_TENANTS"}:
        defaults = [default for names, default in rows if f"`{name}`" in names]
        assert defaults, name
        if isinstance(value := fields[name].default, int | float):
            shown = str(value).lower() if isinstance(value, bool) else f"{value:,}".removesuffix(".0")
            assert shown in defaults, name
    weights = Settings.model_fields["weights"].get_default(call_default_factory=True)
    assert ("`EVOKE_WEIGHTS`", ", ".join(f"`{name}` {value:g}" for name, value in weights.items())) in rows


def test_http_page_describes_every_address(demo_service: Service) -> None:
    described = httpx.get(f"{demo_service.url}/openapi.json", trust_env=False).json()["paths"]
    assert described
    assert not [address for address in described if f"{address}`" not in PAGES["docs/http.md"]]


def test_readme_links_to_every_page() -> None:
    linked = set(re.findall(r"\]\((docs/[^)#]+)", PAGES["README.md"]))
    assert linked == PAGES.keys() - {"README.md"}


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md", "eval/RESULTS.md", "eval/films/README.md"])
def test_links_lead_to_files_and_headings(page: str) -> None:
    at = ROOT / page
    for file, part in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", at.read_text(encoding="utf-8")):
        there = at.parent / file if file else at
        assert there.exists(), file
        headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE) if part else []
        assert not part or part in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
