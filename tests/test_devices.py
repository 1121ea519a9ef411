"Nothing mixes devices: networks, losses, the step, positives, editing and evaluation run on a pretended GPU (pretended.py), with the CPU's numbers; so do whole lessons"
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import NOTEBOOKS, ROOT
from pretended import Card, card

from ebgan_nb.core import generator, grid, to_pil, normalize
from ebgan_nb.datasets import SyntheticFaces
from ebgan_nb.data import dataloaders
from ebgan_nb.pairs import hard_positives, positives
from ebgan_nb.editing import Editor
from ebgan_nb.evaluation import evaluate, evaluate_filter, measure_photographs, leak_matrix
from ebgan_nb.faces import render, sample
from ebgan_nb.faces import sample_labelled
from ebgan_nb.losses import discriminator_loss, generator_loss
from ebgan_nb.masks import active_labels, region_mask, feather, training_masks
from ebgan_nb.metrics import with_baselines
from ebgan_nb.models import Discriminator, build
from ebgan_nb.recipes import RECIPES, config
from ebgan_nb.augment import augment
from ebgan_nb.weights import find_weights, load_weights
from ebgan_nb.classifier import AttributeClassifier
from ebgan_nb.adversarial import AdversarialStep
from ebgan_nb.learner import ebgan_learner
from ebgan_nb.training import StopAfter, load_checkpoint, save_checkpoint, training_state

NAMES = ('Smiling', 'Mustache', 'Eyeglasses')
up = lambda *tensors: [t.to('cuda') for t in tensors]

def same(x, y, exactly=True):
    "Is x on the card, and equal to y on the CPU?"
    assert isinstance(x, Card) and not isinstance(y, Card)
    return torch.equal(x.cpu(), y) if exactly else torch.allclose(x.cpu(), y, atol=1e-5)

@pytest.fixture(scope='module')
def faces(): return normalize(sample_labelled(4, seed=3, size=64)[0]), normalize(sample_labelled(4, seed=4, size=64)[0]), region_mask('mouth', size=64).expand(4, -1, -1, -1)

@pytest.fixture(scope='module')
def world(): return SyntheticFaces(48, seed=1)


# what a GPU refuses, and what it allows

def mixes(a, b, net):
    i = torch.tensor([0])
    return [lambda: a + b, lambda: torch.cat([a, b]), lambda: net(b), lambda: torch.where(a > 0, a, b), lambda: a.add_(b), lambda: b[a[:, 0, 0, 0] > 0],
            lambda: a.index_select(0, i), lambda: torch.equal(a, b), lambda: torch.stack([a.sum(), b.sum()])]

def test_mixed_devices_are_refused():
    with card():
        a, b, net = torch.ones(2, 3, 8, 8, device='cuda'), torch.ones(2, 3, 8, 8), torch.nn.Conv2d(3, 4, 3).to('cuda')
        for f in mixes(a, b, net):
            with pytest.raises(RuntimeError, match='same device'): f()
        for f in (a.numpy, lambda: np.asarray(a), lambda: pd.DataFrame({'a': a[0, 0, 0]})):
            with pytest.raises(TypeError, match='numpy'): f()

def test_what_a_gpu_allows_is_allowed():
    with card():
        a, b = torch.arange(6., device='cuda').view(2, 3), torch.arange(6.).view(2, 3)
        assert a.device.type=='cuda' and a.is_cuda and (a + 1).device==a.device
        assert (a + torch.tensor(2.)).tolist()==(b + 2).tolist()           # a number may lie anywhere
        assert torch.where(a > 2, a, torch.tensor(0.)).sum()==12 and a.masked_fill(a > 0, torch.tensor(0.)).sum()==0
        assert a[torch.tensor([1])].tolist()==[[3, 4, 5]] and a[:, [2, 0]].tolist()==[[2, 0], [5, 3]] # so may indices
        a[torch.tensor([True, False])] = 7.
        a.copy_(b)
        assert a.cpu().equal(b) and b.to(a).device==a.device and float(a.sum())==15
        w = torch.nn.Parameter(b.clone())
        (w.to('cuda')*a).sum().backward()                                  # gradients travel, too
        assert w.grad.equal(b)


# the package

@pytest.mark.parametrize('preset', RECIPES)
@pytest.mark.parametrize('attributes', [(), NAMES])
def test_networks(preset, attributes, faces):
    torch.manual_seed(0)
    c = config(preset, 64, attributes=attributes) if attributes else config(preset, 64)
    net, D, (A, B, M), y = build(c).eval(), Discriminator(c), faces, torch.tensor([[1., 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 0]])
    hows = [{}, dict(noise_floor=0.), dict(strength=.5)]
    if attributes: hows += [dict(selected=torch.tensor([1., 0., 0.]), others='source'), dict(y_A=y, y_B=y.flip(0))]
    with torch.no_grad():
        on_the_cpu = [net.edit(A, B, M, **how) for how in hows] + [D(A, M)]
        with card():
            net, D, (a, b, m) = net.to('cuda'), D.to('cuda'), up(A, B, M)
            there = [{k: v.to('cuda') if k[:2]=='y_' else v for k, v in how.items()} for how in hows]
            on_the_card = [net.edit(a, b, m, **how) for how in there] + [D(a, m)]
            with pytest.raises(RuntimeError, match='same device'): net(a, B, m)
            with pytest.raises(RuntimeError, match='same device'): D(A, m)
            assert all(same(x, y) for x, y in zip(on_the_card, on_the_cpu))

def test_losses(faces):
    A, B, M = faces
    code, logits, P, seen = torch.randn(4, 16, 8, 8), torch.randn(9), torch.rand(4, 5, 2), torch.randn(4, 3)
    parts = A, B, M, code, code.flip(0), logits
    more = dict(code_A=code, P=P, landmarks=P.flip(0), cls_logits=seen, cls_target=(seen > 0).float(), cls_mask=torch.ones(4, 3))
    loss, terms = generator_loss(*parts, **more)
    with card():
        x, found = generator_loss(*up(*parts), **{k: v.to('cuda') for k, v in more.items()})
        assert same(x, loss, False) and found.keys()==terms.keys()
        assert same(discriminator_loss(*up(logits, logits))[0], discriminator_loss(logits, logits)[0])
        assert all(isinstance(t, Card) for t in generator_loss(*up(*parts))[1].values())   # also of terms that are not asked for
        with pytest.raises(RuntimeError, match='same device'): generator_loss(A.to('cuda'), *parts[1:])

def test_masks_pictures_and_what_e_may_see(faces):
    A, B, M = faces
    points = sample_labelled(4, seed=3, size=64)[2]
    with card():
        a, b, m = up(A, B, M)
        assert same(augment(a, b, m, generator(0)), augment(A, B, M, generator(0)), False)
        assert same(training_masks(points.to('cuda'), 64, generator(0)), training_masks(points, 64, generator(0)))
        assert same(active_labels(m, None, NAMES), active_labels(M, None, NAMES)) and same(feather(m, 2), feather(M, 2), False)
        assert grid(a).tobytes()==grid(A).tobytes() and to_pil(a[0]).tobytes()==to_pil(A[0]).tobytes()

def test_batches_and_positives(world):
    of = lambda device: dataloaders(world, size=16, bs=8, val_every=2, max_valid=4, device=device).train
    cpu = of('cpu')
    with card():
        gpu = of(None)
        a, b = gpu.batch(3), cpu.batch(3)
        assert all(same(x, y) for x, y in zip(a[:6], b[:6])) and torch.equal(a.idxs, b.idxs) and a.k==b.k==3
        assert same(positives(gpu, a)[0], positives(cpu, b)[0]) and same(hard_positives(gpu, a), hard_positives(cpu, b))

RUNS = dict(course={}, paper=dict(preset='paper', size=64), photographs=dict(preset='photographs'), detailed=dict(preset='detailed'), att=dict(model='att-ebgan'), aux=dict(aux_classifier=True))

def trained(world, batches, device=None, preset='course', size=32, **kwargs):
    "A learner after some batches, with a round of validation"
    dls = dataloaders(world, size=size, bs=4, val_every=2, max_valid=4, attributes=NAMES, device=device)
    learn = ebgan_learner(dls, preset, precision='float32', **kwargs)
    with learn.no_bar(), learn.no_logging(): learn.fit(9, cbs=StopAfter(batches=batches))
    return learn

@pytest.mark.parametrize('run', RUNS)
def test_a_training_on_the_card_is_that_of_the_cpu(run, world):
    "Passes, losses and steps of all players, averaged weights, metrics: nothing is left behind, and each weight is the same"
    on_the_cpu = trained(world, 3, 'cpu', **RUNS[run])
    with card():
        on_the_card = trained(world, 3, **RUNS[run])
        assert all(isinstance(p, Card) for p in on_the_card.model.parameters())
        assert all(isinstance(v, Card) for v in on_the_card.adversarial_step.terms.values())
        a, b = training_state(on_the_card)[0], training_state(on_the_cpu)[0]
    assert a.keys()==b.keys() and all(torch.allclose(a[k], b[k], atol=1e-5) for k in a)
    assert np.allclose(on_the_card.recorder.values, on_the_cpu.recorder.values, atol=1e-4)

def test_a_checkpoint_travels_between_devices(world, tmp_path):
    with card():
        save_checkpoint(trained(world, 2), tmp_path/'checkpoint.safetensors')
        again = trained(world, 0)
        load_checkpoint(again, tmp_path/'checkpoint.safetensors')
        assert all(isinstance(p, Card) for p in again.model.parameters())
        with again.no_bar(), again.no_logging(): again.fit(9, cbs=StopAfter(batches=3))
        a, b = training_state(again)[0], training_state(trained(world, 3))[0]
    assert all(torch.equal(a[k], b[k]) for k in a)
    load_checkpoint(trained(world, 0, 'cpu'), tmp_path/'checkpoint.safetensors')

def test_a_mix_in_the_step_is_found(world, monkeypatch):
    before = AdversarialStep.before_batch
    def mixed(self):
        before(self)
        self.batch = self.batch._replace(landmarks=self.batch.landmarks.cpu())
    monkeypatch.setattr(AdversarialStep, 'before_batch', mixed)
    with card(), pytest.raises(RuntimeError, match='same device'): trained(world, 1)

@pytest.mark.parametrize('weights', ['faces', 'faces-att'])
def test_an_editor(weights):
    a, b = (to_pil(render(sample(1, seed=s), 96)) for s in (1, 2))
    how = dict(attributes=['Smiling'], labels={'Smiling': 1}, others='source') if weights=='faces-att' else {}
    on_the_cpu = Editor.load(weights)
    with card():
        on_the_card = Editor.load(weights, device='cuda')
        x, y = (np.array(e.edit(a, b, 'mouth+nose', **how)) for e in (on_the_card, on_the_cpu))
        assert abs(x.astype(int) - y).max() <= 1
        if how: assert on_the_card.read(b)==pytest.approx(on_the_cpu.read(b), abs=1e-4)

def test_evaluation():
    "Every metric and every rival, of edits, of a filter, and of photographs"
    with card():
        net, att = (load_weights(find_weights(w))[0].to('cuda') for w in ('faces-course', 'faces-att'))
        assert len(evaluate(net, n=2, n_exemplars=2, regions=['mouth'], progress=False))
        assert len(evaluate_filter(att, n=2, progress=False)) and len(leak_matrix(att, n=16))

def test_evaluation_of_photographs(world, tmp_path, monkeypatch):
    monkeypatch.setenv('EBGAN_DATA', str(tmp_path))
    from ebgan_nb.cache import load_cache
    pictures = load_cache(world, 64)
    with card():
        net, reader, i = load_weights(find_weights('faces'))[0].to('cuda'), AttributeClassifier(pictures.attributes, 64).to('cuda').eval(), np.arange(4)
        with torch.inference_mode():
            for key, num, den in measure_photographs(with_baselines(net), ['mouth'], pictures, reader, i, i[::-1].copy(), torch.zeros(256, device='cuda'), 'cuda'):
                assert num.device==den.device or key[2]=='Frechet', key


# whole lessons

@pytest.mark.parametrize('notebook', [n if '/5' in n and '_train_' in n and 'ebgan' in n and 'solutions' not in n else pytest.param(n, marks=pytest.mark.slow) for n in NOTEBOOKS])
def test_a_lesson_runs_on_a_gpu(notebook, tmp_path):
    done = subprocess.run([sys.executable, ROOT/'tests/pretended.py', ROOT/notebook], capture_output=True, text=True, timeout=1800)
    assert not done.returncode, done.stderr[-2000:]
