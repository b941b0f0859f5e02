import numpy as np
import pytest

from crjax import sampling, watch

FINE = {
  'sampler_gap': 0.01,
  'sampler_kl': 1e-4,
  'sampler_ess': 0.95,
  'groups/none': 0.2,
  'groups/all': 0.3,
  'completion/truncated': 0.02,
  'infra': 0.0,
  'canary_pass': 0.0,
  'grad_norm': 1.0,
  'entropy': 0.4,
}
CALM = [dict(FINE) for _ in range(30)]


def test_a_healthy_run_is_silent():
  for n in range(1, len(CALM) + 1):
    assert watch.alarms(CALM[:n]) == {}


@pytest.mark.parametrize(
  ('name', 'bad', 'says'),
  [
    ('sampler_gap', {'sampler_gap': 0.06}, 'dtypes'),
    ('sampler_kl', {'sampler_kl': 0.02}, 'staleness'),
    ('ess', {'sampler_ess': 0.2}, 'sampler_gap'),
    ('dead_groups', {'groups/none': 0.1, 'groups/all': 0.61}, '61% all right'),
    ('truncated', {'completion/truncated': 0.11}, 'completion_length'),
    ('infra', {'infra': 0.02}, 'crjax.execution probe'),
    ('canary', {'canary_pass': 0.01}, 'hole'),
    ('grad_norm', {'grad_norm': 11.0}, 'median 1'),
    ('entropy', {'entropy': 0.15}, 'fell from 0.4 to 0.15'),
    ('entropy', {'entropy': 0.9}, 'rose from 0.4 to 0.9'),
  ],
)
def test_each_threshold_alarms_and_says_what_to_do(name, bad, says):
  found = watch.alarms(CALM + [FINE | bad] * 3)
  assert found.keys() == {name}
  assert says in found[name]


def test_one_step_of_drift_is_no_alarm_yet():
  assert watch.alarms([*CALM, FINE | {'sampler_gap': 0.06}]) == {}


def test_what_was_not_finite_or_not_there_does_not_break_the_watch():
  watch.alarms([{}])
  watch.alarms([*CALM, dict.fromkeys(FINE)])


def rolled():
  mask_BT = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]], bool)
  return sampling.Rollout(
    np.arange(12).reshape(4, 3),
    np.where(mask_BT, -0.5, 0).astype(np.float32),
    mask_BT,
    np.array([False, True, True, True]),
  )


def row(b, reward, **more):
  return {
    'row': b,
    'id': f'q{b // 2}',
    'kind': 'output',
    'reward': reward,
    'format_ok': True,
    'right': reward > 0,
    'typed': reward > 0,
    'verdict': 'pass' if reward > 0 else 'wrong',
  } | more


REWARDS_QR = np.array([[1.0, 0.0], [0.0, np.nan]], np.float32)
ADV_QR = np.array([[1.0, -1.0], [0.0, 0.0]], np.float32)


def test_a_batch_in_numbers():
  rows = [
    row(0, 1.0),
    row(1, 0.0),
    row(2, 0.0, kind='input', id='canary/1', right=True),
    row(3, np.nan, verdict='infra', right=False),
  ]
  got = watch.summarize(REWARDS_QR, ADV_QR, rolled(), rows)
  assert got['reward'] == pytest.approx(1 / 3)
  assert got['infra'] == 0.25
  assert got['canary_pass'] == 1.0
  assert got['completion/length'] == 9 / 4
  assert got['completion/length_right'] == 3
  assert got['completion/truncated'] == 0.25
  assert got['groups/with_signal'] == 1
  assert got['verdict/infra'] == 0.25
  assert got['reward/input'] == 0
  assert all(np.isfinite(x) for x in got.values())


def test_rows_tell_what_was_sampled_and_what_it_was_worth():
  rows = [row(0, 1.0), row(2, 0.0)]
  watch.describe(rows, ADV_QR, rolled())
  assert rows[0]['advantage'] == 1.0
  assert rows[0]['tokens'] == [0, 1, 2]
  assert rows[0]['truncated']
  assert rows[1]['tokens'] == [6, 7]
  assert rows[1]['length'] == 2
  assert rows[1]['logp'] == pytest.approx(-1.0)
  assert not rows[1]['truncated']
