"""The command line, page by page of ``--help``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer
from words import table


def commands() -> Iterator[tuple[str, Any]]:
    """(words of the command, the command), groups resolved."""
    from hooklearn.cli import app

    yield from _below("hooklearn", typer.main.get_command(app))


def _below(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    for name, one in sorted(getattr(command, "commands", {}).items()):
        if hasattr(one, "commands"):
            yield from _below(f"{words} {name}", one)
        else:
            yield f"{words} {name}", one


def page() -> str:
    found = list(commands())
    listed = ((f"[`{w}`](#{w.replace(' ', '-')})", (c.help or "").strip().splitlines()[0]) for w, c in found)
    return "\n\n".join([_HEAD, table(("command", ""), listed), *(_command(w, c) for w, c in found)])


_HEAD = """# Command line

Results go to stdout, progress and errors to stderr. Exit codes: 0; 1 failed; 2 wrong input, in one line that names the
value and what would be valid; 130 interrupted."""


def _command(words: str, command: Any) -> str:
    text, _, examples = inspect.cleandoc(command.help or "").partition("\b\n")
    shown = f"```bash\n{examples.strip()}\n```" if examples else ""
    with command.make_context(words, [], resilient_parsing=True) as context:
        records = [r for p in command.params if (r := p.get_help_record(context)) and p.name != "help"]
    rows = [(f"`{name}`", what.replace("[required]", "Needed.")) for name, what in records]
    return "\n\n".join(p for p in (f"## {words}", text.strip(), shown, table(("", ""), rows) if rows else "") if p)
