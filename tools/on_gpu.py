"""Ten minutes of a GPU: `python tools/on_gpu.py --minutes 8 --out DIR` draws faces on the device, trains an editor on their true
edits, measures it on faces that it has not seen, and leaves `weights.safetensors` and `figures.json` in DIR. Pictures never leave the
device, and nothing waits for the host within a step. It runs on a CPU as well, small (`--device cpu --n 64 --batches 3`)."""
import dataclasses
import json
import math
import time
from contextlib import nullcontext

import torch

from ebgan_nb.core import RunFailed, WrongInput, check_device, generator, normalize
from ebgan_nb.files import Parser, command, float_range, int_range, user_path, write_bytes
from ebgan_nb.attributes import REGIONS
from ebgan_nb.geometry import align_eyes
from ebgan_nb.masks import active_labels, composite, mask_out, region_mask, training_masks
from ebgan_nb.faces import render, sample, transfer
from ebgan_nb.cache import load_cache
from ebgan_nb.data import mirror_landmarks
from ebgan_nb.triples import Triples, draw_triples
from ebgan_nb.models import SIZES, build
from ebgan_nb.augment import photometric_jitter
from ebgan_nb.weights import find_weights, load_weights, save_weights
from ebgan_nb.losses import true_edit_loss
from ebgan_nb.recipes import ATTRIBUTES, recipe
from ebgan_nb.metrics import achieved_change, psnr, ratio_of_sums

NETWORKS = dict( # by name: what differs from the recipe
    small={},
    large=dict(e_width=32, g_width=32, e_depth=2, e_res_channels=128, g_depth=2, full_width=24, fine_channels=(32, 16, 8), blend_width=24),
    wide=dict(e_width=48, g_width=40, code_channels=64, e_depth=3, e_res_channels=160, g_depth=3, full_width=32, fine_channels=(48, 24, 16),
              blend_width=32))
TRAIN, VALIDATION = 7*10**8, 8*10**8 # seeds of the faces: neither those that `ebgan_train` draws nor those of the tests


def photographs(data, size, n, device):
    "Photographs as triples: the exemplar is A itself, in other light, and so the true edit is A"
    pictures = load_cache(data, size)
    x, P = pictures.center_crop(pictures.split('train'))
    i, g = torch.arange(n) % len(x), generator(0, 'photographs')
    A, P, none = x[i].to(device), P[i], torch.zeros(n, 0, device=device)
    B = torch.cat([((photometric_jitter(normalize(a), g) + 1)*127.5 + .5).clamp(0, 255).to(torch.uint8) for a in A.split(2048)])
    M = torch.cat([training_masks(p, size, g) for p in P.split(2048)]).to(device) > 0
    P = P.to(device)/size
    return Triples(A, B, A, M, P, P, none, none, none)

def gates(t, attributes):
    "The triples with gates in place of labels: those of the labels that each mask answers for, and of B's only those that T takes"
    parts = [active_labels(M.float(), P*M.shape[-1], attributes) for M, P in zip(t.M.split(1024), t.P_A.split(1024))]
    active = torch.cat(parts)
    return t._replace(y_A=active*t.y_A, y_B=active*t.y_B*t.selected)

def draw(args, attributes, device):
    "All that is learnt from, on the device"
    portion = 16_384
    starts = range(0, args.n, portion)
    more = lambda i: draw_triples(min(portion, args.n - i), TRAIN + 10**7*args.seed + i, args.size, attributes, device=device, group=64)
    parts = [more(i) for i in starts]
    t = Triples(*map(torch.cat, zip(*parts)))
    if attributes: t = gates(t, attributes)
    if args.photographs: t = Triples(*map(torch.cat, zip(t, photographs(args.photographs, args.size, args.n, device))))
    return t


def networks(args, attributes):
    "Fresh networks, or those of --init; where others have learnt to find landmarks and to read labels, theirs are taken, and rest"
    alone = dict(align_exemplar=False, blend_width=0) if args.photographs else {} # aligned; and nothing says which pixels should stay
    torch.manual_seed(args.seed)
    changes = NETWORKS[args.networks] | alone
    base = recipe('supervised')
    if attributes: # blocks for the labels, and twice as many channels that no label switches
        changes = {k: v for k, v in changes.items() if k not in ('code_channels', 'fine_channels')}
        base = dataclasses.replace(base, free_fine=tuple(2*c for c in base.free_fine))
    net = build(base.config(args.size, attributes, **changes))
    if args.init:
        known, _ = load_weights(find_weights(args.init))
        if known.config!=net.config: raise WrongInput(f'--init {args.init}: made for {known.config}, this run is {net.config}')
        net.load_state_dict(known.state_dict())
    elif args.size==64:
        known, _ = load_weights(find_weights('faces-att' if attributes else 'faces'))
        if net.E.landmark_net: net.E.landmark_net.load_state_dict(known.E.landmark_net.state_dict())
        if attributes: net.C.load_state_dict(known.C.state_dict())
    if args.init or args.size==64:
        for part in (net.E.landmark_net, getattr(net, 'C', None)):
            if part: part.requires_grad_(False)
    return net


def batch(t, i, u, jitter):
    "Triples number i, the second half mirrored, the first eighth with A as exemplar; u: random (n, 2, 5, 2), moves landmarks by `jitter`"
    A, B, T, M, P_A, P_B, gate_A, gate_B, _ = (x[i] for x in t)
    A, B, T, M, n, k = normalize(A), normalize(B), normalize(T), M.float(), len(i)//2, len(i)//8
    A, B, T, M = (torch.cat([x[:n], x[n:].flip(-1)]) for x in (A, B, T, M))
    P_A, P_B = (torch.cat([P[:n], mirror_landmarks(P[n:])]) for P in (P_A, P_B))
    B, T, P_B, gate_B = (torch.cat([x[:k], y[k:]]) for x, y in ((A, B), (A, T), (P_A, P_B), (gate_A, gate_B)))
    return A, align_eyes(B, P_B + jitter*u[:, 1], P_A + jitter*u[:, 0]), T, M, P_A, gate_A, gate_B

def error(y, T, M, args):
    "Distance to the true edit, and of the differences between neighbours"
    d = (y - T)*M
    slope = (d.diff(dim=-1).abs().sum((1, 2, 3)) + d.diff(dim=-2).abs().sum((1, 2, 3)))/(3*M.sum((1, 2, 3)))
    return 10*true_edit_loss(y, T, M) + args.grad*slope.mean()

def loss_of(net, b, args, autocast):
    "Reconstruction, the true edit, and the true edit once more after the blend"
    A, B, T, M, P_A, gate_A, gate_B = b
    with autocast():
        code_A, code_B = net.E(torch.cat([A, B]), torch.cat([M, M])).chunk(2)
        if net.config.attributes: code_A, code_B = net.filter(code_A, gate_A), net.filter(code_B, gate_B)
        A_a, A_b = net.G.dec(net.G.enc(mask_out(A, M), M), torch.cat([code_A, code_B])).chunk(2)
        y = net.blend_source(A, A_b.float(), A_a.float(), M) if net.blend else A_b
    A_a, A_b, y = A_a.float(), A_b.float(), composite(y.float(), A, M)
    loss = error(A_b, T, M, args) + .5*error(A_a, A, M, args)
    if net.blend: loss = loss + error(y, T, M, args)
    wanted, missed = ((x - T).square().mul(M).sum((1, 2, 3)) for x in (A, y))
    loss = loss + args.relative*(missed/(wanted + .004*M.sum((1, 2, 3)))).mean() # 1 - the achieved change
    finds = net.E.landmark_net and any(p.requires_grad for p in net.E.landmark_net.parameters())
    return loss + 20*(net.E.landmark_net(A) - P_A).abs().mean() if finds else loss

def stepper(net, b, opt, args, device):
    "A function that takes one step on the tensors b. On a GPU the step is recorded once and replayed: thousands of launches become one"
    half = lambda: torch.autocast('cuda', torch.bfloat16, cache_enabled=False)
    def step():
        loss = loss_of(net, b, args, half if device.type=='cuda' else nullcontext)
        loss.backward()
        opt.step()
        return loss.detach()
    def eager():
        opt.zero_grad()
        return step()
    if device.type!='cuda' or args.eager: return eager
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(4): eager()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    opt.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph): loss = step()
    def replay():
        graph.replay()
        return loss
    return replay

def train(net, t, args, device, seconds):
    "Adam, its rate falling as a cosine until the time is over (the clock decides) or with --batches; averaged weights"
    params = [p for p in net.parameters() if p.requires_grad]
    rate, gpu = torch.tensor(0., device=device), device.type=='cuda'
    opt = torch.optim.Adam(params, rate if gpu else 0., betas=(args.beta, .99), **dict(capturable=True, fused=True) if gpu else {})
    averages, g = [p.detach().clone() for p in params], torch.Generator(device).manual_seed(args.seed)
    def drawn():
        i = torch.randint(len(t.A), (args.bs,), generator=g, device=device)
        return batch(t, i, torch.randn(args.bs, 2, 5, 2, generator=g, device=device), args.jitter)
    b = drawn()
    step, began, k, done, log, shown = stepper(net, b, opt, args, device), time.monotonic(), 0, 0., [], 0.
    while done < 1:
        lr = args.lr*min(1, (k + 1)/100)*(.5 + .5*math.cos(math.pi*done))
        if gpu: rate.fill_(lr)
        else: opt.param_groups[0]['lr'] = lr
        for x, new in zip(b, drawn()): x.copy_(new)
        loss = step()
        with torch.no_grad(): torch._foreach_lerp_(averages, params, 1 - min(.9995, (k + 1)/(k + 10)))
        k += 1
        if k % 20 and not args.batches: continue
        if gpu: torch.cuda.synchronize()
        elapsed = time.monotonic() - began
        done = k/args.batches if args.batches else elapsed/seconds
        if done >= 1 or elapsed - shown > 20:
            value, shown = loss.item(), elapsed
            if not math.isfinite(value): raise RunFailed(f'the loss is not finite at batch {k}: start again with a lower --lr')
            log.append([k, round(value, 4), round(elapsed, 1)])
            print('batch {}: loss {}, {} s'.format(*log[-1]), flush=True)
    with torch.no_grad():
        for p, q in zip(params, averages): p.copy_(q)
    return k, log, time.monotonic() - began


@torch.no_grad()
def score(net, device, n):
    "Achieved change and reconstruction (dB) of validation faces, region by region; with a filter also a selective edit"
    size, attributes, out = net.config.size, net.config.attributes, {}
    people = sample(2*n, VALIDATION, correlated=False)
    a, b = people[:n], people[n:]
    drawn = lambda p: normalize(render(p, size, device=device))
    A, B = drawn(a), drawn(b)
    edits = lambda B, M, **how: torch.cat([net.edit(x, y, M, **how) for x, y in zip(A.split(50), B.split(50))])
    for r in REGIONS:
        M, T = region_mask(r, size=size).to(device), drawn(transfer(a, b, r))
        change = ratio_of_sums(*achieved_change(edits(B, M), A, T, M))
        out[r] = [round(change, 3), round(ratio_of_sums(*psnr(edits(A, M, noise_floor=0.), A, M)), 2)]
    if attributes:
        half = attributes[1::2]
        T, M = drawn(transfer(a, b, 'face', attributes=half)), region_mask('face', size=size).to(device)
        y = edits(B, M, selected=torch.tensor([x in half for x in attributes]).float().to(device))
        out['half of the attributes'] = [round(ratio_of_sums(*achieved_change(y, A, T, M)), 3), None]
    return out


def parser():
    p = Parser(prog='on_gpu.py', description=__doc__)
    p.add_argument('--out', required=True, type=user_path, help='folder for weights and figures')
    p.add_argument('--minutes', type=float_range(.01, 600), default=8., help='in all, drawing and measuring included')
    p.add_argument('--batches', type=int_range(1), help='train so many batches, whatever the clock says')
    p.add_argument('--model', choices=('ebgan', 'att-ebgan'), default='ebgan')
    p.add_argument('--networks', choices=NETWORKS, default='large')
    p.add_argument('--size', type=int, choices=SIZES, default=128, help='pixels')
    p.add_argument('--photographs', help="CelebA's folder or zip: as many photographs as drawn triples are mixed in")
    p.add_argument('--n', type=int_range(16), default=100_000, help='triples')
    p.add_argument('--bs', type=int_range(8), default=256, help='triples in a batch')
    p.add_argument('--lr', type=float_range(1e-7, 1.), default=1e-3, help="Adam's rate at the beginning")
    p.add_argument('--beta', type=float_range(0., .999), default=.9, help="Adam's momentum")
    p.add_argument('--grad', type=float_range(0., 1e3), default=4., help='weight of the differences between neighbours')
    p.add_argument('--relative', type=float_range(0., 1e3), default=1., help='weight of the error relative to the change')
    p.add_argument('--jitter', type=float_range(0., .1), default=0., help='moves the landmarks that exemplars are aligned by')
    p.add_argument('--seed', type=int_range(0, 9), default=0)
    p.add_argument('--n-score', type=int_range(2), default=300, help='validation pairs')
    p.add_argument('--init', help='weights to start from, of the same networks')
    p.add_argument('--eager', action='store_true', help='on a GPU: launch each operation by itself, record no graph')
    p.add_argument('--device', help="'cuda', 'cpu' ...; by default the best")
    return p

@command
def main(args=None):
    args, began = parser().parse_args(args), time.monotonic()
    device, attributes = check_device(args.device), ATTRIBUTES if args.model=='att-ebgan' else ()
    if args.photographs and attributes: raise WrongInput('--photographs: Att-EBGAN learns drawn faces alone here; leave --model out')
    gpu = device.type=='cuda'
    if gpu: torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    net = networks(args, attributes).to(device, memory_format=torch.channels_last)
    args.out.mkdir(parents=True, exist_ok=True)
    t = draw(args, attributes, device)
    drawn = time.monotonic() - began
    print(f'{args.n} triples drawn in {drawn:.1f} s', flush=True)
    k, log, seconds = train(net, t, args, device, max(1., 60*args.minutes - drawn - 25)) # to measure takes a while, too
    figures = dict(card=torch.cuda.get_device_name() if gpu else 'cpu', batches=k, pictures_per_second=round(k*args.bs/seconds),
        seconds=round(seconds, 1), seconds_to_draw=round(drawn, 1), gigabytes=gpu and round(torch.cuda.max_memory_allocated()/2**30, 1))
    settings = {key: v for key, v in vars(args).items() if key not in ('out', 'device', 'init', 'photographs')}
    kind = dict(regions_template='celeba') if args.photographs else {}
    info = settings | dict(teacher='supervised: true edits of drawn faces', made_with='tools/on_gpu.py', data='faces', card=figures['card'],
        batches=k, recipe=dict(name='supervised', noise_floor=net.noise_floor if net.blend else 0.), **kind)
    save_weights(args.out/'weights.safetensors', net.eval().float(), info)
    figures['score'] = score(net, device, args.n_score)
    write_bytes(args.out/'figures.json', (json.dumps(dict(settings=settings, log=log, **figures), indent=1) + '\n').encode())
    print(json.dumps(figures), flush=True)

if __name__=='__main__': main()
