"Several processes, one training: two of them over gloo, one thread each"
import os
import subprocess
import sys

import pandas as pd
import pytest
from safetensors.torch import load_file

if sys.platform=='win32': pytest.skip("torch's launcher needs libuv, which its wheels for Windows lack", allow_module_level=True)
pytest.importorskip('accelerate')

EQUAL = '''
import sys, torch
from functools import partial
from fastai.optimizer import SGD
from safetensors.torch import save_file
from ebgan_nb.data import dataloaders
from ebgan_nb.datasets import SyntheticFaces
from ebgan_nb.distributed import all_reduce_sum, process_group, rank_world
from ebgan_nb.learner import ebgan_learner
from ebgan_nb.recipes import ATTRIBUTES

def trained(opt, model, bs):
    dls = dataloaders(SyntheticFaces(256, seed=1), size=32, bs=bs, val_every=20, max_valid=8, rank_world=rank_world(), attributes=ATTRIBUTES)
    how = dict(lr=1e-3, opt_func=partial(SGD, mom=0.)) if opt=='sgd' else {}
    learn = ebgan_learner(dls, 'course', model=model, seed=3, precision='float32', **how)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])

with process_group():
    rank, world = rank_world()
    nets = {f'{opt} {model}': trained(opt, model, 16//world) for opt, model in (('sgd', 'ebgan'), ('adam', 'ebgan'), ('sgd', 'att-ebgan'))}
    for name, w in nets.items(): assert torch.equal(all_reduce_sum(w.clone()), w*world), f'{name}: the processes hold different weights'
    if rank==0: save_file(nets, sys.argv[1])
'''

DIES = '''
import os
from ebgan_nb import distributed
from ebgan_nb.adversarial import AdversarialStep
from ebgan_nb.training import main

moves = AdversarialStep.after_batch
def after_batch(self):
    moves(self)
    if self.k==5 and distributed.rank_world()[0]==1: os._exit(9)
AdversarialStep.after_batch = after_batch
main()
'''


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "Run a program, or a module's command, as one process or two -> what `subprocess.run` says"
    home = tmp_path_factory.mktemp('processes')
    env = dict(os.environ, EBGAN_DATA=str(home/'data'), EBGAN_QUICK='1', OMP_NUM_THREADS='1', OMP_WAIT_POLICY='passive', CUDA_VISIBLE_DEVICES='', PYTHONWARNINGS='ignore')
    def run(program, *args, processes=1):
        file = home/'program.py'
        file.write_text(program)
        launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes)] if processes > 1 else []
        return subprocess.run([sys.executable, *launch, str(file), *map(str, args)], env=env, cwd=home, capture_output=True, text=True, timeout=300)
    return run


def test_two_are_one_with_the_doubled_batch(run, tmp_path):
    nets = []
    for processes in (1, 2):
        done = run(EQUAL, tmp_path/'nets.safetensors', processes=processes)
        assert done.returncode==0, done.stderr
        nets.append(load_file(tmp_path/'nets.safetensors'))
    for name, limit in {'sgd ebgan': 1e-4, 'sgd att-ebgan': 1e-4, 'adam ebgan': 5e-3}.items():
        one, two = (n[name] for n in nets)
        away = ((one - two).norm()/one.norm()).item()
        print(f'{name}: after 20 steps {away:.1e} apart (relative L2)')
        assert away < limit, (name, away)


def test_a_dead_process_ends_the_run(run, tmp_path):
    out, small = tmp_path/'run', '--data faces --size 32 --bs 4 --batches 8 --val-every 4'.split()
    done = run(DIES, *small, '--out', out, processes=2)
    assert done.returncode==1
    told = [line for line in done.stderr.splitlines() if 'another one is gone' in line]
    assert len(told)==1 and '--resume' in told[0], done.stderr
    assert load_file(out/'checkpoint.safetensors')
    done = run('from ebgan_nb.training import main; main()', '--resume', out, processes=2)
    assert done.returncode==0, done.stderr
    assert done.stdout.count(f'{out}: batch 8.') == 1                            # one speaks for both
    assert pd.read_csv(out/'log.csv').epoch.tolist()[-1] == '1'
    done = run('from ebgan_nb.training import main; main()', '--resume', out, '--batches', 9)
    assert done.returncode==0 and 'processes 2, now 1' in done.stderr, done.stderr


def test_wrong_input_is_said_once(run, tmp_path):
    done = run('from ebgan_nb.training import main; main()', '--size', '33', '--out', tmp_path/'run', processes=2)
    assert [line for line in done.stderr.splitlines() if 'size 33' in line and 'program:' in line].__len__() == 1, done.stderr
    assert not (tmp_path/'run').exists()
