"""Pictures that come from outside, and pictures that are written: no interpreter, little memory, one line, whole or not there"""
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import save_file
from test_commands import leftovers, ran  # a skip where there is no fork, and thus of this file, too

from ebgan_nb import geometry, images
from ebgan_nb.attributes import REGIONS
from ebgan_nb.core import WrongInput
from ebgan_nb.geometry import align
from ebgan_nb.images import SAVE_OPTIONS, MODES, _NO_ALPHA, open_picture, save_edit
from ebgan_nb.compositing import region_pixels
from ebgan_nb.editing import Editor
from ebgan_nb.models import build
from ebgan_nb.recipes import config
from ebgan_nb.weights import save_weights
from ebgan_nb.session import drawn_face

PRINT = '%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n'
LIMIT = 7999 # pixels: the side of the largest square that is taken


@pytest.fixture(scope='module')
def small():
    "A network that is quick, of each kind"
    torch.manual_seed(0)
    sizes = dict(size=32, e_width=8, g_width=8, code_channels=16)
    return {k: Editor(build(config(**sizes, **more)), dict(regions_template='faces')) for k, more in dict(ebgan={}, att=dict(attributes=('Smiling', 'Mustache'))).items()}

@pytest.fixture(scope='module')
def home(small, tmp_path_factory):
    at = tmp_path_factory.mktemp('pictures')
    for i, name in enumerate(('a', 'b')): drawn_face(7, i, 64).save(at/f'{name}.png')
    for name, editor in small.items(): save_weights(at/f'{name}.safetensors', editor.model, dict(regions_template='faces'))
    return at

def edited(home, *argv, region='mouth', out='y.png', weights='ebgan.safetensors', **kwargs):
    return ran('ebgan_edit', *(argv or ('a.png', 'b.png')), '--region', region, '--out', out, '--weights', weights, cwd=home, **kwargs)

def one_line(result, code, *words):
    assert result[0]==code, result
    lines = result[2].splitlines()
    assert len(lines)==1 and lines[0].startswith('ebgan_edit: ') and lines[0].isprintable() and ' object at 0x' not in lines[0], result[2]
    for w in words: assert w in lines[0], (w, lines[0])


# what is opened

@pytest.mark.skipif(os.name!='posix', reason='the witness is a shell script')
def test_no_picture_reaches_an_interpreter(home, tmp_path):
    (tmp_path/'gs').write_text(f'#!/bin/sh\ntouch {tmp_path}/called\n'); (tmp_path/'gs').chmod(0o755)
    path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
    (home/'print.png').write_text(PRINT)
    for argv in (('print.png', 'b.png'), ('a.png', 'print.png')): one_line(edited(home, *argv, PATH=path), 2, 'print.png: no picture that is read here')
    one_line(ran('ebgan_edit', 'a.png', 'b.png', '--mask', 'print.png', '--out', 'y.png', cwd=home, PATH=path), 2, 'print.png: no picture')
    upload = 'import sys; from ebgan_nb.images import open_upload\ntry: open_upload(open("print.png", "rb").read(), "print.png")\nexcept ValueError as e: print(e)'
    said = subprocess.run([sys.executable, '-c', upload], cwd=home, env={**os.environ, 'PATH': path}, capture_output=True, text=True)
    assert said.stdout.startswith('print.png: no picture'), said
    assert not (tmp_path/'called').exists() and not (home/'y.png').exists()
    pil = 'from PIL import Image\ntry: Image.open("print.png").load()\nexcept OSError: pass'
    subprocess.run([sys.executable, '-c', pil], cwd=home, env={**os.environ, 'PATH': path}, check=True)
    assert (tmp_path/'called').exists(), 'the witness sees nothing'

@pytest.mark.skipif(os.name!='posix', reason='needs pipes and devices')
def test_what_is_no_file_is_said_at_once(home):
    if not (home/'pipe.png').exists(): os.mkfifo(home/'pipe.png')
    (home/'folder.png').mkdir(exist_ok=True)
    for odd, word in (('pipe.png', 'a pipe or a device'), ('/dev/zero', 'a pipe or a device'), ('folder.png', 'Is a directory'), ('none.png', 'No such file')):
        for argv in ((odd, 'b.png'), ('a.png', odd)): one_line(edited(home, *argv, seconds=20), 2, f'{odd}: {word}')
        one_line(ran('ebgan_edit', 'a.png', 'b.png', '--mask', odd, '--out', 'y.png', cwd=home, seconds=20), 2, f'{odd}: {word}')
    for odd in ('pipe.png', 'folder.png'): one_line(edited(home, out=odd, seconds=20), 2, odd)

def test_names_are_said_and_do_no_harm(home):
    for name in ('\x1b[31mred.png', 'two\nlines.png', 'ü\udcff.png', '\u202egnp.png', 'a\x07b.png'):
        (home/name).write_bytes(b'no picture')
        one_line(edited(home, name, 'b.png'), 2, 'no picture')
        drawn_face(7, 0, 64).save(home/name, 'PNG')
        code, out, err = edited(home, name, 'b.png', out=f'y-{name}')
        assert (code, err)==(0, '') and len(out.splitlines())==1 and out.strip().isprintable() and (home/f'y-{name}').exists(), (code, out, err)
    long = 'x'*5000 + '.png'
    for argv, out in (((long, 'b.png'), 'y.png'), (('a.png', long), 'y.png'), (('a.png', 'b.png'), long), (('a.png', 'b.png'), f'{"d"*5000}/y.png'), (('a.png', 'b.png'), f'{"x"*300}.png')):
        one_line(edited(home, *argv, out=out), 2)
    for out in ('y\0.png', '', '~no-such-user/y.png'): one_line(edited(home, out=out), 2)
    for weights in ('~no-such-user/x', '', 'w\0', 'x'*5000): one_line(edited(home, weights=weights), 2)
    one_line(ran('ebgan_edit', 'a.png', 'b.png', '--mask', '', '--region', 'mouth', '--out', 'y.png', cwd=home), 2)

def test_numbers(home):
    for option in ('--strength', '--noise-floor', '--soft'):
        for v in ('nan', 'inf', '1e400', '-1', 'two', '', '1'*400, '9'*5000): one_line(edited(home, 'a.png', 'b.png', option, v), 2, option)
    for points in ('', '1,2', 'nan,'*9 + 'nan', '1e400,'*9 + '1', '1'*5000): one_line(edited(home, 'a.png', 'b.png', '--source-points', points), 2)


# what is decoded

def file(image, kind='PNG', **kwargs):
    image.save(out := io.BytesIO(), kind, **kwargs)
    return out.getvalue()

TORN_NOTES = [b'Exif\0\0' + head + tail for head in (b'II*\0', b'MM\0*', b'') for tail in (b'', b'\xff'*9, b'\x08\0\0\0\xff\xff', b'\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06')]

@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('kind', ('JPEG', 'PNG', 'WEBP'))
def test_a_torn_note_refuses_no_photograph(kind, home):
    face = drawn_face(7, 0, 64)
    for note in TORN_NOTES:
        (home/'noted.png').write_bytes(file(face, kind, exif=note))
        im = open_picture(home/'noted.png')
        assert im.size==face.size and abs(np.array(im, dtype=int) - np.array(face)).mean() < 12
        assert images.open_upload(file(face, kind, exif=note)).size==face.size

@pytest.mark.parametrize('kind', ('JPEG', 'PNG', 'WEBP', 'TIFF'))
def test_turned_upright_once(kind, home):
    face = drawn_face(7, 0, 64).crop((0, 0, 64, 50))
    for o in range(1, 9):
        note = Image.Exif(); note[0x112], note[0x9999] = o, b'odd'
        (home/'turned.png').write_bytes(data := file(face, kind, exif=note))
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        lazy = Image.open(io.BytesIO(data), formats=[kind])
        for im in (open_picture(home/'turned.png'), images.to_editable(open_picture(home/'turned.png')), images.to_editable(lazy), images.open_upload(data)):
            assert im.size==expected.size and im.tobytes()==expected.convert('RGB').tobytes(), (kind, o)

def tiff(w, h, depth=8, samples=1, **more):
    "A TIFF by hand: deflated rows of zeros; `more` are entries {tag: number}"
    data = zlib.compress(bytes(w*h))
    def made(at):
        entries = {256: w, 257: h, 258: depth, 259: 8, 262: 1, 273: at, 277: samples, 278: h, 279: len(data)} | {int(k[1:]): v for k, v in more.items()}
        return b'II*\0\x08\0\0\0' + struct.pack('<H', len(entries)) + b''.join(struct.pack('<HHII', k, 4, 1, v) for k, v in sorted(entries.items())) + bytes(4)
    return made(len(made(0))) + data

def odd_pictures():
    "{name: bytes} of files that make Pillow, libtiff or numpy talk"
    face, deep = drawn_face(7, 0, 64), np.float32(np.random.default_rng(0).normal(size=(64, 64)))
    deep[:2] = [[np.nan], [np.inf]]; deep[2:4] = [[-np.inf], [3e38]]
    quantized = face.quantize(8); quantized.info['transparency'] = bytes(range(0, 160, 20))
    found = {'nan.tif': file(Image.fromarray(deep), 'TIFF'), 'bytes-trns.png': file(quantized), 'i.tif': file(Image.fromarray(np.int32(np.nan_to_num(deep).clip(-2e9, 2e9))), 'TIFF'),
             **{f'note{i}.{k}': file(face, k, exif=note) for i, note in enumerate(TORN_NOTES) for k in ('jpeg', 'png')}, 'samples.tif': tiff(64, 64, samples=3000), 'rows.tif': tiff(64, 64, _278=2**32 - 1), 'no-bytes.tif': tiff(64, 64, _279=0), 'few-bytes.tif': tiff(64, 64, _279=9),
             'tiles.tif': tiff(64, 64, _322=60000, _323=60000, _324=8, _325=90), 'mpo.jpg': file(face, 'MPO', save_all=True, append_images=[face])}
    for name, kind in (('tif', 'TIFF'), ('jpg', 'JPEG'), ('png', 'PNG'), ('webp', 'WEBP'), ('gif', 'GIF'), ('bmp', 'BMP')):
        whole, rng = file(face, kind), np.random.default_rng(len(kind))
        for k in range(6):
            torn = bytearray(whole)
            for i in rng.integers(min(len(whole), 400), size=4): torn[i] = rng.integers(256)
            found[f'{k}.{name}'] = bytes(torn[:len(torn)*(k + 3)//6])
    return found

def test_nothing_stands_beside_the_line(home):
    answers = {}
    for name, data in odd_pictures().items():
        (home/name).write_bytes(data)
        code, out, err = edited(home, name, 'b.png', out=f'y-{name}.png')
        answers[code] = answers.get(code, 0) + 1
        if code: one_line((code, out, err), 2)
        else: assert not err and len(out.splitlines())==1, (name, err)
    assert answers[0] and answers[2]

PEAK = '''import sys, json
from ebgan_nb import geometry, images
from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
def status(key): return int(next(l for l in open('/proc/self/status') if l.startswith(key)).split()[1])/1024
how, name = sys.argv[1:]
data = open(name, 'rb').read() if how=='open_upload' else name
open('/proc/self/clear_refs', 'w').write('5')
before = status('VmRSS')
try: said = str((images.open_picture if how=='open_picture' else images.open_upload)(data).mode)
except ValueError as e: said = str(e)
print(json.dumps([status('VmHWM') - before, said]))'''

def peak(how, path):
    "MB that a child needs beyond what it had, and what it answers"
    done = subprocess.run([sys.executable, '-c', PEAK, how, str(path)], capture_output=True, text=True, timeout=300)
    assert done.returncode==0, done.stderr[-500:]
    return json.loads(done.stdout)

def largest(mode, kind, **kwargs):
    "A picture at the limit: small as a file"
    return file(Image.new(mode, (LIMIT, LIMIT)), kind, **kwargs)

def turned(o=6):
    note = Image.Exif(); note[0x112] = o
    return note

LARGEST = {'deep.png': lambda: largest('I;16', 'PNG'), 'deep-turned.png': lambda: largest('I;16', 'PNG', exif=turned()), 'float.tif': lambda: largest('F', 'TIFF', compression='tiff_lzw'),
    'int.tif': lambda: largest('I', 'TIFF', compression='tiff_lzw'), 'rgba.png': lambda: largest('RGBA', 'PNG', exif=turned()), 'la.png': lambda: largest('LA', 'PNG'),
    'p.png': lambda: largest('P', 'PNG', transparency=0), 'trns.png': lambda: largest('RGB', 'PNG', transparency=(0, 0, 0)), 'cmyk.tif': lambda: largest('CMYK', 'TIFF', compression='tiff_lzw'),
    'cmyk.jpg': lambda: largest('CMYK', 'JPEG', progressive=True), 'rgb.jpg': lambda: largest('RGB', 'JPEG', progressive=True, subsampling=0, exif=turned()),
    'lab.tif': lambda: largest('LAB', 'TIFF', compression='tiff_lzw'), 'rgba.webp': lambda: largest('RGBA', 'WEBP'), 'p.gif': lambda: largest('P', 'GIF'), 'one.png': lambda: largest('1', 'PNG')}

def frugal(name, tmp_path):
    (tmp_path/name).write_bytes(LARGEST[name]())
    for how in ('open_picture', 'open_upload'):
        more, said = peak(how, tmp_path/name)
        print(f'{how} {name}, {(tmp_path/name).stat().st_size/1024:,.0f} kB: {more:.0f} MB, {said}')
        assert more < 1024 and said in MODES, (how, more, said)

needs_proc = pytest.mark.skipif(not os.access('/proc/self/clear_refs', os.W_OK), reason="needs Linux's /proc")

@needs_proc
def test_deep_pictures_need_little_memory(tmp_path): frugal('deep.png', tmp_path)

@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize('name', LARGEST)
def test_pictures_at_the_limit_need_little_memory(name, tmp_path): frugal(name, tmp_path)


# what is written

needs_limits = pytest.mark.skipif(sys.platform!='linux', reason='needs limits on the size of files')

@needs_limits
@pytest.mark.parametrize('suffix', SAVE_OPTIONS)
def test_a_full_disk_leaves_the_old_picture(suffix, tmp_path):
    "The last write finds room for half of its bytes"
    old, new, path = Image.new('RGB', (64, 64), 'tan'), Image.effect_noise((64, 64), 90).convert('RGB'), tmp_path/f'y{suffix}'
    save_edit(new, path); whole = path.stat().st_size
    save_edit(old, path); before = path.read_bytes()
    program = '''import resource, signal, sys
from PIL import Image
from ebgan_nb.core import RunFailed
from ebgan_nb.images import save_edit
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
new = Image.open(sys.argv[1]); new.load()
for room in map(int, sys.argv[3:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try: save_edit(new, sys.argv[2])
    except RunFailed as e: print(e)
    else: print('it went through')'''
    new.save(tmp_path/'new.png')
    rooms = [0, 100, whole//2, whole - 200]
    done = subprocess.run([sys.executable, '-c', program, tmp_path/'new.png', path, *map(str, rooms)], capture_output=True, text=True)
    said = done.stdout.splitlines()
    assert len(said)==len(rooms) and all(s.startswith(f'{path}: not written (File too large)') for s in said), done
    assert path.read_bytes()==before and not leftovers(tmp_path)
    assert open_picture(path).size==(64, 64)

def test_a_full_disk_ends_with_one_line(home, tmp_path):
    "On a real one"
    at = tmp_path/'disk'; at.mkdir()
    if not shutil.which('mount') or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=28k', 'tmpfs', at], capture_output=True).returncode: pytest.skip('no small disk can be mounted here')
    try:
        face = drawn_face(7, 0, 128); face.save(home/'face.png')
        for suffix in ('jpg', 'tif', 'bmp', 'png', 'webp'):
            path = at/f'o.{suffix}'
            drawn_face(7, 1, 64).save(path, quality=50); before = path.read_bytes()
            free = os.statvfs(at)
            (at/'full').write_bytes(bytes(max(0, free.f_bavail*free.f_bsize - 4096)))
            one_line(edited(home, 'face.png', 'b.png', out=path), 1, f'o.{suffix}: not written (No space left on device)', 'the file that was there is as it was')
            assert path.read_bytes()==before and not leftovers(at)
            for f in at.iterdir(): f.unlink()
    finally: subprocess.run(['umount', at], check=True)

def test_a_failed_rename_names_the_target(home, monkeypatch):
    def failing(*args): raise OSError(5, 'Input/output error')
    monkeypatch.setattr(os, 'replace', failing)
    one_line(edited(home), 1, 'y.png: not written (Input/output error)')
    assert not leftovers(home)

@pytest.mark.parametrize('mode, clear', [('RGB', (250, 250, 250)), ('L', 250), ('P', 3)])
@pytest.mark.parametrize('suffix', SAVE_OPTIONS)
def test_a_transparent_colour_stays_or_is_refused(mode, clear, suffix, home):
    face = drawn_face(7, 0, 64).convert(mode); face.paste(clear, (0, 0, 8, 64))
    face.save(home/'clear.png', transparency=clear)
    (home/f'y{suffix}').unlink(missing_ok=True)
    result = edited(home, 'clear.png', 'b.png', out=f'y{suffix}')
    if suffix in _NO_ALPHA:
        one_line(result, 2, 'has no alpha, the picture does')
        assert not (home/f'y{suffix}').exists()
        return
    assert result[0]==0, result
    was, alpha = (Image.open(home/f).convert('RGBA').getchannel('A') for f in ('clear.png', f'y{suffix}'))
    assert alpha.tobytes()==was.tobytes() and alpha.getextrema()==(0, 255)


# weights that are no good

def test_weights_that_overflow_are_named(home):
    "Finite numbers, but too large to multiply"
    for model in ('ebgan', 'att'):
        with safe_open(home/f'{model}.safetensors', 'pt') as f: tensors, header = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
        for by in (1e20, 1e36):
            save_file({k: v.float()*(by if k.startswith('G.') else 1) for k, v in tensors.items()}, home/'loud.safetensors', header)
            one_line(edited(home, weights='loud.safetensors'), 2, 'loud.safetensors: what these weights paint is no picture')

@pytest.mark.parametrize('template', [[[float('nan')]*2]*5, [[1e30, 0]]*5, [[.3, .4], [.7, .4], [.5, .6], [.35, .8], [1e30, .8]], [[.5, .5]]*5, 'cats', 3, {'x': 1}, [[10**400, 0]]*5])
def test_a_bad_template_is_the_weights_fault(template, home):
    with safe_open(home/'ebgan.safetensors', 'pt') as f: tensors, header = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
    save_file(tensors, home/'bad.safetensors', header | dict(info=json.dumps(dict(regions_template=template))))
    result = edited(home, weights='bad.safetensors')
    one_line(result, 2, 'bad.safetensors')
    assert 'source_points' not in result[2]


# from Python

ODD = [None, 3, 2.5, 'a.png', b'a', [], {}, object(), np.zeros((64, 64, 3), np.uint8), torch.zeros(3, 64, 64)]

def test_wrong_types_are_wrong_input(small, tmp_path, monkeypatch):
    a, b, editor, att = drawn_face(7, 0, 64), drawn_face(7, 1, 64), small['ebgan'], small['att']
    monkeypatch.chdir(tmp_path)
    refused = []
    def wrong(fn, *args, **kwargs):
        with pytest.raises(WrongInput) as e: fn(*args, **kwargs)
        refused.append(str(e.value))
    for odd in ODD:
        for call in (lambda: editor.edit(odd, b, 'mouth'), lambda: editor.edit(a, odd, 'mouth'), lambda: editor.edit(a, {'mouth': odd}), lambda: att.read(odd), lambda: Editor(odd, {}),
                     lambda: save_edit(odd, 'y.png')): wrong(call)
        if not isinstance(odd, str): wrong(save_edit, a, odd); wrong(open_picture, odd)
        if not isinstance(odd, bytes): wrong(images.open_upload, odd)
        if not isinstance(odd, dict): wrong(Editor, editor.model, odd)
        if odd is None: continue # what was not given
        for name in ('region', 'mask'): wrong(editor.edit, a, b, **{name: odd})
        for name in ('source_points', 'exemplar_points', 'attributes', 'labels'): wrong(editor.edit, a, b, 'mouth', **{name: odd})
        if odd != 3 if isinstance(odd, int) else True:
            for name in ('noise_floor', 'strength', 'soft'): wrong(editor.edit, a, b, 'mouth', **{name: odd})
        wrong(att.edit, a, b, 'mouth', others=odd); wrong(Editor.load, odd); wrong(Editor, editor.model, {}, odd)
        if not isinstance(odd, (list, dict)): wrong(att.edit, a, b, 'mouth', labels=odd); wrong(att.edit, a, b, 'mouth', attributes=odd)
    for v in (10**400, 10**5000, -1, True, '1', complex(1), np.array([1, 2])):
        for name in ('strength', 'noise_floor', 'soft'): wrong(editor.edit, a, b, 'mouth', **{name: v})
    for device in ('cuda:99', 'gpu', 3.5, []): wrong(Editor, editor.model, {}, device)
    if not torch.cuda.is_available(): wrong(Editor, editor.model, {}, 'cuda'); wrong(Editor.load, 'faces', 'cuda'); wrong(Editor.load, None, 'cuda')
    print(f'{len(refused)} wrong calls, {len({*refused})} different answers')


# the promise: every pixel outside of M stays, whatever the picture is

def any_edit(rng, small):
    "A random edit: (editor, source, exemplar, keyword arguments, M with its box)"
    kind = ('ebgan', 'att')[rng.integers(2)]
    def face(points):
        n = int(rng.integers(16, 40) if rng.random() < .3 else rng.integers(40, 420))
        im = drawn_face(int(rng.integers(99)), 0, 96)
        if not points: return im.resize(((n, n), (89*n//60 + 1, 109*n//60 + 1))[int(rng.random() < .3 and n > 30)])
        W, H = (max(60, int(n*k)) for k in rng.uniform(.7, 3, 2))
        return im.resize((W, H))
    own = rng.random() < .4
    A, B = face(own), face(False)
    p = None
    if own:
        c, size = np.array(A.size)*rng.uniform(.35, .65, 2), min(A.size)*rng.uniform(.3, .9)
        turn = np.exp(1j*rng.uniform(-.6, .6))
        t = (geometry.template_points('faces', 1)[0].numpy() - .5)@[1, 1j]*turn*size
        p = np.stack([t.real + c[0], t.imag + c[1]], 1).clip(0, A.size)
    mode = str(rng.choice(['L', 'LA', 'RGB', 'RGBA', 'P', '1', 'CMYK', 'YCbCr', 'HSV', 'LAB', 'I;16', 'I', 'F', 'PA', 'RGBX', 'RGBa']))
    A = odd_mode(A, mode, rng)
    B = odd_mode(B, str(rng.choice(['RGB', 'L', 'RGBA', 'P', 'CMYK', 'I;16', '1'])), rng)
    if rng.random() < .3:
        note = Image.Exif(); note[0x112] = int(rng.integers(1, 9)); A.info['exif'] = note.tobytes()
        if p is not None and note[0x112] >= 5: A.info.pop('exif')
    kwargs = dict(strength=float(rng.random()), soft=int(rng.integers(0, 4)) if min(A.size) > 100 else 0)
    if rng.random() < .5: kwargs['noise_floor'] = float(rng.random()*.2)
    if p is not None: kwargs['source_points'] = p
    if kind=='att' and rng.random() < .5: kwargs['attributes'] = ['Smiling']
    if kind=='att' and rng.random() < .3: kwargs['labels'] = {'Mustache': int(rng.integers(2))}
    region = '+'.join(rng.choice(REGIONS, rng.integers(1, 4), replace=False))
    return small[kind], A, B, region, rng.random() < .3, kwargs

def odd_mode(im, mode, rng):
    if mode=='I;16': return Image.fromarray(np.array(im.convert('L')).astype(np.uint16)*257)
    if mode in 'IF': return im.convert('L').convert(mode)
    if mode=='RGBa': return im.convert('RGBA').convert(mode)
    im = im.convert(mode)
    if mode in ('LA', 'RGBA'): im.putalpha(Image.fromarray(rng.integers(0, 256, im.size[::-1], dtype=np.uint8)))
    return im

def check_edit(seed, small):
    "-> 'edited', or the reason for which it is refused"
    rng = np.random.default_rng(seed)
    editor, A, B, region, by_mask, kwargs = any_edit(rng, small)
    upright = images.to_editable(A)
    before = A.tobytes()
    size = upright.size
    try: points, T = align(size, kwargs.get('source_points'), editor.template, editor.size)
    except WrongInput as e: return str(e)
    template = editor.template if 'source_points' not in kwargs else None
    M, box = region_pixels(region, points, T, editor.size, size, template)
    if by_mask:
        whole = np.zeros(size[::-1], bool); whole[box[1]:box[3], box[0]:box[2]] = M.numpy()
        given = (lambda m: [m, torch.tensor(m), Image.fromarray(m), torch.tensor(m).bfloat16(), m.tolist()][int(rng.integers(5))])(whole)
        call = lambda: editor.edit(A, B, mask=given, **kwargs)
    else: call = lambda: editor.edit(A, B, region, **kwargs)
    try: y = call()
    except WrongInput as e: return str(e)
    again = call()
    assert (y.size, y.mode, y.tobytes())==(again.size, again.mode, again.tobytes()), (seed, 'not the same twice')
    assert A.tobytes()==before, (seed, 'the source was changed')
    assert (y.size, y.mode)==(size, upright.mode) and (A.mode not in MODES or y.mode==A.mode), (seed, A.mode, y.mode)
    inside = np.zeros(size[::-1], bool); inside[box[1]:box[3], box[0]:box[2]] = M.numpy()
    differ = (np.array(y) != np.array(upright)).reshape(*size[::-1], -1)
    assert not differ.any(-1)[~inside].any(), (seed, 'changed outside')
    if y.mode[-1]=='A': assert not differ[..., -1].any(), (seed, 'alpha changed')
    return 'edited'

def many(seeds, small):
    answers = [check_edit(s, small) for s in seeds]
    done = answers.count('edited')
    print(f'{done} edits, each made twice: outside identical, size and mode kept; {len(answers) - done} refused')
    assert done > .6*len(answers), sorted({*answers})
    return answers

def test_a_few_edits(small): many(range(40), small)

@pytest.mark.slow
def test_many_edits(small): many(range(1000, 1600), small)
