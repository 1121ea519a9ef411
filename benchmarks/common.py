"What all benchmarks share: their registry, the clock, a fair comparison, and a place for their files"
import os, statistics, tempfile, time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
import torch

BENCHMARKS = {}  # name -> function of a `Scale`, giving {name of a figure: value}

def benchmark(fn):
    "Put a function into the registry"
    BENCHMARKS[fn.__name__] = fn
    return fn

class Skipped(Exception):
    "Why a benchmark cannot be run here"

@dataclass(frozen=True)
class Scale:
    "How large a run is"
    quick: bool = False
    chosen: tuple = ()      # benchmarks that were asked for by name
    @property
    def times(self): return 3 if self.quick else 7
    def __call__(self, full, quick): return quick if self.quick else full

def clock():
    "Seconds; on a GPU only when its work is done"
    if torch.cuda.is_available(): torch.cuda.synchronize()
    return time.perf_counter()

def seconds(fn):
    "How long one call takes"
    began = clock()
    fn()
    return clock() - began

def interleaved(
    a, b, # functions without arguments: ours, the rival
    times=7, # calls of each
    warm=1, # calls before, not counted
    measure=seconds, # what one call costs
): # dict: medians, and the median of the ratios a/b of neighbours
    "a, b, b, a, a, b ...: whatever slows the machine down for a while slows both"
    for _ in range(warm): a(); b()
    pairs = []
    for i in range(times):
        second = measure(b) if i%2 else None
        first = measure(a)
        pairs.append((first, measure(b) if second is None else second))
    ratios = sorted(x/y for x, y in pairs)
    return dict(ours=statistics.median(x for x, _ in pairs), rival=statistics.median(y for _, y in pairs),
                ratio=statistics.median(ratios), lowest=ratios[0], highest=ratios[-1], times=times)

def median_of(fn, times=7, warm=1):
    "Median seconds of a call"
    for _ in range(warm): fn()
    return statistics.median(seconds(fn) for _ in range(times))

@contextmanager
def home():
    "EBGAN_DATA for a while: a new folder, removed at the end"
    old = os.environ.get('EBGAN_DATA')
    with tempfile.TemporaryDirectory(prefix='ebgan-benchmark-') as folder:
        os.environ['EBGAN_DATA'] = folder
        try: yield Path(folder)
        finally:
            if old is None: del os.environ['EBGAN_DATA']
            else: os.environ['EBGAN_DATA'] = old

def rounded(x):
    "Figures with four digits, for people and JSON"
    if isinstance(x, dict): return {str(k): rounded(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)): return [rounded(v) for v in x]
    return float(f'{x:.4g}') if isinstance(x, float) else x
