"""The program `actionfuse`: help, versions, wrong calls and their exit codes, as a shell sees them."""

import argparse
import subprocess
import sys
import types
from pathlib import Path

import pytest

import actionfuse
from actionfuse import cli

PROGRAM = Path(sys.executable).parent / "actionfuse"


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([str(PROGRAM), *words], capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_help_names_every_command():
    done = run("--help")
    assert done.returncode == 0
    for name, (_, summary) in cli.COMMANDS.items():
        assert f"    {name} " in done.stdout.replace("\n", " ")
        assert summary.split()[0] in done.stdout


def test_help_imports_no_command():
    code = (
        "import sys; from actionfuse.cli import main, COMMANDS\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(module in sys.modules for module, _ in COMMANDS.values()) or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_version():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"actionfuse {actionfuse.__version__}\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "COMMAND"),
        (["extrct", "videos"], "did you mean 'extract'?"),
        (["--traceback"], "COMMAND"),
        (["zzzzzz"], "there are: probe,"),
    ],
)
def test_wrong_calls_exit_2_and_say_why(words, said):
    done = run(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help_with_its_defaults(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    parser = cli.make_parser(command)
    (subparsers,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    actions = [a for a in subparsers.choices[command]._actions if not isinstance(a, argparse._HelpAction)]
    assert actions, f"{command} takes nothing at all?"
    for action in actions:
        assert action.help, f"{command}: {action.dest} has no help"
        if action.option_strings and action.default not in (None, False, [], argparse.SUPPRESS):
            default = action.default if isinstance(action.default, list | tuple) else [action.default]
            written = [f"{value:g}" if isinstance(value, float) else str(value) for value in default]
            assert all(word in shown for word in written), f"{command}: {action.dest} hides its default"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_refuses_an_unknown_option(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--no-such-option-anywhere"])
    assert stopped.value.code == 2
    assert command in capsys.readouterr().err


@pytest.fixture
def toy(monkeypatch):
    """A command of the test's own: what the program does around a command, whatever the command does."""
    module = types.ModuleType("toy_command", "A toy.\n\n  its second paragraph, indented")

    def add_arguments(parser):
        parser.add_argument("what", help="what to do")
        parser.add_argument("--fps", type=float, default=0.0, help="frames per second, 100%% of them")
        parser.add_argument("--streams", nargs="+", default=["rgb", "flow"], help="streams")
        parser.add_argument("--note", help="no default at all")

    def main(args):
        match args.what:
            case "value":
                raise ValueError("stride is -1; it must be positive")
            case "missing":
                open("no/such/folder")
            case "bug":
                raise RuntimeError("a bug")
            case "stop":
                raise KeyboardInterrupt
        return 1

    module.add_arguments, module.main = add_arguments, main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_command", module)
    monkeypatch.setitem(cli.COMMANDS, "toy", ("toy_command", "a toy"))


def test_help_shows_defaults_and_keeps_line_breaks(toy, capsys):
    with pytest.raises(SystemExit):
        cli.main(["toy", "--help"])
    out = capsys.readouterr().out
    assert "\n  its second paragraph, indented" in out
    shown = " ".join(out.split())
    assert "frames per second, 100% of them (default: 0.0)" in shown
    assert "streams (default: rgb flow)" in shown
    assert "no default at all (" not in shown


def test_exit_code_is_the_commands(toy):
    assert cli.main(["toy", "anything"]) == 1


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [("value", 2, "stride is -1"), ("missing", 2, "no/such/folder"), ("stop", 130, "interrupted")],
)
def test_what_the_user_did_is_told_in_one_line(toy, capsys, what, code, said):
    assert cli.main(["toy", what]) == code
    err = capsys.readouterr().err
    assert said in err and err.startswith("actionfuse toy: ") and err.count("\n") == 1


def test_traceback_on_request_and_always_for_a_bug(toy):
    with pytest.raises(ValueError, match="stride"):
        cli.main(["--traceback", "toy", "value"])
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["toy", "bug"])


def test_near_misses_of_options_are_suggested_and_shortened_ones_refused(toy, capsys):
    for wrong in (["--fp", "3"], ["--fsp=3"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["toy", "x", *wrong])
        assert stopped.value.code == 2
        assert "did you mean --fps?" in capsys.readouterr().err


def test_the_program_runs_what_others_rely_on_before_it_leaves(tmp_path):
    code = (
        "import atexit, sys, threading, time\n"
        "from actionfuse import cli\n"
        f"atexit.register(lambda: open({str(tmp_path / 'atexit')!r}, 'w').close())\n"
        "def late():\n"
        f"    time.sleep(0.3); open({str(tmp_path / 'thread')!r}, 'w').close()\n"
        "def work(argv):\n"
        "    threading.Thread(target=late).start(); sys.stdout.write('no line end'); return 3\n"
        "cli.main = work\n"
        "cli.run()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "no line end", "")
    assert (tmp_path / "atexit").exists() and (tmp_path / "thread").exists()


def test_a_bug_still_shows_its_traceback():
    code = "from actionfuse import cli\ndef work(argv): raise RuntimeError('a bug')\ncli.main = work\ncli.run()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "RuntimeError: a bug" in done.stderr
