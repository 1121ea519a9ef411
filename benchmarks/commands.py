"Benchmarks of whole processes: start-up, edits, memory, and two processes that train one net"
import importlib.util, os, socket, statistics, subprocess, sys, time

from ebgan_nb.core import RunFailed, to_pil
from ebgan_nb.files import data_home
from ebgan_nb.faces import sample_labelled
from common import Skipped, benchmark, interleaved, median_of
from loading import alone, memory

MAIN = 'import sys; from ebgan_nb.{} import main; sys.exit(main(sys.argv[1:]))'
ONE_THREAD = dict(OMP_NUM_THREADS='1', OMP_WAIT_POLICY='passive', CUDA_VISIBLE_DEVICES='')

def started(words, **env):
    "A Python process"
    return subprocess.Popen([sys.executable, '-W', 'ignore', *map(str, words)], env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

def finished(process):
    "Wait for it; `RunFailed` with its last line if it fails"
    error = process.communicate()[1].strip().splitlines()
    if process.returncode: raise RunFailed(f"{' '.join(process.args[3:])}: {error[-1] if error else process.returncode}")

def ran(*words): return lambda: finished(started(words))

def portraits(size):
    "Two drawn faces as PIL pictures"
    return [to_pil(x) for x in sample_labelled(2, seed=1, size=size)[0]]

@benchmark
def start_up(scale):
    "Whole processes, over `import torch`"
    folder = data_home()/'portraits'
    folder.mkdir()
    source, exemplar = (folder/f'{name}.png' for name in 'AB')
    for image, f in zip(portraits(64), (source, exemplar)): image.save(f)
    programs = {'import ebgan_nb.editing': ('-c', 'import ebgan_nb.editing'), 'ebgan_train --help': ('-c', MAIN.format('training'), '--help'),
                'ebgan_edit': ('-c', MAIN.format('editing'), source, exemplar, '--region', 'mouth', '--out', folder/'y.png')}
    if scale.quick: programs = dict([*programs.items()][-1:])
    torch, times = ran('-c', 'import torch'), scale(7, 1)  # a program at a time: each has neighbours of its own
    found = {k: interleaved(ran(*words), torch, times, warm=scale(1, 0)) for k, words in programs.items()}
    return dict(seconds={k: r['ours'] for k, r in found.items()}, import_torch=statistics.median(r['rival'] for r in found.values()),
                over_import_torch={k: r['ratio'] for k, r in found.items()}, times=times)

@benchmark
def edit_latency(scale):
    "One edit with the shipped weights, from PIL to PIL, ms; 128 pixels: the result is put back into a picture of that size"
    from ebgan_nb.editing import Editor
    editor = Editor.load('faces')
    def ms(size):
        A, B = portraits(size)
        return 1000*median_of(lambda: editor.edit(A, B, 'mouth'), scale(31, 7), warm=2)
    return dict(ms={size: ms(size) for size in scale((64, 128), (64,))})

def memory_of_training(size, bs, batches):
    "MB at the peak of a training"
    from steps import begun, learner
    imports = memory()
    step = begun(learner(size, bs, n=64))
    for _ in range(batches): step()
    return dict(after_imports=imports['all'], peak=memory()['peak'])

@benchmark
def memory_of_a_training(scale):
    "Peak of a process that trains, MB"
    return dict(mb={f'{size} px, batch {bs}': alone(memory_of_training, size, bs, scale(10, 2)) for size, bs in scale(((64, 32), (64, 128), (128, 32)), ((64, 8),))})

def free_port():
    with socket.socket() as s:
        s.bind(('localhost', 0))
        return s.getsockname()[1]

def lines_of(file):
    try: return file.read_text().count('\n')
    except FileNotFoundError: return 0

def spans(processes, runs):
    "Seconds of each run's second round, without the checkpoint before it: seen from outside, by what lies in its folder"
    began, ended = {}, {}
    while len(ended) < len(runs):
        over = all(p.poll() is not None for p in processes)
        for run in runs:
            if run not in began and (run/'weights.json').exists(): began[run] = time.perf_counter()  # the last file of the first checkpoint
            if run not in ended and lines_of(run/'log.csv') > 2: ended[run] = time.perf_counter()    # a header, and a line a round
        for p in processes:
            if p.poll() not in (None, 0): finished(p)
        if over and len(ended) < len(runs): raise RunFailed('a training ended before its second round')
        time.sleep(.002)
    return [ended[run] - began[run] for run in runs]

def rate(commands, runs, pictures):
    "Pictures a second of all runs together, each of which has so many in its second round"
    processes = [started(c, **ONE_THREAD) for c in commands]
    try:
        seconds = spans(processes, runs)
        for p in processes: finished(p)
    finally: [p.kill() for p in processes if p.poll() is None]
    return sum(pictures/s for s in seconds)

@benchmark
def two_process_efficiency(scale):
    "Two processes of one thread that train one net, over two that train each its own"
    if not importlib.util.find_spec('ebgan_nb.distributed'): raise Skipped('there is no ebgan_nb.distributed in this version: one process trains a net')
    if scale.quick and 'two_process_efficiency' not in scale.chosen: raise Skipped('left out of --quick: ask for it with --only')
    length, bs, folder, n = scale(12, 2), scale(32, 8), data_home()/'pairs', iter(range(10**6))
    folder.mkdir()
    def words(run): return '--data', 'faces', '--n-train', 64, '--bs', bs, '--val-every', length, '--batches', 2*length, '--out', run
    def together():
        run = folder/f'run{next(n)}'
        launcher = '-m', 'torch.distributed.run', '--nproc_per_node', 2, '--master_port', free_port(), '-m', '--' # or torch takes --n for an option of its own
        return rate([(*launcher, 'ebgan_nb.training', *words(run))], [run], 2*length*bs)
    def apart():
        runs = [folder/f'run{next(n)}' for _ in range(2)]
        return rate([('-c', MAIN.format('training'), *words(run)) for run in runs], runs, length*bs)
    found = interleaved(together, apart, scale(7, 1), warm=0, measure=lambda fn: fn())
    return dict(ratio=found['ratio'], lowest=found['lowest'], highest=found['highest'], times=found['times'], pictures_per_second=dict(together=found['ours'], apart=found['rival']))
