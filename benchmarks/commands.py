"Benchmarks of whole processes: start-up, edits, memory, and two processes that train one net"
import importlib.util, os, socket, statistics, subprocess, sys, time

from ebgan_nb.core import RunFailed, data_home, to_pil
from ebgan_nb.faces import draw
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
    return [to_pil(x) for x in draw(2, seed=1, size=size)[0]]

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

def round_times(processes, logs, rounds):
    "When each log got its line of each round, as seen from outside: [[seconds of log 0], ...]"
    seen = [[] for _ in logs]
    while any(len(s) < rounds for s in seen):
        for s, log in zip(seen, logs):
            if lines_of(log) > len(s) + 1: s.append(time.perf_counter())  # one line is the header
        for p in processes:
            if p.poll() not in (None, 0): finished(p)
        if all(p.poll()==0 for p in processes) and any(lines_of(f) <= rounds for f in logs): raise RunFailed(f'a training ended after {min(map(lines_of, logs))} lines of its log, {rounds + 1} were expected')
        time.sleep(.002)
    return seen

def training(out, rounds, length, bs):
    "Words of a training"
    return '--data', 'faces', '--n', 64, '--bs', bs, '--round', length, '--batches', rounds*length, '--out', out

def rate(commands, outs, rounds, length, bs):
    "Pictures a second of two processes, from the end of the first round to that of the last; start-up does not count"
    processes = [started(c, **ONE_THREAD) for c in commands]
    try:
        seen = round_times(processes, [o/'log.csv' for o in outs], rounds)
        for p in processes: finished(p)
    finally: [p.kill() for p in processes if p.poll() is None]
    return 2*(rounds - 1)*length*bs/(max(s[-1] for s in seen) - max(s[0] for s in seen))

@benchmark
def two_process_efficiency(scale):
    "Two processes of one thread that train one net, over two that train each its own"
    if not importlib.util.find_spec('ebgan_nb.processes'): raise Skipped('there is no ebgan_nb.processes in this version: one process trains a net')
    if scale.quick and 'two_process_efficiency' not in scale.chosen: raise Skipped('left out of --quick: ask for it with --only')
    rounds, length, bs, folder, n = 3, scale(12, 2), scale(32, 8), data_home()/'pairs', iter(range(10**6))
    new = lambda: folder/f'run{next(n)}'
    folder.mkdir()
    words = lambda out: training(out, rounds, length, bs)
    def together():
        out = new()
        return rate([('-m', 'torch.distributed.run', '--nproc_per_node', 2, '--master_port', free_port(), '-m', '--', 'ebgan_nb.training', *words(out))], [out], rounds, length, bs)
    def apart():
        outs = new(), new()
        return rate([('-c', MAIN.format('training'), *words(o)) for o in outs], outs, rounds, length, bs)
    found = interleaved(together, apart, scale(7, 1), warm=0, measure=lambda fn: fn())
    return dict(ratio=found['ratio'], lowest=found['lowest'], highest=found['highest'], times=found['times'], pictures_per_second=dict(together=found['ours'], apart=found['rival']))
