"""The initramfs of the emulated machine: this Python, what it imports there, and a few commands.

Packed at test time out of what this machine runs on: the interpreter, the modules of the standard
library that the guest's programs load, the shared libraries of all of them, and the project's own
files. Everything keeps the path that it has here. Modules are shipped compiled, since compiling
costs an emulated processor seconds.

`deploy/setup/fetch-guest-kernel.sh` provides the kernel and its modules.
"""

from __future__ import annotations

import importlib.util
import marshal
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path

from tests.daemon import ROOT

KERNEL_FOLDER = ROOT / ".cache" / "guest-kernel"
FETCH = ROOT / "deploy" / "setup" / "fetch-guest-kernel.sh"
FETCH_DEADLINE_S = 180.0
#: Where the project's own modules lie in the guest.
PROJECT = "/project"
AGENT = ROOT / "tests" / "e2e" / "guest_agent.py"
#: What the guest's programs import by name; what these import comes along.
ENTRY_MODULES = ("repl.attach.kernel_nbd", "repl.attach.keeper", "repl.attach.kernel_way")
#: Found by name at run time; `runpy` is what `python -m` begins with.
UNNAMED_MODULES = ("runpy", "encodings.ascii", "encodings.idna", "encodings.latin_1")
COMMANDS = ("mkfs.ext4",)
SEARCH_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
#: The modules to load; what they depend on is loaded first.
KERNEL_MODULES = ("virtio_pci", "virtio_net", "nbd")

#: Imports what the guest will import and lists the files that this took.
LISTING = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
for module in list(sys.modules.values()):
    if getattr(module, "__file__", None) and module.__name__ != "__main__":
        print(module.__name__, module.__file__, sep="\\t")
"""


class Archive:
    """A cpio archive in the form that the kernel unpacks ("newc")."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._known: set[str] = set()
        self._number = 0

    def add_file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a file, its folders first."""
        if path in self._known:
            return
        self.add_folder(str(Path(path).parent))
        self._add(path, stat.S_IFREG | mode, content)

    def add_folder(self, path: str) -> None:
        if path in self._known or path == "/":
            return
        self.add_folder(str(Path(path).parent))
        self._add(path, stat.S_IFDIR | 0o755)

    def add_device(self, path: str, mode: int, major: int, minor: int) -> None:
        self.add_folder(str(Path(path).parent))
        self._add(path, mode, device=(major, minor))

    def to_bytes(self) -> bytes:
        self._add("/TRAILER!!!", 0)
        return b"".join(self._parts)

    def _add(
        self, path: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._known.add(path)
        self._number += 1
        name = path.removeprefix("/").encode() + b"\0"
        # inode, mode, uid, gid, links, time, size, device of the file, device, name's size, sum
        fields = (self._number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._parts += [_padded(header + name), _padded(content)]


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def kernel() -> Path:
    """Return the kernel's image, fetched if it is not there yet."""
    subprocess.run([FETCH, KERNEL_FOLDER], check=True, timeout=FETCH_DEADLINE_S)
    return KERNEL_FOLDER / "vmlinuz"


def build(image: Path) -> None:
    """Write the initramfs to `image`."""
    archive = Archive()
    for folder in ("/dev", "/proc", "/sys", "/run", "/tmp", "/mnt"):
        archive.add_folder(folder)
    archive.add_device("/dev/console", stat.S_IFCHR | 0o600, 5, 1)
    _add_kernel_modules(archive)
    interpreter = Path(os.path.realpath(sys.executable))
    binaries = [interpreter, *map(_command, COMMANDS), *_add_python(archive, interpreter)]
    for path in binaries:
        archive.add_file(str(path), path.read_bytes(), 0o755)
    for path in _libraries(binaries):
        archive.add_file(str(path), path.read_bytes(), 0o755)
    archive.add_file("/init", f"#!{interpreter} -B\n".encode() + AGENT.read_bytes(), 0o755)
    image.write_bytes(archive.to_bytes())


def environment() -> dict[str, str]:
    """Return what the guest's first process finds in its environment."""
    folders = {str(_command(command).parent) for command in COMMANDS}
    return {
        "PATH": ":".join(sorted(folders)),
        "PYTHONPATH": PROJECT,
        "PYTHONHOME": sys.base_prefix,
        "LANG": "C.UTF-8",
    }


def _command(name: str) -> Path:
    for folder in SEARCH_PATH.split(":"):
        path = Path(folder) / name
        if folder and path.exists():
            return path
    raise FileNotFoundError(f"{name} is not installed here: make setup")


def _add_python(archive: Archive, interpreter: Path) -> list[Path]:
    """Add every imported module; return the extension modules, which have libraries."""
    agent_imports = re.findall(r"^(?:import|from) ([\w.]+)", AGENT.read_text(), re.MULTILINE)
    listed = subprocess.run(
        [interpreter, "-B", "-c", LISTING, *ENTRY_MODULES, *UNNAMED_MODULES, *agent_imports],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"PYTHONHOME": sys.base_prefix, "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"},
    )
    extensions = []
    for line in listed.stdout.splitlines():
        name, file = line.split("\t")
        path = Path(file)
        ours = path.is_relative_to(ROOT)
        if ours and path.suffix != ".py":
            # The guest is slow for other reasons: it takes the sources of what is compiled here.
            path = path.with_name(path.name.partition(".")[0] + ".py")
            if not path.exists():
                continue  # what the compiled modules have in common
        if path.suffix != ".py":
            extensions.append(path)
            continue
        target = Path(PROJECT) / path.relative_to(ROOT) if ours else path
        archive.add_file(str(target.with_suffix(".pyc")), _compiled(path, name))
    # By these the interpreter finds its library.
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    archive.add_folder(f"{sys.base_prefix}/lib/{version}/lib-dynload")
    return extensions


def _compiled(path: Path, name: str) -> bytes:
    """Return the content of the module's .pyc; what was compiled for this machine is used again."""
    code = SourceFileLoader(name, str(path)).get_code(name)
    # The flags and times of a module that lies there without its source are not looked at.
    return importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code)


def _libraries(binaries: Sequence[Path]) -> list[Path]:
    """Return the shared libraries of these files and the loader."""
    done = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True, check=False)
    return [Path(found) for found in sorted(set(re.findall(r"(/\S+) \(0x", done.stdout)))]


def _add_kernel_modules(archive: Archive) -> None:
    order: list[str] = []
    folder = KERNEL_FOLDER / "modules"

    def visit(name: str) -> None:
        content = (folder / f"{name}.ko").read_bytes()
        found = re.search(rb"\0depends=([\w,-]*)\0", content)
        for needed in _names(found.group(1) if found else b""):
            visit(needed)
        if name not in order:
            order.append(name)
            archive.add_file(f"/modules/{name}.ko", content)

    for name in KERNEL_MODULES:
        visit(name)
    archive.add_file("/modules/order", "\n".join(order).encode())


def _names(listed: bytes) -> Iterable[str]:
    return [name.replace("-", "_") for name in listed.decode().split(",") if name]
