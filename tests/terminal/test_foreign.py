"""Text of strangers never acts on a terminal: through consoles, errors, answers of models, and commands."""

import ast
import contextlib
import io
import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

import jaxtune
from jaxtune import cli, verify
from jaxtune.errors import UserError, printable, say
from jaxtune.terminal.foreign import TextConsole, print_json

ATTACK = "\x1b]0;PWNED\x07\x1b[2Jx\u202egnp.\x9b31m\x00\x08\x7f"


def acts(text: str) -> bool:
    """Whether a terminal would do anything but show the text."""
    return any(not (char.isprintable() or char in "\n\t\xa0\u200c\u200d") for char in text)


@given(st.text())
def test_printable_text_is_harmless_and_plain_text_stays(text):
    assert not acts(printable(text))
    assert printable(printable(text)) == printable(text)
    if not acts(text):
        assert printable(text) == text
    assert str(UserError(text)) == printable(text)


@given(st.text())
def test_lines_and_json_show_and_never_act(text):
    with contextlib.redirect_stdout(io.StringIO()) as lines:
        say(text)
    assert lines.getvalue() == f"{printable(text)}\n"
    with contextlib.redirect_stdout(io.StringIO()) as document:
        print_json({text: [text + ATTACK]})
    assert not acts(document.getvalue())
    assert json.loads(document.getvalue()) == {text: [text + ATTACK]}


def test_nothing_is_printed_but_through_the_functions_that_escape():
    package = pathlib.Path(jaxtune.__file__).parent
    ours = {"errors.py": "print", "terminal/foreign.py": "sys.stdout.write"}
    ours["evaluate/contained.py"] = "os.write"  # into the pipe to its parent; its own output goes nowhere
    raw = []
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        called = [ast.unparse(call.func) for call in calls]
        writers = ("print", "Console", "sys.stdout.write", "sys.stderr.write", "os.write")
        raw += [(name, one) for one in called if one in writers and ours.get(name) != one]
    assert not raw


@given(st.text(min_size=1), st.booleans())
def test_a_console_shows_and_never_acts(text, terminal):
    out = io.StringIO()
    console = TextConsole(file=out, force_terminal=terminal, color_system=None, width=300)
    table = Table()
    table.add_column(Text(text))
    table.add_row(Text(text), Text(ATTACK, style="bold"))
    for item in (Text(text), table, text):
        console.print(item, markup=False)
    shown = out.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert not acts(shown)


def test_colours_of_our_own_still_work():
    out = io.StringIO()
    TextConsole(file=out, force_terminal=True, color_system="standard").print(Text("a\x1bb", style="red"))
    assert out.getvalue() == "\x1b[31ma\\x1bb\x1b[0m\n"


def test_validate_escapes_ids_fields_and_file_names(tmp_path, capsys):
    records = [{"id": ATTACK, "messages": [{"role": "user", "content": "a"}], ATTACK: 1}]
    path = tmp_path / f"bad{ATTACK.replace(chr(0), '')}.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n{broken\n")
    assert cli.main(["validate", str(path)]) == 1
    said = capsys.readouterr()
    assert "\\x1b" in said.out and not acts(said.out) and not acts(said.err)
    assert cli.main(["validate", str(path), "--json"]) == 1
    said = capsys.readouterr()
    assert "\\u009b31m" in said.out and not acts(said.out)


@pytest.mark.parametrize("command", [["report"], ["verify"], ["train"], ["validate"], ["evaluate"], ["mix"]])
def test_names_that_are_wrong_are_escaped_in_errors(command, capsys):
    arguments = ["--run-dir", "x"] if command == ["train"] else []
    assert cli.main([*command, f"no-such{ATTACK}", *arguments]) != 0
    said = capsys.readouterr()
    assert "\\x1b" in said.out + said.err and not acts(said.err) and not acts(said.out)


def test_answers_of_a_model_are_escaped(monkeypatch, capsys):
    from jaxtune.evaluate import dialogue
    from jaxtune.runs import folder

    monkeypatch.setattr(dialogue, "answer", lambda *arguments, **options: [ATTACK])
    monkeypatch.setattr(folder, "resolve_model_folder", lambda path: path)
    assert cli.main(["generate", "model", "--prompt", "x"]) == 0
    assert "\\x1b" in (said := capsys.readouterr().out) and not acts(said)


def test_lines_of_verify_are_escaped(capsys):
    check = verify.Check(name="files", ok=True, lines=(f"{ATTACK} came after the end of the run",))
    verify.print_outcome(verify.Verification(run_dir=pathlib.Path("run"), checks=(check,)))
    assert not acts(capsys.readouterr().out)
