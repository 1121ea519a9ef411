"Benchmarks of the training step"
import statistics
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from unittest.mock import patch
import torch
from torch import nn
from ebgan_nb import adversarial
from ebgan_nb.core import RunFailed
from ebgan_nb.data import dataloaders
from ebgan_nb.learner import best_precision, ebgan_learner
from common import Skipped, benchmark, clock, interleaved, median_of
from handwritten import LeanTwoPhases, OnePass, TwoPhases

ENDLESS = 10**6  # batches a round: no validation while the clock runs

def learner(size=64, bs=32, n=256, **kwargs):
    "The course's learner on drawn faces"
    dls = dataloaders('faces', size=size, bs=bs, n_train=n, val_every=ENDLESS, balance=True)
    return ebgan_learner(dls, 'course', **kwargs)

def begun(learn):
    "What `fit` does before its first batch -> a function that does the next batch, data included"
    learn.remove_cb(learn.progress)
    learn.create_opt()
    learn.opt.set_hypers(lr=learn.lr)
    learn.n_epoch, learn.epoch = 1, 0
    learn('before_fit'); learn('before_epoch')
    learn.dl = learn.dls.train
    learn('before_train')
    learn.n_iter, batches = len(learn.dl), enumerate(learn.dl)
    return lambda: learn.one_batch(*next(batches))

def parts_of(o): return {'E': o.net.E, 'E.landmark_net': o.net.E.landmark_net, 'G.enc': o.net.G.enc, 'G.dec': o.net.G.dec, 'D': o.D}

@contextmanager
def counted(modules):
    "{net: [calls, pictures]} of the forward passes inside; G.dec's are its codes"
    count, handles = {k: [0, 0] for k in modules}, []
    for k, m in modules.items():
        def hook(_, args, out, k=k): count[k] = [count[k][0] + 1, count[k][1] + len(out[0] if isinstance(out, tuple) else out)]
        handles.append(m.register_forward_hook(hook))
    try: yield count
    finally: [h.remove() for h in handles]

def same_losses(learn, ours, rival, batches=2):
    "Steps of both from the same weights on the same batches; the largest relative difference of a loss in the first, and in the last"
    differ = []
    for _ in range(batches):
        ours()
        mine, theirs = learn.adversarial_step.terms, rival.step()
        if theirs.keys()!=mine.keys(): raise RunFailed(f'the rival has other losses: {[*theirs]} for {[*mine]}')
        differ.append(max(abs(float(mine[k]) - float(v))/max(abs(float(v)), 1e-3) for k, v in theirs.items()))
    if differ[0] > 1e-3 or differ[-1] > .02: raise RunFailed(f'the rival computes something else: losses differ by {differ}')
    return differ

def against(rival, scale):
    "fastai's step and ours over a rival's, with proof that both compute the same"
    learn = learner(bs=scale(32, 8))
    ours = begun(learn)
    theirs = rival(learn)
    with counted(parts_of(learn.model)) as a, counted(parts_of(theirs)) as b:
        differ = same_losses(learn, ours, theirs)
    passes = {k: {who: dict(calls=c[k][0]/len(differ), pictures=c[k][1]/len(differ)) for who, c in (('ours', a), ('rival', b))} for k in a}
    return dict(interleaved(ours, theirs.step, scale(15, 3), warm=scale(2, 1)), passes=passes, losses_differ=differ)

@benchmark
def step_over_handwritten(scale):
    "A step through fastai and our callback over the same step as a plain loop"
    return against(OnePass, scale)

@benchmark
def step_over_two_phase(scale):
    "A step over one that runs the generator twice, as fastai's GANLearner does"
    found = against(TwoPhases, scale)
    return found if scale.quick else dict(found, lean=against(LeanTwoPhases, scale))

@benchmark
def bf16_over_float32(scale):
    "How many times as many steps in bf16"
    if best_precision(torch.device('cpu'))!='bf16' and not torch.cuda.is_available(): raise Skipped('this CPU has no instructions for bf16: best_precision says float32')
    fast, slow = (begun(learner(bs=scale(32, 8), precision=p)) for p in ('bf16', 'float32'))
    found = interleaved(slow, fast, scale(9, 3))
    return dict(ratio=found['ratio'], bf16=found['rival'], float32=found['ours'], times=found['times'])

CONVOLUTIONS = nn.Conv2d, nn.ConvTranspose2d

def recorded(model, step):
    "Every convolution of one step: (layer, input, output's gradient or None); tensors like those that were there"
    calls = []
    like = lambda t: torch.empty_like(t.detach()).normal_()  # keeps type and memory format
    def hook(m, args, out):
        half = out.dtype  # under autocast the layer's input and weight are cast to it
        weight = m.weight.detach().to(half, copy=True)
        call = dict(m=m, x=like(args[0]).to(half), w=weight, b=None if m.bias is None else m.bias.detach().to(half, copy=True),
                    g=None, mask=(args[0].requires_grad, m.weight.requires_grad, m.bias is not None and m.bias.requires_grad))
        calls.append(call)
        if out.requires_grad: out.register_hook(lambda g: call.update(g=like(g)))
    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, CONVOLUTIONS)]
    step()
    [h.remove() for h in handles]
    return calls

def convolve(c):
    "A recorded convolution again, forward and, as far as the step needs it, backward"
    m, transposed = c['m'], isinstance(c['m'], nn.ConvTranspose2d)
    how = m.stride, m.padding, m.dilation, transposed, m.output_padding, m.groups
    torch.ops.aten.convolution(c['x'], c['w'], c['b'], *how)
    if c['g'] is not None and any(c['mask']):
        torch.ops.aten.convolution_backward(c['g'], c['x'], c['w'], [m.out_channels] if c['mask'][2] else None, *how, c['mask'])

@benchmark
def conv_efficiency(scale):
    "The convolutions of a step alone, over the whole step"
    learn = learner(bs=scale(32, 8))
    step = begun(learn)
    step()
    calls = recorded(learn.model, step)
    @torch.no_grad()
    def alone():
        for c in calls: convolve(c)
    return dict(interleaved(alone, step, scale(11, 3)), convolutions=len(calls), backward=sum(c['g'] is not None for c in calls), precision=learn.mixed_precision.used)

class Parts:
    "Seconds by part of a step; a part within another counts only for itself"
    def __init__(self): self.spent, self.open = defaultdict(float), []
    @contextmanager
    def __call__(self, name):
        now = clock()
        if self.open: self.spent[self.open[-1][0]] += now - self.open[-1][1]
        self.open.append([name, now])
        try: yield
        finally:
            now = clock()
            self.spent[name] += now - self.open.pop()[1]
            if self.open: self.open[-1][1] = now
    def timed(self, name, fn):
        def wrapper(*args, **kwargs):
            with self(name): return fn(*args, **kwargs)
        return wrapper

def watched(learn):
    "(object, method, part): where a step's time goes"
    step = learn.adversarial_step
    return [(learn.dls.train, 'batch', 'batch'), (adversarial, 'positives', 'positives'), (step, 'augment', 'augmentation'),
            (learn.model, 'forward', 'passes of E and G'), (step, 'play', "D's step"), (learn, 'loss_func', 'losses'),
            (learn, '_backward', 'backward of E and G'), (learn.opt, 'step', 'optimiser'), (learn.ema.ema_model, 'update_parameters', 'average')]

@benchmark
def step_by_part(scale):
    "Where the time of a step goes, and how much of it is waiting for data"
    learn = learner(bs=scale(32, 8))
    step, parts, shares = begun(learn), Parts(), []
    with ExitStack() as stack:
        for o, method, name in watched(learn): stack.enter_context(patch.object(o, method, parts.timed(name, getattr(o, method))))
        step()
        for _ in range(scale(11, 3)):
            parts.spent.clear()
            with parts('the rest: fastai and callbacks'): step()
            shares.append(dict(parts.spent))
    ms = {k: 1000*statistics.median(s.get(k, 0.) for s in shares) for k in shares[0]}
    whole = 1000*statistics.median(sum(s.values()) for s in shares)
    share = lambda *names: statistics.median(sum(s[k] for k in names)/sum(s.values()) for s in shares)
    return dict(ms=ms, step_ms=whole, loader_wait=share('batch'), loader_wait_with_positives=share('batch', 'positives'), data_in_all=share('batch', 'positives', 'augmentation'))

@benchmark
def step_by_size(scale):
    "Pictures a second by size of picture and of batch"
    rate = lambda size, bs: bs/median_of(begun(learner(size, bs, n=128)), 7 if bs*size**2 < 32*128**2 and not scale.quick else 3)
    sizes, batches = scale((32, 64, 128), (32, 64)), scale((8, 32, 128), (4, 8))
    return dict(pictures_per_second_by_size={s: rate(s, scale(32, 4)) for s in sizes}, pictures_per_second_by_batch={b: rate(64, b) for b in batches})
