"Every exported module stands on its own: imports, names, docs"
import ast
import builtins
import dis
import importlib
import inspect
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, modules
from fastcore.docments import docments

MODULES = modules()
LIGHT = {'core', 'attributes', 'masks', 'blocks', 'labels', 'models', 'detection', 'geometry', 'images', 'augment', 'weights', 'compositing', 'editing',
         'zoo', 'label_editors', 'stgan', 'genegan', 'pieces', 'mulgan'}
HEAVY = {'torchvision', 'matplotlib', 'pandas', 'fastai'}
each_module = pytest.mark.parametrize('module', MODULES)


def source(module): return (ROOT/'ebgan_nb'/f"{module.replace('.', '/')}.py").read_text(encoding='utf-8')
def imports(module): return [n for n in ast.walk(ast.parse(source(module))) if isinstance(n, (ast.Import, ast.ImportFrom))]

@each_module
def test_imports_lower_numbers_only(module):
    siblings = [n.module or a.name for n in imports(module) if isinstance(n, ast.ImportFrom) and n.level for a in n.names]
    siblings += [name.split('.')[1] for n in imports(module) if not getattr(n, 'level', 0)
                 for name in ([n.module] if isinstance(n, ast.ImportFrom) else [a.name for a in n.names]) if name.startswith('ebgan_nb.')]
    assert not [s for s in siblings if MODULES[s] >= MODULES[module]]

@each_module
def test_no_star_imports(module):
    assert not [n.module for n in imports(module) if isinstance(n, ast.ImportFrom) and n.names[0].name=='*']

FRESH = f"""
import json, multiprocessing, sys, traceback, torch
def heavy(module):
    try: __import__('ebgan_nb.' + module)
    except BaseException: return traceback.format_exc()
    return sorted({HEAVY} & set(sys.modules))
method = 'fork' if 'fork' in multiprocessing.get_all_start_methods() else 'spawn'
if __name__=='__main__':
    with multiprocessing.get_context(method).Pool(1, maxtasksperchild=1) as pool:
        print(json.dumps(dict(zip(sys.argv[1:], pool.map(heavy, sys.argv[1:], chunksize=1)))))
"""

@pytest.fixture(scope='module')
def fresh(tmp_path_factory):
    "{module: what it loads that is heavy, or the traceback}, each imported in a process that has torch, which takes seconds, and nothing of ours"
    program = tmp_path_factory.mktemp('fresh')/'fresh.py'
    program.write_text(FRESH, encoding='utf-8')
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]))
    done = subprocess.run([sys.executable, program, *MODULES], capture_output=True, text=True, env=env)
    assert done.returncode==0, done.stderr
    return json.loads(done.stdout)

@each_module
def test_imports_in_a_fresh_process(module, fresh):
    assert isinstance(fresh[module], list), fresh[module]
    if module in LIGHT: assert not fresh[module], 'import it inside the function that needs it'

def globals_read(code):
    "Names that a code object, or one inside it, looks up in its module"
    yield from (i.argval for i in dis.get_instructions(code) if i.opname=='LOAD_GLOBAL')
    for const in code.co_consts:
        if inspect.iscode(const): yield from globals_read(const)

@each_module
def test_uses_no_name_of_its_notebook(module):
    "A name that only the notebook defines is a NameError in the package, on the day the line runs"
    known = vars(importlib.import_module(f'ebgan_nb.{module}')).keys() | vars(builtins).keys()
    assert not sorted(set(globals_read(compile(source(module), module, 'exec'))) - known)

@each_module
def test_public_names_are_documented(module):
    "A docstring for each, and a comment for each parameter: once in a module is enough for a name that recurs"
    mod = importlib.import_module(f'ebgan_nb.{module}')
    public = {name: getattr(mod, name) for name in mod.__all__ if callable(getattr(mod, name))}
    assert not [name for name, thing in public.items() if not inspect.getdoc(thing)]
    comments = {name: docments(thing) for name, thing in public.items() if inspect.isfunction(thing)}
    told = {p for docs in comments.values() for p, doc in docs.items() if doc} | {'return', 'args', 'kwargs'}
    assert not [f'{name}({p})' for name, docs in comments.items() for p in docs if p not in told]

def test_assets_are_found_above_a_checkout(tmp_path):
    "A folder named ebgan_nb in the working folder, as above a clone, hides the package for `files`, not for us"
    (tmp_path/'ebgan_nb').mkdir()
    program = "from ebgan_nb.files import asset; print(asset('faces.safetensors').name)"
    found = subprocess.run([sys.executable, '-c', program], cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout.strip()=='faces.safetensors', found.stderr

def unhinted(fn, name):
    "`name(parameter)` of each that says no type; `->` for what is returned"
    given = [*fn.args.posonlyargs, *fn.args.args, *fn.args.kwonlyargs]  # what is handed on, *args and **kwargs, has the other function's
    lacks = [p.arg for p in given if p.annotation is None and p.arg not in ('self', 'cls')]
    if fn.returns is None and fn.name not in ('__init__', 'main'): lacks.append('->')
    return [f"{name}({', '.join(lacks)})"] if lacks else []

def patched(fn): return any(isinstance(d, ast.Name) and d.id=='patch' for d in fn.decorator_list)

def public_functions(module):
    "Functions, methods and @patch'ed methods of a module that a user may call: (node, name)"
    shown = importlib.import_module(f'ebgan_nb.{module}').__all__
    for node in ast.parse(source(module)).body:
        if isinstance(node, ast.FunctionDef):
            own = ast.unparse(node.args.args[0].annotation) if patched(node) else None
            if node.name in shown or own and node.name[0]!='_': yield node, f'{own}.{node.name}' if own else node.name
        elif isinstance(node, ast.ClassDef) and node.name in shown:
            yield from ((f, f'{node.name}.{f.name}') for f in node.body if isinstance(f, ast.FunctionDef) and (f.name[0]!='_' or f.name=='__init__'))

def test_the_public_surface_has_type_hints():
    "Of the package; what lies in `experiments` is no part of it"
    lacks = {m: [line for f, name in public_functions(m) for line in unhinted(f, name)] for m in MODULES if '.' not in m}
    told = [f"{m}: {', '.join(names)}" for m, names in lacks.items() if names]
    if told: pytest.fail('\n'.join(['no type hint, `->` for what is returned:', *told]), pytrace=False)
