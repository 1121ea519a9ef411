"Time, throughput and memory of ebgan_nb, each against a rival that is measured in the same run: python benchmarks/run.py --json OUT"
import io, json, platform, time
from contextlib import redirect_stdout
from pathlib import Path
import pandas as pd
import torch
from fastprogress.fastprogress import progress_bar
from ebgan_nb.core import WrongInput, check_choice
from ebgan_nb.files import Parser, command, atomic_write
from ebgan_nb.learner import best_precision
import commands, loading, steps  # they fill the registry
from common import BENCHMARKS, Scale, Skipped, home, rounded

BARS = dict(  # name -> (where its value lies: benchmark, key; what it should reach)
    step_over_handwritten=('step_over_handwritten', 'ratio', '<=', 1.05), step_over_two_phase=('step_over_two_phase', 'ratio', '<=', .92),
    conv_efficiency=('conv_efficiency', 'ratio', '>=', .6), loader_over_imageblock=('loader_over_imageblock', 'ratio', '>=', 10.),
    bf16_over_float32=('bf16_over_float32', 'ratio', '>=', 1.25), scale_200k_over_1k=('scale_200k_over_1k', 'ratio', '>=', .95),
    two_process_efficiency=('two_process_efficiency', 'ratio', '>=', .85), cache_over_decoding=('cache_over_decoding', 'ratio', '>=', .9),
    loader_wait=('step_by_part', 'loader_wait', '<=', .05))

def machine():
    "What figures depend on, and nothing that names the machine"
    try: flags = Path('/proc/cpuinfo').read_text()
    except OSError: flags = ''
    return dict(system=platform.system(), processor=platform.machine(), flags=[f for f in ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16') if f in flags],
                threads=torch.get_num_threads(), torch=torch.__version__, python=platform.python_version(), precision=best_precision(torch.device('cpu')),
                gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None)

def measured(name, scale):
    "Figures of one benchmark, or why there are none"
    began = time.perf_counter()
    try:
        with redirect_stdout(io.StringIO()): found = BENCHMARKS[name](scale)  # caches say that they are built
    except Skipped as e: found = dict(skipped=str(e))
    return found | dict(seconds=time.perf_counter() - began)

def met(value, sign, bar): return value <= bar if sign=='<=' else value >= bar

def report(details, scale):
    "The JSON: named ratios on top, null where a benchmark was skipped or not asked for"
    ratios = {k: details.get(name, {}).get(key) for k, (name, key, *_) in BARS.items()}
    return rounded(dict(ratios, machine=machine(), quick=scale.quick, skipped={k: d['skipped'] for k, d in details.items() if 'skipped' in d}, details=details))

def table(found):
    "One row a ratio"
    rows = [(k, found[k], f'{sign} {bar:g}', '' if found[k] is None else 'met' if met(found[k], sign, bar) else 'not met', found['skipped'].get(name, '' if name in found['details'] else 'not run'))
            for k, (name, _, sign, bar) in BARS.items()]
    return pd.DataFrame(rows, columns=['figure', 'value', 'bar', '', 'why not']).set_index('figure')

def parser():
    p = Parser('run.py', description=__doc__)
    p.add_argument('--json', type=Path, required=True, metavar='OUT', help='file to write')
    p.add_argument('--quick', action='store_true', help='under a minute: does everything work? The figures mean little')
    p.add_argument('--only', metavar='NAME,NAME', help=f"some of: {', '.join(BENCHMARKS)}")
    return p

@command
def main(argv=None):
    args = parser().parse_args(argv)
    names = [check_choice(n, BENCHMARKS, 'benchmark') for n in args.only.split(',')] if args.only else [*BENCHMARKS]
    if not args.json.resolve().parent.is_dir(): raise WrongInput(f'{args.json}: there is no folder {args.json.parent}: make it first')
    scale, details, bar = Scale(args.quick, tuple(names) if args.only else ()), {}, progress_bar(names)
    with home():
        for name, following in zip(bar, names[1:] + ['']):
            details[name], bar.comment = measured(name, scale), following
            found = report(details, scale)
            with atomic_write(args.json) as f: f.write_text(json.dumps(found, indent=1) + '\n')  # each time: what fails later takes nothing along
    print('\n' + table(found).to_string(na_rep='-'))
    print(f'{args.json}: all figures')

if __name__ == '__main__': main()
