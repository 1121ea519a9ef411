"The studio's server, over HTTP and websockets, without a browser: what a visit costs, who is answered, and what a page is told"
import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from http.cookiejar import CookieJar
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from jupyter_server.services.kernels.connection.base import deserialize_binary_message
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

class Address(str):
    "Of a server; `pid` is its process, `log` the file that it writes to"

@contextmanager
def serving(log, notebook='tools/studio.ipynb', *flags):
    "The address of the page that `make studio` serves"
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    make = ['make', '--no-print-directory', '--dry-run', '-o', '.venv/.ready', 'studio', f'STUDIO_FLAGS=--no-browser --port={port}']
    made = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True)
    line = next(line for line in made.stdout.splitlines() if 'tools/studio.ipynb' in line).replace('tools/studio.ipynb', str(notebook))
    command = f'exec {sys.executable} {line.split(maxsplit=1)[1]} {" ".join(flags)}'
    env = {**os.environ, 'OMP_WAIT_POLICY': 'passive', 'OMP_NUM_THREADS': '1'}
    with open(log, 'w') as f: server = subprocess.Popen(command, shell=True, cwd=ROOT, stdout=f, stderr=f, env=env)
    try:
        url = Address(f'http://127.0.0.1:{port}/')
        url.pid, url.log = server.pid, Path(log)
        for _ in range(120):
            try: urllib.request.urlopen(url, timeout=5); break
            except OSError: time.sleep(.5)
        else: pytest.fail(Path(log).read_text()[-2000:])
        yield url
    finally:
        server.terminate()
        try: server.wait(30)
        except subprocess.TimeoutExpired: server.kill()

def kernels(pid):
    "{process: its own MB} of the kernels that a server started; what several share is counted in parts"
    own = {}
    for p in Path('/proc').glob('[0-9]*'):
        try:
            if int((p/'stat').read_text().rsplit(')', 1)[1].split()[1])==pid and 'ipykernel' in (p/'cmdline').read_text():
                own[int(p.name)] = int(re.search(r'^Pss: *(\d+)', (p/'smaps_rollup').read_text(), re.M)[1])/1024
        except OSError: pass  # it has ended
    return own

def within(seconds, true):
    "Does it become true in time?"
    end = time.time() + seconds
    while not (done := true()) and time.time() < end: time.sleep(.1)
    return done

CELL = '''import time, ipywidgets as W
def fails(_): print('in /srv/keeper'); raise ValueError('in /srv/keeper')
buttons = [W.Button(description=d) for d in ('fails', 'sleeps')]
buttons[0].on_click(fails); buttons[1].on_click(lambda _: time.sleep(4))
slider = W.IntSlider(); slider.observe(fails, 'value')
W.HBox([*buttons, slider, W.Text()])'''  # a page as light as can be: none of this needs a network

@pytest.fixture(scope='module')
def server(tmp_path_factory):
    if os.name!='posix' or not shutil.which('make') or not Path('/proc').is_dir(): pytest.skip('asks /proc')
    to = tmp_path_factory.mktemp('server')
    nb = nbformat.read(ROOT/'tools/studio.ipynb', as_version=4)
    nb.cells = [nbformat.v4.new_code_cell(CELL)]
    nbformat.write(nb, to/'light.ipynb')
    flags = 'visitors=3', 'host=studio.example.org', 'Kernels.patience=3', 'Kernels.absence=3', 'Kernels.cull_interval=1'
    with serving(to/'log', to/'light.ipynb', *(f'--{f}' for f in flags)) as url: yield url

@pytest.fixture
def alone(server):
    "The server, and nobody else is there"
    assert within(20, lambda: not kernels(server.pid)), 'kernels that nobody looks at are still there'
    time.sleep(1)  # and the server has noticed
    yield server

class Visitor:
    "A browser without a screen: it keeps cookies, and follows where it is sent"
    def __init__(self, url, **headers):
        self.url, self.headers, self.web = url, headers, urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))

    def ask(self, path='', form=None, **headers):
        "Status, and text"
        data = None if form is None else urllib.parse.urlencode(form).encode()
        request = urllib.request.Request(self.url + path, data, {k.replace('_', '-'): v for k, v in {**self.headers, **headers}.items()})
        try:
            with self.web.open(request, timeout=60) as r: return r.status, r.read().decode()
        except urllib.error.HTTPError as e: return e.code, e.read().decode()

    def form(self): return dict(re.findall(r'name="(_xsrf)" value="([^"]+)"', self.ask()[1]))

    def press(self, **headers):
        "The front page's button; `kernel` and `models` are what the page tells of its kernel"
        status, page = self.ask('', self.form(), **headers)
        self.kernel = (re.findall(r'"kernelId": "([^"]+)"', page) or [None])[0]
        self.models = re.findall(r'"model_id": ?"(\w+)"', page)
        return status, page

    def socket(self, **headers):
        path = f'{self.url}api/kernels/{self.kernel}/channels?session_id=visitor'.replace('http', 'ws', 1)
        return websocket_connect(HTTPRequest(path, headers={k.replace('_', '-'): v for k, v in headers.items()}), max_message_size=1 << 24)

def message(kind, n, **content):
    "A message to a kernel, as text; the version is that of the protocol by which a page asks for its widgets"
    header = dict(msg_id=f'm{n}', msg_type=kind, username='', session='visitor', version='5.3', date='2026-01-01T00:00:00Z')
    return json.dumps(dict(channel='shell', header=header, parent_header={}, metadata=dict(version='1.0.0'), content=content, buffers=[]))

def widget(n, model, **data): return message('comm_msg', n, comm_id=model, data=data)
CLICK = dict(method='custom', content=dict(event='click'))

async def answers(ws, n):
    "All that a page gets until its kernel has dealt with message n"
    got = []
    while True:
        m = await asyncio.wait_for(ws.read_message(), 60)
        m = deserialize_binary_message(m) if isinstance(m, bytes) else json.loads(m)
        got.append(m)
        if m['msg_type']=='status' and m['content']['execution_state']=='idle' and m['parent_header'].get('msg_id')==f'm{n}': return got

async def models(ws):
    "{name of a widget's class, with its description: id} of the page's widgets"
    await ws.write_message(message('comm_open', 'open', comm_id='c', target_name='jupyter.widget.control', data={}))
    await ws.write_message(widget('states', 'c', method='request_states'))
    states = next(m['content']['data']['states'] for m in await answers(ws, 'states') if m['msg_type']=='comm_msg')
    return {s['model_name'] + s['state'].get('description', ''): k for k, s in states.items()}

def test_a_look_costs_no_kernel(alone):
    for _ in range(8):
        status, page = Visitor(alone).ask()
        assert status==200 and '<form method="post"' in page and '<script' not in page
    for path in ('studio', 'studio?ticket=mine'): assert 'Open the studio' in Visitor(alone).ask(path)[1]
    assert urllib.request.urlopen(f'{alone}studio.jpg').headers['Content-Type']=='image/jpeg'
    time.sleep(1)
    assert not kernels(alone.pid)

FOREIGN = dict(cross_site={'Sec_Fetch_Site': 'cross-site'}, other_port={'Sec_Fetch_Site': 'same-site'},
               origin={'Origin': 'https://evil.com'}, port={'Origin': 'http://127.0.0.1:1'}, null={'Origin': 'null'})

@pytest.mark.parametrize('headers', FOREIGN.values(), ids=FOREIGN)
def test_other_sites_start_nothing(alone, headers):
    v = Visitor(alone)
    status, page = v.ask('', v.form(), **headers)  # even with the form's token and its cookie
    assert status==403 and 'Please press once more' in page
    v.ask('?image', **headers), v.ask('studio', **headers)
    assert not kernels(alone.pid)

def test_a_form_without_its_cookie_starts_nothing(alone):
    mine, theirs = Visitor(alone), Visitor(alone)
    mine.form()
    for form in ({}, {'_xsrf': 'made up'}, theirs.form()): assert mine.ask('', form)[0]==403
    assert Visitor(alone).ask('', mine.form())[0]==403
    assert not kernels(alone.pid)

def test_names(alone):
    port = alone.split(':')[-1].strip('/')
    for host in ('127.0.0.1', 'localhost', '[::1]', 'studio.example.org', 'LOCALHOST'):
        assert Visitor(alone, Host=f'{host}:{port}').ask()[0]==200, host
    for host in ('evil.com', 'localhost.evil.com', 'evil.com:localhost', '127.0.0.1.evil.com', '192.168.1.1', ''):
        v = Visitor(alone, Host=f'{host}:{port}')
        for path in ('', 'studio', 'voila/static/voila.js', 'api/kernels/a-b-c-d-e', 'studio.jpg'): assert v.ask(path)[0]==403, (host, path)
    assert not kernels(alone.pid)

def test_a_page_and_its_websocket(alone):
    v = Visitor(alone)
    status, page = v.press()
    assert (status, len(kernels(alone.pid)))==(200, 1) and v.kernel
    port = alone.split(':')[-1].strip('/')
    async def visit():
        evil = f'evil.com:{port}'
        for headers in (dict(Origin='http://evil.com'), dict(Origin=f'http://{evil}', Host=evil), dict(Host=evil), dict(Origin='null')):
            with pytest.raises(HTTPClientError, match='403'): await v.socket(**headers)
        ws = await v.socket(Origin=alone.rstrip('/'))
        known = await models(ws)
        slider, text = known['IntSliderModel'], known['TextModel']
        odd = [
            widget('0', known['ButtonModelfails'], **CLICK), widget('1', slider, method='update', state=dict(value=7)),
            widget('2', slider, method='update', state=dict(value='seven')), widget('3', text, method='update', state=[]),
            widget('4', text, method='custom'), widget('5', text), message('comm_open', '6', comm_id='x', target_name='nobody', data={}),
            message('comm_msg', '7'), message('comm_info_request', '8', target_name=[]),
            message('comm_open', '9', comm_id=7, target_name='jupyter.widget', data=dict(state=7)), message('kernel_info_request', '10')]
        for n, text in enumerate(odd):
            await ws.write_message(text)
            got = await answers(ws, n)
            told = [m['content'] for m in got if m['msg_type']!='kernel_info_reply']
            assert not re.search(r'Traceback|keeper|/|\\', json.dumps(told)), got
            assert not {m['msg_type'] for m in got} & {'error', 'stream', 'display_data', 'execute_result', 'execute_input'}
        ws.close()
    asyncio.run(visit())
    assert 'Open the studio' in v.ask('studio')[1], 'a ticket is good for one page'
    assert 'keeper' in alone.log.read_text(), 'who runs the server still sees what went wrong'
    for warning in ('websocket_ping_timeout', 'Kernel is running over TCP'): assert warning not in alone.log.read_text()

def test_a_full_house(alone):
    "Five at once: three get in, and two are asked to come back"
    from concurrent.futures import ThreadPoolExecutor
    visitors = [Visitor(alone) for _ in range(5)]
    with ThreadPoolExecutor(5) as pool: got = [*pool.map(lambda v: v.press(), visitors)]
    assert sorted(status for status, _ in got)==[200]*3 + [503]*2
    assert all('come back in a few minutes' in page and 'Try again' in page for status, page in got if status==503)
    pids = [*kernels(alone.pid)]
    assert len(pids)==3 and Visitor(alone).press()[0]==503 and Visitor(alone).ask()[0]==200
    for pid in pids: assert re.search(r'^Max data size +2097152000 +2097152000', Path(f'/proc/{pid}/limits').read_text(), re.M)
    os.kill(pids[0], 9)  # as one does that ran out of memory: its place is free, and no other takes it unasked
    assert within(10, lambda: Visitor(alone).press()[0]==200)

def test_whoever_leaves_takes_the_kernel_along(alone):
    v = Visitor(alone)
    with socket.create_connection(('127.0.0.1', int(alone.split(':')[-1].strip('/')))) as s:  # gone before there is a page
        body = urllib.parse.urlencode(v.form())
        cookie = '; '.join(f'{c.name}={c.value}' for h in v.web.handlers if hasattr(h, 'cookiejar') for c in h.cookiejar)
        about = f'Cookie: {cookie}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}'
        s.sendall(f'POST / HTTP/1.1\r\nHost: localhost\r\n{about}\r\n\r\n{body}'.encode())
        ticket = re.search(r'Location: (\S+)', s.recv(10_000).decode())[1]
        s.sendall(f'GET {ticket} HTTP/1.1\r\nHost: localhost\r\n\r\n'.encode())
        assert within(20, lambda: kernels(alone.pid))
    assert within(10, lambda: not kernels(alone.pid))
    v.press()  # a page that is never connected
    assert len(kernels(alone.pid))==1 and within(10, lambda: not kernels(alone.pid))
    v.press()
    async def stays(seconds): ws = await v.socket(); await asyncio.sleep(seconds); ws.close()
    asyncio.run(stays(5))  # longer than the others were waited for
    assert len(kernels(alone.pid))==1 and within(10, lambda: not kernels(alone.pid))

def memory(pid): return int(re.search(r'VmRSS:\s+(\d+)', Path(f'/proc/{pid}/status').read_text())[1])/1024

def test_what_is_sent_to_a_busy_kernel_waits_outside(alone):
    "40 messages of 3.9 MB while it sleeps: neither it nor the server keeps them all"
    v = Visitor(alone)
    v.press()
    (kernel,), most = kernels(alone.pid), []
    async def visit():
        ws = await v.socket()
        known = await models(ws)
        heavy = [widget(n, known['TextModel'], method='custom', content=dict(x='x'*3_900_000)) for n in range(40)]
        before = memory(kernel), memory(alone.pid)
        await ws.write_message(widget('busy', known['ButtonModelsleeps'], **CLICK))
        async def sent():
            for text in heavy: await ws.write_message(text)
        sending = asyncio.ensure_future(sent())
        async def look():
            while True: most.append(memory(kernel) - before[0] + memory(alone.pid) - before[1]); await asyncio.sleep(.05)
        looking = asyncio.ensure_future(look())
        await asyncio.sleep(3.5)
        assert not sending.done()
        await answers(ws, 39)  # and nothing is lost
        looking.cancel()
        ws.close()
    asyncio.run(visit())
    print(f'{max(most):.0f} MB more at most, kernel and server together')
    assert max(most) < 120
