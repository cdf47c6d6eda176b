"""`replctl`: the table of verbs, the global options, and the exit status of every failure.

Exit status: 0 done, 1 unexpected, 2 usage, 3 daemon unreachable, 4 no such volume or peer,
5 refused as unsafe, 6 timed out, 7 not confirmed, 8 configuration invalid, 9 permission;
`status --check`: 10 degraded, 11 critical. Only click and the standard library are imported when
it starts.
"""

from __future__ import annotations

import difflib
import os
import sys

import click

from repl.cli.alone import continue_
from repl.cli.attach import attach, detach
from repl.cli.client import Client
from repl.cli.config import config
from repl.cli.events import events
from repl.cli.metadata import metadata
from repl.cli.mount import mount, umount
from repl.cli.output import ReaderGone, Session, report
from repl.cli.peer import connect, disconnect
from repl.cli.resync import resync
from repl.cli.role import demote, promote
from repl.cli.splitbrain import splitbrain
from repl.cli.status import status
from repl.cli.tls import tls
from repl.cli.version import version
from repl.cli.volume import volume
from repl.cli.wait import wait
from repl.config import CONTROL_DEFAULT, UNIX_PATH_BYTES_MAX
from repl.errors import ReplError, UsageError

INTERRUPTED_EXIT_STATUS = 130
"""What a shell expects of a program that was ended by Ctrl-C."""


@click.group(
    no_args_is_help=False,
    context_settings={"help_option_names": ["--help"], "max_content_width": 100},
    epilog="Exit status: 0 done, 1 unexpected, 2 usage, 3 daemon unreachable, 4 no such volume or "
    "peer, 5 refused as unsafe, 6 timed out, 7 not confirmed, 8 configuration invalid, "
    "9 permission; status --check: 10 degraded, 11 critical.",
)
@click.option(
    "--socket",
    metavar="PATH",
    envvar="REPL_SOCKET",
    default=CONTROL_DEFAULT,
    show_default=True,
    help="The daemon's control socket; also $REPL_SOCKET.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, errors included.")
@click.pass_context
def cli(context: click.Context, socket: str, as_json: bool) -> None:
    """Operate the replicated volumes of this node."""
    if not 0 < len(os.fsencode(socket)) <= UNIX_PATH_BYTES_MAX:
        raise UsageError(
            f"{socket!r} cannot be a Unix socket.",
            f"its path must have 1 to {UNIX_PATH_BYTES_MAX} bytes",
            "name the daemon's control socket:  replctl --socket /run/repl/repld.sock status",
        )
    context.obj = Session(Client(socket), as_json)


for _verb in (
    status,
    promote,
    demote,
    continue_,
    wait,
    connect,
    disconnect,
    splitbrain,
    attach,
    detach,
    mount,
    umount,
    resync,
    events,
    volume,
    metadata,
    config,
    tls,
    version,
):
    cli.add_command(_verb)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status. All failures are already shown."""
    arguments = sys.argv[1:] if argv is None else argv
    # Known before parsing, so that even an error of parsing is JSON; no name can look like this.
    as_json = "--json" in arguments
    try:
        result = cli.main(args=arguments, prog_name="replctl", standalone_mode=False)
    except ReplError as failure:
        error = failure
    except click.Abort:
        return INTERRUPTED_EXIT_STATUS
    except click.ClickException as failure:
        error = _usage(failure, arguments)
    except ReaderGone:
        return ReplError.exit_status
    else:
        return result if isinstance(result, int) else 0
    try:
        report(error, as_json)
    except (ReaderGone, ReplError):
        report(error, as_json=False)
    return error.exit_status


def _usage(failure: click.ClickException, arguments: list[str]) -> UsageError:
    """Return click's complaint in our three lines."""
    context = getattr(failure, "ctx", None)
    path = context.command_path if context is not None else "replctl"
    why = "the command's form is:  replctl [--socket PATH] [--json] VERB ..."
    if context is not None and context.command is not cli:
        usage = " ".join(context.command.collect_usage_pieces(context))
        why = f"the command's form is:  {path} {usage}"
    next_step = f"{path} --help"
    if isinstance(failure, click.NoSuchOption) and failure.option_name in ("--json", "--socket"):
        why = f"{failure.option_name} is a global option and stands before the verb"
        next_step = _global_first(failure.option_name, arguments)
    elif isinstance(context, click.Context) and isinstance(context.command, click.Group):
        known = context.command.list_commands(context)
        tried = [word for word in arguments if word not in known and f"'{word}'" in str(failure)]
        close = difflib.get_close_matches(tried[0], known, n=1) if tried else []
        next_step = f"{path} {close[0]} --help" if close else next_step
    message = " ".join(failure.format_message().split())
    return UsageError(message or "The arguments are not usable.", why, next_step)


def _global_first(option: str, arguments: list[str]) -> str:
    """Return the same command with a misplaced global option where it belongs."""
    if option == "--json":
        rest = [word for word in arguments if word != option]
        return " ".join(["replctl", option, *rest])
    return "replctl --socket PATH VERB ..."


def entry() -> None:
    """Run as the console script `replctl`."""
    exit_status = main()
    try:
        sys.stdout.flush()
    except OSError:
        # Shown or passed over already; the interpreter's own flush at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        exit_status = exit_status or ReplError.exit_status
    sys.exit(exit_status)


if __name__ == "__main__":
    entry()
