"""Build the web site: notebooks, glossary and an API reference, as pages that need no server and no network

`python site/build.py [TO]` writes the pages into TO, site/_build/html, and what Sphinx reads beside it."""
import ast
import importlib.util
import inspect
import json
import os
import posixpath
import re
import shutil
import sys
from configparser import ConfigParser
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = re.compile(r'\.(png|jpe?g|gif|svg|webp)$', re.I)
DROPPED = re.compile(r'^#\|\s*hide\b|\[ -e /content \]', re.M) # and the line that installs on Colab
DIRECTIVE = re.compile(r'^[ \t]*#\|.*\n?', re.M)
# a picture of another site's: asking for it would tell that site who reads here
BADGE = re.compile(r'\[!\[[^\]]*\]\([^)]*\)\]\(([^)]*)\)[ \t]*')
LINK = re.compile(r'(\]\()(?![a-z]+:|#|/)([^)\s#]+)(#[^)\s]*)?(\))|(<img[^>]*\ssrc=")(?![a-z]+:|/)([^"#]+)()(")')
FENCE = re.compile(r'(^[ \t]*```.*?^[ \t]*```[ \t]*$)', re.M | re.S)
TEXTS = {'CONTRIBUTING.md': 'contributing.md', 'site/glossary.md': 'glossary.md'} # and where they stand in the site
ROW = re.compile(r'^\|\s*\[([^\]]+)\]\((\d\d_\w+)\.ipynb\)')


class Site:
    "What Sphinx reads, in a folder of its own: nbs/ is never written to"
    def __init__(self, to):
        self.to, self.written, config = Path(to), set(), ConfigParser(delimiters=['='])
        config.read(ROOT/'settings.ini', encoding='utf-8')
        self.github = f"{config['DEFAULT']['git_url']}/blob/{config['DEFAULT']['branch']}"
        numbered = sorted(p for p in (ROOT/'nbs').glob('*.ipynb') if re.match(r'\d\d_', p.name))
        self.notebooks = {p.relative_to(ROOT).as_posix(): json.loads(p.read_text(encoding='utf-8'))
                          for p in [ROOT/'nbs'/'index.ipynb', *numbered, *sorted((ROOT/'nbs'/'solutions').glob('[0-9]*.ipynb'))]}
        self.pages = {n: n.removeprefix('nbs/') for n in self.notebooks} | TEXTS

    def write(self, name, content):
        "Files that did not change keep their time: Sphinx reads only the others again"
        file = self.to/name
        file.parent.mkdir(parents=True, exist_ok=True)
        content = content.encode() if isinstance(content, str) else content
        if not file.exists() or file.read_bytes()!=content: file.write_bytes(content)
        self.written.add(file)

    def target(self, path, page, anchor=''):
        "Where `page` of the site finds a file of the repository: a page, a picture that is copied, or else GitHub"
        if path in self.pages: found = self.pages[path]
        elif not (ROOT/path).exists(): raise FileNotFoundError(f'{page} links to {path}, which is not there')
        elif PICTURE.search(path):
            found = f'pictures/{path}'
            self.write(found, (ROOT/path).read_bytes())
        else: return f'{self.github}/{path}{anchor}'
        return posixpath.relpath(found, posixpath.dirname(page) or '.') + anchor

    def text(self, source, path):
        "Markdown of the repository's file `path`, its links made the site's"
        def link(m):
            before, to, anchor, after = (m[1], m[2], m[3], m[4]) if m[1] else (m[5], m[6], m[7], m[8])
            to = posixpath.normpath(posixpath.join(posixpath.dirname(path), to))
            return before + self.target(to, self.pages[path], anchor or '') + after
        parts = FENCE.split(BADGE.sub('', source))
        shell = lambda p: p.replace('```python', '```ipython3', 1) if re.search(r'^[ \t]*[!%]', p, re.M) else p
        return ''.join(shell(p) if FENCE.match(p) else LINK.sub(link, p) for p in parts)

    # notebooks

    def header(self, path, nb, first):
        "The title's cell, with links below the subtitle in place of badges"
        page, module = self.pages[path], exported(nb)
        links = [(m[1], 'Open in Colab') for c in nb['cells'] for m in BADGE.finditer(joined(c['source'])) if 'colab' in m[1]][:1]
        links += [(f'{self.github}/{path}', 'Notebook')]
        if module: links += [(f'api/{module}.html', 'API')]
        if page.startswith('solutions/') and 'nbs/' + posixpath.basename(page) in self.pages:
            links += [('../' + posixpath.basename(page).replace('.ipynb', '.html'), 'Lesson')]
        elif f'nbs/solutions/{page}' in self.pages: links += [(f'solutions/{page}'.replace('.ipynb', '.html'), 'Solutions')]
        row = '<p class="links">' + ' '.join(f'<a href="{escape(to)}">{name}</a>' for to, name in links) + '</p>'
        return re.sub(r'\A(\s*# .+\n+(?:>.*\n?)*)', lambda m: f'{m[1].rstrip()}\n\n{row}\n\n', first + '\n', count=1)

    def notebook(self, path):
        "A notebook as its reader sees it: without hidden cells and directives; pictures described, and exported cells to be linked to"
        nb, cells, heading = self.notebooks[path], [], ''
        module, titled = exported(nb), False
        for c in nb['cells']:
            source = joined(c['source'])
            if c['cell_type']=='raw' or c['cell_type']=='code' and DROPPED.search(source): continue
            if c['cell_type']=='markdown':
                source = self.text(source, path).strip()
                if not titled and source.startswith('# '): source, titled = self.header(path, nb, source), True
                heading = ([heading] + re.findall(r'^#+ (.+)', FENCE.sub('', source), re.M))[-1]
                if source: cells.append(dict(c, source=source, metadata={}))
                continue
            outputs = [o for o in map(shown, c['outputs']) if o]
            code, tags = DIRECTIVE.sub('', source).strip(), []
            if not code and not outputs: continue
            if re.search(r'^#\|\s*echo: *false', source, re.M) or not code: tags.append('remove-input')
            if c['metadata'].get('jupyter', {}).get('source_hidden'): tags.append('hide-input')
            alt = described(c, code, heading)
            for o in outputs:
                if 'text/html' in o.get('data', {}):
                    html = re.sub(r'<img(?![^>]*\salt=)', lambda _, alt=alt: f'<img alt="{escape(alt)}"', joined(o['data']['text/html']))
                    o['data']['text/html'] = f'<div class="wide" tabindex="0">{html}</div>' if '<table' in html else html
            if module and re.match(r'#\|\s*export', source):
                cells.append(dict(cell_type='markdown', id=f'a{c["id"]}', metadata={}, source=f'({anchor(module, c["id"])})='))
            cells.append(dict(c, source=code, outputs=outputs, metadata=dict(tags=tags, mystnb=dict(image=dict(alt=alt)))))
        if path=='nbs/index.ipynb': cells.append(dict(cell_type='markdown', id='contents', metadata={}, source=self.contents()))
        meta = dict(kernelspec=nb['metadata'].get('kernelspec', {}), language_info=dict(name='python', pygments_lexer='ipython3'))
        if path.startswith('nbs/solutions/'): meta['orphan'] = True # found from its lesson: it would double the list beside every page
        self.write(self.pages[path], json.dumps(dict(nb, cells=cells, metadata=meta), ensure_ascii=False))

    def contents(self):
        "The index's tables of notebooks as tables of contents; what stands in none of them comes last"
        groups, caption = {}, 'Notebooks'
        for c in self.notebooks['nbs/index.ipynb']['cells']:
            for line in joined(c['source']).splitlines() if c['cell_type']=='markdown' else ():
                if m := re.match(r'#+ (.+)|\*\*([^*]+)\*\*', line): caption = m[1] or m[2]
                elif m := ROW.match(line): groups.setdefault(caption, {}).setdefault(m[2], m[1])
        listed = {n for group in groups.values() for n in group}
        there = [posixpath.basename(n)[:-6] for n in self.pages if re.match(r'nbs/\d\d_', n)]
        groups['More'] = {p: p.replace('_', ' ') for p in there if p not in listed}
        groups['Reference'] = {'glossary': 'Glossary', 'api/index': 'API', 'solutions/index': 'Solutions', 'contributing': 'Contributing'}
        return '\n\n'.join(toctree([f'{title} <{page}>' for page, title in g.items()], caption) for caption, g in groups.items() if g)

    # the API reference

    def api(self):
        "A page for each module, in the order of their imports"
        rows, names = [], []
        origins = {m: path for path, nb in self.notebooks.items() if (m := exported(nb)) and not path.startswith('nbs/solutions/')}
        for module, path in origins.items():
            first, body = module_page(module, {m: posixpath.basename(p) for m, p in origins.items()})
            origin = f'From the notebook [{self.pages[path][:-6].replace("_", " ")}](../{self.pages[path]}).'
            self.write(f'api/{module}.md', f'# {module}\n\n> {md(first)}\n\n{origin}\n\n{body}')
            rows.append(f'| [`{module}`]({module}.md) | {md(first)} | [{self.pages[path][:2]}](../{self.pages[path]}) |')
            names.append(module)
        self.write('api/index.md', '# API\n\n'
                   'What each module offers, in the order of their imports. Every name links to the cell that defines it.\n\n'
                   '| module | what it is | notebook |\n|---|---|---|\n' + '\n'.join(rows) + '\n\n' + toctree(names))

    def all(self):
        for path in self.notebooks: self.notebook(path)
        for path, page in TEXTS.items(): self.write(page, self.text((ROOT/path).read_text(encoding='utf-8'), path))
        solved = [posixpath.basename(n) for n in self.notebooks if n.startswith('nbs/solutions/')]
        self.write('solutions/index.md', '# Solutions\n\nOf the exercises at the end of the notebooks. Try first.\n\n'
                   + '\n'.join(f"- [{n[:-6].replace('_', ' ')}]({n})" for n in solved))
        self.api()
        for old in self.to.rglob('*'):
            if old.is_file() and old not in self.written: old.unlink()


def joined(text): return text if isinstance(text, str) else ''.join(text)
def anchor(module, cell): return f"{module.replace('.', '-').replace('_', '-')}-{cell}"
def exported(nb):
    "The module that a notebook exports, or None"
    found = [re.search(r'^#\|\s*default_exp ([\w.]+)', joined(c['source']), re.M) for c in nb['cells'] if c['cell_type']=='code']
    return next((m[1] for m in found if m), None)

def toctree(entries, caption=''):
    options = [':hidden:'] + [f':caption: {caption}']*bool(caption) + [':maxdepth: 1']
    return '\n'.join(['```{toctree}', *options, *entries, '```'])

def shown(output):
    "An output without what needs a kernel, or None"
    data = output.get('data')
    if data is None: return output
    if 'application/vnd.jupyter.widget-view+json' in data: return None
    return dict(output, data=dict(data), metadata={})

def described(cell, code, heading):
    "An alternative text for a cell's pictures: what the notebook says, or the cell's first comment, or the heading above"
    for o in cell['outputs']:
        for meta in (o.get('metadata', {}), *(m for m in o.get('metadata', {}).values() if isinstance(m, dict))):
            if meta.get('alt'): return meta['alt']
    where = re.sub(r'[`*$]', '', heading)
    comment = re.match(r'# *(.+)', code)
    return f'{where}: {comment[1]}' if comment else f'Picture of "{where}", drawn by the code above it'


def md(text):
    "A line of plain text as Markdown, `code` kept"
    parts = re.split(r'(`[^`]+`)', ' '.join(text.split()))
    return ''.join(p if p[:1]=='`' and len(p)>1 else re.sub(r'([\\`*_{}\[\]<>$|])', r'\\\1', p) for p in parts)

def code(text): return f"`{' '.join(text.split())}`".replace('|', r'\|') if text else ''

def unparse(node):
    "As written; a type in quotes without them"
    if not node: return ''
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ast.unparse(node)

def arguments(node):
    "[(name with stars, type, default)] as written"
    a = node.args
    positional = a.posonlyargs + a.args
    rows = list(zip(positional, [None]*(len(positional) - len(a.defaults)) + a.defaults))
    rows = [(x.arg, unparse(x.annotation), ast.unparse(d) if d else '') for x, d in rows]
    if a.vararg: rows.append(('*' + a.vararg.arg, unparse(a.vararg.annotation), ''))
    rows += [(x.arg, unparse(x.annotation), ast.unparse(d) if d else '') for x, d in zip(a.kwonlyargs, a.kw_defaults)]
    if a.kwarg: rows.append(('**' + a.kwarg.arg, unparse(a.kwarg.annotation), ''))
    return [r for r in rows if r[0] not in ('self', 'cls')]

def fields(node):
    "The same of a dataclass's fields"
    found = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    return [(n.target.id, unparse(n.annotation), ast.unparse(n.value) if n.value else '') for n in found]

def documented(obj, rows, returns=''):
    "The docments of a function or class as a table"
    from fastcore.docments import docments
    try: said = docments(obj, returns=True) or {}
    except Exception: said = {} # of what has no source of its own
    said = {k: v for k, v in said.items() if isinstance(v, str)}
    rows = [(f'`{name}`', code(kind), code(default), md(said.get(name.lstrip('*')) or '')) for name, kind, default in rows]
    if said.get('return') or rows and returns not in ('', 'None'):
        rows.append(('**returns**', code(returns), '', md(said.get('return') or '')))
    if not rows: return ''
    return '| name | type | default | meaning |\n|---|---|---|---|\n' + '\n'.join(f"| {' | '.join(r)} |" for r in rows) + '\n'

def signature(name, rows, returns=''):
    args = [n + (f':{kind}' if kind else '') + (f'={default}' if default else '') for n, kind, default in rows]
    line = f'{name}({", ".join(args)})'
    if len(line + returns)>76: line = f'{name}(\n' + ''.join(f'    {a},\n' for a in args) + ')'
    return f"```python\n{line}{f' -> {returns}' if returns else ''}\n```\n"

def patched(node):
    "The class that `@patch` hands a function to, or None"
    if any('patch' in ast.unparse(d) for d in node.decorator_list) and node.args.args and node.args.args[0].annotation:
        return ast.unparse(node.args.args[0].annotation)

def module_page(module, notebooks):
    "(what the module is, its public names as Markdown); `notebooks` names the file of each module"
    lib = importlib.import_module(f'ebgan_nb.{module}')
    out = members(module, set(lib.__all__), notebooks) or ['It offers no names of its own.\n']
    return (lib.__doc__ or module).strip().split('\n')[0], '\n'.join(out)

def members(module, public, notebooks):
    "The given names of a module as Markdown, each with a link to its cell"
    lib, notebook = importlib.import_module(f'ebgan_nb.{module}'), notebooks[module]
    text = Path(lib.__file__).read_text(encoding='utf-8')
    lines, tree = text.splitlines(), ast.parse(text)
    marks = [(i, m[1]) for i, line in enumerate(lines, 1) if (m := re.match(r'# %% \S+ #(\w+)$', line))]
    place = lambda node: next((f'[cell]({"../" + notebook}#{anchor(module, c)})' for i, c in reversed(marks) if i<node.lineno), '')
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    methods, out = {}, []
    for n in tree.body:
        if isinstance(n, functions) and (cls := patched(n)): methods.setdefault(cls, []).append((n, place(n)))

    def function(node, obj, name, where, level):
        rows, returns = arguments(node), unparse(node.returns)
        decorators = {ast.unparse(d) for d in node.decorator_list}
        is_property = isinstance(obj, property) or bool({'property', 'cached_property', 'patch(as_prop=True)'} & decorators)
        obj = getattr(obj, 'fget', None) or getattr(obj, 'func', None) or obj
        head = f'```python\n{name}{f":{returns}" if returns else ""}\n```\n' if is_property else signature(name, rows, returns)
        told = md((ast.get_docstring(node) or '').split('\n\n')[0])
        table = '' if is_property else documented(obj, rows, returns)
        out.append(f"{'#'*level} {name}\n\n{head}\n{told}{' ' if told else ''}({where})\n\n{table}\n")

    def assigned(n):
        targets = n.targets if isinstance(n, ast.Assign) else [n.target]
        return [x.id for t in targets for x in ast.walk(t) if isinstance(x, ast.Name)]

    for node in tree.body:
        if isinstance(node, functions) and node.name in public and not patched(node):
            function(node, getattr(lib, node.name), node.name, place(node), 2)
        elif isinstance(node, ast.ClassDef) and node.name in public:
            cls, inner = getattr(lib, node.name), [n for n in node.body if isinstance(n, functions)]
            init = next((n for n in inner if n.name=='__init__'), None)
            rows = arguments(init) if init else fields(node)
            told, bases = md((ast.get_docstring(node) or '').split('\n\n')[0]), [ast.unparse(b) for b in node.bases]
            out.append(f"## {node.name}\n\n{signature('class ' + node.name, rows)}\n{told}{' ' if told else ''}({place(node)})\n\n"
                       + (f"Builds on {', '.join(map(code, bases))}.\n\n" if bases else '') + documented(cls, rows) + '\n')
            for n, where in [(n, place(node)) for n in inner] + methods.get(node.name, []):
                if n.name.startswith('_') or not ast.get_docstring(n): continue
                function(n, inspect.getattr_static(cls, n.name, None), f'{node.name}.{n.name}', where, 3)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and (names := [n for n in assigned(node) if n in public]):
            shown = lines[node.lineno - 1:node.end_lineno]
            source = '\n'.join(shown if len(shown)<=24 else [*shown[:22], '    ...'])
            out.append(f"## {', '.join(names)}\n\n```python\n{source}\n```\n\n({place(node)})\n")
    for node in tree.body: # what it hands on: shown here, unless its own page has it
        if not isinstance(node, ast.ImportFrom) or not node.level or not (names := {x.name for x in node.names} & public): continue
        origin = importlib.util.resolve_name('.'*node.level + node.module, lib.__package__).removeprefix('ebgan_nb.')
        has = names & set(importlib.import_module(f'ebgan_nb.{origin}').__all__)
        out += [f'## {x}\n\nFrom [{origin}]({origin}.md#{x}).\n' for x in sorted(has)]
        if names - has: out += members(origin, names - has, notebooks)
    return out


def build(to=ROOT/'site'/'_build'/'html'):
    "Prepare, then let Sphinx build what has changed; a warning is a failure, and the next build begins anew. The exit status"
    from sphinx.cmd.build import main
    to = Path(to).resolve()
    source, trees = to.with_name(f'{to.name}-source'), to.with_name(f'{to.name}-trees')
    os.environ.setdefault('MPLBACKEND', 'agg')
    sys.path.insert(0, str(ROOT))
    site = Site(source)
    site.all()
    pages = {p.relative_to(source).with_suffix('.html') for p in site.written} | {Path('search.html'), Path('genindex.html')}
    for old in to.rglob('*.html'):
        if old.relative_to(to) not in pages: old.unlink()
    failed = main(['-q', '-W', '--keep-going', '-b', 'html', '-c', str(ROOT/'site'), '-d', str(trees), str(source), str(to)])
    if failed: shutil.rmtree(trees, ignore_errors=True)
    return failed


if __name__=='__main__': sys.exit(build(*sys.argv[1:2]))
