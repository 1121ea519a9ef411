"Render nbs/index.ipynb, with its saved outputs, to README.md"
import posixpath
import re
import sys
from pathlib import Path

HEAD = '<!-- generated from nbs/index.ipynb by tools/readme.py: edit the notebook, then `make prepare` -->\n\n'
IMAGES = 'nbs/index_files'
HIDDEN = re.compile(r'^#\|\s*(hide|export\w*)\b|\[ -e /content \]', re.M)  # and the line that installs on Colab
ECHO_OFF = re.compile(r'^#\|\s*echo: *false', re.M)  # the output without its code
DIRECTIVE = re.compile(r'^#\|.*\n?', re.M)


def _from_root(match):
    "A link that is relative to nbs/, made relative to the repository"
    return f"]({posixpath.normpath(posixpath.join('nbs', match[1]))})"


def render(root):
    "{path: bytes} of README.md and its pictures, from the notebook below `root`"
    import nbformat
    from nbconvert import MarkdownExporter
    nb = nbformat.read(root/'nbs'/'index.ipynb', as_version=4)
    nb.metadata['language_info'] = {'name': 'python'}
    nb.cells = [c for c in nb.cells if c.cell_type!='raw' and not (c.cell_type=='code' and HIDDEN.search(c.source))]
    for c in nb.cells:
        if c.cell_type=='code':
            if ECHO_OFF.search(c.source): c.metadata['transient'] = {'remove_source': True}
            c.source = DIRECTIVE.sub('', c.source).strip()
        else: c.source = re.sub(r'\]\((?![a-z]+:|#)([^)\s]+)\)', _from_root, c.source)
    body, resources = MarkdownExporter().from_notebook_node(nb, resources={'output_files_dir': IMAGES})
    text = HEAD + re.sub(r'\n{3,}', '\n\n', body).strip() + '\n'
    return {'README.md': text.encode(), **resources.get('outputs', {})}


def main(root=Path(__file__).resolve().parents[1]):
    if not (root/'nbs'/'index.ipynb').exists(): sys.exit('tools/readme.py: there is no nbs/index.ipynb')
    made = render(root)
    for old in (root/IMAGES).glob('*'):
        if f'{IMAGES}/{old.name}' not in made: old.unlink()
    for name, content in made.items():
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        (root/name).write_bytes(content)


if __name__=='__main__': main()
