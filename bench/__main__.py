"""`python -m bench run SUITE` measures and writes JSON, report and plots; `report` redraws them.

Exit status: 0 measured (whatever the figures say), 1 a contender broke or two copies differ,
2 usage, or nothing can be measured here.
"""

from __future__ import annotations

import dataclasses
import re
import signal
import sys
import tempfile
from pathlib import Path

import click

from bench import fio, machine, memory, plot, report, results, runner
from bench.cells import SUITES, Row, Suite
from bench.contenders import CONTENDERS
from bench.contenders.ours import commit_of
from bench.results import ContenderFacts, Memory, RowFacts, Run
from bench.scale import measuring, tables
from tests.daemon import ROOT

OUTPUT = ROOT / "build/bench"


def say(text: str) -> None:
    """Progress goes to stderr."""
    click.echo(text, err=True)


def chosen(suite: Suite, only: str, repetitions: int | None, runtime_s: int | None) -> Suite:
    """Return the suite with what the options change; `only` is searched in rows' keys."""
    return dataclasses.replace(
        suite,
        rows=tuple(row for row in suite.rows if re.search(only, row.key)),
        repetitions=repetitions or suite.repetitions,
        runtime_s=runtime_s or suite.runtime_s,
    )


def row_facts(row: Row) -> RowFacts:
    return RowFacts(
        key=row.key,
        title=row.title,
        stage=row.stage.value,
        in_megabytes=row.in_megabytes,
        missing=runner.cannot_measure(row),
    )


def measure(suite: Suite, folder: Path, *, with_memory: bool) -> Run:
    """Run a suite on files in a new folder inside `folder`."""
    taking_part = {
        key: contender
        for key, contender in CONTENDERS.items()
        if any(key in row.contenders for row in suite.rows)
    }
    facts, started = machine.facts(folder), runner.now_text()
    measured_memory: Memory | None = None
    if with_memory:
        say("memory with a volume of 1 TiB")
        measured_memory = memory.measure()
    with tempfile.TemporaryDirectory(prefix="repl-bench-", dir=folder) as inner:
        running = runner.Runner(suite, taking_part, Path(inner), say)
        running.run()
    return Run(
        suite=suite.name,
        commit=commit_of(ROOT),
        started=started,
        repetitions=suite.repetitions,
        runtime_s=suite.runtime_s,
        machine=facts,
        contenders=tuple(
            ContenderFacts(
                key=key,
                title=contender.title,
                kind=contender.kind,
                replicated=contender.replicated,
                version="" if running.missing[key] else contender.version(),
                missing=running.missing[key],
            )
            for key, contender in taking_part.items()
        ),
        rows=tuple(map(row_facts, suite.rows)),
        cells=running.cells,
        checks=tuple(running.checks),
        breakages=tuple(running.breakages),
        memory=measured_memory,
    )


def write_report(run: Run, path: Path) -> None:
    """Write Markdown and plots beside a results file."""
    text = path.with_suffix(".md")
    text.write_text(report.markdown(run))
    try:
        drawn = plot.draw(run, path)
    except plot.NoMatplotlib as missing:
        drawn = []
        say(f"no plots: {missing}")
    say(f"results: {path}, report: {text}, plots: {', '.join(map(str, drawn)) or 'none'}")


def prepare() -> None:
    """Let a stop from outside unwind like one from the keyboard, so that no server stays behind.
    Raises UsageError without the program that loads everybody."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if reason := fio.missing():
        raise click.UsageError(f"fio with its nbd engine is what loads everybody: {reason}")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure this project beside others."""


@main.command("report")
@click.argument("path", metavar="RESULTS", type=click.Path(exists=True, path_type=Path))
def report_command(path: Path) -> None:
    """Make the report and the plots of a results file anew."""
    run = results.load(path)
    write_report(run, path)
    click.echo(report.brief(run))


@main.command("run")
@click.argument("suite_name", metavar="SUITE", type=click.Choice(sorted(SUITES)))
@click.option("--only", default="", help="Rows whose key matches this regular expression.")
@click.option("--repetitions", type=click.IntRange(1, 50), help="Samples of each cell.")
@click.option("--seconds", "runtime_s", type=click.IntRange(1, 300), help="Length of a sample.")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(tempfile.gettempdir()),
    show_default=True,
    help="Where the backing files go: the disk that is measured.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Results file; default: build/bench/SUITE.json. Report and plots lie beside it.",
)
def run_command(
    suite_name: str,
    only: str,
    repetitions: int | None,
    runtime_s: int | None,
    folder: Path,
    output: Path | None,
) -> None:
    """Run a suite, and write JSON, a report and plots."""
    prepare()
    suite = chosen(SUITES[suite_name], only, repetitions, runtime_s)
    if not suite.rows:
        raise click.UsageError(f"no row's key matches {only!r}")
    say(
        f"{suite.cells} cells, {suite.repetitions} repetitions of {suite.runtime_s} s: "
        f"about {runner.estimate_s(suite) / 60:.0f} min"
    )
    run = measure(suite, folder, with_memory=not only)
    path = output or OUTPUT / f"{suite.name}.json"
    results.save(run, path)
    write_report(run, path)
    click.echo(report.brief(run))
    sys.exit(0 if run.sound else 1)


@main.command("scale")
@click.option("--only", default="", help="Tables whose key matches this regular expression.")
@click.option("--repetitions", type=click.IntRange(1, 50), default=3, show_default=True)
@click.option(
    "--seconds",
    "runtime_s",
    type=click.IntRange(1, 300),
    default=5,
    show_default=True,
    help="Length of a sample under load.",
)
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(tempfile.gettempdir()),
    show_default=True,
    help="Where the backing files go: the disk that is measured.",
)
def scale_command(only: str, repetitions: int, runtime_s: int, folder: Path) -> None:
    """How costs grow with volumes, clients and dirty blocks; how long changes of state take."""
    prepare()
    run = measuring.measure(folder, only, repetitions, runtime_s, say)
    if not run.tables:
        raise click.UsageError(f"no table's key matches {only!r}")
    path = OUTPUT / "scale.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(run.model_dump_json(indent=1))
    path.with_suffix(".md").write_text(tables.markdown(run))
    click.echo(tables.markdown(run))
    sys.exit(1 if run.breakages else 0)


if __name__ == "__main__":
    main()
