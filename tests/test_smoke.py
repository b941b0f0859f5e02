import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from launch import smoke


def report(greedy, sampled, form=0.9):
  numbers = lambda p: {'strict': p, 'format_rate': form}
  kind = {'greedy': numbers(greedy), 'sampled': numbers(sampled)}
  return {'kinds': {'output': kind, 'input': kind}}


REPORTS = {
  'init': report(0.0, 0.0, 0.0),
  'sft': report(0.5, 0.4),
  'grpo': report(0.6, 0.5),
}
BASELINE = {'output': 0.1, 'input': 0.2}


def test_a_summary_has_every_number_in_its_place():
  got = smoke.summarize(BASELINE, REPORTS)
  assert got['output'] == {
    'constant': 0.1,
    'init': 0.0,
    'init_sampled': 0.0,
    'sft': 0.5,
    'sft_sampled': 0.4,
    'grpo': 0.6,
    'grpo_sampled': 0.5,
  }
  assert got['format_rate']['grpo'] == pytest.approx(0.9)


def test_the_mean_is_over_seeds():
  one = smoke.summarize(BASELINE, REPORTS)
  two = smoke.summarize(BASELINE, REPORTS | {'grpo': report(0.8, 0.7)})
  mean = smoke.average([one, two])
  assert mean['output']['grpo_sampled'] == pytest.approx(0.6)
  assert mean['output']['sft'] == pytest.approx(0.5)


def test_gains_are_points_against_what_is_asked(capsys):
  one = smoke.summarize(BASELINE, REPORTS)
  gains = smoke.gains(one)
  assert [round(points) for points, _ in gains.values()] == [40, 10, 10]
  assert [asked for _, asked in gains.values()] == [20, 5, 5]
  smoke.show([one, one], one, 60)
  shown = capsys.readouterr().out
  assert 'mean' in shown and 'reached' in shown


def test_the_summary_file_has_the_keys_that_were_agreed():
  one = smoke.summarize(BASELINE, REPORTS)
  out = pathlib.Path('runs/smoke')
  got = smoke.written(smoke.average([one]), [one], out=out, seconds=9.0)
  models = {'init', 'sft', 'sft_sampled', 'grpo', 'grpo_sampled'}
  assert set(got['output']) == set(got['input']) == {'constant'} | models
  assert set(got['format_rate']) == models
  assert got['seeds'] == 1 and got['seconds'] == 9.0
  assert got['export_dir'] == 'runs/smoke/seed_0/export/grpo'


def test_every_stage_reads_what_an_earlier_one_wrote():
  run = pathlib.Path('out/seed_3')
  flags = {name: flags for name, _, flags in smoke.stages(run.parent, 3)}
  assert f'--config.workdir={run}/sft' in flags['sft']
  assert f'--workdir={run}/sft' in flags['export sft']
  assert f'--config.model={run}/export/sft' in flags['grpo']
  assert f'--out={run}/export/sft' in flags['export sft']
  assert (
    '--config.seed=3' in flags['sft'] and '--step=0' in flags['export init']
  )
  assert list(flags).index('export sft') < list(flags).index('grpo')


def test_several_seeds_show_mean_and_spread(capsys):
  one = smoke.summarize(BASELINE, REPORTS)
  two = smoke.summarize(BASELINE, REPORTS | {'grpo': report(0.8, 0.7)})
  smoke.show([one, two], smoke.average([one, two]), 60)
  shown = capsys.readouterr().out
  assert 'mean' in shown and '± sd' in shown and '14.1 / 14.1' in shown


def test_a_report_without_a_judged_item_is_named(tmp_path):
  path = tmp_path / 'report.json'
  path.write_text(json.dumps(report(None, None)))
  with pytest.raises(SystemExit, match=r'report\.json: no output item'):
    smoke.read_report(path)


def gone(pid, seconds=10):
  """Whether a process ends in time; the init process reaps it when it likes."""
  until = time.monotonic() + seconds
  while time.monotonic() < until:
    try:
      os.kill(pid, 0)
    except ProcessLookupError:
      return True
    time.sleep(0.05)
  return False


def command(text):
  """Flags that make `python -m timeit` run a program once."""
  return ['-n1', '-r1', text]


def test_a_stage_runs_once_and_its_lines_carry_its_name(tmp_path, capfd):
  smoke.run_stage('a b', 'timeit', command('print(40 + 2)'), tmp_path)
  assert '[a b] 42\n' in capfd.readouterr().out
  assert '42\n' in (tmp_path / 'logs' / 'a_b.txt').read_text()
  smoke.run_stage('a b', 'no.such.module', [], tmp_path)
  assert 'done before' in capfd.readouterr().out


def test_a_failed_stage_says_how_to_run_it_again(tmp_path):
  with pytest.raises(SystemExit, match=r"'x' failed[\s\S]*-m no\.such\.module"):
    smoke.run_stage('x', 'no.such.module', [], tmp_path)
  assert not (tmp_path / 'stages' / 'x.json').exists()


def test_an_interrupt_ends_the_stage_and_what_it_started(tmp_path):
  stage = (
    'import subprocess, time; '
    'child = subprocess.Popen(["sleep", "60"]); '
    'print("child", child.pid); time.sleep(60)'
  )
  code = (
    'import pathlib, signal, sys; from launch import smoke; '
    'signal.signal(signal.SIGTERM, smoke.interrupt); '
    f'smoke.run_stage("x", "timeit", {command(stage)!r}, '
    f'pathlib.Path({str(tmp_path)!r}))'
  )
  with subprocess.Popen(
    [sys.executable, '-uc', code], cwd=smoke.ROOT, stdout=subprocess.PIPE
  ) as launcher:
    line = next(x for x in launcher.stdout if b'] child' in x)
    launcher.terminate()
  assert launcher.returncode != 0
  assert gone(int(line.split()[-1]))


def test_an_interrupted_run_goes_on_and_a_finished_one_is_replaced(tmp_path):
  made, other = tmp_path / 'stages', tmp_path / 'by_hand'
  for path in (made, other, tmp_path / 'seed_0'):
    path.mkdir()
  smoke.prepare(tmp_path)
  smoke.prepare(tmp_path)
  assert made.exists()
  smoke.write_json(tmp_path / 'summary.json', {})
  smoke.prepare(tmp_path)
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    'by_hand',
    'configs.json',
  ]


def test_a_run_of_other_configs_is_replaced(tmp_path):
  (tmp_path / 'stages').mkdir()
  smoke.write_json(tmp_path / 'configs.json', {'sft_smoke.py': 'another'})
  smoke.prepare(tmp_path)
  assert not (tmp_path / 'stages').exists()
