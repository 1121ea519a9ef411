"Runs: what a run's folder survives, and what is refused in one line"
import json
import os
import random
import shutil
import signal
import sys
import time
from unittest.mock import patch

import pandas as pd
import pytest
import torch

from ebgan_nb import files, training
from ebgan_nb.recipes import RECIPES
from ebgan_nb.weights import load_weights
from ebgan_nb.adversarial import AdversarialStep
from ebgan_nb.training import StopAfter, claimed, is_whole, main, one_before, read_checkpoint, read_log

SMALL = '--size 32 --bs 4 --n-train 64'.split()


@pytest.fixture(scope='module', autouse=True)
def home(tmp_path_factory):
    "Data of its own, small, and one thread, since children are forked"
    with patch.dict(os.environ, EBGAN_DATA=str(tmp_path_factory.mktemp('data')), EBGAN_QUICK='1'):
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)


@pytest.fixture
def run(capfd):
    "The command -> (exit code, lines on stderr); where it fails there is one line"
    def run(*args):
        capfd.readouterr()
        try: code = main([str(a) for a in args]) or 0
        except SystemExit as e: code = e.code
        said = [line for line in capfd.readouterr().err.splitlines() if 'Warning' not in line]
        assert code==0 or len(said)==1, said
        return code, ' '.join(said)
    return run


def new(run, out, *args, batches=4, round=2):
    "A run of four batches, in rounds of two"
    assert run(*SMALL, '--batches', batches, '--val-every', round, '--out', out, *args)[0]==0
    return out


@pytest.fixture(scope='module')
def made(tmp_path_factory, home):
    "A run of four batches that nobody disturbed; tests copy it"
    out = tmp_path_factory.mktemp('made')/'run'
    main([*SMALL, '--batches', '4', '--val-every', '2', '--out', str(out)])
    return out


@pytest.fixture
def copy(made, tmp_path): return shutil.copytree(made, tmp_path/'run')


def tensors(out): return read_checkpoint(out/'checkpoint.safetensors')[0]

def weights(out):
    net, info = load_weights(out/'weights.safetensors')
    return info, {k: v.tolist() for k, v in net.state_dict().items()}

def batch(out): return read_checkpoint(out/'checkpoint.safetensors')[1]['batch']

def equal(a, b):
    a, b = tensors(a), tensors(b)
    return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def contents(out): return {f.name: f.read_bytes() for f in out.iterdir()}

def flip(file, at=-1000):
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)

def stopped_at(k):
    "Ctrl-C in batch k"
    after_batch = StopAfter.after_batch
    def pressed(self):
        if self.training and self.learn.adversarial_step.k==k: self.stop = True
        after_batch(self)
    return patch.object(StopAfter, 'after_batch', pressed)


# --- what trains at all

def test_a_plain_install_trains(run, tmp_path):
    with patch.dict(sys.modules, {'tensorboard': None, 'fastai.callback.tensorboard': None}):
        new(run, tmp_path/'run', batches=1)
        code, said = run(*SMALL, '--batches', 1, '--out', tmp_path/'other', '--tensorboard')
    assert code==2 and 'pip install tensorboard' in said and not (tmp_path/'other').exists()

@pytest.mark.parametrize('preset', RECIPES)
def test_every_preset_trains(run, tmp_path, preset):
    size = ['--size', '64'] if preset=='paper' else ['--size', '32']
    data = ['--supervised'] if preset=='supervised' else ['--n-train', '64']
    words = ['--bs', '4', '--preset', preset, '--precision', 'float32', *size, *data, '--batches', '1', '--out', tmp_path/'run']
    assert run(*words)[0]==0
    assert load_weights(tmp_path/'run'/'weights.safetensors')[1]['preset']==preset


# --- what is saved is whole, finite, and not lost

def test_what_a_step_spoils_is_not_saved(run, tmp_path, made):
    "NaN in the last step of a round: the checkpoint of the round before stays, and the run can go on from it"
    out, before_step = tmp_path/'run', AdversarialStep.before_step
    def spoils(self):
        if self.k==3: next(self.model.net.E.parameters()).grad.fill_(float('nan'))
        before_step(self)
    with patch.object(AdversarialStep, 'before_step', spoils):
        code, said = run(*SMALL, '--batches', 4, '--val-every', 2, '--out', out)
    assert code==1 and 'learning rate' in said and batch(out)==2
    assert run('--resume', out)[0]==0 and equal(out, made)

def test_a_flipped_bit_is_noticed(run, copy, made):
    flip(copy/'checkpoint.safetensors')
    code, said = run('--resume', copy)
    assert code==0 and 'bytes have changed' in said and 'batch 2' in said and equal(copy, made)

def test_a_torn_checkpoint_is_noticed(run, copy, made):
    (copy/'checkpoint.safetensors').write_bytes((copy/'checkpoint.safetensors').read_bytes()[:-1])
    code, said = run('--resume', copy)
    assert code==0 and 'torn' in said and equal(copy, made)

def test_killed_between_two_renames(run, copy, made):
    (copy/'checkpoint.safetensors').unlink()
    assert run(*SMALL, '--out', copy)[0]==2
    assert run('--resume', copy)==(0, '') and equal(copy, made)

def test_two_bad_checkpoints(run, copy):
    for f in (copy/'checkpoint.safetensors', one_before(copy/'checkpoint.safetensors')): flip(f)
    before = contents(copy)
    assert run('--resume', copy)[0]==2 and contents(copy)==before

@pytest.mark.parametrize('name', ['checkpoint', 'weights', 'edits', 'settings'])
def test_a_full_disk(run, tmp_path, name):
    fsync = files._fsync
    def full(path, *args):
        if path.name.startswith(f'.{name}-'): raise OSError(28, 'No space left on device')
        fsync(path, *args)
    with patch.object(files, '_fsync', full): code, said = run(*SMALL, '--batches', 2, '--val-every', 2, '--out', tmp_path/'run')
    assert code==1 and str(tmp_path/'run'/name) in said and 'No space left' in said
    assert not [f for f in (tmp_path/'run').iterdir() if f.name.startswith('.') and f.name!='.lock']

def test_a_disk_that_is_full_for_the_log(run, tmp_path):
    def full(self, log): raise OSError(28, 'No space left on device')
    with patch.object(training.CSVLogger, '_write_line', full):
        code, said = run(*SMALL, '--batches', 2, '--val-every', 2, '--out', tmp_path/'run')
    assert code==1 and str(tmp_path/'run') in said and '--resume' in said

def test_a_face_of_nan(run, tmp_path):
    code, said = run(*SMALL, '--batches', 4, '--val-every', 1, '--lr', 1e5, '--precision', 'float32', '--out', tmp_path/'run')
    assert code==1 and 'learning rate' in said and not (tmp_path/'run'/'checkpoint.safetensors').exists()


# --- the end of a run

def test_a_run_that_is_over_trains_no_more(run, copy, made):
    before = (copy/'checkpoint.safetensors').read_bytes()
    for f in copy.glob('weights*'): f.unlink()                      # killed before they were written
    assert run('--resume', copy)[0]==0
    assert (copy/'checkpoint.safetensors').read_bytes()==before
    assert weights(copy)==weights(made)
    assert run('--resume', copy, '--batches', 4, '--minutes', 1)[0]==0
    assert run('--resume', copy, '--batches', 3)[0]==0
    assert (copy/'checkpoint.safetensors').read_bytes()==before
    assert run('--resume', copy, '--batches', 5)[0]==0 and batch(copy)==5

@pytest.mark.parametrize('k', [3, 4, 6])
def test_the_log_of_an_interrupted_run(run, tmp_path, k):
    "Ctrl-C amid a round, in its last batch, and in the last batch of all: the log is that of a run that nobody disturbed"
    out = tmp_path/'run'
    with stopped_at(k): assert run(*SMALL, '--batches', 6, '--val-every', 2, '--out', out)[0]==130
    assert run('--resume', out)[0]==0
    new(run, tmp_path/'whole', batches=6)
    assert equal(out, tmp_path/'whole')
    pd.testing.assert_frame_equal(read_log(out), read_log(tmp_path/'whole'), check_exact=True)

def test_a_torn_line_is_no_row(copy):
    whole = read_log(copy)
    text = (copy/'log.csv').read_text()
    (copy/'log.csv').write_text(f'{text}2,0.1\n{text[:9]}{text}')
    pd.testing.assert_frame_equal(read_log(copy), whole)


# --- one process a folder

def test_a_busy_folder(run, copy, tmp_path):
    before = contents(copy)
    with claimed(copy): code, said = run('--resume', copy)
    assert code==1 and 'another process' in said
    with claimed(tmp_path/'fresh'): code, said = run(*SMALL, '--batches', 1, '--out', tmp_path/'fresh')
    assert code==1 and 'another process' in said and not (tmp_path/'fresh'/'settings.json').exists()
    assert contents(copy)==before

def child(*args, log=os.devnull):
    "The command in a forked process -> its id"
    sys.stdout.flush()
    if pid := os.fork(): return pid
    try:
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(fd, 1); os.dup2(fd, 2)
        code = main([str(a) for a in args]) or 0
    except SystemExit as e: code = e.code
    except BaseException: code = 99
    os._exit(code)

def code_of(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_two_runs_at_once(tmp_path):
    out = tmp_path/'run'
    pids = [child(*SMALL, '--batches', 6, '--val-every', 6, '--out', out, '--seed', seed, log=tmp_path/f'{seed}') for seed in (0, 1)]
    codes = [code_of(pid) for pid in pids]
    assert sorted(codes) in ([0, 1], [0, 2]), codes                # 2: the other one had ended
    seed = codes.index(0)
    assert json.loads((out/'settings.json').read_text())['seed']==load_weights(out/'weights.safetensors')[1]['seed']==seed
    assert len(read_log(out))==1

def test_leftovers_are_swept(run, copy):
    for name in ('checkpoint', 'weights', 'edits'): (copy/f'.{name}-123-0123abcd.safetensors').touch()
    assert run('--resume', copy)[0]==0
    assert [f.name for f in copy.glob('.*')]==['.lock']


# --- wrong input

@pytest.mark.parametrize('option', [
    '--seed 99999999999999999999', '--seed -1', '--minutes inf', '--minutes nan', '--minutes 0', '--val-every 1000000000000000000000',
    '--val-every 0', '--bs 1000000000', '--bs 1', '--n-train 0', '--n-train 2.5', '--lr nan', '--lr -1', '--size 48', '--size 0', '--init /nope',
    '--init ~no-such-user/x', '--data ~no-such-user/x', '--preset nope', '--attributes Smiling'])
def test_wrong_input_leaves_nothing(run, tmp_path, option):
    assert run(*SMALL, '--batches', 1, '--out', tmp_path/'run', *option.split())[0]==2
    assert not (tmp_path/'run').exists()

@pytest.mark.parametrize('flag', ['--out', '--resume', '--data', '--init'])
def test_no_name(run, tmp_path, flag, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('', 'a\0b'): assert run(*(SMALL if flag!='--resume' else ()), flag, name)[0]==2
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('text', ['', '[]', '{}', 'null', '{"size": 32', '['*10**5, '\udcff', dict(size='32'), dict(size=None), dict(size=[]),
    dict(size=33), dict(bs=True), dict(bs=10**9), dict(seed=2.5), dict(seed=10**20), dict(lr='x'), dict(minutes=float('inf')), dict(val_every=0),
    dict(model=1), dict(preset='nope'), dict(attributes=[3]), dict(aux_classifier=1), dict(data=None), dict(unknown=1)])
def test_damaged_settings(run, copy, text):
    file = copy/'settings.json'
    if isinstance(text, dict): text = json.dumps(json.loads(file.read_text()) | text)
    file.write_bytes(text.encode(errors='surrogateescape'))
    code, said = run('--resume', copy, '--batches', 5)
    assert code==2 and 'settings.json' in said or 'size' in said
    assert batch(copy)==4

def test_settings_of_another_run(run, copy):
    file = copy/'settings.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(size=64)))
    code, said = run('--resume', copy)
    assert code==2 and 'checkpoint.safetensors' in said

def test_what_is_no_run(run, tmp_path):
    (tmp_path/'file').touch()
    (tmp_path/'empty').mkdir()
    for name in ('file', 'empty', 'nowhere', 'x'*5000): assert run('--resume', tmp_path/name)[0]==2

def test_threads_of_a_checkpoint(run, copy, capfd):
    "A run goes on with as many threads as it had, unless OMP_NUM_THREADS says otherwise"
    with patch.dict(os.environ):
        os.environ.pop('OMP_NUM_THREADS', None)
        with patch.object(training, 'best_threads', lambda device: 2): assert run('--resume', copy, '--batches', 5)==(0, '')
        os.environ['OMP_NUM_THREADS'] = '2'
        with patch.object(training, 'best_threads', lambda device: 2): code, said = run('--resume', copy, '--batches', 6)
    assert code==0 and 'threads 1, now 2' in said


# --- sixty kills

@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.parametrize('model', ['ebgan', 'att-ebgan'])
@pytest.mark.parametrize('precision', ['float32', 'bf16', 'fp16'])
def test_kills(tmp_path, precision, model):
    "Ten kills, before the first checkpoint, between two, in the last round, and after the end; some twice. All resume bit for bit, the log, too"
    args = [*SMALL, '--precision', precision, '--model', model, '--batches', 6, '--val-every', 2]
    whole, chance, where = tmp_path/'whole', random.Random(f'{precision} {model}'), []
    def ended(pid): return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    def kill(pid, out, n):
        "Kill it some time after it has written n checkpoints"
        def which(): # each is a new file; 0 between two renames
            return next((f.inode() for f in os.scandir(out) if f.name=='checkpoint.safetensors'), 0) if out.exists() else 0
        seen = 0
        last = which()
        while seen < n and not ended(pid):
            if (now := which()) and now!=last: seen, last = seen + 1, now
            time.sleep(.002)
        time.sleep(chance.random()*lasts/4)
        os.kill(pid, signal.SIGKILL)
        code_of(pid)
    began = time.monotonic()
    assert code_of(child(*args, '--out', whole, log=tmp_path/'log'))==0, (tmp_path/'log').read_text()
    lasts = time.monotonic() - began
    for i in range(10):
        out = tmp_path/f'{i}'
        kill(child(*args, '--out', out, log=tmp_path/'log'), out, i%4)
        if not (out/'settings.json').exists(): assert code_of(child(*args, '--out', out))==0
        where.append(batch(out) if is_whole(out/'checkpoint.safetensors') else 0)
        if i%3==2: kill(child('--resume', out, log=tmp_path/'log'), out, 1)   # once more, while it goes on
        assert code_of(child('--resume', out, log=tmp_path/'log'))==0, (tmp_path/'log').read_text()
        assert equal(out, whole), f'kill {i} after batch {where[-1]}'
        assert weights(out)==weights(whole)
        pd.testing.assert_frame_equal(read_log(out), read_log(whole), check_exact=True)
        assert not [f.name for f in out.iterdir() if f.name.startswith('.') and f.name!='.lock']
    print(f'{precision} {model}: 10 of 10, killed after batches {where}')
