"Every notebook, opened in JupyterLab in a real browser, as a learner would; and run there, where the browser adds to what nbdev_test runs"
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest
from conftest import NOTEBOOKS

pytestmark = pytest.mark.browser
FLAGS = ['--headless=new', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage']
OPEN = '''async path => {
    const lab = window.jupyterapp; await lab.restored
    const panel = window.panel = await lab.commands.execute('docmanager:open', {path, factory: 'Notebook'})
    await panel.context.ready; await panel.sessionContext.ready; await panel.sessionContext.session.kernel.info }'''
RUN = '''async () => {
    const all = window.jupyterapp.commands.execute('notebook:run-all-cells')  // resolves when all cells have run, or one has failed
    const late = new Promise((_, reject) => setTimeout(() => reject('still running after five minutes'), 300000))
    await Promise.race([all, late])
    return window.panel.context.model.toJSON().cells }'''
UNTOUCHED = '''async save => {
    const panel = window.panel, kernel = panel.sessionContext.session.kernel
    await kernel.info; await kernel.spec; await new Promise(done => setTimeout(done, 300))  // what Lab writes, it has written by now
    if (save) await panel.context.save()
    return !panel.context.model.dirty && !panel.title.className.includes('jp-mod-dirty') }'''
CLOSE = 'async () => { const p = window.panel; p.context.model.dirty = false; await p.sessionContext.shutdown(); p.dispose() }'


def git(folder, command): return subprocess.run(['git', *command.split()], cwd=folder, check=True, capture_output=True, text=True).stdout

@pytest.fixture(scope='module')
def lab(copy, tmp_path_factory):
    "The address of a JupyterLab that serves a copy of the repository, and the folder of an untouched one inside"
    home, root = tmp_path_factory.mktemp('jupyter'), copy()
    shutil.move(copy(), root/'fresh')  # a second copy, as git would hand it out
    for command in ('init -q', 'add -A', '-c user.name=x -c user.email=x commit -qm x'): git(root/'fresh', command)
    for n in NOTEBOOKS:  # cells that the tests never run, such as downloads
        nb = nbformat.read(root/n, as_version=4)
        nb.cells = [c for c in nb.cells if not re.search(r'^#\|\s*eval: *false', c.source, re.M)]
        for c in nb.cells: c.update(outputs=[]) if c.cell_type=='code' else None
        nbformat.write(nb, root/n)
    quiet = home/'settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings'
    quiet.parent.mkdir(parents=True)
    quiet.write_text(json.dumps(dict(fetchNews='false', checkForUpdates=False, doNotDisturbMode=True)))
    folders = dict(JUPYTER_CONFIG_DIR='config', JUPYTER_DATA_DIR='data', JUPYTER_RUNTIME_DIR='runtime', JUPYTERLAB_SETTINGS_DIR='settings',
                   JUPYTERLAB_WORKSPACES_DIR='workspaces', EBGAN_DATA='ebgan')
    env = {**os.environ, **{k: str(home/v) for k, v in folders.items()}, 'EBGAN_QUICK': '1', 'OMP_WAIT_POLICY': 'passive'}
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    log = open(home/'lab.log', 'w')
    server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', f'--config={root}/tools/jupyter_lab_config.py', '--allow-root', '--no-browser',
        '--ip=127.0.0.1', f'--port={port}',
        '--ServerApp.port_retries=0', '--IdentityProvider.token=', '--ServerApp.password=', f'--ServerApp.root_dir={root}',
        '--LabApp.expose_app_in_browser=True'], env=env, stdout=log, stderr=log)
    try:
        url = f'http://127.0.0.1:{port}'
        for _ in range(240):
            try: urllib.request.urlopen(f'{url}/api', timeout=5); break
            except OSError: time.sleep(.5)
        else: pytest.fail((home/'lab.log').read_text()[-2000:])
        yield url, root/'fresh'
    finally:
        server.terminate()
        try: server.wait(30)
        except subprocess.TimeoutExpired: server.kill()

@pytest.fixture(scope='module')
def page(lab):
    from playwright.sync_api import sync_playwright
    chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    assert chromium, 'no Chromium here: make test-browser installs it'
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport=dict(width=1400, height=1000))
        page.goto(f'{lab[0]}/lab?reset', wait_until='domcontentloaded')
        page.wait_for_function('window.jupyterapp && window.jupyterapp.shell', timeout=120_000)
        yield page
        browser.close()

# widgets, progress bars, pictures that are redrawn in place; the other notebooks hold nothing that a kernel alone would not show, and are run here before a release
ALIVE = ('index', '13_head', '51_train_ebgan', '70_editing', '71_session', '72_widgets', '73_studio')

@pytest.mark.parametrize('notebook', [n if 'solutions' not in n and n.split('/')[-1][:-6] in ALIVE else pytest.param(n, marks=pytest.mark.slow) for n in NOTEBOOKS])
def test_notebook_runs_in_jupyterlab(notebook, page, tmp_path):
    page.evaluate(OPEN, notebook)
    try:
        ran = page.evaluate(RUN)
        page.screenshot(path=tmp_path/'lab.png')
        assert (tmp_path/'lab.png').stat().st_size > 20_000
        errors = [f"{o['ename']}: {o['evalue']}" for c in ran for o in c.get('outputs', []) if o['output_type']=='error']
        assert not errors
        assert all(c['execution_count'] for c in ran if c['cell_type']=='code' and ''.join(c['source']).strip())
    finally: page.evaluate(CLOSE)

@pytest.mark.parametrize('notebook', NOTEBOOKS)
def test_opening_and_saving_a_notebook_changes_nothing(notebook, page, lab):
    page.evaluate(OPEN, f'fresh/{notebook}')
    try:
        assert page.evaluate(UNTOUCHED, False), 'unsaved as soon as it is opened'
        assert page.evaluate(UNTOUCHED, True), 'unsaved after it was saved'
        assert not git(lab[1], 'status --porcelain')
    finally: page.evaluate(CLOSE)
