"tools/zoo_runs.py: the comparison of the zoo, on drawn faces and on photographs"
import csv
import importlib.util

import pytest
from conftest import ROOT

from ebgan_nb.faces import write_celeba


@pytest.fixture(scope='module')
def zoo_runs():
    spec = importlib.util.spec_from_file_location('zoo_runs', ROOT/'tools/zoo_runs.py')
    module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
    return module

@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    "A folder in CelebA's layout, whose cache and classifier are thrown away"
    home = tmp_path_factory.mktemp('photographs')
    write_celeba(home/'celeba', 120, seed=2, size=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('EBGAN_DATA', str(home/'data'))
        patch.setenv('EBGAN_QUICK', '1')
        yield str(home/'celeba')

def test_photographs_have_no_true_edits(zoo_runs, tmp_path):
    faces, photographs = map(zoo_runs.runs_on, ('faces', 'CELEBA'))
    assert {*faces} - {*photographs}=={'EBGAN, true edits', 'Att-EBGAN, true edits'}
    assert {*photographs} - {*faces}=={'EBGAN, recipe for photographs'}
    with pytest.raises(SystemExit, match="'EBGAN, true edits': one of"):
        zoo_runs.main(['train', '--out', str(tmp_path), '--data', 'CELEBA', '--only', 'EBGAN, true edits'])

def test_a_run_on_photographs_goes_on_and_is_measured(zoo_runs, photographs, tmp_path):
    out = tmp_path/'runs'
    rounds = [zoo_runs.go_on('STGAN', out, 1e-4, 0, photographs) for _ in range(2)]
    assert [r['batch'] for r in rounds]==[1, 2] and rounds[0]['minutes'] <= rounds[1]['minutes']
    assert (out/'photographs/STGAN/0/weights.safetensors').exists() and not (out/'STGAN').exists()
    zoo_runs.main(['measure', '--out', str(out), '--data', photographs, '--only', 'STGAN', '--n', '6'])
    with open(out/'photographs/figures.csv', newline='') as f: table = list(csv.DictReader(f))
    assert tuple(table[0])==zoo_runs.COLUMNS
    assert [*dict.fromkeys(r['system'] for r in table)]==['real pictures', 'source unchanged', 'cut-and-paste', 'EBGAN, shipped', 'STGAN']
    figures = {(r['system'], r['metric']): float(r['value']) for r in table}
    assert figures['STGAN', 'batches']==2 and 1.8 < figures['STGAN', 'weights'] < 1.9
    assert figures['source unchanged', 'seam']==1 and figures['cut-and-paste', 'seam'] > 1
    assert ('STGAN', 'reconstruction, whole') in figures and ('EBGAN, shipped', 'reconstruction, whole') not in figures

def test_only_what_is_missing_is_measured(zoo_runs, photographs, tmp_path, capsys):
    out = tmp_path/'runs'
    measure = lambda: (zoo_runs.main(['measure', '--out', str(out), '--data', photographs, '--only', 'STGAN', '--n', '4']), capsys.readouterr().out)[1]
    zoo_runs.go_on('STGAN', out, 1e-4, 0, photographs)
    first, text = measure(), (out/'photographs/figures.csv').read_text()
    assert 'minutes STGAN 0' in first and 'cut-and-paste' in first
    assert 'STGAN 0' not in measure() and (out/'photographs/figures.csv').read_text()==text
    zoo_runs.go_on('STGAN', out, 1e-4, 0, photographs)
    again = measure()
    assert 'minutes STGAN 0' in again and 'cut-and-paste' not in again # it has learnt on: it alone is measured anew
