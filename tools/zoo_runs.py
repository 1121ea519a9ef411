"""The comparison of nine systems: equal processor minutes, in rounds; then every figure of every run into one table

    python tools/zoo_runs.py train --out RUNS --minutes 30 --rounds 6      goes on with what is there
    python tools/zoo_runs.py measure --out RUNS --n 200                    RUNS/figures.csv
    python tools/zoo_runs.py train --out RUNS --data CELEBA                the same on photographs, in RUNS/photographs
    python tools/zoo_runs.py measure --out RUNS --data CELEBA              RUNS/photographs/figures.csv, which notebook 89 shows
"""
import argparse
import csv
import dataclasses
import io
import json
import math
import subprocess
import sys
import time
from pathlib import Path

def _zoo(system, **how): return dict(system=system, **how)

RUNS = { # {name in tables: how it differs from a system's `course`}
    'StarGAN': _zoo('stargan'), 'AttGAN, skip 1': _zoo('attgan', config=dict(skips=1)), 'STGAN': _zoo('stgan'),
    'GeneGAN, chain': _zoo('genegan'), 'DNA-GAN': _zoo('dnagan'), 'ELEGANT': _zoo('elegant'), 'MulGAN': _zoo('mulgan'),
    'EBGAN': dict(model='ebgan'), 'Att-EBGAN': dict(model='att-ebgan'),
    'EBGAN, true edits': dict(model='ebgan', supervised=True), 'Att-EBGAN, true edits': dict(model='att-ebgan', supervised=True),
    'EBGAN, recipe for photographs': dict(model='ebgan', recipe='photographs'),
    # these decide claims
    'AttGAN, skip 0': _zoo('attgan', config=dict(skips=0)),
    'AttGAN, skip 2': _zoo('attgan', config=dict(skips=2)),
    'AttGAN, skip 3': _zoo('attgan', config=dict(skips=3)),
    'ELEGANT, summed': _zoo('elegant', config=dict(pairing='sum')),
    'ELEGANT, shuffled': _zoo('elegant', config=dict(pairing='shuffle'), weights=dict(cls_g=10., cls_d=1.), batches='mixed'),
    'MulGAN, without class loss': _zoo('mulgan', weights=dict(cls_g=0.))}
MARK = 16_000 # pictures that G has seen: the second of two equal budgets

def runs_on(data):
    "Names of the runs for drawn faces, or for photographs, where there are no true edits to learn from"
    unfit = (lambda run: run.get('recipe')=='photographs') if data=='faces' else (lambda run: run.get('supervised'))
    return [name for name, run in RUNS.items() if not unfit(run)]

def runs_folder(out, data): return Path(out) if data=='faces' else Path(out)/'photographs'

def learner(name, seed, data='faces', size=64, bs=32, n_train=20_000):
    "The learner of a run"
    from ebgan_nb.data import dataloaders
    from ebgan_nb.learner import ebgan_learner
    from ebgan_nb.recipes import recipe
    from ebgan_nb.triples import supervised_dataloaders
    from ebgan_nb.zoo import SIX
    from ebgan_nb.zoo_training import zoo_dataloaders, zoo_learner, zoo_recipe
    run, rare = RUNS[name], 10**9 # batches from one validation to the next: nothing is validated by the clock
    if 'system' in run:
        r, config = zoo_recipe(run['system']), run.get('config')
        r = dataclasses.replace(r, weights=r.weights | run.get('weights', {}))
        dls = zoo_dataloaders(run['system'], data, size, bs, batches=run.get('batches'), seed=seed, val_every=rare, n_train=n_train)
        return zoo_learner(dls, run['system'], r, seed=seed, config=config)
    labels = SIX if run['model']=='att-ebgan' else None
    if run.get('supervised'):
        return ebgan_learner(supervised_dataloaders(size, bs, seed, labels or (), val_every=rare), 'supervised', run['model'], seed=seed)
    r = recipe(run.get('recipe', 'course'))
    dls = dataloaders(data, size, bs, seed, attributes=labels, val_every=rare, n_train=n_train, balance=r.oversample)
    return ebgan_learner(dls, r, run['model'], seed=seed)

def go_on(name, out, minutes, seed, data='faces'):
    "Train a run for so many processor minutes more"
    from fastai.callback.core import Callback, CancelFitException
    from ebgan_nb.games import LRDecay
    from ebgan_nb.training import load_checkpoint, save_checkpoint
    folder, learn = runs_folder(out, data)/name/str(seed), learner(name, seed, data)
    folder.mkdir(parents=True, exist_ok=True)
    file, state = folder/'checkpoint.safetensors', folder/'state.json'
    spent = json.loads(state.read_text())['minutes'] if state.exists() else 0.
    if state.exists(): load_checkpoint(learn, file)

    class Clock(Callback):
        "Ends the round, and publishes the weights at the mark"
        order = 90
        def before_fit(self): self.began = time.process_time()
        def after_batch(self):
            if not self.training: return
            if (self.learn.adversarial_step.k)*self.dls.train.bs==MARK - MARK % self.dls.train.bs: publish('mark')
            if self.minutes() >= minutes: raise CancelFitException
        def minutes(self): return (time.process_time() - self.began)/60

    clock = Clock()
    def publish(what):
        step = learn.adversarial_step
        info = dict(run=name, seed=seed, batch=step.k, minutes=round(spent + clock.minutes(), 2), recipe=dataclasses.asdict(learn.recipe),
                    regions_template=learn.dls.template, terms={k: round(float(v), 4) for k, v in step.terms.items()})
        learn.save_weights(folder/f'{what}.safetensors', info)
        return info
    with learn.no_bar(), learn.no_logging(): learn.fit(10**5, cbs=[LRDecay(learn.recipe.decay), clock])
    save_checkpoint(learn, file)
    info = publish('weights')
    state.write_text(json.dumps(dict(minutes=spent + clock.minutes(), batch=info['batch'], terms=info['terms'])))
    return info

def train(names, out, minutes, rounds, seed, data='faces'):
    "Round by round, each run in a process of its own, so that a slow hour of the machine meets all of them"
    for _ in range(rounds):
        for name in names:
            state = runs_folder(out, data)/name/str(seed)/'state.json'
            if state.exists() and json.loads(state.read_text())['minutes'] >= minutes - .01: continue
            words = ['--out', out, '--only', name, '--minutes', str(minutes/rounds), '--seed', str(seed), '--data', data]
            subprocess.run([sys.executable, __file__, 'round', *words], check=True)

def load(folder, what='weights'):
    "A trained run as an editor with labels: edit(A, B, M, y_A=, y_B=, selected=, others=)"
    from ebgan_nb.weights import load_weights
    from ebgan_nb.zoo import load_zoo
    file = Path(folder)/f'{what}.safetensors'
    if 'system' in RUNS[Path(folder).parent.name]: return load_zoo(file).edit
    return in_mask(load_weights(file)[0])

def in_mask(net):
    "EBGAN or Att-EBGAN as an editor with labels: both paint in M alone, and the first knows no labels and takes all"
    def edit(A, B, M, strength=1., noise_floor=None, **asked):
        asked.pop('paste', None)
        return net.edit(A, B, M, strength, noise_floor, **asked if net.config.attributes else {})
    return edit

def on_drawn_faces(n, seed):
    "What the claims ask for: {row: editor}, and the figures of an editor"
    from functools import partial
    from ebgan_nb.zoo_metrics import INVENTED, mean_style, measure_editor, Painter
    rows = {'truth': INVENTED['truth'], 'mean style': Painter(partial(mean_style, K=12)), 'deaf': INVENTED['deaf']}
    return rows, lambda edit: measure_editor(edit, n or 200, seed=seed)

def on_photographs(data, n, seed):
    "What can be measured without a truth: {row: editor}, and the figures of an editor"
    from ebgan_nb.cache import load_cache
    from ebgan_nb.classifier import classifier_for
    from ebgan_nb.weights import find_weights, load_weights
    from ebgan_nb.zoo_metrics import INVENTED
    from ebgan_nb.zoo_on_photographs import measure_on_photographs, readable_attributes
    pictures = load_cache(data, 64)
    classifier = classifier_for(pictures)
    print(readable_attributes(classifier, pictures).replace({'readable': {True: 'yes', False: 'not readable'}}).to_string())
    rows = {'real pictures': None, 'source unchanged': INVENTED['deaf'], 'cut-and-paste': INVENTED['leaky'],
            'EBGAN, shipped': in_mask(load_weights(find_weights('celeba'))[0])}
    return rows, lambda edit: measure_on_photographs(edit, pictures, classifier, n, seed)

def facts_of(folder, what):
    "What a run has cost: weights of its generator in millions, processor minutes, batches"
    from ebgan_nb.files import parse_json
    from ebgan_nb.weights import open_tensors
    with open_tensors(folder/f'{what}.safetensors', 'train it again') as f:
        info = parse_json((f.metadata() or {}).get('info'), 'info')
        shapes = [f.get_slice(k).get_shape() for k in f.keys() if not k.startswith(('D.', 'C.'))]
    return dict(weights=round(sum(map(math.prod, shapes))/1e6, 3), minutes=info['minutes'], batches=info['batch'])

COLUMNS = ('budget', 'system', 'seed', 'metric', 'value', 'low', 'high')

def measure(names, out, n, seed, data='faces'):
    "All figures of all runs at both budgets; what the table has of the same batch is kept"
    from ebgan_nb.files import write_bytes
    from ebgan_nb.zoo_on_photographs import with_interval
    out = runs_folder(out, data)
    out.mkdir(parents=True, exist_ok=True)
    file, rows = out/'figures.csv', {}
    if file.exists():
        for r in csv.DictReader(file.open(newline='')):
            rows.setdefault((r['budget'], r['system'], r['seed']), []).append([r[c] for c in COLUMNS[3:]])
    folders = [(budget, f, what) for budget, what in (('minutes', 'weights'), ('pictures', 'mark')) for name in names
               for f in sorted((out/name).glob('*')) if (f/f'{what}.safetensors').exists()]
    invented, figures_of = on_drawn_faces(n, seed) if data=='faces' else on_photographs(data, n, seed)
    todo = [(('', name, ''), {}, lambda e=e: e) for name, e in invented.items()]
    todo += [((budget, f.parent.name, f.name), facts_of(f, what), lambda f=f, what=what: load(f, what)) for budget, f, what in folders]
    for key, facts, editor in todo:
        known = {metric: value for metric, value, *_ in rows.get(key, [])}
        if known and known.get('batches')==(str(facts['batches']) if facts else None): continue
        figures = {metric: with_interval(r) for metric, r in figures_of(editor()).items()}
        rows[key] = [[k, v, '', ''] for k, v in facts.items()] + [[k, *(round(float(v), 4) for v in f)] for k, f in figures.items()]
        text = io.StringIO(newline='')
        csv.writer(text, lineterminator='\n').writerows([COLUMNS, *([*key, *r] for key in rows for r in rows[key])])
        write_bytes(file, text.getvalue().encode())
        print(*key, flush=True)

def parser():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('what', choices=['train', 'round', 'measure'])
    p.add_argument('--out', required=True)
    p.add_argument('--minutes', type=float, default=30., help='of the processor, for each run')
    p.add_argument('--rounds', type=int, default=6)
    p.add_argument('--only', help='names of runs, with semicolons')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--n', type=int, help='pairs of faces that are measured: 200, or all test photographs')
    p.add_argument('--data', default='faces', help="'faces' are drawn; or a folder with CelebA")
    return p

def main(args=None):
    a = parser().parse_args(args)
    known = runs_on(a.data)
    names = a.only.split(';') if a.only else known
    unknown = [x for x in names if x not in known]
    if unknown: sys.exit(f'zoo_runs.py: {unknown[0]!r}: one of {"; ".join(known)} is expected')
    if a.what=='train': train(names, a.out, a.minutes, a.rounds, a.seed, a.data)
    elif a.what=='round': print(json.dumps(go_on(names[0], a.out, a.minutes, a.seed, a.data)))
    else: measure(names, a.out, a.n, a.seed, a.data)

if __name__=='__main__': main()
