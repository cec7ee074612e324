"""Set up `make test-vllm`: vLLM for CPUs in a separate environment, and the embedded model's weights in its format.

    python -m tests.helpers.vllm_setup

A second run does nothing, unless the list of requirements or the conversion has changed.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from agent.llm.weights import find_weights

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parents[1] / ".venv-vllm"
WEIGHTS = HERE.parents[1] / ".cache" / "smollm2-hf"
PYTHON = ENVIRONMENT / "bin" / "python"
REQUIREMENTS = HERE / "vllm-requirements.txt"
CONVERSION = HERE / "vllm_convert.py"


def install() -> None:
    """Install the pinned versions of vLLM and the packages that it needs to serve text.

    Without dependencies, because vLLM requires gigabytes of packages for images and sound, too.
    """
    wanted = _hash(REQUIREMENTS)
    if _is_done(ENVIRONMENT, wanted):
        return
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    _run(PYTHON, "-m", "pip", "install", "--no-deps", "--no-compile", "-r", REQUIREMENTS)
    _mark_done(ENVIRONMENT, wanted)


def convert() -> None:
    """Convert the embedded model's weights to the Hugging Face folder that vLLM loads."""
    weights = find_weights()
    wanted = _hash(CONVERSION, weights)
    if _is_done(WEIGHTS, wanted):
        return
    shutil.rmtree(WEIGHTS, ignore_errors=True)
    WEIGHTS.mkdir(parents=True)
    _run(PYTHON, CONVERSION, weights, WEIGHTS)
    _mark_done(WEIGHTS, wanted)


def _run(*command: str | Path) -> None:
    try:
        subprocess.run([str(part) for part in command], check=True)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{Path(command[1]).name} failed (exit {error.returncode}); fix the error above and run this again")


def _hash(*files: Path) -> str:
    contents = (hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return hashlib.sha256("".join(contents).encode()).hexdigest()


def _is_done(folder: Path, wanted: str) -> bool:
    """Return whether the folder is from a run that finished with these inputs."""
    mark = folder / ".done"
    return mark.is_file() and mark.read_text() == wanted


def _mark_done(folder: Path, wanted: str) -> None:
    (folder / ".done").write_text(wanted)


if __name__ == "__main__":
    install()
    convert()
