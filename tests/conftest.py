"What the checks share: the repository's files, its notebooks and modules, and a copy of it to work on"
import os
import re
import shutil
import subprocess
import sysconfig
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT/'nbs').rglob('*.ipynb')
                   if not re.search(r'(^|/)[._]', p.relative_to(ROOT).as_posix()))


def cells(notebook): return nbformat.read(ROOT/notebook, as_version=4).cells

def default_exp(notebook):
    "The module that a notebook exports, or None"
    found = re.search(r'^#\|\s*default_exp ([\w.]+)', '\n'.join(c.source for c in cells(notebook)), re.M)
    return found and found[1]

def lessons():
    "Notebooks that a learner runs from the installed package: those that export nothing"
    return [n for n in NOTEBOOKS if re.fullmatch(r'nbs/(\d+_\w+|index)\.ipynb', n) and not default_exp(n)]

def modules():
    "{module: number} of all exported modules"
    numbered = {default_exp(n): int(Path(n).name[:2]) for n in NOTEBOOKS if re.match(r'nbs/\d\d_', n)}
    return {m: number for m, number in numbered.items() if m}

def files():
    "The repository's files, committed or about to be; without git, all but what git would ignore"
    try:
        git = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True, check=True)
        found = git.stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        ignored = re.compile(r'(^|/)(\.git|\.venv|__pycache__|\.ipynb_checkpoints|\.pytest_cache|[^/]*\.egg-info)/|^(build|dist)/|^data/(?!README)')
        found = [f for p in ROOT.rglob('*') if not ignored.search(f := p.relative_to(ROOT).as_posix())]
    return sorted(f for f in found if (ROOT/f).is_file())

def tool(name, *args, cwd, **env):
    "Run a command of this Python's environment, or a program that is named by its whole path"
    found = shutil.which(name, path=sysconfig.get_path('scripts'))
    assert found, f'{name} is not there: make env'
    return subprocess.run([found, *args], cwd=cwd, env={**os.environ, **env}, check=True, capture_output=True, text=True)

@pytest.fixture(scope='session')
def settings():
    config = ConfigParser(delimiters=['='])
    config.read(ROOT/'settings.ini', encoding='utf-8')
    return config['DEFAULT']

@pytest.fixture(scope='session')
def copy(tmp_path_factory):
    "Copy the repository's files into a new folder"
    def copy():
        to = tmp_path_factory.mktemp('copy')
        for f in files():
            (to/f).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT/f, to/f)
        return to
    return copy

LONGEST = ('test_wheel.py', 'test_processes.py', 'test_devices.py', 'test_pictures.py', 'test_commands.py')

def pytest_collection_modifyitems(items):
    "Files of minutes first: of two workers, none is left alone with a long one at the end"
    items.sort(key=lambda i: LONGEST.index(i.path.name) if i.path.name in LONGEST else len(LONGEST))
