"Benchmarks of the data: loader, cache, and what becomes of both when the data set grows"
import multiprocessing, os, shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from PIL import Image
from ebgan_nb.files import data_home
from ebgan_nb.datasets import CelebA, crop_fractions
from ebgan_nb.cache import load_cache
from ebgan_nb.data import dataloaders
from ebgan_nb.faces import write_celeba
from common import benchmark, home, interleaved, seconds

LISTS = 'list_attr_celeba.txt', 'list_landmarks_align_celeba.txt'

def drawn(scale):
    "Drawn faces in CelebA's layout, and of its size: made once a run"
    folder = data_home()/'drawn'
    if folder.exists(): return folder
    write_celeba(folder, scale(2000, 64), size=128)
    for f in (folder/'img_align_celeba').iterdir(): framed(f)
    table = folder/LISTS[1]
    n, header, *rows = table.read_text().splitlines()
    moved = lambda words: [str(int(v) + (64 if i%2 else 24)) for i, v in enumerate(words)]
    text(table, n, header, *(' '.join([name, *moved(v)]) for name, *v in map(str.split, rows)))
    return folder

def framed(file):
    "A picture of 128 x 128 pixels, put where CelebA's tight crop of 178 x 218 pixels lies"
    x = np.pad(np.asarray(Image.open(file)), ((64, 26), (24, 26), (0, 0)), mode='edge')
    Image.fromarray(x).save(file, quality=95)

def linked(folder, n, to):
    "CelebA's layout with n pictures, which are links to those of another folder"
    (to/'img_align_celeba').mkdir(parents=True)
    files = sorted((folder/'img_align_celeba').iterdir())
    names = [f'{i + 1:06d}.jpg' for i in range(n)]
    for i, name in enumerate(names): os.link(files[i % len(files)], to/'img_align_celeba'/name)
    for file in LISTS:
        _, columns, *rows = (folder/file).read_text().splitlines()
        rows = [r.split(' ', 1)[1] for r in rows]
        text(to/file, str(n), columns, *(f'{name} {rows[i % len(rows)]}' for i, name in enumerate(names)))
    text(to/'list_eval_partition.txt', *(f'{name} {int(10*i >= 8*n) + int(10*i >= 9*n)}' for i, name in enumerate(names)))
    return to

def text(file, *lines): file.write_text('\n'.join(lines) + '\n')

def endless(data, size=64, bs=32):
    "A function that takes the next training batch of our loader"
    dl, k = dataloaders(data, size=size, bs=bs).train, iter(range(10**9))
    return lambda: dl.batch(next(k))

def image_blocks(folder, workers, bs=32, size=64):
    "The same with fastai's own blocks: decode, resize, crop at random, mirror; it starts again when it is through"
    from fastai.vision.all import DataBlock, FlipItem, ImageBlock, RandomCrop, Resize, get_image_files
    block = DataBlock(blocks=ImageBlock, get_items=get_image_files, item_tfms=[Resize(size + size//8), RandomCrop(size), FlipItem()])
    dl = block.dataloaders(folder/'img_align_celeba', bs=bs, num_workers=workers, device='cpu').train
    def batches():
        while True: yield from dl
    batch = batches()
    return lambda: next(batch)

def several(fn, n): return lambda: [fn() for _ in range(n)]

@benchmark
def loader_over_imageblock(scale):
    "Our loader over fastai's ImageBlock on the same JPEG files, both in this process; and over two of its workers"
    folder, bs, n = drawn(scale), scale(32, 8), scale(20, 3)
    ours = several(endless(folder, bs=bs), n)
    found = {w: interleaved(ours, several(image_blocks(folder, w, bs), n), scale(7, 3)) for w in scale((0, 2), (0,))}
    rate = lambda r: {k: n*bs/r[k] for k in ('ours', 'rival')}
    return dict(ratio=1/found[0]['ratio'], pictures_per_second=rate(found[0]), times=found[0]['times'],
                **{f'over_{w}_workers': dict(ratio=1/r['ratio'], pictures_per_second=rate(r)) for w, r in found.items() if w})

def decoded(path, size=64):
    "A photograph as the cache has it, and nothing more"
    with Image.open(path) as image:
        image = image.convert('RGB')
        l, t, r, b = crop_fractions('auto', *image.size)
        w, h, m = *image.size, size//16
        return np.asarray(image.resize((size + 2*m,)*2, Image.Resampling.BICUBIC, box=(l*w, t*h, r*w, b*h)))

@benchmark
def cache_over_decoding(scale):
    "Building the cache over decoding the same files by as many threads and keeping nothing"
    folder = drawn(scale)
    files = sorted((folder/'img_align_celeba').iterdir())
    def build():
        with home(): load_cache(CelebA(folder))
    def decode():
        parts = [files[i:i + 64] for i in range(0, len(files), 64)]
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool: [*pool.map(lambda part: [decoded(f) for f in part] and None, parts)]
    found = interleaved(build, decode, scale.times)
    return dict(found, ratio=1/found['ratio'], lowest=1/found['highest'], highest=1/found['lowest'], pictures_per_second={k: len(files)/found[k] for k in ('ours', 'rival')})

def memory():
    "MB of this process: its own, pages of files, all, and the peak; {} of NaN where the system does not tell"
    names = dict(RssAnon='own', RssFile='files', VmRSS='all', VmHWM='peak')
    try: lines = Path('/proc/self/status').read_text().splitlines()
    except OSError: return dict.fromkeys(names.values(), float('nan'))
    return {names[k]: int(v.split()[0])/1024 for k, _, v in (line.partition(':') for line in lines) if k in names}

def memory_of_loading(folder, bs, batches):
    "MB that a data set adds: own memory by opening it (names, labels, landmarks) and by taking batches; pages of the cache's file, which the system takes back when it needs room"
    start = memory()
    take = endless(folder, bs=bs)
    opened = memory()
    for _ in range(batches): take()
    end = memory()
    return dict(opening=opened['own'] - start['own'], batches=end['own'] - opened['own'], pages_of_files=end['files'] - start['files'], peak=end['peak'])

def alone(fn, *args):
    "The result of a function in a fresh process"
    with multiprocessing.get_context('spawn').Pool(1) as pool: return pool.apply(fn, args)

def step_on(folder, bs):
    "A function that does a training step on these pictures"
    from ebgan_nb.learner import ebgan_learner
    from steps import ENDLESS, begun
    return begun(ebgan_learner(dataloaders(folder, bs=bs, val_every=ENDLESS, balance=True), 'course'))

@benchmark
def scale_200k_over_1k(scale):
    "Pictures a second from 200,000 files over those from 1,000; steps likewise; and memory"
    few, many = scale((1000, 200_000), (64, 640))
    bs, n, source = scale(32, 8), scale(50, 5), drawn(scale)
    small, large = (linked(source, m, data_home()/f'linked-{m}') for m in (few, many))
    build = {m: seconds(lambda f=f: load_cache(CelebA(f))) for m, f in ((few, small), (many, large))}
    found = interleaved(several(endless(small, bs=bs), n), several(endless(large, bs=bs), n), scale(11, 3))
    steps = interleaved(step_on(small, bs), step_on(large, bs), scale(9, 3))
    memory = {m: alone(memory_of_loading, f, bs, n) for m, f in ((few, small), (many, large))[scale(0, 1):]}
    [shutil.rmtree(f) for f in (small, large)]
    return dict(ratio=found['ratio'], lowest=found['lowest'], highest=found['highest'], step_ratio=steps['ratio'], pictures={'small': few, 'large': many}, times=found['times'],
                pictures_per_second={'small': n*bs/found['ours'], 'large': n*bs/found['rival']}, cache_seconds=build, memory_mb=memory)
