"""Evaluations as tables of a terminal; nothing in them is ever cut."""

import rich.box
import rich.console
import rich.markup
import rich.table

MODES = ('greedy', 'sampled')
WIDTH = 120  # columns, where there is no terminal to say


def report(told: dict):
  """What `crjax.evaluate` found of a model."""
  settings = told['settings']
  print(f'\n{settings["model"]} on {settings["data"]}, percent')
  kinds = told['kinds']
  table('Right answers, [95 % interval] over items', RIGHT, right(kinds))
  table('Form', FORM, form(kinds))
  for line in [*passes(kinds), *steps(kinds)]:
    print(line)
  breakdown(kinds)
  if 'reval' in told:
    reval(told['reval'])
  if 'against' in told:
    against(told['against'])


RIGHT = ('kind', 'items', 'decoding', 'strict', 'official', 'constant')
FORM = ('kind', 'decoding', 'typed', 'format', 'cut off', 'tokens', 'too long')
FORM += ('infra',)


def right(kinds):
  for kind, mode, found, x in _modes(kinds):
    constant = (found.get('constant') or {}).get('strict')
    yield (
      kind,
      str(found['n']),
      decoding(mode, x),
      f'{percent(x["strict"])} {between(x["ci95"])}',
      percent(x['official']),
      percent(constant),
    )


def form(kinds):
  for kind, mode, _, x in _modes(kinds):
    tokens = x['tokens']
    yield (
      kind,
      decoding(mode, x),
      *map(percent, (x['typed'], x['format_rate'], x['truncated'])),
      '-' if tokens is None else f'{tokens:.0f}',
      str(x['too_long']),
      str(x['infra']),
    )


def passes(kinds):
  """A line for each kind of which there are several samples."""
  for kind, mode, _, x in _modes(kinds):
    if x['samples'] > 1:
      some = [f'pass@{k} {percent(v)}' for k, v in x['pass_at_k'].items()]
      yield f'{kind}, {decoding(mode, x)}: {", ".join(some)}'


def steps(kinds):
  """A line for each kind that asks about steps, too."""
  for kind, mode, _, x in _modes(kinds):
    if x['steps'] is not None:
      yield (
        f'{kind}, {decoding(mode, x)}: {percent(x["steps"])} of the steps are '
        f'right, {percent(x["final"])} of the final answers'
      )


def breakdown(kinds):
  """Strict accuracy of greedy answers, a column for each kind."""
  found = {kind: x.get('by') or {} for kind, x in kinds.items()}
  lines = []
  for by in sorted({by for x in found.values() for by in x}):
    values = sorted({v for x in found.values() for v in x.get(by, {})})
    for value in values:
      cells = [x.get(by, {}).get(value) for x in found.values()]
      told = [f'{percent(c["strict"])} /{c["n"]}' if c else '-' for c in cells]
      lines.append((f'{by} {value}', *told))
  title = 'Strict / answers, by program'
  table(title, ('', *found), lines)


def judged(result):
  """What `completions.judge` found, and what was not as it should be."""
  if result['missing']:
    print(
      f'{len(result["missing"])} of {result["n"]} items have no completions '
      f'and count as wrong; the first: {result["missing"][0]}'
    )
  if result['unknown']:
    print(
      f'{len(result["unknown"])} ids are not in the data and count nowhere; '
      f'the first: {result["unknown"][0]}'
    )
  asked = f'{result["direction"] or "all"} prediction, {result["prompt"]}'
  print(
    f'{result["benchmark"]}, {asked}, {result["n"]} items: pass@1 '
    f'{result["official"]["pass_at_1"]:.1f} official, '
    f'{result["strict"]["pass_at_1"]:.1f} strict'
  )
  lines = []
  for name in ('official', 'strict', 'typed'):
    x = result[name]
    low, high = x['ci95'] or (None, None)
    of_k = {k: v for k, v in x.get('pass_at_k', {}).items() if k != '1'}
    more = [f'@{k} {v:.1f}' for k, v in of_k.items()]
    lines.append(
      (
        name,
        f'{x["pass_at_1"]:.1f}',
        f'[{low:.1f}, {high:.1f}]' if x['ci95'] else '-',
        ' '.join(more) or '-',
      )
    )
  table('pass@1, percent', ('judge', 'pass@1', '95 %', 'pass@k'), lines)
  print(
    f'format {percent(result["format_rate"])} %, best constant answer '
    f'{percent((result["constant"] or {}).get("strict"))} %'
  )
  breakdown({result['direction'] or 'all': result})
  if 'reval' in result:
    reval(result['reval'])
  if 'against' in result:
    against(result['against'])


def reval(told):
  """Both sets of labels of `reval_score.summarize`."""
  show = lambda x: '-' if x is None else f'{x:.1f}'
  for mode, numbers in told.items():
    lines = []
    for task in ('coverage', 'state', 'path', 'output'):
      x = numbers[task]
      constant = next((k for k in x if k.startswith('always')), None)
      lines.append(
        (
          task,
          str(x['n']),
          *(show(x[name]) for name in ('accuracy', 'HumanEval', 'ClassEval')),
          f'{constant}: {show(x[constant])}' if constant else '-',
          show(x.get('f1')),
        )
      )
    head = ('', 'items', 'accuracy', 'HumanEval', 'ClassEval', 'constant', 'F1')
    table(f'REval, {mode} labels and judge', head, lines)
    ic = numbers['consistency']
    print(
      f'mean of the four accuracies {show(numbers["average"])}, incremental '
      f'consistency {show(ic["score"])} over {ic["n"]} lines'
    )


def against(told):
  """Of `pairs.compare`."""
  if not told['pairs']:
    print(f'{told["path"]} has no question that was judged in both')
    return
  head = ('kind', 'items', 'this', 'that', 'difference', 'only this')
  head += ('only that', 'p')
  lines = [
    (
      x['kind'],
      str(x['n']),
      percent(x['a']),
      percent(x['b']),
      f'{100 * x["difference"]:+.1f} {between(x["ci95"])}',
      str(x.get('only_a', '-')),
      str(x.get('only_b', '-')),
      f'{x["p"]:.2g}',
    )
    for x in told['pairs']
  ]
  table('Beside another evaluation of the same questions', head, lines)
  print(f'that: {told["path"]}; p of {told["pairs"][0]["test"]}')


def table(title, head, lines):
  lines = list(lines)
  if not lines:
    return
  made = rich.table.Table(
    title=title, box=rich.box.SIMPLE, title_justify='left', pad_edge=False
  )
  for i, name in enumerate(head):
    made.add_column(name, justify='right' if i else 'left', overflow='fold')
  for line in lines:
    made.add_row(*map(rich.markup.escape, line))
  console = rich.console.Console()
  if not console.is_terminal:
    console.width = max(console.width, WIDTH)
  console.print(made)


def percent(x):
  return '-' if x is None else f'{100 * x:.1f}'


def between(ci95):
  low, high = ci95 or (None, None)
  return f'[{percent(low)}, {percent(high)}]'


def decoding(mode, x):
  return mode if x['samples'] == 1 else f'{x["samples"]} samples'


def _modes(kinds):
  for kind, found in kinds.items():
    for mode in MODES:
      yield kind, mode, found, found[mode]
