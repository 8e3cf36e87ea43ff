"""Put the scripts at the top of the checkout into the package `shortstack`; everything else is in setup.cfg."""

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithScripts(build_py):
    def find_modules(self) -> list[tuple[str, str, str]]:
        return [("shortstack", name, f"{name}.py") for name in ("train", "evaluate", "bench")]


setup(cmdclass={"build_py": BuildWithScripts}, py_modules=["train", "evaluate", "bench"])
