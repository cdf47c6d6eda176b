"""What an installation compiles: the modules of the hot path, from the same sources, by mypyc.

Everything else about the package is in pyproject.toml. The compiled modules are an option: where
no C compiler, no Python headers or no mypyc is found, the package is installed interpreted and does
the same, slower. An editable installation is never compiled, so that what is edited is what runs.

`REPL_COMPILE=no` installs interpreted; `REPL_COMPILE=yes` makes it an error if that cannot be.
Must never decide anything at run time: `repl/build.py` says which build it is.
"""

from __future__ import annotations

import contextlib
import os
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

#: What a write passes through, from the client's socket to the peer and to the disk. The rest of
#: the package runs rarely, and compiling it would only make an installation slower.
#: (`repl/core/facts.py` stays out for another reason: the records' JSON form is made of their
#: annotations, which a compiled class does not keep.)
COMPILED_FILES = (
    *("nbdserver/answering.py", "nbdserver/buffers.py", "nbdserver/chunked_replies.py"),
    *("nbdserver/client_socket.py", "nbdserver/connection.py", "nbdserver/extended_headers.py"),
    *("nbdserver/legality.py", "nbdserver/overlaps.py", "nbdserver/protocol.py"),
    *("nbdserver/receiving.py", "nbdserver/replies.py", "nbdserver/requests.py"),
    "nbdserver/transmission.py",
    *("repl/core/barrier.py", "repl/core/blockmap.py", "repl/core/changes.py"),
    *("repl/core/commits.py", "repl/core/intents.py", "repl/core/outbox.py"),
    "repl/core/receiver.py",
    *("repl/core/roles.py", "repl/core/room.py", "repl/core/routing.py", "repl/core/session.py"),
    *("repl/core/source.py", "repl/core/spans.py", "repl/core/volume.py"),
    *("repl/core/wire.py", "repl/core/writes.py"),
    *("repl/link/connection.py", "repl/link/drain.py"),
    *("repl/node/applying.py", "repl/node/copying.py", "repl/node/engine.py"),
    *("repl/node/reading.py", "repl/node/writing.py"),
)
#: The steps of an installation that compile: not those for metadata, nor an editable one's.
BUILDS = frozenset({"build", "build_ext", "bdist_wheel"})


def extensions() -> list[Extension]:
    """Return the compiled modules as setuptools wants them; none if there shall be none."""
    wish = os.environ.get("REPL_COMPILE", "auto")
    if wish not in ("auto", "yes", "no"):
        sys.exit(f"REPL_COMPILE={wish}: it is auto, yes or no")
    if wish == "no" or not BUILDS.intersection(sys.argv):
        return []
    try:
        from mypyc.build import mypycify
    except ImportError as error:
        if wish == "yes":
            sys.exit(f"REPL_COMPILE=yes: mypyc cannot be imported ({error}): pip install mypy")
        return []
    # A library that is not installed while the package is built is as good as untyped.
    flags = ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent"]
    found = mypycify([*flags, *COMPILED_FILES], opt_level="2", debug_level="0")
    return found


class AllOrNothing(build_ext):
    """Compiles every module, or installs none of them.

    The modules share one library. One that was built beside a library that was not (a compiler that
    runs out of memory) could not be imported, where its source could.
    """

    def run(self) -> None:
        try:
            super().run()
        except (BaseError, CCompilerError, OSError) as error:
            if os.environ.get("REPL_COMPILE") == "yes":
                raise
            self.warn(f"the hot path stays interpreted: {error}")
            for extension in self.extensions:
                self._remove(self.get_ext_fullpath(extension.name))
                self._remove(os.path.join(self.build_lib, self.get_ext_filename(extension.name)))
            self.extensions = []

    @staticmethod
    def _remove(path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


setup(ext_modules=extensions(), cmdclass={"build_ext": AllOrNothing})
