"""The compiled relay. Where it cannot be built, its twin in Python runs instead, and the sidecar says so."""

from Cython.Build import cythonize
from setuptools import Extension, setup

RELAY = Extension("tproxy.proxy._compiled", ["tproxy/proxy/_compiled.pyx"], optional=True, extra_compile_args=["-O3"])

setup(ext_modules=cythonize([RELAY], language_level=3))
