"""Command line of the experiments: list, run NAME, figure NAME, report."""

import ast
import contextlib
import dataclasses
import difflib
import functools
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Generic, TypeVar

import rich.console
import rich.progress
import rich.table
import rich.text
import tyro

import experiments
from experiments import _report, _run
from experiments._launcher import ProcessFailed

LOG_SECONDS = 30.0  # a log file gets at most one line of progress in this time
PROGRAM = "python -m experiments"
FINISHED, FAILED, INTERRUPTED = 0, 1, 130


# Finding experiments. Docstrings are read from the source, so that only the experiment asked for is imported.


class UnknownExperiment(ValueError):  # noqa: N818
    """There is no experiment of this name; the message lists those there are."""


def discover() -> dict[str, str]:
    """The docstring of every experiment by name, in alphabetical order."""
    found = (module.name for module in pkgutil.iter_modules(experiments.__path__))
    return {name: _docstring(name) for name in sorted(found) if not name.startswith("_")}


def _docstring(name: str) -> str:
    spec = importlib.util.find_spec(f"experiments.{name}")
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""


def load(name: str) -> ModuleType:
    """Imports one experiment and checks that it has the names the package docstring asks for.

    Raises:
        UnknownExperiment: for an unknown name.
        TypeError: if something is missing from the module.
    """
    known = discover()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        msg = f"Unknown experiment {name!r}, expected one of: {', '.join(known)}.{hint}"
        raise UnknownExperiment(msg)
    os.environ.setdefault("MPLBACKEND", "agg")  # before the experiment imports pyplot: no window opens
    module = importlib.import_module(f"experiments.{name}")
    missing = [part for part in ("Config", "SMOKE", "run", "figure") if not hasattr(module, part)]
    if missing:
        msg = f"experiments.{name} lacks {', '.join(missing)} (see the docstring of the package)."
        raise TypeError(msg)
    if "session" not in inspect.signature(module.run).parameters:
        msg = f"experiments.{name}.run must be run(config, session=NULL_SESSION)."
        raise TypeError(msg)
    taken = {"experiment", "smoke", "force", "results_dir"}
    if clash := taken.intersection(field.name for field in dataclasses.fields(module.Config)):
        msg = f"experiments.{name}.Config must not have the runner's own flags: {', '.join(sorted(clash))}."
        raise TypeError(msg)
    return module


# What the command line accepts. tyro makes parsers, help and error messages from these and from each Config.

Name = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
Settings = TypeVar("Settings")


@dataclasses.dataclass(frozen=True)
class List:
    """List the experiments."""


@dataclasses.dataclass(frozen=True)
class Run(Generic[Settings]):
    """Run an experiment, or show its stored result. `run NAME --help` has its settings."""

    experiment: Name
    """Which one."""
    config: tyro.conf.OmitArgPrefixes[Settings]
    """Settings of this experiment."""
    smoke: tyro.conf.FlagCreatePairsOff[bool] = False
    """Start from its tiny SMOKE configuration instead of the defaults."""
    force: tyro.conf.FlagCreatePairsOff[bool] = False
    """First discard what is stored for this configuration."""
    results_dir: Path = Path("results")
    """Where results are kept."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """Draw the figure of the latest stored result again."""

    experiment: Name
    """Which one."""
    results_dir: Path = Path("results")
    """Where results are kept."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Write one page with the latest result of every experiment."""

    results_dir: Path = Path("results")
    """Where results are kept."""


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """Of ``run`` without an experiment, as in ``run --help``."""


def parse(arguments: Sequence[str]) -> List | Run | Figure | Report:
    """The command as one of the classes above; for ``run NAME`` the flags are those of its ``Config``.

    Raises:
        SystemExit: for help and for what tyro refuses.
        UnknownExperiment: for an unknown name.
    """
    settings, about, smoke = NoSettings, inspect.getdoc(Run), {}
    arguments, known = list(arguments), discover()
    words = [word for word in arguments[1:] if not word.startswith("-")] if arguments[:1] == ["run"] else []
    if words:  # the name may stand after flags, and then a value may be taken for it: put right below
        name = next((word for word in words if word in known), words[0])
        module = load(name)
        settings, about = module.Config, (module.__doc__ or about).partition("\n")[0]
        if "--smoke" in arguments:
            smoke = {"default": Run(name, module.SMOKE)}
    commands = (
        Annotated[List, tyro.conf.subcommand("list")]
        | Annotated[Run[settings], tyro.conf.subcommand("run", description=about, **smoke)]
        | Annotated[Figure, tyro.conf.subcommand("figure")]
        | Annotated[Report, tyro.conf.subcommand("report")]
    )
    command = tyro.cli(commands, prog=PROGRAM, description=__doc__, args=arguments)
    if isinstance(command, Run) and command.experiment != name:
        arguments.remove(command.experiment)
        return parse(["run", command.experiment, *arguments[1:]])
    return command


# Showing.


@contextlib.contextmanager
def rich_display(console: rich.console.Console) -> Iterator[_run.Display]:
    """A display of progress: bars on a terminal, in a log a line per task and now and then."""
    columns = [
        *rich.progress.Progress.get_default_columns(),
        rich.progress.TextColumn("{task.fields[metrics]}"),
    ]
    bars = rich.progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal)

    @contextlib.contextmanager
    def display(description: str, total: int | None) -> Iterator[_run.Meter]:
        task = bars.add_task(description, total=total, metrics="")
        started = spoken = time.monotonic()
        done, shown = 0, ""

        def line() -> None:
            seconds = f"{time.monotonic() - started:.1f} s"
            console.print(
                f"{description} {done}{f'/{total}' if total else ''}  {seconds}  {shown}", markup=False
            )

        def advance(steps: int = 1, **metrics: float) -> None:
            nonlocal done, shown, spoken
            done += steps
            shown = " ".join(f"{name}={float(value):.4g}" for name, value in metrics.items()) or shown
            bars.update(task, advance=steps, metrics=shown)
            if not console.is_terminal and time.monotonic() - spoken > LOG_SECONDS:
                spoken = time.monotonic()
                line()

        try:
            yield _run.Meter(advance)
        finally:
            bars.remove_task(task)
            line()

    with bars:
        yield display


def draw(module: ModuleType, record: _run.Record) -> tuple[list[str], list[list[str]]] | None:
    """Writes figure (PNG, SVG), table and further files of a run beside its results; returns the table, if any."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    with mpl.rc_context({"svg.hashsalt": record.name}):  # the same results give the same SVG, ids included
        figure = module.figure(record.results)
        for kind, metadata in (("png", {}), ("svg", {"Date": None})):
            save = functools.partial(
                figure.savefig, format=kind, metadata=metadata, bbox_inches="tight", dpi=150
            )
            _run.write_atomically(record.directory / f"figure.{kind}", save)
    plt.close(figure)
    for file, content in module.files(record.results).items() if hasattr(module, "files") else ():
        _run.write_atomically(record.directory / file, lambda stream, content=content: stream.write(content))
    if not hasattr(module, "table"):
        return None
    headers, rows = module.table(record.results)
    _run.write_json(
        record.directory / "table.json", {"headers": list(headers), "rows": [list(r) for r in rows]}
    )
    return headers, rows


def write_page(path: Path, title: str, records: Sequence[_run.Record]) -> None:
    """Writes the page of some runs, each introduced by the docstring of its experiment as it is now."""
    docstrings = discover()
    sections = {
        record.name: _report.section(record, docstrings.get(record.name, record.name)) for record in records
    }
    page = _report.page(title, sections)
    _run.write_atomically(path, lambda file: file.write(page.encode()))


def show(module: ModuleType, record: _run.Record, console: rich.console.Console) -> None:
    """Draws a run, prints its table and writes its page."""
    drawn = draw(module, record)
    if drawn:
        headers, rows = drawn
        table = rich.table.Table(*(rich.table.Column(rich.text.Text(header)) for header in headers))
        for row in rows:
            table.add_row(*map(rich.text.Text, row))
        console.print(table)
    page = record.directory.parent / "index.html"
    write_page(page, record.name, [record])
    for what, path in (("arrays", "results.npz"), ("figure", "figure.svg")):
        console.print(f"{what}: {record.directory / path}", markup=False, soft_wrap=True)
    console.print(f"page:   {page}", markup=False, soft_wrap=True)


# The four commands.


def list_experiments(console: rich.console.Console) -> None:
    """Prints the name and the first docstring line of every experiment."""
    table = rich.table.Table(box=None, show_header=False)
    for name, docstring in discover().items():
        table.add_row(name, rich.text.Text(docstring.partition("\n")[0]))
    console.print(table)


def run_experiment(command: Run, console: rich.console.Console) -> None:
    """Runs, or takes the stored result, and shows it."""
    module = load(command.experiment)
    log = rich.console.Console(stderr=True)
    with rich_display(log) as display:
        record = _run.execute(
            command.experiment,
            module,
            command.config,
            results_dir=command.results_dir,
            force=command.force,
            display=display,
            tell=functools.partial(log.print, markup=False, highlight=False, soft_wrap=True),
        )
    if record.reused:
        console.print(f"Stored result of {record.environment['date']}; --force runs it again.", markup=False)
        if record.environment.get("source") != _report.code_origin(module)["source"]:
            console.print("The experiment has been edited since that run.", markup=False)
    elif record.environment["resumed_stages"]:
        console.print(
            f"Resumed after {len(record.environment['resumed_stages'])} stored stages.", markup=False
        )
    show(module, record, console)


def report(results_dir: Path, console: rich.console.Console) -> None:
    """Writes one page of the latest result of every experiment that has one."""
    records = [_run.latest(path.parent.name, results_dir) for path in sorted(results_dir.glob("*/latest"))]
    if not records:
        msg = f"No results in {results_dir}: `{PROGRAM} run NAME` makes some, `{PROGRAM} list` has the names."
        raise _run.StoreError(msg)
    write_page(results_dir / "index.html", "Experiments", records)
    console.print(f"page: {results_dir / 'index.html'}", markup=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    # A pipe has no width of its own, and 80 columns would break the cells of a table.
    console = rich.console.Console(width=None if sys.stdout.isatty() else 120)
    try:
        match parse(sys.argv[1:] if arguments is None else arguments):
            case List():
                list_experiments(console)
            case Run() as command:
                run_experiment(command, console)
            case Figure(experiment, results_dir):
                show(load(experiment), _run.latest(experiment, results_dir), console)
            case Report(results_dir):
                report(results_dir, console)
    except (_run.StoreError, UnknownExperiment, ProcessFailed) as error:
        rich.console.Console(stderr=True).print(f"{error}", markup=False, soft_wrap=True)
        return FAILED
    except KeyboardInterrupt:
        rich.console.Console(stderr=True).print(
            "Interrupted. Finished stages and checkpoints are kept: the same command (without --force) goes on from "
            "there."
        )
        return INTERRUPTED
    return FINISHED


if __name__ == "__main__":
    sys.exit(main())
