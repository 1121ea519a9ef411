"`nbdev_test`, `nbdev_export`, `nbdev_clean`: nbdev 3 ships only dashed names (`nbdev-test --n-workers 2`)"
import os
import shutil
import sys


def _run(name):
    "Become the dashed command; `--n_workers` is passed on as `--n-workers`"
    flag = lambda a: a[:2] + a[2:].partition('=')[0].replace('_', '-') + ''.join(a.partition('=')[1:])
    args = [flag(a) if a.startswith('--') else a for a in sys.argv[1:]]
    exe = shutil.which(name, path=os.path.dirname(sys.executable)) or shutil.which(name)
    if exe is None: sys.exit(f'{name} not found: pip install "nbdev>=3.3,<4"')
    os.execv(exe, [exe, *args])


def nbdev_test(): _run('nbdev-test')
def nbdev_export(): _run('nbdev-export')
def nbdev_clean(): _run('nbdev-clean')
