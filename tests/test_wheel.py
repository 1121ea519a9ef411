"The package as others get it: a wheel, outside the repository, without nbdev"
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

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
    files = {p.relative_to(ROOT) for p in (ROOT/'ebgan_nb').rglob('*') if p.is_file()}
    assert names=={p.as_posix() for p in files if not {'__pycache__', 'experiments'} & set(p.parts)}   # experiments belong to the repository

def test_users_need_none_of_our_tools(wheel):
    z = zipfile.ZipFile(wheel)
    metadata = z.read(next(n for n in z.namelist() if n.endswith('METADATA'))).decode()
    required = re.findall(r'^Requires-Dist: ([\w-]+)(?!.*extra ==)', metadata, re.M)
    assert 'torch' in required and not {'nbdev', 'jupyterlab', 'pytest', 'playwright', 'ruff'} & set(required)

def test_the_repository_is_out_of_reach(colab, tmp_path):
    code = 'import ebgan_nb; print(ebgan_nb.__file__)'
    assert tool(sys.executable, '-c', code, cwd=tmp_path, **colab).stdout.startswith(colab['PYTHONPATH'])
    failing = 'import importlib.util as u\ntry: u.find_spec("nbdev")\nexcept ModuleNotFoundError: print("absent")'
    assert tool(sys.executable, '-c', failing, cwd=tmp_path, **colab).stdout=='absent\n'

def test_studio_brings_its_scripts_and_styles(colab, tmp_path):
    code = """from ebgan_nb.studio import Studio; s = Studio(n_faces=3)
print(s.status); print(*['export default' in w._esm for w in (s.painter, s.upload_box, s.pins)], '.eb-stack' in s.page.children[0].value)"""
    assert tool(sys.executable, '-c', code, cwd=tmp_path, **colab).stdout=='Filled in: mouth of drawn 2026-1.\nTrue True True True\n'

LONG = ('53_train_on_photographs', '61_results')     # minutes each; what they import, and as notebooks they run in every `make test`

@pytest.mark.parametrize('lesson', [pytest.param(n, marks=pytest.mark.slow) if Path(n).stem in LONG else n for n in lessons()])
def test_lesson_runs_from_the_wheel(lesson, colab, tmp_path):
    nb = nbformat.read(ROOT/lesson, as_version=4)
    nb.cells = [c for c in nb.cells if not re.search(r'^#\|\s*eval: *false', c.source, re.M)]
    client = NotebookClient(nb, timeout=300, resources={'metadata': {'path': str(tmp_path)}})
    client.execute(env={**os.environ, **colab})


# a plain install: what `pip install ebgan_nb` brings, and nothing of the extras

def required(*names):
    "Distributions that the given ones need, without extras"
    from importlib.metadata import distribution
    from packaging.requirements import Requirement
    todo, found = [*names], {}
    while todo:
        name = todo.pop()
        if name in found: continue
        found[name] = distribution(name)
        needs = map(Requirement, found[name].requires or ())
        todo += [r.name.lower().replace('_', '-') for r in needs if not r.marker or r.marker.evaluate({'extra': ''})]
    return found.values()

@pytest.fixture(scope='module')
def plain(wheel, settings, tmp_path_factory):
    "The `bin` of an environment of its own: links to what the package requires, the package from its wheel"
    if os.name!='posix': pytest.skip('links make an environment in a second')
    from packaging.requirements import Requirement
    home = tmp_path_factory.mktemp('plain')
    tool(sys.executable, '-m', 'venv', '--without-pip', home, cwd=home)
    site = next(home.glob('lib/python*/site-packages'))
    for d in required(*(Requirement(r).name for r in settings['requirements'].split())):
        for top in {f.parts[0] for f in d.files if f.parts[0] not in ('..', '__pycache__')}:
            if not (site/top).exists() and (at := d.locate_file(top)).exists(): (site/top).symlink_to(at)
    tool('pip', '--python', home/'bin'/'python', 'install', '--quiet', '--no-deps', wheel, cwd=home)
    return home/'bin'

@pytest.fixture
def run(plain, tmp_path):
    "Run a command of the plain install -> what `subprocess.run` says"
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'IN_TEST')}
    env |= dict(EBGAN_DATA=str(tmp_path/'data'), EBGAN_QUICK='1', EBGAN_PHOTOS='', OMP_NUM_THREADS='1', OMP_WAIT_POLICY='passive')
    return lambda name, *args: subprocess.run([plain/name, *map(str, args)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)

EXTRAS = ('tensorboard', 'cv2', 'torchmetrics', 'anywidget', 'voila', 'accelerate', 'nbdev', 'pytest')

def test_a_plain_install_holds_no_extra(run):
    code = f'import importlib.util as u, ebgan_nb; print([n for n in {EXTRAS} if u.find_spec(n)], ebgan_nb.__file__)'
    done = run('python', '-c', code)
    assert done.stdout.startswith('[] ') and str(ROOT) not in done.stdout, done

def test_a_plain_install_trains_edits_and_evaluates(run, tmp_path):
    small = '--size 32 --n-train 8 --bs 2 --batches 2'.split()
    for args in ([*small, '--out', 'R'], ['--resume', 'R', '--batches', '3'], [*small, '--model', 'att-ebgan', '--out', 'A'],
                 ['--preset', 'paper', *small, '--size', '64', '--out', 'P']):
        done = run('ebgan_train', *args)
        assert done.returncode==0 and not done.stderr, (args, done.stderr)
    done = run('python', '-c', "from ebgan_nb.session import drawn_face; [drawn_face(7, i, 64).save(f'{n}.png') for i, n in enumerate('ab')]")
    assert done.returncode==0, done.stderr
    for more in (['--region', 'mouth'], ['--region', 'mouth', '--weights', 'R'], ['--region', 'face', '--attributes', 'Smiling', '--weights', 'A']):
        done = run('ebgan_edit', 'a.png', 'b.png', *more, '--out', 'y.png')
        assert done.returncode==0 and (tmp_path/'y.png').is_file() and not done.stderr, (more, done.stderr)
    done = run('ebgan_evaluate', '--weights', 'R', '--n', '2', '--regions', 'mouth', '--json', 'f.json')
    assert done.returncode==0 and (tmp_path/'f.json').is_file() and not done.stderr, done.stderr
    assert 'torchmetrics' in done.stdout             # what is not measured without it is said

def test_a_plain_install_says_what_is_missing(run, tmp_path):
    done = run('ebgan_train', '--size', '32', '--n-train', '8', '--bs', '2', '--batches', '2', '--out', 'R', '--tensorboard')
    assert (done.returncode, done.stderr)==(2, 'ebgan_train: --tensorboard needs tensorboard: pip install tensorboard\n')
    assert not (tmp_path/'R').exists()
