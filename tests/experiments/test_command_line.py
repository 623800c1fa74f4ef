"""The command line of the experiments and the pages it writes."""

import contextlib
import html.parser
import json
import os
import shlex

import jax
import pytest
import rich.console

from experiments import _report, _run
from experiments.__main__ import UnknownExperiment, discover, load, main, parse, rich_display

pytestmark = pytest.mark.usefixtures("source")


class StoppedError(Exception):
    pass


# --- the command line ---


def test_list_and_report_need_neither_jax_nor_the_experiments(source, walk, tmp_path):
    record = _run.execute("walk", walk, walk.SMOKE, results_dir=tmp_path)
    source.write("broken", '"""Cannot be imported."""\nraise SystemExit("imported")\n')
    source.write("_private", 'raise SystemExit("imported")\n')
    unneeded = "assert not {'jax', 'matplotlib', 'experiments.walk'} & set(sys.modules)"
    assert record.directory.exists()
    for arguments in (["list"], ["report", "--results-dir", tmp_path]):
        process = source.command(*arguments, then=unneeded)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        if arguments == ["list"]:
            assert "A random walk, told with <b>care</b>." in output
            assert "broken" in output
            assert "_private" not in output


def test_run_figure_and_report(stored_bytes, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    kept = ["--results-dir", str(tmp_path)]
    assert main(["run", "walk", "--stages", "3", *kept]) == 0
    output = capsys.readouterr().out
    directory = _run.latest("walk", tmp_path).directory
    for path in (directory / "results.npz", directory / "figure.svg", tmp_path / "walk" / "index.html"):
        assert str(path) in output
        assert path.exists()
    assert "mean <i>[b]" in output  # the table, not taken for markup
    arrays, svg = stored_bytes(tmp_path), (directory / "figure.svg").read_bytes()

    assert main(["run", "walk", "--stages", "3", *kept]) == 0  # stored: not computed again
    assert "Stored result" in capsys.readouterr().out
    (directory / "figure.svg").unlink()
    assert main(["figure", "walk", *kept]) == 0
    assert (directory / "figure.svg").read_bytes() == svg  # the same results draw the same bytes

    assert main(["run", "walk", "--smoke", "--seed", "5", *kept]) == 0
    smoke = _run.latest("walk", tmp_path)
    assert (smoke.config["stages"], smoke.config["seed"]) == (2, 5)
    assert main(["run", "walk", "--stages", "3", *kept]) == 0
    assert _run.latest("walk", tmp_path).directory == directory  # the one asked for last, though made first
    capsys.readouterr()
    assert main(["run", "walk", "--stages", "3", "--force", *kept]) == 0
    assert "Stored result" not in capsys.readouterr().out
    assert (directory / "results.npz").read_bytes() == arrays

    assert main(["report", *kept]) == 0
    assert "random walk" in (tmp_path / "index.html").read_text()


def test_flags_may_stand_before_the_name(walk):
    for arguments in (
        ["run", "--stages", "3", "walk"],
        ["run", "--results-dir", "walk", "walk", "--stages", "3"],
    ):
        command = parse(arguments)
        assert (command.experiment, command.config.stages) == ("walk", 3)
        assert isinstance(command.config, walk.Config)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rates": (), "drift": False, "note": "two words 'quoted' \"twice\" $HOME"},
        {"rates": (1e-30, float("inf"), 1 / 3), "bound": -0.1, "seed": 12345678901},
    ],
)
def test_the_printed_command_makes_the_same_run(walk, changes):
    config = walk.Config(**changes)
    printed = _report.command("walk", json.loads(json.dumps(_run.hashed_fields(config))))
    words = shlex.split(printed)
    assert words[:5] == ["python", "-m", "experiments", "run", "walk"]
    assert parse(words[3:]).config == config


@pytest.mark.parametrize("arguments", [["run", "wakl"], ["figure", "wakl"]])
def test_an_unknown_name_lists_the_choices(arguments, capsys, tmp_path):
    assert main([*arguments, "--results-dir", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "Unknown experiment 'wakl'" in error
    assert all(name in error for name in discover())
    assert "Did you mean walk?" in error
    with pytest.raises(UnknownExperiment, match="walk"):
        load("_run")  # private modules are no experiments


@pytest.mark.parametrize("arguments", [["figure", "walk"], ["report"]])
def test_no_results_is_said_with_what_to_run(arguments, capsys, tmp_path):
    assert main([*arguments, "--results-dir", str(tmp_path)]) == 1
    assert "python -m experiments run" in capsys.readouterr().err


@pytest.mark.parametrize("flag", [["--stages", "many"], ["--no-such-flag", "3"]])
def test_bad_flags_are_refused(flag):
    with pytest.raises(SystemExit) as stop:
        main(["run", "walk", *flag])
    assert stop.value.code == 2


def test_help_has_the_docstrings_of_the_config(capsys):
    with pytest.raises(SystemExit):
        main(["run", "walk", "--help"])
    output = capsys.readouterr().out
    assert "Number of stages, and of iterations of the scan." in " ".join(output.replace("│", "").split())


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("SMOKE = ", "TINY = ", "lacks SMOKE"),
        ("def figure", "def picture", "lacks figure"),
        ("session: Session = NULL_SESSION", "other=NULL_SESSION", r"run\(config, session"),
        ("    drift: bool", "    force: bool", "own flags: force"),
    ],
)
def test_a_module_that_is_no_experiment_is_told_what_it_lacks(source, old, new, complaint):
    assert old in source.walk
    source.write("other", source.walk.replace(old, new))
    with pytest.raises(TypeError, match=complaint):
        load("other")


# --- what is shown ---


class Page(html.parser.HTMLParser):
    """Checks that tags balance and collects what a browser would fetch or execute."""

    void = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("path", ["walk/index.html", "index.html"])
def test_pages_parse_fetch_nothing_and_escape_everything(tmp_path, path):
    kept = ["--results-dir", str(tmp_path)]
    assert main(["run", "walk", "--smoke", "--note", "<script>alert('&')</script>", *kept]) == 0
    assert main(["report", *kept]) == 0
    text = (tmp_path / path).read_text(encoding="utf-8")
    page = Page(text)
    assert page.links
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    assert "url(" not in text
    assert "@import" not in text
    assert not {"script", "link", "b", "i", "iframe"} & set(page.tags)
    assert "<script>alert('&')</script>" in page.text  # shown as the text it is
    assert "A random walk, told with <b>care</b>." in page.text
    assert "mean <i>[b]" in page.text
    assert "prefers-color-scheme: dark" in text
    assert "python -m experiments run walk --stages 2" in page.text
    assert jax.__version__ in page.text
    assert str(tmp_path) not in text


def test_docstrings_become_paragraphs_code_and_blocks():
    rendered = _report.paragraphs(
        "One\ntwo ``a < b``.\n\n::\n\n    x = 1\n        y\n\nSee :func:`~jax.grad`."
    )
    assert "<p>One\ntwo <code>a &lt; b</code>.</p>" in rendered
    assert "<pre>x = 1\n    y</pre>" in rendered
    assert "<code>jax.grad</code>" in rendered
    assert _report.paragraphs("") == ""


def test_a_huge_svg_is_replaced_by_the_png(tmp_path, monkeypatch):
    (tmp_path / "figure.svg").write_text("<svg/>")
    (tmp_path / "figure.png").write_bytes(b"png")
    assert "image/svg+xml" in _report.image(tmp_path, "")
    monkeypatch.setattr(_report, "LARGEST_SVG", 3)
    assert "image/png" in _report.image(tmp_path, "")


def test_progress_does_not_flood_a_log_and_says_the_last_metrics(monkeypatch):
    def log(seconds):
        monkeypatch.setattr("experiments.__main__.LOG_SECONDS", seconds)
        console = rich.console.Console(file=(file := open(os.devnull, "w")), record=True, width=100)  # noqa: SIM115
        with file, rich_display(console) as display, display("training", 1000) as meter:
            for step in range(1000):
                meter.advance(loss=1000.0 - step)
        return console.export_text().splitlines()

    (line,) = log(60.0)
    assert line.startswith("training 1000/1000")
    assert line.endswith("loss=1")
    assert len(log(-1.0)) == 1001  # the limit is what holds it back


def test_progress_on_a_terminal_nests_and_survives_an_error():
    with open(os.devnull, "w") as file:
        console = rich.console.Console(file=file, force_terminal=True, record=True, width=100)
        with (
            rich_display(console) as display,
            contextlib.suppress(StoppedError),
            display("outer", 2) as outer,
        ):
            with display("inner", None) as inner:
                inner.advance(3, accuracy=0.5)
            outer.advance()
            raise StoppedError
    shown = console.export_text()
    assert "inner 3" in shown
    assert "accuracy=0.5" in shown
    assert "outer 1/2" in shown
