"The package, as described in settings.ini"
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
config = ConfigParser(delimiters=['='])
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
lib, readme = cfg['lib_name'], here/'README.md'

extras = {k.removesuffix('_requirements'): v.split() for k, v in cfg.items() if k.endswith('_requirements')}
extras['studio'] += extras['eval']
extras['dev'] += extras['studio'] + extras['scale'] + extras['site']

setup(
    name=lib, version=cfg['version'], description=cfg['description'], author=cfg['author'], url=cfg['git_url'],
    license=cfg['license'], license_files=['LICENSE', 'NOTICE', 'ebgan_nb/assets/celeba-LICENSE.txt'], keywords=cfg['keywords'].split(),
    classifiers=[f"Development Status :: {cfg['status']}", f"Intended Audience :: {cfg['audience']}",
                 f"Natural Language :: {cfg['language']}", 'Programming Language :: Python :: 3'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else cfg['description'],
    long_description_content_type='text/markdown',
    python_requires='>=' + cfg['min_python'], install_requires=cfg['requirements'].split(), extras_require=extras,
    packages=find_packages(include=[lib, lib + '.*'], exclude=[lib + '.experiments']), package_data={lib: ['assets/*']}, zip_safe=False,
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f'{lib}={lib}._modidx:d']},
)
