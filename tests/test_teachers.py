"Two teachers, kept apart; the supervised one resumes as the other does; and the command for ten minutes of a GPU, small, on the CPU"
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fastai.callback.core import Callback

from ebgan_nb import faces, portrait, triples
from ebgan_nb.core import WrongInput
from ebgan_nb.datasets import SyntheticFaces
from ebgan_nb.data import dataloaders
from ebgan_nb.pairs import positives
from ebgan_nb.recipes import recipe
from ebgan_nb.adversarial import ReversePairs
from ebgan_nb.learner import ebgan_learner
from ebgan_nb.training import TrainConfig, read_checkpoint, train

ROOT = Path(__file__).resolve().parents[1]
SMALL = dict(size=32, bs=4, val_every=2, precision='float32')


class Seen(Callback):
    "What E sees in the reconstruction pass, batch by batch"
    order = 12
    def __init__(self, seen): self.seen = seen
    def before_batch(self):
        if self.training: self.seen.append(self.xb[3].clone())

class Reached(Exception): "Somebody asked for what only a simulator knows"


@pytest.fixture
def sealed(monkeypatch):
    "Neither true edits nor factors can be had: whoever asks for them is found"
    def refuse(*_, **__): raise Reached
    for module, name in ((faces, 'transfer'), (triples, 'transfer'), (faces, 'sample'), (triples, 'sample'), (portrait, 'sample'), (triples, 'render')):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(portrait.People, '__init__', refuse)

@pytest.mark.parametrize('preset', ['course', 'reverse'])
@pytest.mark.parametrize('model', ['ebgan', 'att-ebgan'])
def test_self_supervised_training_sees_no_factors(model, preset, tmp_path, monkeypatch, request):
    monkeypatch.setenv('EBGAN_DATA', str(tmp_path/'data'))
    monkeypatch.setattr(ReversePairs, 'warmup', 1)
    how = dict(model=model, preset=preset, n_train=16, **SMALL)
    train(TrainConfig(batches=1, **how), tmp_path/'first', progress=False)         # the pictures are drawn, labelled and cached
    request.getfixturevalue('sealed')
    learn = train(TrainConfig(batches=3, **how), tmp_path/'second', progress=False)
    assert learn.adversarial_step.k==3 and 'true' not in learn.adversarial_step.terms # the last batch was validated: nobody knows its truth

def test_self_supervised_training_may_know_who_is_who(tmp_path, monkeypatch):
    monkeypatch.setenv('EBGAN_DATA', str(tmp_path/'data'))
    dls = dataloaders(SyntheticFaces(24, pictures_per_person=4), size=32, bs=8, val_every=2)
    learn = ebgan_learner(dls, replace(recipe('course'), same_person=True, p_positive=1.), precision='float32')
    seen, found = [], positives(dls.train, dls.train.batch(0), same_person=True)[1]
    learn.add_cb(Seen(seen))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    b = dls.train.batch(0)
    assert found.any() and not torch.equal(seen[0][found], b.A[found])

def test_supervised_training_does(sealed, tmp_path):
    with pytest.raises(Reached): train(TrainConfig(batches=1, supervised=True, **SMALL), tmp_path/'run', progress=False)

@pytest.mark.parametrize('teacher', [dict(supervised=True), dict(preset='reverse', n_train=16)], ids=['supervised', 'reverse'])
@pytest.mark.parametrize('model', ['ebgan', 'att-ebgan'])
def test_run_resumes_bit_for_bit(model, teacher, tmp_path, monkeypatch):
    monkeypatch.setenv('EBGAN_DATA', str(tmp_path/'data'))
    monkeypatch.setattr(ReversePairs, 'warmup', 1)
    how = dict(model=model, seed=2, **teacher, **SMALL)
    train(TrainConfig(batches=3, **how), tmp_path/'whole', progress=False)
    train(TrainConfig(batches=1, **how), tmp_path/'parts', progress=False)
    train(TrainConfig(batches=3, **how), tmp_path/'parts', resume=True, progress=False)
    whole, parts = (read_checkpoint(tmp_path/run/'checkpoint.safetensors')[0] for run in ('whole', 'parts'))
    assert whole.keys()==parts.keys() and all(torch.equal(v, parts[k]) for k, v in whole.items() if not k.startswith('log.'))

@pytest.mark.parametrize('teacher', [dict(supervised=True), dict(preset='reverse', n_train=16)], ids=['supervised', 'reverse'])
def test_all_of_the_network_learns(teacher, tmp_path, monkeypatch):
    monkeypatch.setenv('EBGAN_DATA', str(tmp_path/'data'))
    first, last = (train(TrainConfig(batches=n, **teacher, **SMALL), tmp_path/str(n), progress=False).model.net.state_dict() for n in (1, 3))
    still = [k for k, v in first.items() if torch.equal(v, last[k])]
    assert not [k for k in still if "landmark" not in k], still

@pytest.mark.parametrize('wrong, says', [
    (dict(supervised=True, data='celeba.zip'), 'drawn faces only'), (dict(supervised=True, n_train=100), 'drawn as they are needed'),
    (dict(supervised=True, preset='course'), 'does not learn from true edits'), (dict(preset='supervised', n_train=16), 'these batches have none'),
    (dict(supervised=True, aux_classifier=True), 'needs no auxiliary classifier')])
def test_teacher_and_recipe_must_fit(wrong, says, tmp_path, monkeypatch):
    monkeypatch.setenv('EBGAN_DATA', str(tmp_path/'data'))
    with pytest.raises(WrongInput, match=says): train(TrainConfig(batches=1, **SMALL | wrong), tmp_path/'run', progress=False)
    assert not (tmp_path/'run').exists()


def on_gpu(*words):
    program = [sys.executable, 'tools/on_gpu.py', '--device', 'cpu', '--n', '16', '--bs', '8', '--n-score', '2', *words]
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True)

@pytest.mark.parametrize('words', [('--size', '128'), ('--size', '64', '--model', 'att-ebgan')], ids=' '.join)
def test_ten_minutes_of_a_gpu_run_small_on_a_cpu(words, tmp_path):
    done = on_gpu(*words, '--batches', '2', '--out', str(tmp_path/'run'), '--networks', 'small' if '128' in words else 'large')
    assert not done.returncode, done.stderr
    figures = json.loads((tmp_path/'run/figures.json').read_text())
    assert figures['batches']==2 and {'mouth', 'face'} <= figures['score'].keys()
    from ebgan_nb.editing import Editor
    editor = Editor.load(tmp_path/'run/weights.safetensors')
    assert editor.size==int(words[1]) and editor.info['teacher'].startswith('supervised')

def test_gpu_command_in_one_line(tmp_path):
    for words, says in ((['--size', '65'], '65'), (['--init', str(tmp_path/'none.safetensors')], 'no such'), (['--model', 'stargan'], 'stargan')):
        done = on_gpu('--out', str(tmp_path/'run'), *words)
        assert done.returncode==2 and says in done.stderr and 'Traceback' not in done.stderr, done.stderr
