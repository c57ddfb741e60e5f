"""What holds for the repository as a whole: generated pages, words, imports, loads and links."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from momkd_fl.cli.docs import pages, user_errors
from momkd_fl.errors import UserError

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "momkd_fl"
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])


def tracked() -> list[Path]:
    """Files that are, or would be, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def imports(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, node.lineno


@pytest.mark.parametrize("name", ["docs/configuration.md", "docs/errors.md"])
def test_a_generated_page_is_up_to_date(name: str) -> None:
    path = ROOT / name
    assert path.read_text(encoding="utf-8") == pages(ROOT)[path], "run 'make docs'"


def test_every_error_has_a_stable_code_and_a_sentence() -> None:
    uses = user_errors(PACKAGE)
    assert len(uses) > 20
    for use in uses:
        assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)+", use.code), use
        assert use.sentence, use


def test_the_error_table_finds_each_form_of_a_call(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "bags.py").write_text(
        "raise UserError('bag-empty', f'{path}: no patches. ' 'Remove it.')\n"
        "raise errors.UserError(code='a-b' if x else 'c-d', sentence='One ' + 'sentence.')\n"
        "raise UserError(other.code, other.sentence)\n"
    )
    assert [(use.code, use.module, use.sentence) for use in user_errors(tmp_path)] == [
        ("a-b", "room.bags", "One sentence."),
        ("bag-empty", "room.bags", "…: no patches. Remove it."),
        ("c-d", "room.bags", "One sentence."),
    ]


_MACHINE = re.compile(r"(?<![\w.])/(work|root|tmp/brief|opt/(wheels|pypi))\b")
_PROCESS = re.compile(r"\b(issue #?\d|sub-?agent|language model|LLM|TODO|FIXME|XXX)\b")


def test_no_file_names_a_machine_or_how_the_work_is_organised() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked()
        if path != Path(__file__)
        for number, line in enumerate(text_of(path).splitlines(), start=1)
        if _MACHINE.search(line) or _PROCESS.search(line)
    ]
    assert not found


def test_the_search_for_machine_paths_can_fail() -> None:
    assert _MACHINE.search("see /work/main/x")
    assert _MACHINE.search("open('/root/.cache')")
    assert not _MACHINE.search("https://example.org/work/x")
    assert _PROCESS.search("# TODO later")


def test_only_one_file_uses_flower_s_internals() -> None:
    public = {"flwr", "flwr.app", "flwr.serverapp", "flwr.serverapp.strategy", "flwr.clientapp", "flwr.clientapp.mod"}
    found = [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in SOURCES
        if path != PACKAGE / "federation" / "flower.py"
        for module, line in imports(path)
        if module.split(".")[0] == "flwr" and module not in public
    ]
    assert not found


_UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def unsafe_loads(path: Path) -> Iterator[str]:
    """Loads that could run what a file says."""
    for module, line in imports(path):
        if module.split(".")[0] in _UNSAFE_MODULES:
            yield f"{path.name}:{line}: imports {module}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if (
            (call == "torch.load" and given.get("weights_only") != "True")
            or call in {"torch.save", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "eval", "exec"}
            or call.endswith("read_pickle")
            or given.get("allow_pickle") == "True"
            or given.get("shell") == "True"
        ):
            yield f"{path.name}:{node.lineno}: {call}"


def test_nothing_is_unpickled_or_evaluated() -> None:
    assert not [problem for path in SOURCES for problem in unsafe_loads(path)]


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)",
        "yaml.load(text)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_search_for_unsafe_loads_can_fail(tmp_path: Path, line: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(line)
    assert list(unsafe_loads(path))


def test_packages_of_tests_mirror_the_rooms() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= rooms
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md"), ROOT / "deploy/README.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text_of(page)):
            if not target.startswith(("http://", "https://")) and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken


def test_docs_speak_of_codes_that_exist() -> None:
    codes = {use.code for use in user_errors(PACKAGE)}
    page = text_of(ROOT / "docs" / "failure-modes.md")
    named = set(re.findall(r"\[`([a-z0-9-]+)`\]\(errors\.md\)", page))
    assert named
    assert named <= codes


def test_the_documentation_command_refuses_another_folder(tmp_path: Path) -> None:
    from momkd_fl.cli.docs import main

    with pytest.raises(UserError) as problem:
        main(tmp_path)
    assert problem.value.code == "docs-no-checkout"


def commands() -> set[str]:
    return set(tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]["scripts"])


@pytest.mark.parametrize("side", ["client", "server"])
def test_services_start_commands_and_options_that_exist(side: str) -> None:
    unit = text_of(ROOT / "deploy" / "systemd" / f"momkd-{side}.service")
    (start,) = re.findall(r"^ExecStart=(.+)$", unit, re.MULTILINE)
    (service,) = yaml.safe_load(text_of(ROOT / "deploy" / "compose" / f"{side}.yaml"))["services"].values()
    for command, *options in (start.split(), service["command"]):
        name = Path(command).name
        assert name == f"momkd-{side}"
        assert name in commands()
        entry = text_of(PACKAGE / "cli" / f"{side}.py")
        assert all(f'"{option}"' in entry for option in options if option.startswith("--"))


@pytest.mark.parametrize("side", ["client", "server"])
def test_services_are_confined(side: str) -> None:
    unit = text_of(ROOT / "deploy" / "systemd" / f"momkd-{side}.service").splitlines()
    for line in ("NoNewPrivileges=true", "ProtectSystem=strict", "CapabilityBoundingSet=", "UMask=0077"):
        assert line in unit
    (service,) = yaml.safe_load(text_of(ROOT / "deploy" / "compose" / f"{side}.yaml"))["services"].values()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert ("ports" in service) == (side == "server")
