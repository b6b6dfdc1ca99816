"""What mypyc compiled runs while the sources are those it was made from, and the sources themselves run otherwise."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from tproxy import native

ROOT = Path(__file__).parent.parent
BUILT = f".h1_head{EXTENSION_SUFFIXES[0]}"
TELL = (
    "from tproxy import native; from tproxy.gateway.http import h1_head; print(h1_head.__file__, native.FINDER.why_not)"
)
pure = pytest.mark.skipif(bool(os.environ.get("TPROXY_PURE")), reason="what is compiled is switched off")


def python(folder: Path, code: str, **environment: str) -> str:
    """What a Python says that imports tproxy from there."""
    rest = {name: value for name, value in os.environ.items() if name != "TPROXY_PURE"}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=folder, env=rest | environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The package as it stands here, and what was compiled of it."""
    shutil.copytree(ROOT / "tproxy", tmp_path / "tproxy", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pure
def test_these_tests_run_what_is_compiled() -> None:
    """``make native`` where this fails."""
    assert native.FINDER.why_not == ""
    assert BUILT in python(ROOT, TELL)


def test_what_was_compiled_elsewhere_of_the_same_sources_is_taken(copied: Path) -> None:
    assert BUILT in python(copied, TELL)


@pytest.mark.parametrize("name", ["gateway/http/h1_head.py", "core/http/path.py"])
def test_after_an_edit_of_one_source_all_of_them_are_run_themselves(copied: Path, name: str) -> None:
    with (copied / "tproxy" / name).open("a", encoding="utf-8") as file:
        file.write("\n")
    said = python(copied, TELL)
    assert "h1_head.py " in said
    assert f"tproxy/{name} is newer than what was compiled: make native" in said


def test_where_nothing_was_compiled_the_sources_are_run(copied: Path) -> None:
    shutil.rmtree(copied / "tproxy/_native")
    assert "h1_head.py its modules were never compiled" in python(copied, TELL)


def test_a_library_that_cannot_be_loaded_is_not_the_end(copied: Path) -> None:
    library = copied / f"tproxy/_native/{native.LIBRARY}{EXTENSION_SUFFIXES[0]}"
    library.write_bytes(b"no library")
    said = python(copied, TELL)
    assert "h1_head.py " in said
    assert native.LIBRARY in said


def test_compiled_by_another_python_is_not_compiled(copied: Path) -> None:
    for path in (copied / "tproxy/_native").glob("*.so"):
        path.rename(path.with_name(path.name.replace(EXTENSION_SUFFIXES[0], ".cpython-39-x86_64-linux-gnu.so")))
    assert "h1_head.py " in python(copied, TELL)


def test_who_wants_the_sources_says_so(copied: Path) -> None:
    assert "h1_head.py TPROXY_PURE is set" in python(copied, TELL, TPROXY_PURE="1")
    assert BUILT in python(copied, TELL, TPROXY_PURE="0")


def test_a_traceback_names_file_line_and_source(copied: Path) -> None:
    said = python(copied, "from tproxy.gateway.http.h1_head import request_head; request_head(b'G', 5)")
    lines = (copied / "tproxy/gateway/http/h1_head.py").read_text(encoding="utf-8").splitlines()
    number = next(number for number, line in enumerate(lines, 1) if line.startswith("def request_head"))
    assert f'tproxy/gateway/http/h1_head.py", line {number}, in request_head' in said
    assert lines[number - 1] in said


def test_without_a_compiler_the_build_succeeds_and_says_what_is_missing(copied: Path) -> None:
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copied)
    argv = [sys.executable, "setup.py", "build_ext", "--inplace", "--force"]
    done = subprocess.run(
        argv, cwd=copied, env=os.environ | {"CC": "false"}, capture_output=True, text=True, check=True
    )
    assert "the hot modules were not compiled" in done.stderr
    assert "h1_head.py compiling them failed: " in python(copied, TELL)


def test_the_version_says_what_is_compiled(copied: Path) -> None:
    code = "import sys; from tproxy.cli import main; sys.exit(main(['--version']))"
    assert "HTTP: compiled\n" in python(copied, code)
    assert "HTTP: in Python, which is slower: TPROXY_PURE is set\n" in python(copied, code, TPROXY_PURE="1")
