"""Writes the pages of docs/reference that follow from the code and the data.

``python scripts/reference_pages.py --write`` writes them; without it, says which are not current.
A page is never edited by hand: the docstring, the help text or the table behind it is.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import mpskit
from mpskit import errors
from mpskit._base.sizes import GIB
from mpskit.cli.main import COMMANDS
from mpskit.correctness.issue_table import KnownIssue, issue_table
from mpskit.host.machines import Machine, aliases, machines
from mpskit.memory.budget import machine_budget

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"
COMMAND = "python scripts/reference_pages.py --write"
NOTE = f"<!-- Written by `{COMMAND}`. -->\n"

# Rooms in the order in which facts flow, with the title of each page.
ROOMS = {
    "host": "The machine",
    "device": "The device",
    "memory": "Memory",
    "environment": "Environment variables of torch",
    "training": "Training helpers",
    "speed": "Speed",
    "estimate": "Estimates",
    "plan": "Plans",
    "integrations": "Trainers",
    "correctness": "Right or wrong numbers",
    "simulation": "Simulated machines",
    "rehearsal": "Rehearsals",
}
# Documented modules whose names are not in mpskit itself.
MODULES = {
    "mpskit.host.chips": "Chips",
    "mpskit.allocator": "Models of torch's allocators",
    "mpskit.power": "Power",
    "mpskit.settings": "Settings",
    "mpskit.testing": "Comparing results",
    "mpskit.validation": "Validation",
}


def pages() -> dict[str, str]:
    """Return each page's text by its path in docs/reference."""
    made = {
        "cli.md": cli_page(),
        "exceptions.md": exceptions_page(),
        "machines.md": machines_page(),
        "known_issues.md": known_issues_page(),
    }
    made |= {f"api/{name}.md": text for name, text in api_pages()}
    made["api/index.md"] = api_index(name for name in made if name.startswith("api/"))
    return made


def api_pages() -> Iterator[tuple[str, str]]:
    """Yield one page for each room with public names, and one for each documented module."""
    homes: dict[str, list[str]] = {}
    for name, module in mpskit._PUBLIC.items():
        homes.setdefault(module.split(".")[1], []).append(name)
    homes.pop("errors")
    if missing := homes.keys() - ROOMS.keys():
        sys.exit(f"ROOMS in {__file__} has no title for {', '.join(missing)}")
    for room, title in ROOMS.items():
        if room in homes:
            yield room, api_page(title, "mpskit", homes[room])
    for path, title in MODULES.items():
        names = [n for n in importlib.import_module(path).__all__ if n not in mpskit._PUBLIC]
        yield path.removeprefix("mpskit.").replace(".", "_"), api_page(title, path, names)


def api_page(title: str, module: str, names: Iterable[str]) -> str:
    """Return a page of directives: functions first, then classes, each by its name."""
    home = importlib.import_module(module)
    ordered = sorted(names, key=lambda name: (inspect.isclass(getattr(home, name)), name))
    entries = "\n".join(_directive(name, getattr(home, name)) for name in ordered)
    lead = f"Import from `{module}`."
    block = f"```{{eval-rst}}\n.. currentmodule:: {module}\n\n{entries}```\n"
    return f"{NOTE}# {title}\n\n{lead}\n\n{block}"


def _directive(name: str, value: object) -> str:
    if inspect.isclass(value) and issubclass(value, BaseException):
        return f".. autoexception:: {name}\n"
    if inspect.isclass(value):
        return f".. autoclass:: {name}\n   :members:\n   :exclude-members: {_HIDDEN}\n"
    if inspect.isroutine(value):
        return f".. autofunction:: {name}\n"
    return f".. autodata:: {name}\n"


_HIDDEN = "model_config, model_fields, model_computed_fields, model_post_init, __new__"


def api_index(made: Iterable[str]) -> str:
    """Return the index of the API pages."""
    entries = "\n".join(Path(name).stem for name in made)
    return (
        f"{NOTE}# API\n\nEvery name here is public: [what that promises](../stability.md).\n"
        f"`from mpskit import NAME` works unless a page names another module.\n\n"
        f"```{{toctree}}\n:maxdepth: 2\n\n{entries}\n```\n"
    )


_CLI = f"""{NOTE}# The command line

`mpskit` alone runs the doctor. Exit codes: 0 success, 1 the answer is no, 2 wrong usage.
`python -m mpskit` is the same program.
"""


def cli_page() -> str:
    """Return the page of the commands: from the parsers, so that no Python's layout shows."""
    return "\n".join([_CLI, *(_command(name, summary) for name, summary in COMMANDS.items())])


def _command(name: str, summary: str) -> str:
    parser = argparse.ArgumentParser(prog=f"mpskit {name}")
    importlib.import_module(f"mpskit.cli.{name}").add_arguments(parser)
    shown = (a for a in parser._actions if a.help != argparse.SUPPRESS and a.dest != "help")
    rows = ["| argument | meaning |", "|---|---|"]
    rows += [f"| {_argument(a)} | {_cell((a.help or '') % vars(a))} |" for a in shown]
    epilog = (parser.epilog or "").strip()
    text = f"## mpskit {name}\n\n{_sentence(summary)}\n\n" + "\n".join(rows) + "\n"
    return text + (f"\n```text\n{epilog}\n```\n" if epilog else "")


def _argument(action: argparse.Action) -> str:
    value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    if isinstance(value, tuple):
        value = " ".join(value)
    if action.choices is not None and not action.metavar:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if not action.option_strings:
        return f"`{_cell(value or action.dest)}`"
    return ", ".join(f"`{_cell(f'{option} {value}'.strip())}`" for option in action.option_strings)


def exceptions_page() -> str:
    """Return the page of exceptions and warnings."""
    tree = (errors.__doc__ or "").partition("\n\n")[2].strip()
    rows = ["| name | what it says |", "|---|---|"]
    for name in errors.__all__:
        words = (inspect.getdoc(getattr(errors, name)) or "").partition("\n\n")[0]
        rows.append(f"| `{name}` | {_cell(_markdown(words))} |")
    return f"{_EXCEPTIONS}\n```text\n{tree}\n```\n\n" + "\n".join(rows) + "\n"


_EXCEPTIONS = f"""{NOTE}# Exceptions and warnings

`from mpskit.errors import NAME`. Every error carries the input that could not be used as
`error.given`, and its text says what to do. An error is also of Python's own kind
(`ValueError`, `RuntimeError`), so that code which does not know mpskit catches it.
"""


def machines_page() -> str:
    """Return the page of machine profiles, with what each gives a job by the rules."""
    rows = [
        "| profile | chip | RAM | recommended | torch's limit | sold as |",
        "|---|---|---|---|---|---|",
    ]
    others = [
        "| profile | what it is | macOS | kind |",
        "|---|---|---|---|",
    ]
    for name, machine in machines().items():
        if machine.kind == "apple-silicon":
            rows.append(_machine_row(name, machine))
        else:
            kind = str(machine.kind)
            others.append(
                f"| `{name}` | {machine.chip}, {machine.ram_gib} GiB | {machine.macos} | {kind} |"
            )
    return "\n".join([_MACHINES, *rows, "\n## Others\n", *others]) + "\n"


_MACHINES = f"""{NOTE}# Machine profiles

Sizes in GiB on macOS 15.6. *Recommended* is Metal's recommended max working set, and torch's limit
is 1.7 times that: both follow from the RAM and macOS ([the rule](../memory.md)). The names under
*sold as* go before the profile's (`macbook-air-m1-8gb`) and mean the same. Any other Mac is
`Machine(chip=..., ram_gib=..., macos=...)`.
"""


def _machine_row(name: str, machine: Machine) -> str:
    budget = machine_budget(machine)
    sizes = (budget.recommended_bytes, budget.limit_bytes)
    shown = " | ".join("" if size is None else f"{size / GIB:.2f}" for size in sizes)
    named = (alias for alias, profile in aliases().items() if profile == name)
    sold = sorted(alias.removesuffix(f"-{name}") for alias in named)
    return f"| `{name}` | {machine.chip} | {machine.ram_gib} | {shown} | {', '.join(sold)} |"


_ISSUES = f"""{NOTE}# Known issues of torch's MPS backend

Bugs that give wrong numbers, crash or leak. The ranges of versions are what the threads say; none
was tried on a Mac here. `mpskit.known_issues()` lists those that apply to this machine,
`mpskit check` tries them on it ([how](../correctness.md)).
"""


def known_issues_page() -> str:
    """Return the page of known issues, the most serious first."""
    issues, parts = issue_table(), [_ISSUES]
    for severity in dict.fromkeys(issue.severity for issue in issues):
        parts.append(f"## {severity.capitalize()}\n")
        parts += [_issue(issue) for issue in issues if issue.severity == severity]
    return "\n".join(parts)


def _issue(issue: KnownIssue) -> str:
    where = [f"torch: {issue.torch}", f"macOS: {issue.macos}"]
    where += [f"chips: {', '.join(issue.chips)}"] if issue.chips else []
    where += [f"dtypes: {', '.join(issue.dtypes)}"] if issue.dtypes else []
    names = issue.source.split(", ")
    links = ", ".join(f"[{n}]({link})" for n, link in zip(names, issue.links, strict=True))
    tried = f"\n- Not tried by `mpskit check`: {issue.untried}" if issue.untried else ""
    return (
        f"### {issue.key}\n\n{_sentence(issue.summary)}\n\n- {'; '.join(where)}\n"
        f"- What to do: {issue.workaround}\n- {links}{tried}\n"
    )


def _sentence(words: str) -> str:
    """Return a clause as a sentence; a name of code at its beginning stays as it is."""
    first = words.split()[0]
    return (words if "_" in first else words[0].upper() + words[1:]) + "."


def _markdown(words: str) -> str:
    """Return a docstring's words with Markdown's code marks."""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", words).replace("``", "`")


def _cell(words: object) -> str:
    return " ".join(str(words).split()).replace("|", "\\|")


def stale() -> list[str]:
    """Return the pages that are not as they should be, with those that nothing writes any more."""
    made = pages()
    old = [n for n, text in made.items() if not _is(FOLDER / n, text)]
    gone = [p.name for p in (FOLDER / "api").glob("*.md") if f"api/{p.name}" not in made]
    return old + [f"api/{name}" for name in gone]


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text("utf-8") == text


def main() -> int:
    """Write the pages, or say which are not current."""
    if "--write" not in sys.argv[1:]:
        names = stale()
        print("\n".join(names) if names else "all pages are current")
        return bool(names)
    made = pages()
    (FOLDER / "api").mkdir(parents=True, exist_ok=True)
    for name in stale():
        if name not in made:
            (FOLDER / name).unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
