"""The three commands from outside: exit code 0, 1, 2 or 130, one line on stderr, no traceback, nothing half-written

Children are forked from this process, which has imported the package: a case costs its work, not five seconds of imports."""
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings as budget, strategies as st

if not hasattr(os, 'fork'): pytest.skip('forks: on Windows the commands are not checked from outside', allow_module_level=True)

from safetensors import safe_open

from ebgan_nb import editing, evaluation, training, zoo_training
from ebgan_nb.attributes import REGION_SHAPES
from ebgan_nb.session import drawn_face
from ebgan_nb.zoo import ZooDiscriminator, build_system, save_system, zoo_config

PARSERS = dict(ebgan_train=training.parser, ebgan_edit=editing.parser, ebgan_evaluate=evaluation.parser,
               ebgan_zoo=lambda: training.parser(zoo_training.ZooTrainConfig))
MAIN = dict(ebgan_train=training.main, ebgan_edit=editing.main, ebgan_evaluate=evaluation.main, ebgan_zoo=zoo_training.main)
SMALL = dict(EBGAN_QUICK='1', EBGAN_PHOTOS='', CUDA_VISIBLE_DEVICES='')


def ran(name, *argv, cwd, seconds=120, **env):
    "Run a command in a forked child -> (exit code, stdout, stderr); a traceback is left in stderr, as it would be"
    argv = [str(a) for a in argv]
    out, err = (tempfile.TemporaryFile('w+', errors='backslashreplace') for _ in range(2))
    pid = os.fork()
    if not pid:
        code = 99
        try:
            os.chdir(cwd)
            os.environ.update(dict(SMALL, EBGAN_DATA=str(Path(cwd)/'.data')) | env)
            for stream, fd in ((out, 1), (err, 2)): os.dup2(stream.fileno(), fd)
            sys.stdout, sys.stderr = (open(fd, 'w', errors='backslashreplace', closefd=False) for fd in (1, 2))
            sys.argv = [name, *argv]
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try: MAIN[name](argv); code = 0
            except SystemExit as e: code = e.code if isinstance(e.code, int) else int(e.code is not None)
            except BaseException: traceback.print_exc(); code = 98
            sys.stdout.flush(); sys.stderr.flush()
        finally: os._exit(code)
    until = time.monotonic() + seconds
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
            raise AssertionError(f'{name} {argv}: not ended after {seconds} s')
        time.sleep(.01)
    for stream in (out, err): stream.seek(0)
    return os.waitstatus_to_exitcode(done[1]), out.read(), err.read()

def leftovers(folder):
    "Temporary files, and files that are not whole"
    bad = [f for f in Path(folder).rglob('.*') if re.search(r'-\d+-[0-9a-f]{8}', f.name)]
    for f in Path(folder).rglob('*.safetensors'):
        if f.name=='torn.safetensors': continue              # by our own hand
        try:
            with safe_open(f, 'pt') as t: [t.get_slice(k) for k in t.keys()]
        except Exception: bad.append(f)
    for f in Path(folder).rglob('*.json'):
        try: json.loads(f.read_text())
        except ValueError: bad.append(f)
    return [f for f in bad if '.data' not in f.parts]

def right(name, argv, result, cwd):
    "The promise that holds for any command line"
    code, out, err = result
    said = f'{name} {argv}\n{err[-2000:]}'
    assert code in (0, 1, 2, 130), (code, said)
    assert 'Traceback' not in err, said
    lines = err.strip().splitlines()
    assert len(lines)==1 and lines[0].startswith(f'{name}: ') if code else not [l for l in lines if not l.startswith('note: ')], said
    assert not leftovers(cwd), leftovers(cwd)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with pictures, weights of a small run, and the drawn faces that all cases share"
    at = tmp_path_factory.mktemp('commands')
    for i, name in enumerate(('a', 'b')): drawn_face(7, i, 64).save(at/f'{name}.png')
    drawn_face(7, 2, 80).save(at/'large.jpg')
    (at/'text.png').write_text('no picture')
    (at/'folder').mkdir()
    from PIL import Image
    Image.new('L', (64, 64), 0).save(at/'empty.png')
    mask = Image.new('L', (64, 64), 0); mask.paste(255, (20, 36, 44, 56)); mask.save(at/'mask.png')
    for model in ('ebgan', 'att-ebgan'):
        code, _, err = ran('ebgan_train', '--model', model, *TINY, '--out', model, cwd=at)
        assert code==0, err
    for folder, system in SYSTEMS.items():
        net = build_system(zoo_config(system, size=32, width=12))
        (at/folder).mkdir()
        save_system(at/folder/'weights.safetensors', net, None if net.told else ZooDiscriminator(net.config), {})
    (at/'torn.safetensors').write_bytes((at/'ebgan'/'weights.safetensors').read_bytes()[:5000])
    return at

SYSTEMS = dict(labels='stgan', pieces='dnagan')
TINY = '--size 32 --n-train 8 --bs 2 --batches 2 --val-every 2'.split()


# every value of every option, once

TRAIN = [
    *(['--model', m, '--preset', p, '--size', '64' if p=='paper' else '32'] for m in ('ebgan', 'att-ebgan') for p in ('course', 'paper', 'photographs', 'detailed')),
    *(['--precision', p] for p in ('auto', 'float32', 'bf16', 'fp16')),
    *(['--precision', p, '--model', 'att-ebgan'] for p in ('bf16', 'fp16')),
    ['--data', 'faces'], ['--seed', '5'], ['--lr', '1e-3'], ['--skip-bad'],
    ['--model', 'att-ebgan', '--attributes', 'Smiling'], ['--init', 'ebgan'], ['--model', 'att-ebgan', '--init', 'ebgan'], ['--minutes', '.001'],
    ['--tensorboard'], ['--batches', '3', '--val-every', '2'], *(['--supervised', '--model', m] for m in ('ebgan', 'att-ebgan')),
]

@pytest.mark.parametrize('options', TRAIN, ids=' '.join)
def test_train_takes(options, home, tmp_path):
    given = [*TINY, *options]
    if '--supervised' in options: del given[(at := given.index('--n-train')):at + 2] # its faces are drawn as they are needed
    if '--init' in options: given[given.index('--init') + 1] = home/'ebgan'
    result = ran('ebgan_train', *given, '--out', 'run', cwd=tmp_path)
    right('ebgan_train', given, result, tmp_path)
    assert result[0]==0, result[2]
    assert (tmp_path/'run'/'weights.safetensors').is_file() and (tmp_path/'run'/'checkpoint.safetensors').is_file()
    code, _, err = ran('ebgan_train', '--resume', 'run', '--batches', '4', cwd=tmp_path)
    assert code==0, err

EDIT = [
    *(['--region', r] for r in (*REGION_SHAPES, 'mouth+nose', 'eyes+brows+nose')), ['--mask', 'mask.png'],
    *(['--region', 'mouth', *more] for more in (['--strength', '0'], ['--strength', '.5'], ['--soft', '2'], ['--noise-floor', '0'], ['--noise-floor', '.2'],
      ['--attributes', 'Smiling'], ['--attributes', 'Smiling', '--others', 'source'], ['--attributes', '', '--others', 'absent'],
      ['--source-points', '24,29,40,29,32,38,25,46,39,46'], ['--exemplar-points', '24,29,40,29,32,38,25,46,39,46'])),
    *(['--region', 'eyes', '--weights', w] for w in ('faces', 'faces-att', 'faces-course', 'celeba', 'ebgan', 'att-ebgan', 'ebgan/weights.safetensors', *SYSTEMS)),
    *(['--region', 'mouth', '--weights', w, '--attributes', 'Smiling', '--strength', '.5', '--noise-floor', '.1'] for w in SYSTEMS),
]

@pytest.mark.parametrize('suffix', ('png', 'jpg', 'jpeg', 'tif', 'tiff', 'webp', 'bmp'))
def test_edit_writes(suffix, home):
    result = ran('ebgan_edit', 'a.png', 'b.png', '--region', 'mouth', '--out', f'y.{suffix}', cwd=home)
    assert result[0]==0, result[2]
    (home/f'y.{suffix}').unlink()

@pytest.mark.parametrize('options', EDIT, ids=' '.join)
def test_edit_takes(options, home):
    result = ran('ebgan_edit', 'a.png', 'b.png', *options, '--out', 'y.png', cwd=home)
    right('ebgan_edit', options, result, home)
    assert result[0]==0, result[2]

@pytest.mark.parametrize('weights, region, said', [('stgun', 'mouth', "did you mean 'stgan'"), ('labels', 'brows', 'none of its labels'), ('labels', 'nose', 'none of its labels')])
def test_edit_with_a_system_refuses(weights, region, said, home):
    result = ran('ebgan_edit', 'a.png', 'b.png', '--region', region, '--weights', weights, '--out', 'n.png', cwd=home)
    right('ebgan_edit', [], result, home)
    assert result[0]==2 and said in result[2] and not (home/'n.png').exists(), result[2]

@pytest.mark.parametrize('options', [['--weights', 'ebgan'], ['--weights', 'faces-att'], ['--weights', 'faces', '--regions', 'mouth,eyes+brows'], ['--seed', '9'],
                                     ['--json', 'f.json', '--csv', 'f.csv'], ['--data', 'faces']], ids=' '.join)
def test_evaluate_takes(options, home):
    given = ['--n', '2', *([] if '--regions' in options else ['--regions', 'mouth']), *([] if '--weights' in options else ['--weights', 'ebgan']), *options]
    result = ran('ebgan_evaluate', *given, cwd=home)
    right('ebgan_evaluate', given, result, home)
    assert result[0]==0 and 'achieved change' in result[1], result[2]

@pytest.mark.parametrize('name', MAIN)
def test_help(name, tmp_path):
    code, out, err = ran(name, '--help', cwd=tmp_path)
    assert code==0 and name in out and not err

@pytest.mark.parametrize('name', MAIN)
def test_an_option_is_not_forgotten_here(name):
    "What is tried above is all there is"
    known = {o for a in PARSERS[name]()._actions for o in a.option_strings if o.startswith('--')} - {'--help'}
    tried = set(re.findall(r'--[a-z-]+', Path(__file__).read_text()))
    assert known <= tried, known - tried


# any command line

NUMBERS = st.sampled_from('0 1 -1 2 .5 1e9 1e400 nan inf -inf 99999999999999999999 16 32 33 x ٣ 1_0'.split() + ['', ' ', '1\n2'])
NAMES = st.sampled_from(['a.png', 'b.png', 'large.jpg', 'text.png', 'empty.png', 'mask.png', 'folder', 'none.png', '', '.', '/', '/dev/zero', '/dev/null', '~nobody-here/x',
                         'x'*300, 'a/'*3000, 'ebgan', 'att-ebgan', 'labels', 'stgan', 'torn.safetensors', 'ebgan/weights.safetensors', 'ebgan/settings.json', 'faces', 'celeba',
                         'faces-att', '\x1b[31mred', 'two\nlines', 'ü\udcff.png', '-x', "mouth", 'é'*200])
WORDS = st.sampled_from('mouth eyes face brows nose mouth+nose mouth+ + ,, Smiling Smiling,Mustache Bald Male ebgan att-ebgan stgan elegant course paper photographs detailed auto bf16 fp16 float32 '
                        'absent source 24,29,40,29,32,38,25,46,39,46 1,2,3 out.png out.jpg out.xyz folder/out.png none/out.png out.json out.csv run'.split())
ANY = st.one_of(NUMBERS, NAMES, WORDS, st.text(max_size=6).filter(lambda t: '\0' not in t))
OPTIONS = {name: sorted({o for a in parser()._actions for o in a.option_strings if o.startswith('--')} - {'--help'})
           for name, parser in PARSERS.items()}

@st.composite
def lines(draw):
    "A command line that could mean something, disturbed"
    name = draw(st.sampled_from([*MAIN]))
    fitting = dict(ebgan_train=[*TINY, '--out', 'run'], ebgan_edit=['a.png', 'b.png', '--region', 'mouth', '--weights', 'ebgan', '--out', 'y.png'],
                   ebgan_evaluate=['--weights', 'ebgan', '--n', '2', '--regions', 'mouth'],
                   ebgan_zoo=['--system', 'stgan', *TINY, '--out', 'run'])[name]
    argv = list(fitting)
    for _ in range(draw(st.integers(1, 3))):
        how = draw(st.integers(0, 3))
        if how==0 and argv: argv[draw(st.integers(0, len(argv) - 1))] = draw(ANY)
        elif how==1 and argv: del argv[draw(st.integers(0, len(argv) - 1))]
        else: argv += [draw(st.sampled_from(OPTIONS[name])), draw(ANY)]
    return name, argv

def harmless(argv):
    "Not by the hour, and not outside of the folder"
    for a, b in zip(argv, argv[1:]):
        if a=='--out' and b.startswith(('/', '~')) and not b.startswith('/dev'): return False
        if a in ('--batches', '--n', '--n-train', '--minutes', '--bs') and re.fullmatch(r'1e9|16|32|33|1_0', b): return False
    return True

def one_case(case, home):
    name, argv = case
    if not harmless(argv): return
    small = dict(ebgan_train={'--n-train': '8', '--batches': '2'}, ebgan_zoo={'--n-train': '8', '--batches': '2'}, ebgan_evaluate={'--n': '2'}).get(name, {})
    argv = [*argv, *(w for k, v in small.items() if k not in argv and not (k=='--batches' and '--minutes' in argv) for w in (k, v))]
    with tempfile.TemporaryDirectory(dir=home.parent) as folder:
        for f in home.iterdir():
            if f.name!='.data': os.symlink(f, Path(folder)/f.name)
        before = {f: f.stat().st_mtime_ns for f in home.rglob('*') if f.is_file()}
        right(name, argv, ran(name, *argv, cwd=folder, seconds=100, EBGAN_DATA=str(home/'.data')), folder)
        assert before.items() <= {f: f.stat().st_mtime_ns for f in home.rglob('*') if f.is_file()}.items(), 'an input was changed'

FEW = dict(deadline=None, phases=(Phase.explicit, Phase.generate), derandomize=True, suppress_health_check=list(HealthCheck), database=None)

@budget(max_examples=40, **FEW)
@given(lines())
def test_any_command_line(home, case): one_case(case, home)

@pytest.mark.slow
@budget(max_examples=500, **{**FEW, 'derandomize': False})
@given(lines())
def test_any_of_500_command_lines(home, case): one_case(case, home)


# Ctrl-C, from the first moment on

@pytest.mark.parametrize('seconds', (.3, .8, 1.5))
def test_ctrl_c_during_the_imports(seconds, tmp_path):
    "The real command: what is imported takes seconds"
    env = dict(os.environ, **SMALL, EBGAN_DATA=str(tmp_path))
    child = subprocess.Popen([Path(sys.executable).parent/'ebgan_train', '--size', '32', '--n-train', '8', '--bs', '2', '--minutes', '5', '--out', tmp_path/'run'],
                             env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    for _ in range(3): child.send_signal(signal.SIGINT); time.sleep(.02)
    _, err = child.communicate(timeout=60)
    assert child.returncode==130 and 'Traceback' not in err and len(err.strip().splitlines())==1, (child.returncode, err)
