"""Reading files of a store that another version of Evoke wrote."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger("evoke")
_named: set[tuple[Path, str]] = set()


def known_entries(
    found: Mapping[str, Any], known: Collection[str], file: Path, successors: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the entries whose keys this version knows; log the other keys, each once for each file in this process.

    Args:
        found: the entries as the file holds them.
        known: the keys that this version reads.
        file: the file, for the message.
        successors: for keys that are no longer used, what to use now.
    """
    unknown = [key for key in found if key not in known and (file, key) not in _named]
    _named.update((file, key) for key in unknown)
    if unknown:
        hints = "".join(f"; {key}: {hint}" for key, hint in (successors or {}).items() if key in unknown)
        log.warning("%s: ignored %s, which this version does not use%s", file, ", ".join(unknown), hints)
    return {key: value for key, value in found.items() if key in known}
