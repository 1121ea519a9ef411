"The web site: built without a warning, no link that leads nowhere, found by search, and readable on a phone, by day and by night"
import ast
import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import NOTEBOOKS, ROOT, modules

pytestmark = pytest.mark.skipif(not all(map(find_spec, ('sphinx', 'myst_nb', 'furo', 'latex2mathml'))), reason='no Sphinx here: pip install ".[site]"')
HTML = ROOT/'site'/'_build'/'html'

class Reader(HTMLParser):
    "A page's links, anchors and pictures, and the addresses that a browser asks for by itself"
    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.undescribed, self.asked = [], set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ('id', 'name') if a.get(k)}
        if tag=='img' and not (a.get('alt') or '').strip(): self.undescribed.append(a.get('src', '')[:60])
        loads = a.get('src') if tag in ('img', 'script', 'iframe', 'source') else a.get('href') if tag=='link' and a.get('rel')!='canonical' else None
        if loads: self.asked.append(loads)
        if tag=='a' and a.get('href'): self.links.append(a['href'])

@pytest.fixture(scope='module')
def built():
    "What the build says, and its status; Sphinx reads again only what has changed"
    return subprocess.run([sys.executable, 'site/build.py'], cwd=ROOT, capture_output=True, text=True)

@pytest.fixture(scope='module')
def pages(built):
    return {p.relative_to(HTML).as_posix(): Reader(p.read_text(encoding='utf-8')) for p in HTML.rglob('*.html')}

def inside(address): return not re.match(r'[a-z]+:|//', address)

def test_builds_without_a_warning(built):
    assert not built.returncode and not built.stderr.strip(), built.stderr

def test_every_notebook_has_a_page(pages):
    assert {n.removeprefix('nbs/').replace('.ipynb', '.html') for n in NOTEBOOKS if re.match(r'nbs/(solutions/)?(\d\d_|index)', n)} <= set(pages)

def test_every_link_inside_leads_somewhere(pages):
    def missing(page, link):
        to = urlsplit(link)
        target = (HTML/page).parent/unquote(to.path) if to.path else HTML/page
        name = Path(target).resolve().relative_to(HTML.resolve()).as_posix()
        if name not in pages: return not (HTML/name).is_file()
        return bool(to.fragment) and unquote(to.fragment) not in pages[name].ids
    nowhere = {f'{page}: {link}' for page, r in pages.items() for link in r.links + r.asked if inside(link) and link!='#' and missing(page, link)}
    assert not nowhere

def test_nothing_is_asked_from_elsewhere(pages):
    assert not {(page, a) for page, r in pages.items() for a in r.asked if not inside(a) and not a.startswith('data:')}

def test_every_picture_is_described(pages):
    assert not {page: r.undescribed for page, r in pages.items() if r.undescribed}

def test_no_directive_and_no_hidden_cell_is_shown(built):
    for n in NOTEBOOKS:
        page = HTML/n.removeprefix('nbs/').replace('.ipynb', '.html')
        text = re.sub(r'<[^>]+>', '', page.read_text(encoding='utf-8'))
        assert not re.search(r'^#\|', text, re.M) and 'nbdev_export()' not in text and '[ -e /content ]' not in text, n

def test_every_public_name_is_in_the_reference(pages):
    for module in modules():
        tree = ast.parse((ROOT/'ebgan_nb'/(module.replace('.', '/') + '.py')).read_text(encoding='utf-8'))
        names = next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id=='__all__')
        text = (HTML/'api'/f'{module}.html').read_text(encoding='utf-8')
        headings = {n for h in re.findall(r'<h2>([^<]+)', text) for n in h.split(', ')}
        assert set(names) <= headings, (module, set(names) - headings)
        cells = [link for link in pages[f'api/{module}.html'].links if '.html#' in link] # of the notebook; of another module, for what is handed on
        assert len(cells) >= len(headings), module

def test_the_glossary_is_anchored_and_linked(pages):
    assert sum(i.startswith('term-') for i in pages['glossary.html'].ids) >= 45
    assert sum(bool(re.match(r'\d\d_', link)) for link in pages['glossary.html'].links) >= 45

def test_search_knows(built):
    index = json.loads(re.fullmatch(r'Search\.setIndex\((.*)\)\s*;?\s*', (HTML/'searchindex.js').read_text(encoding='utf-8'), re.S)[1])
    for word in ('paste', 'L_cyc'): # the words themselves: an index knows whole words and stems
        found = index['terms'].get(word.lower(), [])
        assert 'glossary' in {index['docnames'][i] for i in (found if isinstance(found, list) else [found])}, word


# in a browser

CONTRAST = '''() => {
    const rgb = s => s.match(/[\\d.]+/g).map(Number), light = c => { const f = v => (v /= 255) <= .04045 ? v/12.92 : ((v + .055)/1.055)**2.4
        return .2126*f(c[0]) + .7152*f(c[1]) + .0722*f(c[2]) }
    const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > .99) return c } return [255, 255, 255] }
    const bad = new Set(), walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
    for (let n; n = walk.nextNode();) {
        const e = n.parentElement, s = getComputedStyle(e)
        if (!n.data.trim() || !e.getClientRects().length || s.visibility === 'hidden' || e.closest('svg, script, style, .icon')) continue
        const [a, b] = [light(rgb(s.color)), light(behind(e))], ratio = (Math.max(a, b) + .05)/(Math.min(a, b) + .05)
        if (ratio < 4.5) bad.add(`${ratio.toFixed(2)} ${e.tagName}.${e.className}: ${n.data.trim().slice(0, 30)}`)
    }
    return [...bad].slice(0, 20) }'''

@pytest.fixture(scope='module')
def address(built):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=HTML))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()

@pytest.fixture(scope='module')
def browser():
    from playwright.sync_api import sync_playwright
    from test_browser import FLAGS
    chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    assert chromium, 'no Chromium here: make test-browser installs it'
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()

@pytest.mark.browser
@pytest.mark.parametrize('path', ['index.html', '40_losses.html', '61_results.html', 'api/editing.html', 'glossary.html'])
def test_pages_in_a_browser(browser, address, path):
    for width in (1280, 390):
        for scheme in ('light', 'dark'):
            context, where, wrong = browser.new_context(viewport=dict(width=width, height=844), color_scheme=scheme), (path, width, scheme), []
            page = context.new_page()
            page.on('console', lambda m, wrong=wrong: m.type in ('error', 'warning') and wrong.append(m.text))
            page.on('pageerror', lambda e, wrong=wrong: wrong.append(str(e)))
            page.on('request', lambda r, wrong=wrong: r.url.startswith((address, 'data:')) or wrong.append(f'asks for {r.url}'))
            page.goto(address + path, wait_until='load')
            assert page.evaluate('document.documentElement.scrollWidth') <= width, where
            assert not page.evaluate('[...document.images].filter(i => !i.alt.trim() || !i.complete || !i.naturalWidth).map(i => i.src.slice(0, 80))'), where
            assert not (low := page.evaluate(CONTRAST)), (where, low)
            assert not wrong, (where, wrong)
            context.close()

@pytest.mark.browser
@pytest.mark.parametrize('word', ['paste', 'L_cyc'])
def test_search_in_a_browser(browser, address, word):
    page = browser.new_page()
    page.goto(f'{address}search.html?q={word}')
    page.locator('#search-results li a[href*="glossary.html"]').first.wait_for(timeout=20_000)
    assert page.locator('#search-results li').count() >= 2
    page.close()
