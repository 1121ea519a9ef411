"""The package's commands, before anything heavy is imported: a Ctrl-C is answered in one line from the first moment on

And `nbdev_test`, `nbdev_export`, `nbdev_clean`: nbdev 3 ships only dashed names (`nbdev-test --n-workers 2`)."""
import os
import shutil
import signal
import sys
import warnings


def _start(module):
    "Import a module, which takes seconds (torch), and run its `main`"
    def interrupted(*_):
        os.write(2, f'{os.path.basename(sys.argv[0])}: interrupted\n'.encode())
        os._exit(130)
    signal.signal(signal.SIGINT, interrupted)
    if not sys.warnoptions: warnings.simplefilter('ignore')  # of libraries; what a user should know is printed
    for stream in (sys.stdout, sys.stderr): stream.reconfigure(errors='backslashreplace')  # a file's name may be no text
    from importlib import import_module
    main = import_module(f'ebgan_nb.{module}').main
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
    except KeyboardInterrupt: interrupted()              # once more, while the first one was being answered
    finally: signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said: one more changes no exit code


def ebgan_train(): _start('training')
def ebgan_edit(): _start('editing')
def ebgan_evaluate(): _start('evaluation')
def ebgan_zoo(): _start('zoo_training')


def _become(name):
    "Become the dashed command; `--n_workers` is passed on as `--n-workers`"
    flag = lambda a: a[:2] + a[2:].partition('=')[0].replace('_', '-') + ''.join(a.partition('=')[1:])
    args = [flag(a) if a.startswith('--') else a for a in sys.argv[1:]]
    exe = shutil.which(name, path=os.path.dirname(sys.executable)) or shutil.which(name)
    if exe is None: sys.exit(f'{name} not found: pip install "nbdev>=3.3,<4"')
    os.execv(exe, [exe, *args])


def nbdev_test(): _become('nbdev-test')
def nbdev_export(): _become('nbdev-export')
def nbdev_clean(): _become('nbdev-clean')
