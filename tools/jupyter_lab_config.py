"""JupyterLab for this course: to open a notebook changes nothing, and to save one writes what `nbdev_clean` leaves.

Lab writes the kernel's display name and Python's version into each notebook that it opens, and so each is "unsaved" at once.
Neither can stand in the file: the version is another on the next machine, and `nbdev_clean` resets the name.
So the server adds both on the way out and removes them on the way in."""
from pathlib import Path

from ipykernel.ipkernel import IPythonKernel
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from nbdev.clean import clean_nb
from nbdev.config import get_config as nbdev_config

KEPT = {k: nbdev_config(Path(__file__).resolve().parent).get(k) for k in ('allowed_metadata_keys', 'allowed_cell_metadata_keys')}


class Notebooks(AsyncLargeFileManager):
    "Files, of which notebooks for Python reach Lab with the metadata that it would give them, and the disk without"
    async def get(self, path, content=True, *args, **kwargs):
        model = await super().get(path, content, *args, **kwargs)
        if content and model['type']=='notebook' and (kernel := model['content'].metadata.get('kernelspec', {}).get('name'))=='python3':
            spec = self.parent.kernel_spec_manager.get_kernel_spec(kernel)
            model['content'].metadata.update(kernelspec=dict(name=kernel, display_name=spec.display_name, language=spec.language),
                                             language_info=IPythonKernel.language_info)
        return model

    async def save(self, model, path=''):
        if model.get('type')=='notebook' and model['content'].get('nbformat')==4: clean_nb(model['content'], **KEPT)
        return await super().save(model, path)


c.ServerApp.contents_manager_class = Notebooks  # noqa: F821 (Jupyter provides c)
