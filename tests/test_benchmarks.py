"The benchmarks run, small, and compare what is the same"
import json
import os
import subprocess
import sys

from conftest import ROOT


def bench(*args, cwd):
    env = dict(os.environ, OMP_NUM_THREADS='1', OMP_WAIT_POLICY='passive')
    return subprocess.run([sys.executable, '-W', 'ignore', str(ROOT/'benchmarks'/'run.py'), *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def test_quick_run(tmp_path):
    out = tmp_path/'bench.json'
    done = bench('--quick', '--json', out, '--only', 'step_over_handwritten,step_over_two_phase,conv_efficiency', cwd=tmp_path)
    assert done.returncode==0, done.stderr
    found = json.loads(out.read_text())
    assert found['quick'] and 0 < found['conv_efficiency'] < 1
    passes = found['details']['step_over_two_phase']['passes']
    assert passes['G.dec']['ours']['pictures'] < passes['G.dec']['rival']['pictures']       # counted, not only timed
    assert max(found['details']['step_over_handwritten']['losses_differ']) < .01            # the same computation


def test_wrong_arguments(tmp_path):
    done = bench('--json', tmp_path/'b.json', '--only', 'stepp', cwd=tmp_path)
    assert done.returncode==2 and len(done.stderr.strip().splitlines())==1
