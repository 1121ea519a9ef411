"""A GPU that is pretended: tensors that say they lie on one, and calculate on the CPU, so that code which mixes devices is found on any machine.
`python tests/pretended.py NOTEBOOK` runs a lesson on it.

Unlike torch's `FakeTensorMode` these have values: whole lessons run on them. Inside `card()`, `.to('cuda')` and `device='cuda'` give such tensors; an operation that
meets tensors of both kinds is refused as a GPU refuses it, and so are `.numpy()` and whatever asks for an array."""
import os
import re
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import nbformat
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

CARD = torch.device('cuda:0')
aten = torch.ops.aten
BY_INDEX = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default, aten._unsafe_index.Tensor)
NUMBERS = (*BY_INDEX[1:4], aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor)  # these take a number from the CPU, as all pointwise operations do
COPIES = (aten.copy_.default, aten._to_copy.default)


class Card(torch.Tensor):
    "On the GPU, it says. To torch's engine it is a tensor without storage (`meta`); its numbers are `self.real`"
    @staticmethod
    def __new__(cls, real):
        card = torch.Tensor._make_wrapper_subclass(cls, real.shape, strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype, device='meta')
        card.real_ = real
        return card

    device, is_cuda, is_cpu, is_meta = (property(lambda self, v=v: v) for v in (CARD, True, False, False))
    def __repr__(self, **_): return f"{self.real_!r} on {CARD}"
    def __format__(self, spec): return format(self.item() if self.ndim==0 else repr(self), spec)
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return calculated(func, args, kwargs or {})

def on_card(device):
    device = torch.device(device)
    if device.index: raise RuntimeError('CUDA error: invalid device ordinal')
    return device.type=='cuda'

def real(x): return x.real_ if isinstance(x, Card) else x

def mixed(func, args, kwargs):
    "The tensors that lie elsewhere, if a GPU would refuse this operation; indices may lie on the CPU, and mostly numbers (tensors without a dimension)"
    if func in COPIES: return []
    flat = tree_flatten((args[0], args[2:], kwargs) if func in BY_INDEX else (args, kwargs))[0]
    tensors = [x for x in flat if isinstance(x, torch.Tensor)]
    if not any(isinstance(x, Card) for x in tensors): return [x for x in tree_flatten(args[1])[0] if isinstance(x, Card)] if func in BY_INDEX else []
    numbers = torch.Tag.pointwise in func.tags or func in NUMBERS
    return [x for x in tensors if not isinstance(x, Card) and (x.ndim or not numbers)]

def calculated(func, args, kwargs):
    "One operation of torch, on the real numbers"
    elsewhere = mixed(func, args, kwargs)
    if elsewhere: raise RuntimeError(f'Expected all tensors to be on the same device: {func} met {CARD} and cpu {[tuple(x.shape) for x in elsewhere]}')
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    cards, device = any(isinstance(x, Card) for x in tensors), kwargs.get('device')
    if device is not None and (Python.plans or any(x.device.type=='meta' for x in tensors if not isinstance(x, Card))): pass # shapes without numbers, as somebody asked for
    elif device is not None: cards, kwargs = device.type in ('cuda', 'meta'), kwargs | dict(device=torch.device('cpu'))
    elif func in COPIES[:1]: cards = isinstance(args[0], Card)
    out = func(*tree_map(real, args), **tree_map(real, kwargs))
    if not cards: return out
    return return_and_correct_aliasing(func, args, kwargs, tree_map(lambda x: Card(x) if isinstance(x, torch.Tensor) else x, out))

class Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return calculated(func, args, kwargs or {})

class Up(torch.autograd.Function):
    "From the CPU to the card"
    forward, backward = staticmethod(lambda ctx, x: Card(x.detach().clone())), staticmethod(lambda ctx, g: real(g).clone())

class Down(torch.autograd.Function):
    "And back"
    forward, backward = staticmethod(lambda ctx, x: real(x).detach().clone()), staticmethod(lambda ctx, g: Card(g.clone()))

def moved(x, to): return x if to==isinstance(x, Card) else (Up if to else Down).apply(x)

def indices(i):
    "Lists as tensors: torch would make them where the card is, without values"
    if isinstance(i, tuple): return tuple(map(indices, i))
    return torch.tensor(i) if isinstance(i, list) and i else i

def to(x, *args, device=None, dtype=None, other=None, non_blocking=False, copy=False, memory_format=torch.preserve_format):
    "`Tensor.to` in all its forms"
    for a in (*args, other):
        if isinstance(a, torch.Tensor): device, dtype = a.device, a.dtype
        elif isinstance(a, torch.dtype): dtype = a
        elif isinstance(a, (str, torch.device)): device = a
    if device is not None: x = moved(x, on_card(device))
    return torch.Tensor.to(x, dtype or x.dtype, copy=copy, memory_format=memory_format)

class Python(TorchFunctionMode):
    "What Python asks for: `device=`, `.to`, `.cpu`, and what a GPU's tensors refuse"
    plans = False # is it asking for torch's own `meta` tensors?
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name, T = dict(kwargs or {}), getattr(func, '__name__', ''), torch.Tensor
        if func is T.to: return to(*args, **kwargs)
        if func is T.cuda: return moved(args[0], True)
        if func is T.cpu: return moved(args[0], False)
        if func in (T.pin_memory, T.is_pinned): return args[0] if func is T.pin_memory else False
        if args and isinstance(args[0], Card):
            if func in (T.numpy, T.__array__): raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")
            if func in (T.__getitem__, T.__setitem__): return func(args[0], indices(args[1]), *args[2:])
            if func is T.tolist: return real(args[0].detach()).tolist()
            if func is T.new_tensor: return moved(real(args[0]).new_tensor(*args[1:], **{k: v for k, v in kwargs.items() if k != 'device'}), on_card(kwargs.get('device', CARD)))
        if kwargs.get('device') is not None and torch.device(kwargs['device']).type=='meta':
            with patch.object(Python, 'plans', True): return func(*args, **kwargs)
        if kwargs.get('device') is not None and name != '_parse_to':
            up = on_card(kwargs.pop('device'))
            if func in (torch.tensor, torch.as_tensor, torch.asarray): return moved(func(*args, **kwargs), up)
            if args and isinstance(args[0], torch.Tensor): return moved(func(*args, **kwargs), up)
            return moved(func(*args, device='cpu', **kwargs), up)
        return func(*args, **kwargs)

class NoGradient(torch.inference_mode):
    "In place of `inference_mode`, whose tensors cannot be wrapped"
    def __enter__(self):
        self.context = torch.no_grad() if self.mode else torch.enable_grad()
        self.context.__enter__()
    def __exit__(self, *error): self.context.__exit__(*error)

@contextmanager
def card():
    "Inside there is a GPU, and the package finds it to be the best device; batches are loaded in turn, since only this thread knows of it"
    with ExitStack() as stack:
        stack.enter_context(patch('ebgan_nb.core.best_device', lambda: torch.device('cuda')))
        stack.enter_context(patch('ebgan_nb.data.parallel_map', lambda f, ks, workers=1: map(f, ks)))
        stack.enter_context(patch('torch.cuda.is_bf16_supported', lambda *args, **kwargs: True))
        stack.enter_context(patch('torch.cuda.amp.common.amp_definitely_not_available', lambda: False)) # scalers scale; networks go on in 32 bits
        stack.enter_context(patch.multiple(torch.inference_mode, __enter__=NoGradient.__enter__, __exit__=NoGradient.__exit__))
        stack.enter_context(Operations())
        stack.enter_context(Python())
        yield CARD

LEFT_OUT = {'8cd63994': 'a gradient that overflows in 16 bits', '546d03aa': 'a clock: pretending takes time'} # cells by id, and what they are about

def lesson(notebook):
    "Run a notebook's cells in this process, as a reader with a GPU would: the first cell that fails, and why; None if all is well"
    os.environ.update(EBGAN_QUICK='1', IN_TEST='1', MPLBACKEND='agg')
    os.chdir(notebook.parent)
    shell = InteractiveShell.instance()
    shell.user_ns['display'] = lambda *args, **kwargs: None
    with card():
        for i, c in enumerate(nbformat.read(notebook.name, as_version=4).cells):
            if c.cell_type!='code' or c.id in LEFT_OUT or re.search(r'^#\|\s*eval: *false', c.source, re.M): continue
            with capture_output(): done = shell.run_cell(c.source)
            error = done.error_before_exec or done.error_in_exec
            if error is not None: return f'{notebook.name}[{i}] {c.id}: {type(error).__name__}: {error}'

if __name__=='__main__': sys.exit(lesson(Path(sys.argv[1]).resolve()))
