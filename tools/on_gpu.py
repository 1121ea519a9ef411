"""Ten minutes of a GPU: `python tools/on_gpu.py --minutes 8 --out DIR` draws faces on the device, trains an editor on their true edits, measures it on faces that it has
not seen, and leaves `weights.safetensors` and `figures.json` in DIR. Pictures never leave the device, and nothing waits for the host within a step.
It runs on a CPU as well, small (`--device cpu --n 64 --batches 3`)."""
import json
import math
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F

from ebgan_nb.core import RunFailed, check_choice, check_device, generator, normalize
from ebgan_nb.files import Parser, command, float_range, int_range, user_path
from ebgan_nb.geometry import align_eyes
from ebgan_nb.masks import active_labels, composite, mask_out, region_mask, training_masks
from ebgan_nb.attributes import REGIONS
from ebgan_nb.faces import render, sample, transfer
from ebgan_nb.metrics import achieved_change, psnr, ratio_of_sums
from ebgan_nb.models import Config, build
from ebgan_nb.augment import photometric_jitter
from ebgan_nb.cache import load_cache
from ebgan_nb.recipes import ATTRIBUTES
from ebgan_nb.triples import Triples, draw_triples
from ebgan_nb.weights import find_weights, load_weights, save_weights

SIZES = dict( # networks by name
    small=dict(e_width=24, g_width=24, code_size=8, code_channels=48, e_depth=1, e_res_channels=96, g_depth=1, full_width=16, fine_channels=(24, 12, 8), blend_width=16),
    large=dict(e_width=32, g_width=32, code_size=8, code_channels=48, e_depth=2, e_res_channels=128, g_depth=2, full_width=24, fine_channels=(32, 16, 8), blend_width=24),
    wide=dict(e_width=48, g_width=40, code_size=8, code_channels=64, e_depth=3, e_res_channels=160, g_depth=3, full_width=32, fine_channels=(48, 24, 16), blend_width=32))
VALIDATION = 8*10**8 # seeds of the faces that training is judged by, neither those it draws nor those of the tests


def networks(name, size, attributes, photographs):
    "A configuration: with attributes, each map of the code gets a block for each"
    c = dict(SIZES[check_choice(name, SIZES, 'networks')])
    levels = int(math.log2(size//c['code_size']))
    c['fine_channels'] = c['fine_channels'][:levels] + c['fine_channels'][-1:]*(levels - len(c['fine_channels']))
    if attributes:
        n, free = len(attributes), (8, 16, 12, 8, 8)[:levels + 1]
        blocks = (4, 2, 1, 1, 1)[:levels + 1]
        sums = tuple(n*b + f for b, f in zip(blocks, free))
        c |= dict(code_channels=sums[0], fine_channels=sums[1:], n_free_channels=free[0], n_free_fine=free[1:], attributes=tuple(attributes))
    if photographs: c |= dict(align_exemplar=False, blend_width=0) # they are aligned; and nothing says which of their pixels should stay
    return Config(size=size, color_reference='border', **c)


def mirrored(P):
    "Landmarks of pictures that are mirrored"
    return torch.stack([1 - P[..., 0], P[..., 1]], -1)[:, [1, 0, 2, 4, 3]]


def batch(t, i, u, jitter):
    "Triples number i, the second half of them mirrored, the first eighth with A itself as exemplar; u: random numbers (n, 2, 5, 2) that move the landmarks by `jitter`"
    A, B, T, M, P_A, P_B, gate_A, gate_B, _ = (x[i] for x in t)
    A, B, T, M, n, k = normalize(A), normalize(B), normalize(T), M.float(), len(i)//2, len(i)//8
    A, B, T, M = (torch.cat([x[:n], x[n:].flip(-1)]) for x in (A, B, T, M))
    P_A, P_B = (torch.cat([P[:n], mirrored(P[n:])]) for P in (P_A, P_B))
    B, T, P_B, gate_B = (torch.cat([x[:k], y[k:]]) for x, y in ((A, B), (A, T), (P_A, P_B), (gate_A, gate_B)))
    return A, align_eyes(B, P_B + jitter*u[:, 1], P_A + jitter*u[:, 0]), T, M, P_A, gate_A, gate_B


def error(x, target, M, args):
    "In M, the mean over each picture's mask: absolute, squared, and of the differences between neighbours"
    d, area = (x - target)*M, 3*M.sum((1, 2, 3))
    each = lambda t: (t.sum((1, 2, 3))/area).mean()
    loss = 10*each(d.abs()) + 40*each(d.square())
    if args.grad: loss = loss + args.grad*(each(d.diff(dim=-1).abs()) + each(d.diff(dim=-2).abs()))
    return loss


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
    if args.relative:
        gain = (y - T).square().mul(M).sum((1, 2, 3))/((A - T).square().mul(M).sum((1, 2, 3)) + .004*M.sum((1, 2, 3)))
        loss = loss + args.relative*gain.mean()
    return loss + 20*(net.E.landmark_net(A) - P_A).abs().mean() if args.landmarks else loss


@torch.no_grad()
def score(net, device, n, attributes):
    "Achieved change and reconstruction of validation faces, region by region"
    size, out = net.config.size, {}
    people = sample(2*n, VALIDATION, correlated=False)
    a, b = people[:n], people[n:]
    draw = lambda p: normalize(render(p, size, device=device))
    A, B = draw(a), draw(b)
    for r in REGIONS:
        M, T = region_mask(r, size=size).to(device), draw(transfer(a, b, r))
        parts = [(net.edit(x, y, M), net.edit(x, x, M, noise_floor=0.)) for x, y in zip(A.split(50), B.split(50))]
        y, own = (torch.cat(p) for p in zip(*parts))
        out[r] = [round(ratio_of_sums(*achieved_change(y, A, T, M)), 3), round(ratio_of_sums(*psnr(own, A, M)), 2)]
    if attributes:
        half = [x for i, x in enumerate(attributes) if i % 2]
        T, M = draw(transfer(a, b, 'face', attributes=half)), region_mask('face', size=size).to(device)
        chosen = torch.tensor([x in half for x in attributes]).float().to(device)
        y = torch.cat([net.edit(x, z, M, selected=chosen) for x, z in zip(A.split(50), B.split(50))])
        out['half of the attributes'] = [round(ratio_of_sums(*achieved_change(y, A, T, M)), 3), None]
    return out


def start(args, device):
    "Fresh networks; landmarks, and C of Att-EBGAN, are found by networks that were trained before, where there are some for this size"
    attributes = ATTRIBUTES if args.model=='att-ebgan' else ()
    torch.manual_seed(args.seed)
    net = build(networks(args.networks, args.size, attributes, args.photographs))
    if args.init: net.load_state_dict(load_weights(find_weights(args.init), size=args.size)[0].state_dict())
    elif args.size==64:
        known = load_weights(find_weights('faces-att' if attributes else 'faces'))[0]
        if net.E.landmark_net: net.E.landmark_net.load_state_dict(known.E.landmark_net.state_dict())
        if attributes: net.C.load_state_dict(known.C.state_dict())
    args.landmarks = args.size!=64 and net.E.landmark_net is not None
    if net.E.landmark_net: net.E.landmark_net.requires_grad_(args.landmarks)
    if attributes: net.C.requires_grad_(False)
    return net.to(device, memory_format=torch.channels_last), attributes


def photographs(data, size, n, device):
    "Photographs as triples: the exemplar is A itself, in other light, and so the true edit is A"
    pictures = load_cache(data, size)
    x, P = pictures.center_crop(pictures.split('train'))
    i, g = torch.arange(n) % len(x), generator(0, 'photographs')
    A, P, none = x[i].to(device), P[i], torch.zeros(n, 0, device=device)
    B = [photometric_jitter(normalize(a), g) for a in A.split(2048)]
    B = torch.cat([((b + 1)*127.5 + .5).clamp(0, 255).to(torch.uint8) for b in B])
    M = torch.cat([training_masks(p, size, g) for p in P.split(2048)]).to(device) > 0
    P = P.to(device)/size
    return Triples(A, B, A, M, P, P, none, none, none)


def gates(t, attributes):
    "The triples with gates in place of labels: those of the labels that each mask answers for, and of B's only those that T takes"
    parts = [active_labels(M.float(), P*M.shape[-1], attributes) for M, P in zip(t.M.split(1024), t.P_A.split(1024))]
    active = torch.cat(parts)
    return t._replace(y_A=active*t.y_A, y_B=active*t.y_B*t.selected)


def stepper(net, b, params, opt, args, device):
    "A function that takes one step on the batch in the tensors b. On a GPU the step is recorded once, as a graph, and replayed: thousands of launches become one"
    autocast = (lambda: torch.autocast('cuda', torch.bfloat16, cache_enabled=False)) if device.type=='cuda' else nullcontext
    def step():
        loss = loss_of(net, b, args, autocast)
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
    "Adam, its rate falling as a cosine to 0 when the time is over (here the clock decides, so no two runs are alike), or with the last of `--batches`; averaged weights"
    params = [p for p in net.parameters() if p.requires_grad]
    rate, gpu = torch.tensor(0., device=device), device.type=='cuda'
    opt = torch.optim.Adam(params, rate if gpu else 0., betas=(args.beta, .99), **dict(capturable=True, fused=True) if gpu else {})
    averages, g = [p.detach().clone() for p in params], torch.Generator(device).manual_seed(args.seed)
    def draw():
        i = torch.randint(len(t.A), (args.bs,), generator=g, device=device)
        return batch(t, i, torch.randn(args.bs, 2, 5, 2, generator=g, device=device), args.jitter)
    b = draw()
    step, began, k, done, log, shown = stepper(net, b, params, opt, args, device), time.monotonic(), 0, 0., [], 0.
    print(args.name, f'ready after {time.monotonic() - args.began:.0f} s', flush=True)
    while done < 1:
        lr = args.lr*min(1, (k + 1)/100)*(.5 + .5*math.cos(math.pi*done))
        if gpu: rate.fill_(lr)
        else:
            for o in opt.param_groups: o['lr'] = lr
        for x, new in zip(b, draw()): x.copy_(new)
        loss = step()
        with torch.no_grad(): torch._foreach_lerp_(averages, params, 1 - min(.9995, (k + 1)/(k + 10)))
        k += 1
        if k % 20==0 or args.batches:
            if gpu: torch.cuda.synchronize()
            elapsed = time.monotonic() - began
            done = k/args.batches if args.batches else elapsed/seconds
            if done >= 1 or elapsed - shown > 20:
                value, shown = loss.item(), elapsed
                if not math.isfinite(value): raise RunFailed(f'the loss is not finite at batch {k}: start again with a lower --lr')
                log.append([k, round(value, 4), round(elapsed, 1)])
                print(args.name, *log[-1], flush=True)
    with torch.no_grad():
        for p, q in zip(params, averages): p.copy_(q)
    return k, log, time.monotonic() - began


def parser():
    p = Parser(prog='on_gpu.py', description=__doc__)
    p.add_argument('--out', required=True, help='folder for weights and figures')
    p.add_argument('--minutes', type=float_range(.01, 600), default=8., help='in all, drawing and measuring included')
    p.add_argument('--batches', type=int_range(1), help='train so many batches, whatever the clock says')
    p.add_argument('--photographs', help="CelebA's folder or zip: as many photographs as drawn triples are mixed in")
    p.add_argument('--model', choices=('ebgan', 'att-ebgan'), default='ebgan')
    p.add_argument('--networks', choices=SIZES, default='large')
    p.add_argument('--size', type=int_range(16, 512), default=128)
    p.add_argument('--n', type=int_range(16), default=200_000, help='triples')
    p.add_argument('--bs', type=int_range(8), default=256)
    p.add_argument('--lr', type=float_range(1e-7, 1.), default=1e-3)
    p.add_argument('--jitter', type=float, default=0., help='of the landmarks by which exemplars are aligned, as a fraction of the picture')
    p.add_argument('--grad', type=float, default=10., help='weight of the differences between neighbours')
    p.add_argument('--relative', type=float, default=1., help='weight of the error relative to the change')
    p.add_argument("--beta", type=float, default=.9)
    p.add_argument('--seed', type=int_range(0), default=0)
    p.add_argument('--n-score', type=int_range(2), default=500, help='validation pairs')
    p.add_argument('--init', help='weights to start from')
    p.add_argument('--eager', action='store_true', help='on a GPU: launch each operation by itself, record no graph')
    p.add_argument('--device', help="'cuda', 'cpu' ...; by default the best")
    return p


@command
def main(args=None):
    args = parser().parse_args(args)
    began, device, out = time.monotonic(), check_device(args.device), user_path(args.out, 'folder')
    out.mkdir(parents=True, exist_ok=True)
    args.name, args.began = out.name, began
    if device.type=='cuda': torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    net, attributes = start(args, device)
    groups = [draw_triples(min(16_384, args.n - i), 7*10**8 + 10**7*args.seed + i, args.size, attributes, device=device, group=64) for i in range(0, args.n, 16_384)]
    t = Triples(*map(torch.cat, zip(*groups)))
    del groups
    if attributes: t = gates(t, attributes)
    if args.photographs: t = Triples(*map(torch.cat, zip(t, photographs(args.photographs, args.size, args.n, device))))
    drawn = time.monotonic() - began
    print(args.name, f'{args.n} triples drawn in {drawn:.1f} s', flush=True)
    k, log, seconds = train(net, t, args, device, 60*args.minutes - (time.monotonic() - began) - 25)
    rate = k*args.bs/seconds
    figures = dict(card=torch.cuda.get_device_name() if device.type=='cuda' else 'cpu', batches=k, bs=args.bs, pictures_per_second=round(rate), seconds=round(seconds, 1),
        seconds_to_draw=round(drawn, 1), gigabytes=round(torch.cuda.max_memory_allocated()/2**30, 1) if device.type=='cuda' else None, log=log[-20:])
    info = dict(teacher='supervised: true edits of drawn faces', made_with='tools/on_gpu.py', seed=args.seed, batches=k, bs=args.bs, lr=args.lr, triples=args.n,
        grad=args.grad, relative=args.relative, card=figures['card'], data='faces', kind='faces', **dict(regions_template='celeba') if args.photographs else {}, recipe=dict(name='supervised', noise_floor=net.noise_floor if net.blend else 0.))
    net = net.eval().float()
    save_weights(out/'weights.safetensors', net, info)
    figures['score'] = score(net, device, args.n_score, attributes)
    (out/'figures.json').write_text(json.dumps(dict(args=vars(args), **figures), indent=1, default=str) + '\n')
    print(args.name, json.dumps({k: v for k, v in figures.items() if k!='log'}), flush=True)

if __name__=='__main__': main()
