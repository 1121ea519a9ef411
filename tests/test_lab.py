"What `make lab` tells JupyterLab's server: notebooks come with the metadata that Lab would write, and are saved without (test_browser.py has the real Lab)"
import asyncio
import shutil

from conftest import NOTEBOOKS, ROOT
from ipykernel.ipkernel import IPythonKernel
from jupyter_client.kernelspec import KernelSpecManager
from traitlets.config import Configurable, PyFileConfigLoader
from traitlets import Any


class Server(Configurable):
    kernel_spec_manager = Any()

def contents(folder):
    manager = PyFileConfigLoader(str(ROOT/'tools/jupyter_lab_config.py')).load_config().ServerApp.contents_manager_class
    return manager(parent=Server(kernel_spec_manager=KernelSpecManager()), root_dir=str(folder))

def test_notebooks_are_served_with_what_lab_would_write_and_saved_as_they_were(tmp_path):
    shutil.copytree(ROOT/'nbs', tmp_path/'nbs')
    manager = contents(tmp_path)
    for n in NOTEBOOKS:
        model = asyncio.run(manager.get(n))
        assert model['content'].metadata['language_info']==IPythonKernel.language_info, n
        assert model['content'].metadata['kernelspec']['display_name']!='python3', n  # which nbdev_clean writes, and no kernel is called
        asyncio.run(manager.save(model, n))
        assert (tmp_path/n).read_bytes()==(ROOT/n).read_bytes(), n

def test_what_a_run_leaves_is_not_saved(tmp_path):
    shutil.copy(ROOT/NOTEBOOKS[0], tmp_path/'a.ipynb')
    manager = contents(tmp_path)
    model = asyncio.run(manager.get('a.ipynb'))
    for c in model['content'].cells:
        if c.cell_type=='code': c.update(execution_count=3, metadata=dict(execution={'iopub.status.busy': 'now'}))
    asyncio.run(manager.save(model, 'a.ipynb'))
    assert (tmp_path/'a.ipynb').read_bytes()==(ROOT/NOTEBOOKS[0]).read_bytes()

def test_other_files_and_languages_are_left_alone(tmp_path):
    manager = contents(tmp_path)
    (tmp_path/'a.txt').write_text('text')
    assert asyncio.run(manager.get('a.txt'))['content']=='text'
    nb = dict(cells=[], metadata=dict(kernelspec=dict(name='ir', display_name='R')), nbformat=4, nbformat_minor=5)
    asyncio.run(manager.save(dict(type='notebook', format='json', content=nb), 'r.ipynb'))
    assert 'language_info' not in asyncio.run(manager.get('r.ipynb'))['content'].metadata
