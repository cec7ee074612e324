"""Sets up what `make test-vllm` needs: vLLM for CPUs in an environment of its own, and the embedded weights in its format.

    python -m tests.helpers.vllm_setup

A second run finds all of it in place and does nothing; a changed list of requirements or a changed conversion is redone.
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
    """vLLM and all it needs to serve text, exactly as pinned.

    Without dependencies: vLLM names packages for images and sound, too, which come to gigabytes.
    """
    wanted = _hash(REQUIREMENTS)
    if _done(ENVIRONMENT, wanted):
        return
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    _run(PYTHON, "-m", "pip", "install", "--no-deps", "--no-compile", "-r", REQUIREMENTS)
    _mark(ENVIRONMENT, wanted)


def convert() -> None:
    """The embedded model's weights as the Hugging Face folder that vLLM loads."""
    weights = find_weights()
    wanted = _hash(CONVERSION, weights)
    if _done(WEIGHTS, wanted):
        return
    shutil.rmtree(WEIGHTS, ignore_errors=True)
    WEIGHTS.mkdir(parents=True)
    _run(PYTHON, CONVERSION, weights, WEIGHTS)
    _mark(WEIGHTS, wanted)


def _run(*command: str | Path) -> None:
    try:
        subprocess.run([str(part) for part in command], check=True)
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"{Path(command[1]).name} failed (exit {error.returncode}); mend what it says above and run this again"
        )


def _hash(*files: Path) -> str:
    contents = (hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return hashlib.sha256("".join(contents).encode()).hexdigest()


def _done(folder: Path, wanted: str) -> bool:
    """Whether a run that finished left this there; one that was killed left no mark."""
    mark = folder / ".done"
    return mark.is_file() and mark.read_text() == wanted


def _mark(folder: Path, wanted: str) -> None:
    (folder / ".done").write_text(wanted)


if __name__ == "__main__":
    install()
    convert()
