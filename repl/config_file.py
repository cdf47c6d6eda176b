"""The configuration as files: reads them, merges `conf.d/*.toml` and checks names and types.

It owns what a key may be called and which type its value has; what the values mean is decided in
`repl/config.py`. It never stops at the first mistake: a value of the wrong type is reported, taken
out, and the rest goes on, so that one run names every error. This module imports pydantic, so only
code that is about to read a configuration may import it.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from nbdserver import limits as nbd_limits
from repl.errors import ConfigInvalid

FILE_BYTES_MAX = 4 << 20
"""No configuration is longer; a longer file is another one (a disk image, a device)."""

KeyPath = tuple[str, ...]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Node(_Table):
    name: str = Field(description='name = "alpha"')
    state_dir: str | None = None
    control: str | None = None
    listen: str | None = None
    metrics: str | None = None
    insecure: bool | None = None


#: Each limit is a number, or text with a unit; `repl/config.py` knows what it may be.
_LIMIT_FIELDS: dict[str, Any] = dict.fromkeys(nbd_limits.names(), (Any, None))
_NbdLimits = create_model("_NbdLimits", __base__=_Table, **_LIMIT_FIELDS)


class _Nbd(_Table):
    socket: str | None = None
    listen: str | None = None
    when_secondary: Literal["refuse", "hold"] | None = None
    tls: Literal["off", "allowed", "required"] | None = None
    tls_verify_clients: bool | None = None
    limits: _NbdLimits | None = None  # type: ignore[valid-type]


class _Peer(_Table):
    address: str | None = None
    addresses: list[str] | None = None
    fingerprint: str | None = None


class _Volume(_Table):
    size: Any = Field(description='size = "10GiB"')
    backing: str = Field(description='backing = "/srv/repl/r0.img"')
    peers: list[str] = Field(description='peers = ["beta"], or peers = [] for a single copy')
    preallocate: bool = False
    alone: Literal["continue", "ask"] | None = None
    resync_rate_limit: str | None = None
    clients: list[str] | None = None


class _Timeouts(_Table):
    peer_timeout_s: float | None = None
    reconnect_grace_s: float | None = None
    connect_timeout_s: float | None = None
    ping_interval_s: float | None = None
    worker_timeout_s: float | None = None
    reconnect_backoff_max_s: float | None = None


class _Tls(_Table):
    certificate: str = Field(description='certificate = "/etc/repl/alpha.crt"')
    key: str = Field(description='key = "/etc/repl/alpha.key"')
    authority: str = Field(description='authority = "/etc/repl/ca.crt"')


class _File(_Table):
    node: _Node = Field(description="a [node] table")
    nbd: _Nbd = Field(description="a [nbd] table with socket or listen")
    tls: _Tls | None = None
    peers: dict[str, _Peer] = {}
    volumes: dict[str, _Volume] = {}
    timeouts: _Timeouts = _Timeouts()


_TABLES: dict[KeyPath, type[_Table]] = {
    (): _File,
    ("node",): _Node,
    ("nbd",): _Nbd,
    ("nbd", "limits"): _NbdLimits,
    ("tls",): _Tls,
    ("peers", "*"): _Peer,
    ("volumes", "*"): _Volume,
    ("timeouts",): _Timeouts,
}
_WANTED: dict[str, str] = {
    "string_type": "text in quotes",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
}


@dataclass(slots=True)
class FileContents:
    """What the files say: `values` holds only keys that exist, with values of the right type.

    `origins` tells which file a key came from; `problems` grows by `complain`, one line each.
    """

    file: str
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def complain(self, path: KeyPath, sentence: str) -> None:
        """Record one problem of the key at `path`, naming the file that it stands in."""
        near = path
        while near and near not in self.origins:
            near = near[:-1]
        line = f"{self.origins.get(near, self.file)}: {dotted(path)}: {sentence}"
        if line not in self.problems:
            self.problems.append(line)

    def table(self, *path: str) -> dict[str, Any]:
        """Return the table at `path`, empty when it does not exist."""
        found: Any = self.values
        for key in path:
            found = found.get(key, {})
        assert isinstance(found, dict)
        return found


def dotted(path: KeyPath) -> str:
    """Return the key as TOML would write it: `volumes.r0.size`, `volumes."a b".size`."""
    return ".".join(
        key
        if re.fullmatch(r"[A-Za-z0-9_-]+", key)
        else '"' + key.encode("unicode_escape").decode().replace('"', '\\"') + '"'
        for key in path
    )


def read_files(file: str) -> FileContents:
    """Return the merged contents of `file` and of `conf.d/*.toml` beside it, in name order.

    Raises ConfigInvalid when a file cannot be read, or is not TOML (every such file is named).
    All other problems are only recorded.
    """
    contents = FileContents(file)
    broken: list[str] = []
    for part in (file, *_fragments(file)):
        try:
            table = tomllib.loads(_read(part).decode("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as failure:
            broken.append(f"{part}: not valid TOML: {failure}")
        else:
            _merge(contents, contents.values, table, (), part)
    if broken:
        raise ConfigInvalid(
            f"Cannot use the configuration {file}.",
            "\n".join(broken),
            f"correct it, then:  replctl config check {file}",
        )
    _check_shape(contents)
    return contents


def _fragments(file: str) -> list[str]:
    folder = Path(file).parent / "conf.d"
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as failure:
        raise _unreadable(str(folder), failure) from failure
    return [
        str(folder / name) for name in names if name.endswith(".toml") and not name.startswith(".")
    ]


def _read(file: str) -> bytes:
    try:
        with open(file, "rb") as stream:
            data = stream.read(FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as failure:
        raise _unreadable(file, failure) from failure
    if len(data) > FILE_BYTES_MAX:
        raise ConfigInvalid(
            f"Cannot use the configuration {file}.",
            f"{file} is longer than {FILE_BYTES_MAX} bytes; it does not look like a configuration.",
            "name the configuration file:  replctl config check FILE",
        )
    return data


def _unreadable(file: str, failure: OSError | ValueError) -> ConfigInvalid:
    reason = failure.strerror if isinstance(failure, OSError) else str(failure)
    return ConfigInvalid(
        f"Cannot read the configuration {file}.",
        f"{file}: {reason}",
        f"check the path and its permissions:  ls -l {file}",
        code="CONFIG_UNREADABLE",
    )


def _merge(
    contents: FileContents, into: dict[str, Any], table: dict[str, Any], path: KeyPath, file: str
) -> None:
    """Add `table` to `into`: tables join, any other key given twice is a problem."""
    for key, value in table.items():
        here = (*path, key)
        if isinstance(value, dict) and isinstance(into.get(key, {}), dict):
            contents.origins.setdefault(here, file)
            _merge(contents, into.setdefault(key, {}), value, here, file)
        elif key in into:
            first = contents.origins[here]
            contents.problems.append(f"{file}: {dotted(here)}: given twice; {first} has it too")
        else:
            contents.origins[here] = file
            into[key] = value


def _check_shape(contents: FileContents) -> None:
    """Record unknown keys, missing keys and wrong types; take the first and last out of values."""
    try:
        _File.model_validate(contents.values)
    except ValidationError as failure:
        errors = failure.errors(include_url=False)
    else:
        return
    unusable: set[KeyPath] = set()
    for error in errors:
        path, kind = _existing_path(contents.values, error["loc"]), error["type"]
        if kind == "missing":
            missing = (*path, str(error["loc"][-1]))
            contents.complain(missing, f"required; add  {_example(missing)}")
            continue
        unusable.add(path)
        if kind == "extra_forbidden":
            contents.complain(path, "unknown key" + _nearest(path))
        else:
            wanted = _WANTED.get(kind) or error.get("ctx", {}).get("expected", error["msg"])
            if isinstance(error["loc"][-1], int):
                wanted = f"a list that holds only {wanted}"
            found = _shown(_value_at(contents.values, path))
            contents.complain(path, f"must be {wanted}, not {found}")
    for path in unusable:
        _remove(contents.values, path)


def _existing_path(values: Any, location: tuple[int | str, ...]) -> KeyPath:
    """Return the leading keys of `location` that exist; list indexes are not keys."""
    path: KeyPath = ()
    for part in location:
        if not isinstance(values, dict) or not isinstance(part, str) or part not in values:
            break
        path, values = (*path, part), values[part]
    return path


def _value_at(values: Any, path: KeyPath) -> Any:
    for key in path:
        values = values[key]
    return values


def _remove(values: Any, path: KeyPath) -> None:
    del _value_at(values, path[:-1])[path[-1]]


def _model_of(path: KeyPath) -> type[_Table] | None:
    return _TABLES.get(path) or _TABLES.get((*path[:-1], "*"))


def _example(path: KeyPath) -> str:
    model = _model_of(path[:-1])
    fields = model.model_fields if model else {}
    return (fields[path[-1]].description if path[-1] in fields else None) or path[-1]


def _nearest(path: KeyPath) -> str:
    model = _model_of(path[:-1])
    close = difflib.get_close_matches(path[-1], model.model_fields if model else (), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
