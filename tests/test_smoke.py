import json

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


def test_a_done_stage_is_not_run_again(tmp_path):
  done = tmp_path / 'done.json'
  done.write_text(json.dumps({'seconds': 3.0}))
  assert smoke.run_stage('x', 'no.such.module', [], done) == 3.0


def test_a_failed_stage_says_how_to_run_it_again(tmp_path):
  with pytest.raises(SystemExit, match=r"'x' failed.*\n.*-m no\.such\.module"):
    smoke.run_stage('x', 'no.such.module', [], tmp_path / 'done.json')
  assert not (tmp_path / 'done.json').exists()
