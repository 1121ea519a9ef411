"The package as others get it: a wheel, outside the repository, without nbdev"
import os
import re
import sys
import zipfile

import nbformat
import pytest
from conftest import ROOT, lessons, tool
from nbclient import NotebookClient

# Python runs this at its start: the repository is out of reach, and nbdev is not installed
SITE = '''
import sys
sys.path[:] = [p for p in sys.path if p != {root!r}]
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'nbdev': raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path[:] = [Absent()] + [f for f in sys.meta_path if 'editable' not in repr(f).lower()]
'''


@pytest.fixture(scope='module')
def wheel(copy, tmp_path_factory):
    to = tmp_path_factory.mktemp('wheel')
    tool('pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '-w', to, '.', cwd=copy())
    return next(to.glob('*.whl'))

@pytest.fixture(scope='module')
def colab(wheel, tmp_path_factory):
    "The environment of a kernel that knows the wheel, and neither this repository nor nbdev"
    home = tmp_path_factory.mktemp('colab')
    tool('pip', 'install', '--quiet', '--no-deps', '--target', home/'site', wheel, cwd=home)
    (home/'site'/'sitecustomize.py').write_text(SITE.format(root=str(ROOT)))
    return dict(PYTHONPATH=str(home/'site'), XDG_CACHE_HOME=str(home/'cache'), EBGAN_QUICK='1', EBGAN_DATA='', EBGAN_PHOTOS='', IN_TEST='')

def test_wheel_holds_the_package_and_its_assets(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith('ebgan_nb/')}
    assert names=={p.relative_to(ROOT).as_posix() for p in (ROOT/'ebgan_nb').rglob('*') if p.is_file() and '__pycache__' not in p.parts}

def test_users_need_none_of_our_tools(wheel):
    z = zipfile.ZipFile(wheel)
    metadata = z.read(next(n for n in z.namelist() if n.endswith('METADATA'))).decode()
    required = re.findall(r'^Requires-Dist: ([\w-]+)(?!.*extra ==)', metadata, re.M)
    assert 'torch' in required and not {'nbdev', 'jupyterlab', 'pytest', 'playwright'} & set(required)

def test_the_repository_is_out_of_reach(colab, tmp_path):
    code = 'import ebgan_nb; print(ebgan_nb.__file__)'
    assert tool(sys.executable, '-c', code, cwd=tmp_path, **colab).stdout.startswith(colab['PYTHONPATH'])
    failing = 'import importlib.util as u\ntry: u.find_spec("nbdev")\nexcept ModuleNotFoundError: print("absent")'
    assert tool(sys.executable, '-c', failing, cwd=tmp_path, **colab).stdout=='absent\n'

def test_studio_brings_its_scripts_and_styles(colab, tmp_path):
    code = """from ebgan_nb.studio import Studio; s = Studio(n=3)
print(s.said); print(*['export default' in w._esm for w in (s.painter, s.upload_box, s.pins)], '.eb-stack' in s.page.children[0].value)"""
    assert tool(sys.executable, '-c', code, cwd=tmp_path, **colab).stdout=='Filled in: mouth of drawn 2026-1.\nTrue True True True\n'

@pytest.mark.parametrize('lesson', lessons())
def test_lesson_runs_from_the_wheel(lesson, colab, tmp_path):
    nb = nbformat.read(ROOT/lesson, as_version=4)
    nb.cells = [c for c in nb.cells if not re.search(r'^#\|\s*eval: *false', c.source, re.M)]
    client = NotebookClient(nb, timeout=300, resources={'metadata': {'path': str(tmp_path)}})
    client.execute(env={**os.environ, **colab})
