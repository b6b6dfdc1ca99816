"""The arrows between the rooms, read from the imports: who decides touches nothing, who touches decides nothing."""

from __future__ import annotations

import ast
import doctest
import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import tproxy

ROOT = Path(tproxy.__file__).parent
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
ROOMS = sorted({name.partition("/")[0] for name in FILES if "/" in name})

# what each room may import of ours besides itself
ARROWS = {
    "core": set[str](),
    "kernel": {"core"},
    "wire": set[str](),
    "identity": {"core", "kernel", "wire"},
    "kube": {"core"},
    "control": {"core", "kernel", "wire", "kube"},
    "admin": {"core", "kernel"},
    "proxy": {"core", "kernel", "identity"},  # TLS contexts are made where credentials are kept
    "gateway": {"core", "kernel", "identity", "proxy", "kube"},
    "world": {"core", "kernel"},
    "demo": {"world", "core", "kernel"},
    "bench": {"world", "core", "kernel"},
    "cli": set(ROOMS),
}
# what a room may never import of others'
BANNED = {
    "core": {
        *("socket", "select", "selectors", "socketserver", "ssl", "http", "urllib", "asyncio"),
        *("os", "sys", "io", "pathlib", "shutil", "tempfile", "glob", "subprocess", "signal", "logging"),
        *("threading", "multiprocessing", "concurrent", "queue", "time", "sched", "random", "secrets", "uuid"),
    },
    "kernel": {"asyncio", "ssl", "uvloop"},
    **{room: {"pyroute2", "ctypes", "fcntl"} for room in ("identity", "kube", "control", "admin", "proxy", "gateway")},
}
PROCESS = {"argv", "environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}


def room_of(name: str) -> str:
    """The room of a file; what stands at the top is the command line's door."""
    room, slash, _ = name.partition("/")
    return room if slash else "cli"


@cache
def tree(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"), name)


def imports(module: ast.AST, name: str) -> Iterator[str]:
    """The full name of everything that is imported, lazily or for types only too."""
    package = ["tproxy", *name.split("/")[:-1]]
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def ours(name: str) -> set[str]:
    """The rooms that a file imports."""
    parts = (full.split(".") for full in imports(tree(name), name))
    return {part[1] for part in parts if part[0] == "tproxy" and part[1] in ROOMS}


def others(name: str) -> set[str]:
    """The top packages of others that a file imports."""
    return {full.partition(".")[0] for full in imports(tree(name), name)} - {"tproxy"}


def in_room(*rooms: str) -> list[str]:
    return [name for name in FILES if room_of(name) in rooms]


def is_main_guard(node: ast.AST) -> bool:
    """``if __name__ == "__main__":`` -- a file that is a program of its own, started as a child."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def reads_of_process(module: ast.Module) -> Iterator[str]:
    """Every use of argv or the environment."""
    for top in module.body:
        for node in ast.walk(top):
            if isinstance(node, ast.Attribute) and node.attr in PROCESS and ast.unparse(node.value) in ("sys", "os"):
                if not (node.attr == "argv" and is_main_guard(top)):
                    yield f"line {node.lineno}: {ast.unparse(node)}"
            elif isinstance(node, ast.ImportFrom) and node.module in ("sys", "os"):
                yield from (f"line {node.lineno}: {alias.name}" for alias in node.names if alias.name in PROCESS)


def test_a_room_that_appears_gets_its_arrows_here() -> None:
    assert set(ROOMS) <= set(ARROWS)


@pytest.mark.parametrize("name", FILES)
def test_imports_of_ours_follow_the_arrows(name: str) -> None:
    room = room_of(name)
    assert ours(name) <= ARROWS[room] | {room}


@pytest.mark.parametrize("name", [name for name in FILES if room_of(name) in BANNED])
def test_a_room_keeps_out_what_belongs_to_others(name: str) -> None:
    assert not others(name) & BANNED[room_of(name)]


@pytest.mark.parametrize("name", in_room("core"))
def test_who_decides_imports_only_the_standard_library(name: str) -> None:
    assert others(name) <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("name", in_room("core"))
def test_who_decides_opens_prints_and_asks_for_nothing_and_reads_no_clock(name: str) -> None:
    calls = {ast.unparse(node.func) for node in ast.walk(tree(name)) if isinstance(node, ast.Call)}
    assert not calls & {"open", "print", "input", "exec", "eval", "breakpoint", "__import__"}
    assert not [call for call in calls if call.endswith((".now", ".utcnow", ".today"))]
    assert not [
        node for node in ast.walk(tree(name)) if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.Global)
    ]


@pytest.mark.parametrize("name", [name for name in FILES if room_of(name) != "cli"])
def test_only_the_command_line_reads_argv_and_environment(name: str) -> None:
    assert not list(reads_of_process(tree(name)))


@pytest.mark.parametrize("name", [name for name in FILES if room_of(name) != "cli"])
def test_only_the_command_line_imports_by_a_name_made_up_at_run_time(name: str) -> None:
    assert "importlib" not in others(name)
    assert "__import__" not in {node.id for node in ast.walk(tree(name)) if isinstance(node, ast.Name)}


@pytest.mark.parametrize("name", FILES)
def test_every_module_says_what_it_is(name: str) -> None:
    assert ast.get_docstring(tree(name))


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_door_with_its_rule(room: str) -> None:
    assert f"{room}/__init__.py" in FILES
    assert len(ast.get_docstring(tree(f"{room}/__init__.py")) or "") > 40


@pytest.mark.parametrize("name", FILES)
def test_no_file_needs_a_table_of_contents(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("name", in_room("core"))
def test_the_examples_in_who_decides_are_true(name: str) -> None:
    path = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert doctest.testmod(importlib.import_module(f"tproxy.{path}")).failed == 0


# the reader itself


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import ssl, tproxy.core.decide", ["ssl", "tproxy.core.decide"]),
        ("from tproxy import kernel", ["tproxy.kernel"]),
        ("from . import relay", ["tproxy.proxy.relay"]),
        ("from .. import kernel", ["tproxy.kernel"]),
        ("from ..kernel.sock import abort", ["tproxy.kernel.sock.abort"]),
        ("def f():\n    import asyncio", ["asyncio"]),
        ("if TYPE_CHECKING:\n    from ssl import SSLContext", ["ssl.SSLContext"]),
    ],
)
def test_an_import_is_found_however_it_is_written(source: str, found: list[str]) -> None:
    assert list(imports(ast.parse(source), "proxy/egress.py")) == found


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("import sys\nx = sys.argv", 1),
        ("from os import environ", 1),
        ("def f():\n    return os.environ['A'], os.getenv('B')", 2),
        ("if __name__ == '__main__':\n    main(sys.argv[1:])", 0),
        ("if __name__ == '__main__':\n    main(os.environ)", 1),
        ("self.argv = argv", 0),
    ],
)
def test_a_look_at_the_process_is_found_however_it_is_written(source: str, count: int) -> None:
    assert len(list(reads_of_process(ast.parse(source)))) == count


def test_the_command_line_by_itself_loads_nothing_heavy() -> None:
    """Each verb imports what it needs when it runs: a sidecar must not pay for the authority's memory."""
    code = "import sys; from tproxy.cli import parser; parser(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"sqlite3", "grpc", "cryptography", "OpenSSL", "yaml", "h11", "pyroute2"} & set(loaded)
