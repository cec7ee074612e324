"""The README, run as written: its shell commands in one go, its Python in a fresh folder, its links and tables checked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agent.settings import Settings
from tests.helpers.serving import process

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>long|data|served) -->\n)?^```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


def blocks(kind: str, mark: str | None = None) -> list[str]:
    """The code blocks of a kind that are marked so; without a mark, those that need neither time, data nor a service."""
    return [found["code"] for found in BLOCK.finditer(README) if found["kind"] == kind and found["mark"] == mark]


def environment(folder: Path) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("EVOKE_", "OPENAI_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
    return clean | {"PATH": path, "XDG_DATA_HOME": str(folder / "data"), "EVOKE_DEADLINE": "400"}


@pytest.mark.parametrize("code", blocks("sh"))
def test_the_shell_commands_run_as_written(code: str, tmp_path: Path) -> None:
    (tmp_path / "eval").symlink_to(ROOT / "eval")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", blocks("python"))
def test_the_python_runs_as_written(code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Ronin" in done.stdout
    assert "[]" in done.stdout


def test_what_talks_to_the_service_runs_as_written(films: Path, tmp_path: Path) -> None:
    with process(films, tmp_path) as service:
        here = service.url.removeprefix("http://")
        python, shell = ("".join(blocks(kind, "served")).replace("127.0.0.1:8080", here) for kind in ("python", "sh"))
        talked = subprocess.run([sys.executable, "-c", python], capture_output=True, text=True, timeout=300)
        assert talked.returncode == 0, talked.stderr
        assert "like Heat" in talked.stdout
        command = ["bash", "-euo", "pipefail", "-c", shell]
        asked = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert asked.returncode == 0, asked.stderr
        assert '"accepted":1' in asked.stdout.replace(" ", "")


def test_there_is_something_to_run() -> None:
    assert len(blocks("sh")) >= 1
    assert len(blocks("python")) >= 1


def test_every_setting_make_target_and_file_it_names_exists() -> None:
    for name in re.findall(r"EVOKE_([A-Z_]+)", README):
        assert name.lower() in Settings.model_fields, name
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for name in re.findall(r"`?make ([a-z-]+)", README):
        assert name in targets, name


@pytest.mark.parametrize("page", ["README.md", "eval/RESULTS.md", "eval/films/README.md"])
def test_every_link_leads_somewhere(page: str) -> None:
    at = ROOT / page
    for file, part in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", at.read_text(encoding="utf-8")):
        there = at.parent / file if file else at
        assert there.exists(), file
        headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE) if part else []
        assert not part or part in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
