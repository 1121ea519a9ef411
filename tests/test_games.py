"Schedules as data: EBGAN's own step is a game, bit for bit what a loop written by hand does; who moves when; runs of the zoo that are killed"
import math

import pytest
import torch
from fastai.callback.core import Callback
from fastai.optimizer import Adam

from ebgan_nb import zoo_training
from ebgan_nb.adversarial import classifier_batch, classifier_input, discriminator_input, encoder_input
from ebgan_nb.augment import AUGMENT
from ebgan_nb.core import generator, WrongInput
from ebgan_nb.data import dataloaders
from ebgan_nb.games import Game, Penalty, Phase
from ebgan_nb.labels import label_targets
from ebgan_nb.learner import ebgan_learner
from ebgan_nb.losses import classification_loss, discriminator_loss, generator_loss
from ebgan_nb.masks import coverage
from ebgan_nb.training import read_checkpoint, train
from ebgan_nb.zoo import load_zoo, SYSTEMS
from ebgan_nb.zoo_training import zoo_dataloaders, zoo_learner, zoo_recipe, ZooTrainConfig

SMALL = dict(size=32, bs=4, n_train=64, val_every=2)
NAMES = ['Smiling', 'Mustache', 'Eyeglasses']


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    "Pictures are drawn once for all tests"
    monkeypatch.setenv('EBGAN_DATA', str(tmp_path_factory.getbasetemp()/'games'))

def by_hand(learn, batches):
    "Eq. 7 to 11 as a plain loop with an optimiser for each player: no callback, no schedule, no fastai loop"
    model, r, dl, seed = learn.model.train(), learn.recipe, learn.dls.train, 0
    w, net, D, C = r.losses, learn.model.net, learn.model.D, learn.model.C
    judges = {id(p) for p in C.parameters()} if C else set()
    adam = lambda ps: Adam([*ps], lr=r.lr, mom=.5, sqr_mom=.999, eps=1e-8, wd=0.)
    opt, opt_D, opt_C = adam(p for p in net.parameters() if id(p) not in judges), adam(D.parameters()), C and adam(C.parameters())
    def move(player, loss):
        model.zero_grad(); loss.backward(); player.step(); model.zero_grad()
    for k in range(batches):
        b = dl.batch(k)
        seen = encoder_input(model, dl, b, generator(seed, 'seen', k), AUGMENT[r.augment], r.p_positive, r.p_hard)
        t = None
        if C:
            covered = coverage(b.M, b.landmarks, model.attributes) if w.region_labels_only else torch.ones_like(b.y_A)
            t = label_targets(b.y_A, b.y_B, covered, generator(seed, 'drop', k) if w.label_dropout else None, w.label_dropout)
        out = model(b.A, b.B, b.M, seen, t)
        K = len(out.y)
        move(opt_D, discriminator_loss(*model.discriminate(*discriminator_input(out)).chunk(2))[0])
        if C:
            x, y, counts = classifier_batch(b, covered, math.ceil(w.paste_fraction*len(b.A)))
            move(opt_C, classification_loss(model.read_labels(x), y, counts, w.cls_mean))
        codes, cls = (out.code_B, out.code_Ab), {}
        if C:
            if w.cyc_on_gated: codes = [model.gate(c, t.exemplar_gate[:K]) for c in codes]
            cls = dict(cls_logits=model.read_labels(classifier_input(net, out, w.cls_input)), cls_target=t.target[:K], cls_mask=t.target_mask[:K])
        points = None if out.P is None else b.landmarks/out.A.shape[-1]
        fake = model.discriminate(out.y, out.M[:K])
        move(opt, generator_loss(out.A, out.A_a, out.M, *codes, fake, w, out.code_A, out.P, points, **cls)[0])
    return model

@pytest.mark.parametrize('model', ['ebgan', 'att-ebgan'])
def test_the_game_is_the_loop_written_by_hand(model):
    new = lambda: ebgan_learner(dataloaders('faces', 32, 4, attributes=NAMES, n_train=64, val_every=3), 'course', model, seed=0, precision='float32')
    learn, hand = new(), by_hand(new(), 3)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    for (name, p), q in zip(learn.model.named_parameters(), hand.parameters()): assert torch.equal(p, q), name

def test_ebgan_can_play_another_game():
    "R1 for its D, and three steps on fresh pictures, without a line of code"
    dls = dataloaders('faces', 32, 4, attributes=NAMES, n_train=64, val_every=2)
    learn, plain = (ebgan_learner(dls, 'course', seed=0, precision='float32') for _ in range(2))
    learn.adversarial_step.game = Game((Phase('D', 'judge', (3,), fresh=True, penalty=Penalty(1., 'real', 0.)), Phase('G', 'loss')))
    for l in (learn, plain):
        with l.no_bar(), l.no_logging(): l.fit(1)
    assert learn.adversarial_step.terms['adv_d'].isfinite()
    assert any(not torch.equal(p, q) for p, q in zip(learn.model.D.parameters(), plain.model.D.parameters()))

class Passes(Callback):
    "Passes through each net, and who moves at each step of the optimiser"
    order = 9
    def before_fit(self):
        self.calls, self.moved, step = dict(D=0), [], self.opt.step
        self.hook = self.model.D.register_forward_hook(lambda *_: self.calls.update(D=self.calls['D'] + self.training))
        def watched():
            before = {n: [p.clone() for p in getattr(self.model, n).parameters()] for n in ('net', 'D')}
            step()
            self.moved.append(''.join(n[0] for n in before if any(not torch.equal(p, q) for p, q in zip(before[n], getattr(self.model, n).parameters()))))
        self.opt.step = watched
    def after_fit(self): self.hook.remove()

PASSES = dict(attgan=(5, 5*2 + 1), stargan=(5, 5*2 + 1), mulgan=(3, 3*2 + 1)) # steps of D in a batch; its passes: a step, its penalty, and G's

@pytest.mark.parametrize('system', PASSES)
def test_published_schedules(system):
    steps, passes = PASSES[system]
    learn = zoo_learner(zoo_dataloaders(system, **SMALL | dict(size=64)), system, 'paper', precision='float32', cbs=Passes(), config=dict(width=8, d_width=8, d_hidden=16))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert learn.passes.moved==[*'D'*steps, 'n']*2
    assert learn.passes.calls['D']==2*passes

@pytest.mark.parametrize('precision', ['float32', 'bf16'])
@pytest.mark.parametrize('system', SYSTEMS)
def test_every_system_trains_saves_and_loads(system, precision, tmp_path):
    s = ZooTrainConfig(system=system, precision=precision, batches=2, **SMALL)
    learn = train(s, tmp_path/'run', progress=False)
    assert all(v.isfinite() for v in learn.adversarial_step.terms.values())
    net, b = load_zoo(tmp_path/'run'), learn.dls.train.batch(0)
    y = net.edit(b.A, b.B, b.M, y_A=b.y_A, y_B=b.y_B)
    assert y.shape==b.A.shape and torch.equal(y*(1 - b.M), b.A*(1 - b.M))

@pytest.mark.parametrize('system', ['stgan', 'genegan'])
def test_a_run_killed_within_a_published_schedule_resumes_bit_for_bit(system, tmp_path):
    s = dict(system=system, preset='course', precision='float32', **SMALL)
    paper = zoo_recipe(system, 'paper').game
    def run(n, folder, resume=False):
        with pytest.MonkeyPatch.context() as m: # the published schedule on small nets
            m.setattr(zoo_training, '_COURSE', paper)
            return train(ZooTrainConfig(batches=n, **s), tmp_path/folder, resume=resume, progress=False)
    run(3, 'whole'); run(1, 'parts'); run(3, 'parts', resume=True)
    whole, parts = (read_checkpoint(tmp_path/f/'checkpoint.safetensors')[0] for f in ('whole', 'parts'))
    assert whole.keys()==parts.keys()
    for k in whole: assert torch.equal(whole[k], parts[k]), k

def test_wrong_input_has_one_line(tmp_path):
    for wrong, says in ((dict(system='stgam'), "did you mean 'stgan'"), (dict(preset='detailed'), 'preset'), (dict(attributes=['Smilling']), 'Smiling')):
        with pytest.raises(WrongInput, match=says): train(ZooTrainConfig(**SMALL | wrong | dict(batches=1)), tmp_path/'run', progress=False)
    assert not (tmp_path/'run').exists()
