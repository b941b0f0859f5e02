"""Which cases of which programs become rows: duplicates, caps, splits, kinds.

All of it is decided in one pass over the programs in the order of their
numbers, and one in the order of their hashes, so that shards need not talk.
"""

import collections
import math

from data_pipeline import identity
from data_pipeline.near import Near

SPLITS = ('test', 'dev', 'rl_train', 'sft_train')  # in the order of hashes
HALVES = {'coverage': ('coverage YES', 'coverage NO')}


def distinct(programs, settings):
  """(programs, dropped by reason) without exact and near duplicates.

  Args:
    settings: similar, the Jaccard similarity of a near duplicate, and
      same_skeleton, how many programs may share one.
  """
  near, seen = Near(settings['similar']), set()
  skeletons, dropped = collections.Counter(), collections.Counter()
  kept = []
  for program in programs:
    shingles = identity.shingles(program['code'])
    skeleton = identity.skeleton(program['code'])
    if program['pid'] in seen:
      dropped['duplicate: exact'] += 1
    elif near.nearest(shingles)[0] >= settings['similar']:
      dropped['duplicate: near'] += 1
    elif skeletons[skeleton] == settings['same_skeleton']:
      dropped['duplicate: skeleton'] += 1
    else:
      kept.append(program)
      near.add(shingles)
      seen.add(program['pid'])
      skeletons[skeleton] += 1
  return kept, dropped


def quotas(size: int, mix: dict) -> dict:
  """{what is asked: rows}, that add up to `size`; coverage in two halves."""
  shares = {}
  for kind, share in mix.items():
    for half in (parts := HALVES.get(kind, (kind,))):
      shares[half] = share / len(parts)
  total = sum(shares.values())
  exact = {k: size * v / total for k, v in shares.items()}
  found = {k: int(v) for k, v in exact.items()}
  largest = sorted(exact, key=lambda k: (found[k] - exact[k], k))
  for kind in largest[: size - sum(found.values())]:
    found[kind] += 1
  return found


def assign(programs, settings):
  """(rows, unused cases by reason) that fill every split exactly.

  A row is {split, asked, program, case}; all cases of a program are in one
  split, and each is asked about once.

  Args:
    settings: splits {name: rows}, mix {name: {kind: share}}, largest_share of
      one output and largest_bool of booleans among all rows.

  Raises ValueError where there are too few cases.
  """
  most = caps(settings)
  outputs, types = collections.Counter(), collections.Counter()
  rows, unused = [], collections.Counter()
  ordered = iter(sorted(programs, key=lambda p: p['pid']))
  for split in filter(settings['splits'].get, SPLITS):
    wanted = quotas(settings['splits'][split], settings['mix'][split])
    left = dict(wanted)
    while any(left.values()):
      program = next(ordered, None)
      if program is None:
        raise ValueError(
          f'too few cases: {split} lacks {left} rows after '
          f'{len(programs):,} programs; raise --config.candidates or lower '
          f'--config.splits.{split}'
        )
      for case in program['cases']:
        asked = choose(case, wanted, left)
        if outputs[case['output']] == most['output']:
          unused['common output'] += 1
        elif case['type'] == 'bool' and types['bool'] == most['bool']:
          unused['bool'] += 1
        elif asked is None:
          unused['no question of a kind that is wanted'] += 1
        else:
          outputs[case['output']] += 1
          types[case['type']] += 1
          left[asked] -= 1
          rows.append(row(split, asked, program, case))
  unused['programs left over'] = sum(1 for _ in ordered)
  return rows, unused


def with_spare(settings) -> dict:
  """Settings with larger splits where a policy will turn rows down."""
  if 'policy' not in settings:
    return settings
  policy, sizes = settings['policy'], settings['splits']
  return settings | {
    'splits': {
      k: math.ceil(n * policy['spare']) if k in policy['keep'] else n
      for k, n in sizes.items()
    }
  }


def in_bands(rows, settings):
  """(rows, {split: rows by fate}) that fill every split as `assign` does.

  Args:
    rows: of `with_spare`, with `passed`: right samples of the policy.
    settings: as for `assign`, and policy: samples and keep, {split: (least,
      most) share of right samples}.

  Raises ValueError where a split is not filled.
  """
  policy, most = settings['policy'], caps(settings)
  outputs, types = collections.Counter(), collections.Counter()
  kept, fates = [], {}
  for split in SPLITS:
    left = quotas(settings['splits'][split], settings['mix'][split])
    low, high = policy['keep'].get(split, (0, 1))
    found = fates[split] = collections.Counter()
    for one in (r for r in rows if r['split'] == split):
      share = (one['passed'] or 0) / policy['samples']
      output = one['verify']['output']
      if one['passed'] is not None and not low <= share <= high:
        found['too hard' if share < low else 'too easy'] += 1
      elif not left[one['asked']] or (
        outputs[output] == most['output']
        or (one['type'] == 'bool' and types['bool'] == most['bool'])
      ):
        found['not needed'] += 1
      else:
        outputs[output] += 1
        types[one['type']] += 1
        left[one['asked']] -= 1
        found['kept'] += 1
        kept.append(one)
    if any(left.values()):
      raise ValueError(
        f'too few rows in the band of difficulty: {split} lacks '
        f'{dict(+collections.Counter(left))} '
        f'after {dict(found)}; raise config.policy.spare (answers that are '
        'there are not asked for again) or widen config.policy.keep'
      )
  return kept, fates


def caps(settings) -> dict:
  """How many rows may have one output, and how many True or False."""
  total = sum(settings['splits'].values())
  return {
    'output': max(1, int(settings['largest_share'] * total)),
    'bool': int(settings['largest_bool'] * total),
  }


def choose(case, wanted, left):
  """What is asked of a case: what lacks the largest share of its rows."""
  fitting = [k for k in case['asks'] if left.get(k)]
  return max(fitting, key=lambda k: left[k] / wanted[k], default=None)


def row(split, asked, program, case) -> dict:
  program = {k: v for k, v in program.items() if k != 'cases'}
  return {'split': split, 'asked': asked, 'program': program, 'case': case}
