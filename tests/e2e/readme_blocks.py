"""The README's convention for commands that a test runs: a comment directly before a fence.

    <!-- run: alpha -->              the fence's commands run on alpha, must end with status 0
    <!-- run: beta, exit 5 -->       … and must end with exit status 5
    <!-- file: alpha /etc/x.toml --> the fence's text is that file on alpha
    <!-- crash: alpha -->            no fence: every repld on alpha is killed with SIGKILL here

Markers are carried out in the order in which they stand. A fence of language `sh` or `bash` is one
script (`bash -euo pipefail`). In a fence of language `console` the lines that begin with `$ ` are
the script and all others are what it prints, for the reader. The comments do not show on a page.
A marker that is malformed, or not followed by a fence, is an error rather than silently ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

NODES = ("alpha", "beta")
_MARKER = re.compile(r"<!--\s*(?P<kind>run|file|crash)\s*:\s*(?P<rest>.*?)\s*-->\s*")
_RUN = re.compile(r"(?P<node>\w+)(?:\s*,\s*exit\s+(?P<exit>\d+))?")
_FILE = re.compile(r"(?P<node>\w+)\s+(?P<path>/\S+)")
_FENCE = re.compile(r"```(?P<language>\w*)\s*")


class ReadmeMalformed(ValueError):
    """A marker that means nothing; the text names the line."""


@dataclass(frozen=True)
class Step:
    """One thing to do: `kind` is run, file or crash; `text` the script or the file's content."""

    line: int
    kind: str
    node: str
    text: str = ""
    path: str = ""
    exit_status: int = 0


def steps_of(markdown: str) -> list[Step]:
    """Return the marked steps in order. Raises `ReadmeMalformed`."""
    lines = markdown.splitlines()
    steps = []
    for index, line in enumerate(lines):
        marker = _MARKER.fullmatch(line.strip())
        if marker is not None:
            steps.append(_step(lines, index, marker["kind"], marker["rest"]))
        elif re.match(r"\s*<!--\s*(run|file|crash)\b", line):
            raise ReadmeMalformed(f"line {index + 1}: not a marker: {line.strip()}")
    return steps


def _step(lines: list[str], index: int, kind: str, rest: str) -> Step:
    pattern = {"run": _RUN, "file": _FILE, "crash": re.compile(r"(?P<node>\w+)")}[kind]
    fields = pattern.fullmatch(rest)
    if fields is None or fields["node"] not in NODES:
        raise ReadmeMalformed(f"line {index + 1}: {kind} of what and where? {rest!r}")
    node = fields["node"]
    if kind == "crash":
        return Step(index + 1, kind, node)
    language, body = _fence_at(lines, index + 1)
    if kind == "file":
        return Step(index + 1, kind, node, "\n".join(body) + "\n", fields["path"])
    if language == "console":
        body = [line.removeprefix("$ ") for line in body if line.startswith("$ ")]
    elif language not in {"sh", "bash"}:
        raise ReadmeMalformed(f"line {index + 2}: a fence to run is sh, bash or console")
    return Step(index + 1, kind, node, "\n".join(body), exit_status=int(fields["exit"] or 0))


def _fence_at(lines: list[str], index: int) -> tuple[str, list[str]]:
    opening = _FENCE.fullmatch(lines[index]) if index < len(lines) else None
    if opening is None:
        raise ReadmeMalformed(f"line {index + 1}: a fence must follow its marker directly")
    for end in range(index + 1, len(lines)):
        if lines[end].strip() == "```":
            return opening["language"], lines[index + 1 : end]
    raise ReadmeMalformed(f"line {index + 1}: the fence has no end")
