"""What is compiled: the relay by Cython, the modules of ``native.txt`` by mypyc. Without a compiler Python runs both.

python setup.py build_ext --inplace
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

RELAY = Extension("tproxy.proxy._compiled", ["tproxy/proxy/_compiled.pyx"], extra_compile_args=["-O3"])
WORK = Path("build/native")
# mypy checks the types by its own configuration; here it may lack the stubs of what we depend on
MYPY = ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent", f"--cache-dir={WORK}/mypy"]


class Build(build_ext):
    """The relay as ever; then the library of modules that ``tproxy/native.py`` finds."""

    def run(self) -> None:
        super().run()
        place = Path("." if self.inplace or self.editable_mode else self.build_lib) / "tproxy/_native"
        place.mkdir(parents=True, exist_ok=True)
        (place / "built_from").unlink(missing_ok=True)  # first: who starts meanwhile runs the sources
        for old in place.iterdir():
            old.unlink()
        sources = Path("tproxy/native.txt").read_text(encoding="utf-8").split()
        hashes = [f"{hashlib.sha256(Path(path).read_bytes()).hexdigest()}  {path}\n" for path in sources]
        try:
            self._compile(sources, place)
        except (Exception, SystemExit) as error:  # whatever it is, Python runs
            why = "mypyc refuses the sources" if isinstance(error, SystemExit) else " ".join(str(error).split())
            print(f"warning: the hot modules were not compiled, Python runs them: {why}", file=sys.stderr)
            hashes = [f"# compiling them failed: {why}\n"]
        (place / "built_from").write_text("".join(hashes), encoding="utf-8")

    def _compile(self, sources: list[str], place: Path) -> None:
        from mypyc.build import mypycify

        made = mypycify(
            [*MYPY, *sources],
            opt_level="2",
            debug_level="0",
            multi_file=True,
            target_dir=str(WORK),
            group_name="tproxy",
        )
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            tasks = {each.name: [pool.submit(self._object, each, source) for source in each.sources] for each in made}
        for each in made:
            objects = [task.result() for task in tasks[each.name]]
            name = f"{each.name}{sysconfig.get_config_var('EXT_SUFFIX')}"
            self.compiler.link_shared_object(objects, str(place / name), target_lang="c")

    def _object(self, extension: Extension, source: str) -> str:
        found: list[str] = self.compiler.compile(
            [source],
            output_dir=self.build_temp,
            include_dirs=extension.include_dirs,
            extra_postargs=extension.extra_compile_args,
        )
        return found[0]


extensions = cythonize([RELAY], language_level=3)
for extension in extensions:
    extension.optional = True  # Cython forgets it when it is said above
setup(ext_modules=extensions, cmdclass={"build_ext": Build})
