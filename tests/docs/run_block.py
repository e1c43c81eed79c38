"""Run a code block of a page: run_block.py FILE. Names that the page leaves to its reader stand in.

A name of mpskit is never one of them: a block, or one before it on the page, must import it.
"""

import ast
import asyncio
import builtins
import inspect
import sys
from pathlib import Path

import mpskit


class StandIn:
    """Anything a reader would have: it can be called, awaited, iterated over, entered, unpacked."""

    def __call__(self, *_args, **_kwargs):
        return self

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def keys(self):
        return ()

    def __getitem__(self, _key):
        return self

    def __delitem__(self, _key):
        pass

    def __await__(self):
        yield from ()

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        pass

    def __iter__(self):
        return iter((self, self))


class Names(dict):
    """The globals of a block, with a stand-in for each unknown name."""

    def __missing__(self, name):
        if name in mpskit.__all__ or hasattr(builtins, name):
            raise KeyError(name)
        return StandIn()


def main():
    path = Path(sys.argv[1])
    code = compile(path.read_text("utf-8"), str(path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    done = eval(code, Names(__name__="block"))
    if inspect.isawaitable(done):
        asyncio.run(_finished(done))


async def _finished(done):
    await done


if __name__ == "__main__":
    main()
