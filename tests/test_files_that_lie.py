"What is read may be torn, forged, a pipe, or somebody else's: each is one line, nothing waits for ever, and nothing is run"
import faulthandler
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import ROOT
from ebgan_nb import evaluation
from ebgan_nb.core import RunFailed, WrongInput
from ebgan_nb.datasets import CelebA, SyntheticFaces
from ebgan_nb.cache import ImageCache, load_cache
from ebgan_nb.data import dataloaders
from ebgan_nb.faces import render, sample
from ebgan_nb.faces import transfer, write_celeba
from ebgan_nb.files import save_tensors
from ebgan_nb.masks import region_mask
from ebgan_nb.models import build
from ebgan_nb.recipes import config
from ebgan_nb.editing import Editor
from ebgan_nb.weights import FORMAT, find_weights, load_weights, save_weights
from ebgan_nb.classifier import AttributeClassifier, load_classifier, _save_classifier
from ebgan_nb.zoo import ZOO_FORMAT, build_system, load_zoo, zoo_config

ROOT_USER = hasattr(os, 'geteuid') and os.geteuid()==0
posix = pytest.mark.skipif(os.name!='posix', reason='pipes, links and permissions of POSIX')

@pytest.fixture(autouse=True)
def in_time(monkeypatch, tmp_path_factory):
    "Nothing here takes long; what waits for a pipe would wait for ever, in a thread that nothing can stop"
    monkeypatch.setenv('EBGAN_DATA', str(tmp_path_factory.mktemp('home')))
    faulthandler.dump_traceback_later(300, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()

def line(fn, *args, error=WrongInput, **kwargs):
    "The one line with which something is refused"
    with pytest.raises(error) as e: fn(*args, **kwargs)
    assert '\n' not in str(e.value) and len(str(e.value)) < 500
    return str(e.value)

def python(code, *args, **kwargs):
    return subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True, timeout=300, **dict(cwd=ROOT) | kwargs)

# --- photographs ---

@pytest.fixture(scope='module')
def celeba(tmp_path_factory):
    folder = tmp_path_factory.mktemp('celeba')
    write_celeba(folder, 20, seed=1, size=32, pictures_per_person=2)
    return folder

@pytest.fixture
def copy_of(celeba, tmp_path):
    shutil.copytree(celeba, tmp_path/'celeba')
    return tmp_path/'celeba'

def zipped(folder, encrypted=None):
    "The same, with the photographs in a zip"
    pictures = folder/'img_align_celeba'
    with zipfile.ZipFile(folder/'img_align_celeba.zip', 'w') as z:
        for f in sorted(pictures.iterdir()):
            z.write(f, f'img_align_celeba/{f.name}')
            if f.name==encrypted: z.filelist[-1].flag_bits |= 1 # said in the list of contents
    shutil.rmtree(pictures)
    return folder

POSTSCRIPT = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n'

@posix
@pytest.mark.parametrize('packed', [False, True])
def test_postscript_reaches_no_interpreter(copy_of, tmp_path, packed):
    (copy_of/'img_align_celeba/000003.jpg').write_bytes(POSTSCRIPT)
    stub, mark = tmp_path/'bin'/'gs', tmp_path/'mark'
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/sh\necho ran >> {mark}\n')
    stub.chmod(0o755)
    env = {**os.environ, 'PATH': f"{stub.parent}:{os.environ['PATH']}"}
    python('import sys; from PIL import Image; Image.open(sys.argv[1]).load()', copy_of/'img_align_celeba/000003.jpg', env=env)
    assert mark.exists() # Pillow left to itself would have asked it
    mark.unlink()
    if packed: zipped(copy_of)
    done = python('import sys; from ebgan_nb.datasets import CelebA; from ebgan_nb.cache import load_cache; print(load_cache(CelebA(sys.argv[1], skip_bad=True), 32).info["bad"])', copy_of, env=env)
    assert '000003.jpg: no picture that is read here' in done.stdout and not mark.exists(), done

def nowhere(f): f.symlink_to('/nope')
def loop(f): f.symlink_to(f.name)
def folder(f): f.mkdir()
def pipe(f): os.mkfifo(f)
def endless(f): f.symlink_to('/dev/zero')
def empty(f): f.touch()
def unreadable(f): f.touch(mode=0)

@posix
@pytest.mark.parametrize('make', [nowhere, loop, folder, pipe, endless, empty, pytest.param(unreadable, marks=pytest.mark.skipif(ROOT_USER, reason='root reads all'))])
def test_a_photograph_that_is_none_can_be_skipped(copy_of, make):
    f = copy_of/'img_align_celeba/000002.jpg'
    f.unlink()
    make(f)
    assert '000002.jpg' in line(load_cache, CelebA(copy_of), 32) and '--skip-bad' in line(load_cache, CelebA(copy_of), 32)
    assert [name for name, _ in load_cache(CelebA(copy_of, skip_bad=True), 32).info['bad']]==['000002.jpg']

def test_an_encrypted_photograph_can_be_skipped(copy_of):
    zipped(copy_of, encrypted='000002.jpg')
    assert 'damaged inside img_align_celeba.zip' in line(load_cache, CelebA(copy_of), 32)
    assert [name for name, _ in load_cache(CelebA(copy_of, skip_bad=True), 32).info['bad']]==['000002.jpg']

@posix
def test_pipes_are_not_waited_for(copy_of):
    for name in ('list_attr_celeba.txt', 'list_eval_partition.txt', 'list_landmarks_align_celeba.txt', 'identity_CelebA.txt'):
        text = (copy_of/name).read_bytes()
        (copy_of/name).unlink()
        os.mkfifo(copy_of/name)
        assert name in line(lambda: CelebA(copy_of).labels)
        (copy_of/name).unlink()
        (copy_of/name).write_bytes(text)
    os.mkfifo(copy_of/'pipe')
    assert 'a folder or a zip file is expected' in line(CelebA, copy_of/'pipe')
    shutil.rmtree(copy_of/'img_align_celeba')
    os.mkfifo(copy_of/'img_align_celeba.zip')
    assert 'a folder or a zip file is expected' in line(CelebA, copy_of)
    assert 'there is no such' in line(find_weights, copy_of/'pipe')

@pytest.mark.parametrize('name, wrong', [('list_eval_partition.txt', '99999999999'), ('list_landmarks_align_celeba.txt', '99999999999'), ('identity_CelebA.txt', '99999999999'), ('list_attr_celeba.txt', '9'*5000)])
def test_numbers_beyond_all_measure(copy_of, name, wrong):
    text = (copy_of/name).read_text()
    (copy_of/name).write_text(re.sub(r'(000007\.jpg +)\S+', rf'\g<1>{wrong}', text))
    assert name in line(lambda: CelebA(copy_of).labels)

@pytest.mark.parametrize('text', ['', '\x00', '000001.jpg', '000001.jpg one\n', '000001.jpg 1 1\n', '000001.jpg 1\n'*2, '000001.jpg 1\n', 'lines'])
def test_persons_that_are_none(copy_of, text):
    f = copy_of/'identity_CelebA.txt'
    lines = f.read_text().splitlines(keepends=True)
    f.write_text(''.join(lines[:6] + ['000007.jpg 0\n'] + lines[7:]) if text=='lines' else text)
    said = line(lambda: CelebA(copy_of).persons)
    assert 'identity_CelebA.txt' in said and (text!='lines' or '000007.jpg shows person 0' in said)
    f.unlink()
    assert CelebA(copy_of).persons is None and load_cache(CelebA(copy_of), 32).persons is None

@pytest.mark.skipif(sys.platform=='win32', reason='Windows guesses where the home of another user would be')
def test_homes_of_nobody(monkeypatch):
    for fn in (CelebA, find_weights, load_weights, load_classifier, dataloaders, evaluation._check_file): assert '~nobody-of-this-name' in line(fn, '~nobody-of-this-name/x')
    monkeypatch.setenv('EBGAN_DATA', '~nobody-of-this-name/x')
    assert 'EBGAN_DATA' in line(load_cache, SyntheticFaces(4), 16)

# --- caches ---

@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('EBGAN_DATA', str(tmp_path_factory.mktemp('cache')))
        return load_cache(SyntheticFaces(8, pictures_per_person=2), 16).folder

INFO = dict(kind=['cats', None, []], size=['16', 17, 16., None, 10**9, True], crop=[None, [], [0, 0, 1], [0, 0, 1, 'x'], [0, 0, 1, 7]],
            attributes=[None, 'Smiling', ['Smilling'], [[]], ['Smiling', 'Smiling']], bad=[None, 3, [3], [['x']], [[1, 2]]], unlabelled=[None, 'x'])

@pytest.mark.parametrize('text', ['', '[]', '{}', 'null', '3', '"x"', '{"kind":', '['*100_000, '\xff', *(json.dumps({k: v}) for k, vs in INFO.items() for v in vs)], ids=lambda t: t[:40])
def test_what_a_cache_says_of_itself_is_checked(cache, tmp_path, text):
    folder = shutil.copytree(cache, tmp_path/'c')
    said = json.loads((cache/'info.json').read_text())
    if text[:2]=='{"' and text[-1]=='}': text = json.dumps(said | json.loads(text))
    (folder/'info.json').write_text(text, encoding='latin-1')
    assert 'delete that folder' in line(ImageCache, folder)

@pytest.mark.parametrize('change', ['none', 'shape', 'dtype', 'fewer', 'object', 'text', 'torn', 'folder', 'values'])
@pytest.mark.parametrize('name', ['images', 'labels', 'partition', 'landmarks', 'persons'])
def test_arrays_of_a_cache_are_checked(cache, tmp_path, name, change):
    folder = shutil.copytree(cache, tmp_path/'c')
    f = folder/f'{name}.npy'
    x = np.load(f)
    f.unlink()
    if change=='none' and name in ('landmarks', 'persons'): # photographs come without, and that is well
        assert getattr(ImageCache(folder), name) is None
        return
    if change=='shape': np.save(f, x[None])
    elif change=='dtype': np.save(f, x.astype('f8' if x.dtype==np.float32 else 'i8'))
    elif change=='fewer': np.save(f, x[:-1])
    elif change=='object': np.save(f, np.array([{}], dtype=object), allow_pickle=True)
    elif change=='text': f.write_text('these are no numbers')
    elif change=='torn': f.write_bytes((cache/f'{name}.npy').read_bytes()[:-5])
    elif change=='folder': f.mkdir()
    elif change=='values':
        if name=='images': return # any will do
        np.save(f, np.full_like(x, np.nan if name=='landmarks' else 3) if name!='persons' else 0*x)
    assert 'delete that folder' in line(ImageCache, folder)

def test_no_faces_are_drawn_for_none(monkeypatch):
    for n in (0, 1, -1, 2.5): assert 'n_train' in line(dataloaders, 'faces', n_train=n)
    assert not list(Path(os.environ['EBGAN_DATA']).rglob('*'))

# --- weights and readers ---

@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    return build(config(size=32, e_width=8, g_width=8, d_width=8)).eval()

@posix
def test_a_promise_of_billions_takes_no_memory(tmp_path):
    net, path = build(config()), tmp_path/'vast.safetensors'
    vast = asdict(net.config) | dict(size=512, e_width=512, g_width=512, d_width=512, e_depth=32, g_depth=32, e_res_channels=512, code_channels=512)
    save_tensors(path, {k: v.half() for k, v in net.state_dict().items()}, dict(format=FORMAT, config=json.dumps(vast), info='{}'))
    assert path.stat().st_size < 5e6
    done = python('''
import sys, time, resource, torch, safetensors.torch
from ebgan_nb.weights import load_weights
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(1024 if sys.platform=='darwin' else 1) # KB
before, start = peak(), time.process_time()
try: load_weights(sys.argv[1])
except ValueError as e: print(f'{(peak() - before)/1024:.0f} MB; {time.process_time() - start:.2f} s; {e}')
''', path)
    mb, s = re.match(r'(\d+) MB; ([\d.]+) s; .*does not fit its own header', done.stdout).groups()
    assert int(mb) < 50 and float(s) < 1, done

def a_system(path, info='{}', **changes):
    "A file of the zoo, with another configuration in its header"
    net = build_system(zoo_config('stgan', size=32, width=4))
    header = dict(format=ZOO_FORMAT, config=json.dumps(asdict(net.config) | changes), info=info)
    save_tensors(path, {f'net.{k}': v.half() for k, v in net.state_dict().items()}, header)

@pytest.mark.parametrize('changes, said', [
    (dict(system='stgun'), "did you mean 'stgan'"), (dict(system='genegan'), 'its header cannot be used|does not fit'),
    (dict(system=['stgan']), 'its header'), (dict(width=4096, depth=5), 'does not fit its own header'), (dict(width=10**9), 'width'),
    (dict(max_multiplier=-1), 'does not fit|its header'), (dict(max_multiplier='x'), 'does not fit|its header'), (dict(info='[]'), 'info'), (dict(info='{"regions_template": "cats"}'), 'nor five points')])
def test_systems_of_the_zoo_that_lie(tmp_path, changes, said):
    a_system(tmp_path/'w.safetensors', **changes)
    assert re.search(said, told := line(Editor.load, tmp_path/'w.safetensors')) and 'w.safetensors' in told, told

def test_each_kind_of_weights_is_told_from_the_other(net, tmp_path):
    a_system(tmp_path/'zoo.safetensors')
    save_weights(tmp_path/'ebgan.safetensors', net, {})
    assert 'no system of the zoo' in line(load_zoo, tmp_path/'ebgan.safetensors') and 'not weights written' in line(load_weights, tmp_path/'zoo.safetensors')
    for name in ('zoo', 'ebgan'): assert Editor.load(tmp_path/f'{name}.safetensors').size==32
    save_tensors(tmp_path/'other.safetensors', {'x': torch.zeros(1)}, {})
    assert 'not weights written by ebgan_nb' in line(Editor.load, tmp_path/'other.safetensors')

def test_more_than_a_gigabyte_is_not_read(tmp_path):
    with open(tmp_path/'large.safetensors', 'wb') as f: f.truncate(2**31) # a hole: it takes no room
    assert 'larger than' in line(load_weights, tmp_path/'large.safetensors')

@posix
@pytest.mark.parametrize('mask, mode', [(0o022, 0o644), (0o077, 0o600)])
def test_weights_are_for_those_that_the_umask_says(net, tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        save_weights(tmp_path/'w.safetensors', net, {})
        _save_classifier(tmp_path/'r.safetensors', AttributeClassifier(['Smiling'], 32))
    finally: os.umask(before)
    assert {f.name: stat.S_IMODE(f.stat().st_mode) for f in tmp_path.iterdir()}==dict.fromkeys(('w.safetensors', 'w.json', 'r.safetensors'), mode)

@posix
def test_who_may_not_read_weights_is_told_so(net, tmp_path):
    path = tmp_path/'w.safetensors'
    save_weights(path, net, {})
    for f in (tmp_path, *tmp_path.parents[:-2]): f.chmod(f.stat().st_mode | 0o055)
    os.chmod(path, 0)
    become_nobody = 'os.setegid(65534); os.seteuid(65534)' if ROOT_USER else ''
    done = python(f'import os, sys, safetensors.torch, ebgan_nb.evaluation as e; {become_nobody}; e.main(["--weights", sys.argv[1], "--n", "2"])', path)
    assert (done.returncode, done.stderr.count('\n'))==(2, 1) and 'w.safetensors: Permission denied' in done.stderr, done

@pytest.mark.parametrize('what', ['weights', 'reader'])
def test_a_full_disk_leaves_what_was_there(net, tmp_path, what, monkeypatch):
    def write(path): save_weights(path, net, {}) if what=='weights' else _save_classifier(path, AttributeClassifier(['Smiling'], 32))
    write(tmp_path/'x.safetensors')
    size, path = (tmp_path/'x.safetensors').stat().st_size, tmp_path/'disk'/'x.safetensors'
    path.parent.mkdir()
    mounted = ROOT_USER and not subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size*3//2}', 'tmpfs', path.parent], capture_output=True).returncode
    try:
        write(path)
        before = path.read_bytes()
        if not mounted: monkeypatch.setattr('ebgan_nb.files._fsync', lambda *_: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
        assert str(path) in line(write, path, error=RunFailed)
        assert path.read_bytes()==before and not [f for f in path.parent.iterdir() if f.name[0]=='.']
    finally:
        if mounted: subprocess.run(['umount', path.parent], check=True)

# --- figures ---

@pytest.mark.filterwarnings('ignore')
def test_what_was_measured_is_printed_before_it_is_written(net, tmp_path, capsys, monkeypatch):
    def full(path, data): raise RunFailed(f'{path}: not written')
    save_weights(tmp_path/'w.safetensors', net, {})
    monkeypatch.setattr(evaluation, 'write_bytes', full)
    with pytest.raises(SystemExit) as e: evaluation.main(['--weights', str(tmp_path/'w.safetensors'), '--n', '2', '--regions', 'nose', '--json', str(tmp_path/'f.json')])
    said = capsys.readouterr()
    assert e.value.code==1 and 'source unchanged' in said.out and said.err.endswith('f.json: not written\n')

def test_places_are_tried_before_the_work(tmp_path):
    (tmp_path/'d.json').mkdir()
    for path in (tmp_path/'d.json', tmp_path/'none'/'x.csv', tmp_path/'x.txt', *(['/proc/x.csv'] if os.path.isdir('/proc') else [])): line(evaluation._check_file, path)
    assert [f.name for f in tmp_path.iterdir()]==['d.json']

def test_weights_that_overflow_are_no_figures(tmp_path, capsys):
    net = build(config(size=32))
    for p in net.parameters(): p.data.fill_(6e4)
    save_weights(tmp_path/'w.safetensors', net, {})
    with pytest.raises(SystemExit) as e: evaluation.main(['--weights', str(tmp_path/'w.safetensors'), '--n', '2', '--regions', 'nose'])
    assert e.value.code==1 and 'w.safetensors: EBGAN' in capsys.readouterr().err.splitlines()[-1]

# --- what is no file: numbers, names and people of the wrong kind ---

people = sample(2)
WRONG = [(render, dict(people=people, size=32), dict(people=[None, 'x', [1], 3], size=[64.5, None, '64', True, 8, 2000, -5], threads=[0, -1, 1.5, 'x'])),
         (sample, dict(n=2), dict(n=[-1, 1.5, None, '2', [2], True], seed=[None, 1.5, 'x', True], pictures_per_person=[0, 1.5, None, 'x', True])),
         (region_mask, dict(region='mouth', size=16), dict(region=[None, 3, 'mouht', [3], ''], landmarks=['x', 3, [1], torch.zeros(5, 2)], size=[-5, 0, 1.5, None, 'x', (64,), 10**9], template=[None, 3, 'x', [[0, 0]]])),
         (transfer, dict(source=people, exemplar=people, region='mouth'), dict(source=[None, 'x', [1], sample(3)], exemplar=[None, 3], region=[None, 3, 'x'], attributes=[3, 'x', [None]], others=[None, 'x', 3]))]

@pytest.mark.parametrize('fn, right, wrong', WRONG, ids=lambda x: getattr(x, '__name__', ''))
def test_wrong_kinds_are_one_line(fn, right, wrong):
    fn(**right)
    for name, values in wrong.items():
        for value in values: line(fn, **right | {name: value})
