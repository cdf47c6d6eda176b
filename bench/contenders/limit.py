"""The C program that moves the same bytes and does nothing else: `bench/limit.c`."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bench.contender import Contender, Kind, Place, Served
from bench.processes import ContenderBroke, missing_command, running
from tests.daemon import PORTS, ROOT

SOURCES = (ROOT / "bench/limit.c", ROOT / "bench/crc32c.h")
BUILD_FOLDER = ROOT / "build/bench"
COMPILE = ("gcc", "-O2", "-Wall", "-Wextra", "-Werror")


def compiled() -> Path:
    """Compile the program unless this very source is compiled already; return its path."""
    source = b"".join(path.read_bytes() for path in SOURCES)
    program = BUILD_FOLDER / f"limit-{hashlib.sha256(source).hexdigest()[:12]}"
    if not program.exists():
        BUILD_FOLDER.mkdir(parents=True, exist_ok=True)
        # Under another name first: a program of this name is a whole one.
        half = program.with_suffix(".half")
        done = subprocess.run(
            [*COMPILE, "-o", str(half), str(SOURCES[0])],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise ContenderBroke(f"{SOURCES[0]} does not compile:\n{done.stderr}")
        half.rename(program)
    return program


class Limit(Contender):
    """On one node, or with a second one that writes the same; with checksums or without."""

    kind = Kind.LIMIT

    def __init__(self, key: str, title: str, *, replicated: bool, crc: bool = False) -> None:
        self.key = key
        self.title = title
        self.replicated = replicated
        self._options = ("--crc",) if crc else ()

    def missing(self) -> str:
        return missing_command("gcc")

    def version(self) -> str:
        return compiled().name

    @contextlib.contextmanager
    def serve(self, place: Place) -> Iterator[Served]:
        with contextlib.ExitStack() as stack:
            source, socket = place.backing("primary"), place.folder / "nbd.sock"
            command = ["primary", "--socket", str(socket), "--file", str(source)]
            copies: tuple[Path, ...] = (source,)
            secondary: tuple[int, ...] = ()
            if self.replicated:
                target, port = place.backing("secondary"), PORTS.take()
                listening = ["secondary", "--listen", str(port), "--file", str(target)]
                secondary = (self._run(stack, place, listening),)
                command += ["--peer", str(stack.enter_context(place.link(port)))]
                copies += (target,)
            primary = self._run(stack, place, command)
            yield Served(f"nbd+unix:///?socket={socket}", (primary,), secondary, copies)

    def _run(self, stack: contextlib.ExitStack, place: Place, command: list[str]) -> int:
        log = place.folder / f"{command[0]}.log"
        whole = [str(compiled()), *command, *self._options]
        return stack.enter_context(running(whole, log, lambda: "ready" in log.read_text()))
