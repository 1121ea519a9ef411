"The studio in a real browser, in JupyterLab and as Voila's page: every control, every answer, and how long it takes"
import base64
import io
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image, ImageOps
from test_browser import FLAGS, OPEN, lab  # noqa: F401 (a fixture)

pytestmark = pytest.mark.browser
SLOW = {64: 300, 128: 600}  # ms, by the network's pixels: three times the promise, since machines that test are often busy
VISITORS, EDITS = (int(n) for n in os.environ.get('EBGAN_VISITORS', '4x5').split('x'))  # at once, each; the promise is 10x20
# a page that nobody looks at must not fall asleep while others are driven
AWAKE = ['--disable-background-timer-throttling', '--disable-backgrounding-occluded-windows', '--disable-renderer-backgrounding']

LATENCY = '''async act => {
    const img = () => document.querySelector('.eb-after'), old = img().src, start = performance.now()
    eval(act)
    while (img().src === old && performance.now() - start < 10000) await new Promise(r => setTimeout(r, 1))
    await img().decode(); await new Promise(requestAnimationFrame)
    return performance.now() - start }'''
LEFT = '''document.querySelector('.eb .noUi-handle').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft', bubbles: true}))'''
ORANGE = '''() => { const c = document.querySelector('.eb canvas'), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data
    let n = 0; for (let i = 0; i < d.length; i += 4) if (d[i] > 200 && d[i+1] < 120) n++; return n }'''


@pytest.fixture(scope='module')
def browser():
    from playwright.sync_api import sync_playwright
    chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    assert chromium, 'no Chromium here: make test-browser installs it'
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=[*FLAGS, *AWAKE])
        yield browser
        browser.close()

class Address(str):
    "Of a server; `pid` is its process"

@contextmanager
def serving(log, notebook='tools/studio.ipynb'):
    "The address of the page that `make studio` serves"
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    made = subprocess.run(['make', '--no-print-directory', '--dry-run', '-o', '.venv/.ready', 'studio', f'STUDIO_FLAGS=--no-browser --port={port}'], cwd=ROOT, capture_output=True, text=True, check=True)
    command = next(line for line in made.stdout.splitlines() if 'tools/studio.ipynb' in line).split(maxsplit=1)[1].replace('tools/studio.ipynb', str(notebook))
    with open(log, 'w') as f:
        server = subprocess.Popen(f'exec {sys.executable} -m voila {command}', shell=True, cwd=ROOT, stdout=f, stderr=f, env={**os.environ, 'OMP_WAIT_POLICY': 'passive', 'OMP_NUM_THREADS': '1'})
    try:
        url = Address(f'http://127.0.0.1:{port}/')
        url.pid = server.pid
        for _ in range(120):
            try: urllib.request.urlopen(f'{url}voila/static/none', timeout=5)
            except urllib.error.HTTPError: break
            except OSError: time.sleep(.5)
        else: pytest.fail(Path(log).read_text()[-2000:])
        yield url
    finally:
        server.terminate()
        try: server.wait(30)
        except subprocess.TimeoutExpired: server.kill()

@pytest.fixture(scope='module')
def voila(tmp_path_factory):
    with serving(tmp_path_factory.mktemp('voila')/'log') as url: yield url

class Page:
    "The studio's page, in words"
    def __init__(self, page): self.page = page
    def picture(self): return self.page.locator('.eb-after').get_attribute('src')
    def said(self): return self.page.locator('.eb-said').inner_text()
    def toggle(self, text): return self.page.locator('.eb .widget-toggle-button').get_by_text(text, exact=True)
    def button(self, text): return self.page.locator('.eb .widget-button').filter(has_text=text)

    def changes(self, act, *args, **kwargs):
        "The new picture, after a control was moved"
        before = self.picture()
        act(*args, **kwargs)
        self.page.wait_for_function("old => document.querySelector('.eb-after').src !== old", arg=before, timeout=15_000)
        return self.picture()

    def says(self, text):
        self.page.locator('.eb-said').get_by_text(text).wait_for(timeout=15_000)
        return self.said()

def opened(page, where, address, notebook='tools/studio.ipynb'):
    "The studio, in JupyterLab or as Voila's page"
    if where=='lab':
        page.goto(f'{address}/lab?reset', wait_until='domcontentloaded')
        page.wait_for_function('window.jupyterapp && window.jupyterapp.shell', timeout=120_000)
        page.evaluate(OPEN, notebook)
        page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
        page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    else: page.goto(address, wait_until='domcontentloaded')
    page.locator('.eb-after').wait_for(timeout=60_000)
    page.locator('.eb canvas').wait_for(timeout=15_000)
    return Page(page)

@pytest.fixture(params=['lab', 'voila'])
def studio(request, browser):
    page = browser.new_page(viewport=dict(width=1280, height=1000), accept_downloads=True)
    yield opened(page, request.param, request.getfixturevalue(request.param)), request.param
    page.close()

def latency(page, where, size, n=15):
    "Median of the times from a key on the slider to the new picture, ms"
    took = []
    for _ in range(n): took.append(page.evaluate(LATENCY, LEFT)); page.wait_for_timeout(150)
    print(f'{where}, {size} px: {statistics.median(took):.0f} ms from a key on the slider to the new picture, median of {[round(t) for t in took]}; load {os.getloadavg()[0]:.1f}')
    assert statistics.median(took) < SLOW[size]

def png(image): out = io.BytesIO(); image.save(out, 'png'); return out.getvalue()

def painted(page, canvas, x, y, to_x, to_y):
    "A stroke with the mouse, in fractions of the picture; what was orange before the button was let go"
    box = canvas.bounding_box()
    at = lambda u, v: (box['x'] + u*box['width'], box['y'] + v*box['height'])
    page.mouse.move(*at(x, y)); page.mouse.down(); page.mouse.move(*at(to_x, to_y), steps=12)
    seen = page.evaluate(ORANGE)
    page.mouse.up()
    return seen

def test_studio(studio, tmp_path):
    s, where = studio
    page, first = s.page, s.picture()
    assert s.said().startswith('Filled in: mouth of drawn 2026-1')

    # regions, and back
    s.changes(s.toggle('nose').click)
    s.says('Filled in: mouth + nose of drawn 2026-1.')
    assert s.changes(s.button('Undo').click)==first
    s.changes(s.button('Redo').click)
    assert s.changes(s.page.locator('.eb-face[title="step 1"]').click)==first

    # from a change to the picture
    latency(page, where, 64)

    # an attribute, left out and taken again; a label, corrected
    with_mustache = s.picture()
    box = page.locator('.eb .widget-checkbox').filter(has_text='Mustache').locator('input')
    s.changes(box.uncheck)
    assert s.changes(box.check)==with_mustache
    s.changes(page.locator('.eb-attributes .widget-toggle-button').filter(has_text='yes').first.click)
    assert s.changes(s.button('Undo').click)==with_mustache

    # a stroke is seen before the button is let go, and reaches the picture afterwards; by keyboard, too
    canvas = page.locator('.eb canvas')
    canvas.scroll_into_view_if_needed()
    seen = []
    s.changes(lambda: seen.append(painted(page, canvas, .3, .3, .7, .35)))
    assert seen[0] > 100
    s.says('mouth + what is painted')
    assert s.changes(page.locator('.eb-tools button').get_by_text('Clear').click)==with_mustache
    canvas.focus()
    page.keyboard.press('ArrowUp')
    s.changes(page.keyboard.press, ' ')

    # saved, with its mask
    with page.expect_download() as got: s.button('Save PNG').click()
    page.locator('.eb-links a').nth(1).wait_for()
    assert page.locator('.eb-links a').count()==2
    image = Image.open(got.value.path()) if got.value.suggested_filename.count('-')==1 else None
    if image is None:
        with page.expect_download() as got: page.locator('.eb-links a').first.click()
        image = Image.open(got.value.path())
    assert 'edited' in image.text['Description'] and 'faces-att' in image.text['Software']
    assert json.loads(image.text['Settings'])['painted']

    # before and after, by style alone
    hold = page.locator('.eb-hold')
    hold.scroll_into_view_if_needed(); hold.hover(); page.mouse.down()
    page.wait_for_function("getComputedStyle(document.querySelector('.eb-after')).visibility === 'hidden'", timeout=5000)
    page.mouse.up()
    page.wait_for_function("getComputedStyle(document.querySelector('.eb-after')).visibility === 'visible'", timeout=5000)

    # pictures of one's own, good and bad
    upload = page.locator('.eb-upload input')
    upload.set_input_files(dict(name='letter.png', mimeType='image/png', buffer=b'Dear reader'))
    assert 'letter.png' in s.says('letter.png')
    upload.set_input_files(dict(name='large.png', mimeType='image/png', buffer=bytes(21 << 20)))
    s.says('larger than 20 MB')
    s.changes(upload.set_input_files, dict(name='mine.png', mimeType='image/png', buffer=png(image)))
    s.says('drawn faces only')

    # a face in a larger picture: found, and put right by hand
    scene = Image.new('RGB', (600, 400), (150, 140, 130))
    scene.paste(image.resize((300, 300)), (200, 60))
    s.changes(upload.set_input_files, dict(name='scene.png', mimeType='image/png', buffer=png(scene)))
    dot = page.locator('.eb-pins button').nth(2)
    dot.scroll_into_view_if_needed()
    box = dot.bounding_box()
    page.mouse.move(box['x'] + 11, box['y'] + 11); page.mouse.down(); page.mouse.move(box['x'] + 11, box['y'] + 25, steps=4)
    s.changes(page.mouse.up)
    page.locator('.eb-face[title="scene.png (2) (chosen)"]').wait_for(timeout=15_000)

    # several at once: one sentence for all. A folder, for those who sit at the machine; others have no such field
    upload.set_input_files([dict(name=n, mimeType='image/png', buffer=d) for n, d in (('one.png', png(image)), ('two.png', b''), ('three.png', png(image)))])
    page.locator('.eb-face[title="three.png (chosen)"]').wait_for(timeout=15_000)
    s.says('two.png is empty')
    field = page.locator('.eb input[type=text]')
    assert field.count()==(where=='lab')
    if where=='lab':
        (tmp_path/'mine').mkdir(); image.save(tmp_path/'mine'/'shelf.png')
        field.fill(f'{tmp_path}/none'); field.press('Enter')
        s.says('there is no such folder')
        field.fill(f'{tmp_path}/mine'); field.press('Enter')
        s.says('1 picture of')
        s.changes(page.locator('.eb-face[title="shelf.png"]').first.click)

    # inside the code; other people; nothing went wrong on the way
    s.toggle('Look inside the code').click()
    page.locator('.eb-blocks img').nth(23).wait_for(timeout=15_000)
    s.toggle('Look inside the code').click()
    s.changes(s.button('New faces').click)
    s.says('of drawn 2027-0')
    assert page.locator('[data-mime-type="application/vnd.jupyter.stderr"], .jp-RenderedText[data-mime-type*="error"]').count()==0
    page.screenshot(path=tmp_path/f'{where}.png')

def test_studio_on_a_phone_and_two_visitors(voila, browser, tmp_path):
    phone, other = (browser.new_page(viewport=dict(width=w, height=h)) for w, h in ((390, 844), (1280, 1000)))
    for p in (phone, other): p.goto(voila, wait_until='domcontentloaded')
    for p in (phone, other): p.locator('.eb-after').wait_for(timeout=60_000)
    assert phone.evaluate('document.documentElement.scrollWidth') <= 390
    right = phone.evaluate("Math.max(...[...document.querySelectorAll('.eb *')].map(e => e.getBoundingClientRect()).filter(b => b.width).map(b => b.right))")
    assert right <= 390, 'something sticks out on a phone'
    theirs = Page(other).picture()
    mine = Page(phone).changes(Page(phone).toggle('brows').click)
    assert Page(other).picture()==theirs!=mine
    phone.screenshot(path=tmp_path/'phone.png')
    phone.close(); other.close()

ASK = '''([url, code]) => new Promise((done, failed) => {
    const ws = new WebSocket(url), answers = []
    const ask = (kind, content) => ws.send(JSON.stringify({channel: 'shell', content, metadata: {}, parent_header: {}, buffers: [],
        header: {msg_id: kind, msg_type: kind, username: '', session: 'visitor', version: '5.3', date: new Date().toISOString()}}))
    ws.onmessage = e => { const m = JSON.parse(e.data)
        if (m.parent_header.session === 'visitor') answers.push(m.msg_type)
        if (m.msg_type === 'kernel_info_reply') { done(answers); ws.close() } }
    ws.onerror = ws.onclose = failed
    setTimeout(() => failed('answers: ' + answers), 20000)
    ws.onopen = () => {
        ask('execute_request', {code, silent: false, store_history: false, user_expressions: {}, allow_stdin: false})
        ask('complete_request', {code: '/', cursor_pos: 1})
        ask('kernel_info_request', {})  // is allowed: when it is answered, the others have had their turn
    } })'''

def test_visitors_see_no_files(voila, browser, tmp_path):
    "Not over HTTP, and not by asking the kernel to run code"
    for path in ('voila/files/settings.ini', 'voila/files/../settings.ini', 'files/settings.ini', 'api/contents', 'api/kernels', 'tree', 'lab', 'settings.ini', 'tools/studio.ipynb'):
        try: seen = urllib.request.urlopen(voila + path, timeout=30).read()
        except urllib.error.HTTPError as e: assert e.code in (403, 404, 405), (path, e.code)
        else: assert b'lib_name' not in seen and b'"kernelspec"' not in seen, path
    page, channels, proof = browser.new_page(), [], tmp_path/'run'
    page.on('websocket', lambda w: channels.append(w.url))
    opened(page, 'voila', voila)
    answers = page.evaluate(ASK, [next(u.split('?')[0] for u in channels if '/channels' in u), f'open({str(proof)!r}, "w")'])
    assert 'kernel_info_reply' in answers and not {'execute_reply', 'complete_reply'} & set(answers)
    assert not proof.exists()
    page.close()
