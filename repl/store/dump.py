"""What `replctl metadata dump` prints: a volume's metadata in words and in JSON.

It only reads, and takes no lock, so it works beside a running worker and on a volume that cannot be
opened. A commit under way while it reads can look like damage; then it reads again.
"""

from __future__ import annotations

import time
from typing import Any

from repl.core.blockmap import BlockMap
from repl.errors import NoSuchThing, Refused
from repl.store import metafile, refusals
from repl.store.metadata import Loaded, Metadata
from repl.store.record_json import to_json

#: Runs of set blocks that are shown of each map.
RUNS_SHOWN = 8
#: Times that the file is read again while it looks damaged.
READ_ATTEMPTS = 5
#: The last second that four digits of a year can show.
YEAR_9999_S = 253402300799


def dump_json(state_dir: str, name: str) -> dict[str, Any]:
    """Return the metadata as one object; raises NoSuchThing, Refused (METADATA_*), ReplError."""
    path = metafile.metadata_path(state_dir, name)
    loaded = _read(path, name)
    maps = {"intents": loaded.maps.intents, "remaining": loaded.maps.remaining}
    return {
        "volume": name,
        "path": path,
        "serial": loaded.metadata.serial,
        "facts": to_json(loaded.facts),
        "stamp": to_json(loaded.metadata.stamp),
        "epochs": list(loaded.metadata.epochs),
        "maps": {title: _map_json(bitmap) for title, bitmap in maps.items()},
        "dirty": {peer: _map_json(bitmap) for peer, bitmap in loaded.maps.dirty.items()},
        "reports": loaded.reports,
    }


def dump_text(state_dir: str, name: str) -> str:
    """Return the same for people, newest generation first; raises as `dump_json`."""
    found = dump_json(state_dir, name)
    facts = found["facts"]
    lines = [f"volume {name}", f"file {found['path']}, serial {found['serial']}", ""]
    lines.append("facts")
    for key, value in facts.items():
        if key not in ("lineage", "peers"):
            lines.append(f"  {key:<18} {_shown(value)}")
    lines += ["", f"lineage ({len(facts['lineage'])} generations, newest first)"]
    lines += [_generation_line(entry) for entry in facts["lineage"]] or ["  none: fresh"]
    lines += ["", "peers"]
    for peer in facts["peers"]:
        fields = ", ".join(f"{key} {_shown(value)}" for key, value in peer.items() if key != "name")
        lines.append(f"  {peer['name']}: {fields}")
    lines += ["", "backing"]
    lines += [f"  {key:<18} {_shown(value)}" for key, value in found["stamp"].items()]
    lines += ["", "maps"]
    lines += [_map_line(title, bitmap) for title, bitmap in found["maps"].items()]
    lines += [_map_line(f"dirty {peer}", bitmap) for peer, bitmap in found["dirty"].items()]
    lines += ["", "reports"]
    lines += [f"  {report}" for report in found["reports"]] or ["  none"]
    return "\n".join(lines) + "\n"


def _read(path: str, name: str) -> Loaded:
    try:
        file = metafile.open_for_reading(path)
    except FileNotFoundError as error:
        raise NoSuchThing(
            f"Volume {name} has no metadata.",
            f"There is no file {path}.",
            "See which volumes there are: replctl status",
        ) from error
    except OSError as error:
        raise refusals.open_failure(path, name, error) from error
    try:
        for attempt in range(READ_ATTEMPTS):
            try:
                loaded = Metadata.load(file, name)
            except Refused:
                if attempt == READ_ATTEMPTS - 1:
                    raise
                continue
            if not loaded.reports:
                break
        return loaded
    except OSError as error:
        raise refusals.corrupt_metadata(name, f"reading it failed: {error}") from error
    finally:
        file.close()


def _map_json(bitmap: BlockMap) -> dict[str, Any]:
    runs: list[dict[str, int]] = []
    position = 0
    while len(runs) < RUNS_SHOWN and (run := bitmap.next_run(position)) is not None:
        position = run[1]
        start = run[0] << bitmap.block_shift
        runs.append(
            {
                "offset": start,
                "length": min(run[1] << bitmap.block_shift, bitmap.size_bytes) - start,
            }
        )
    return {
        "block_bytes": 1 << bitmap.block_shift,
        "blocks": bitmap.bits,
        "set_blocks": bitmap.count,
        "set_bytes": bitmap.set_bytes,
        "first_runs": runs,
        "more_runs": bitmap.next_run(position) is not None,
    }


def _map_line(title: str, found: dict[str, Any]) -> str:
    line = (
        f"  {title}: {found['set_blocks']} of {found['blocks']} blocks of "
        f"{found['block_bytes']} bytes, {found['set_bytes']} bytes"
    )
    runs = [f"{run['offset']}+{run['length']}" for run in found["first_runs"]]
    if runs:
        line += ": " + ", ".join(runs) + (", ..." if found["more_runs"] else "")
    return line


def _generation_line(entry: dict[str, Any]) -> str:
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(min(entry["made_at_s"], YEAR_9999_S)))
    members = ",".join(str(member) for member in entry["members"])
    line = (
        f"  {entry['counter']:>6} {entry['id']} {made} {entry['origin']:<13} "
        f"primary {entry['primary']} members {members}"
        f"{' answered' if entry['answered'] else ''}"
    )
    return f"{line} ({entry['permit']})" if entry["permit"] else line


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value) if value != "" else "none"
