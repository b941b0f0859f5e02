// Tables of results, data, speed, commands.
const percent = (x, digits = 1) => (x === null || x === undefined ? '-' : (100 * x).toFixed(digits));

// Columns in which there is nothing at all are left out.
function table(head, rows) {
  const keep = (x, i) => !rows.length || rows.some((row) => row.cells[i] !== '-' && row.cells[i] !== '');
  const kept = head.map(keep);
  head = head.filter((x, i) => kept[i]);
  rows = rows.map((row) => ({ ...row, cells: row.cells.filter((x, i) => kept[i]) }));
  return element('div', { class: 'scroll' }, element('table', {},
    element('thead', {}, element('tr', {}, ...head.map((x) => element('th', { scope: 'col' }, x)))),
    element('tbody', {}, ...rows.map((row) => element('tr', { class: row.first ? 'first' : null },
      ...row.cells.map((x) => element('td', {}, x instanceof Node ? x : String(x))))))));
}

function interval(low, mean, high, ink) {
  const svg = element('svg', { width: 128, height: 14, viewBox: '-4 0 128 14', 'aria-hidden': 'true' },
    element('line', { class: 'axis', x1: 0, x2: 120, y1: 7, y2: 7 }));
  if (low !== null) svg.append(element('line', { x1: 120 * low, x2: 120 * high, y1: 7, y2: 7, stroke: ink, 'stroke-width': 3 }));
  svg.append(element('circle', { cx: 120 * mean, cy: 7, r: 3.5, fill: ink }));
  return svg;
}

function resultRows(evaluations) {
  const rows = [];
  evaluations.forEach((one, i) => {
    let first = true;
    for (const [kind, found] of Object.entries(one.kinds || {})) {
      for (const mode of ['greedy', 'sampled']) {
        const x = found[mode];
        if (!x || x.strict === null) continue;
        const [low, high] = x.ci95 || [null, null];
        const at = Object.entries(x.pass_at_k || {}).filter(([k, v]) => k > 1 && v !== null)
          .map(([k, v]) => `@${k} ${percent(v)}`).join(' ');
        rows.push({ first, cells: [first ? one.name : '', kind,
          percent(x.strict), low === null ? '-' : `${percent(low)} to ${percent(high)}`, interval(low, x.strict, high, INKS[i % INKS.length]),
          mode === 'greedy' ? 'greedy' : `${x.samples} samples`, found.n, percent(found.constant && found.constant.strict),
          percent(x.official), percent(x.typed), at || '-', percent(x.format_rate), percent(x.truncated), figures(x.tokens),
          x.steps === null || x.steps === undefined ? '-' : `${percent(x.steps)} / ${percent(x.final)}`, x.infra] });
        first = false;
      }
    }
  });
  return rows;
}

function drawResults(root, index) {
  const evaluations = index.evaluations;
  if (!evaluations.length) { root.append(element('p', {}, 'No evaluation here.')); return; }
  root.append(table(['evaluation', 'kind', 'strict %', '95 %', '', 'decoding', 'items', 'constant %', 'official %', 'typed %', 'pass@k %', 'format %', 'cut off %', 'tokens', 'steps / final %', 'infra'],
    resultRows(evaluations)),
  element('p', {}, 'Strict: model text is read, never executed. Official: what the benchmark’s own scorer says, its defects included. Intervals are over items.'));
  for (const one of index.datasets.filter((x) => Object.keys(x.constant).length)) {
    const told = Object.entries(one.constant).map(([k, v]) => `${k} ${percent(v)} %`).join(', ');
    root.append(element('p', {}, `The best constant answer on ${one.name}: ${told}.`));
  }
  for (const one of evaluations.filter((x) => x.reval)) root.append(...reval(one));
  if (index.pairs.length) {
    root.append(element('h3', {}, 'Two models on the same items, greedy'), table(
      ['first', 'second', 'kind', 'items', 'difference', '95 %', 'only first', 'only second', 'p (McNemar)'],
      index.pairs.map((x) => ({ cells: [x.a, x.b, x.kind, x.n, (100 * x.difference).toFixed(1),
        x.ci95.map((v) => (100 * v).toFixed(1)).join(' to '), x.only_a, x.only_b, figures(x.p)] }))));
  }
  const split = element('details', {}, element('summary', {}, 'By length, construct and difficulty'));
  split.append(table(['evaluation', 'kind', 'by', 'value', 'items', 'strict %'], evaluations.flatMap((one) =>
    Object.entries(one.kinds || {}).flatMap(([kind, found]) => Object.entries(found.by || {}).flatMap(([by, values]) =>
      Object.entries(values).map(([value, x]) => ({ cells: [one.name, kind, by, value, x.n, percent(x.strict)] })))))));
  root.append(split);
}

function reval(one) {
  const show = (x) => (x === null || x === undefined ? '-' : x.toFixed(1));
  const rows = [];
  for (const mode of ['official', 'strict']) {
    for (const task of ['coverage', 'state', 'path', 'output']) {
      const x = one.reval[mode][task];
      const constant = Object.entries(x).find(([k]) => k.startsWith('always'));
      rows.push({ first: task === 'coverage', cells: [mode, task, x.n, show(x.accuracy), show(x.HumanEval), show(x.ClassEval),
        constant ? `${constant[0]}: ${show(constant[1])}` : '-', show(x.f1)] });
    }
    rows.push({ cells: [mode, 'average / consistency', one.reval[mode].consistency.n, `${show(one.reval[mode].average)} / ${show(one.reval[mode].consistency.score)}`, '', '', '', ''] });
  }
  return [element('h3', {}, `REval, ${one.name}`), table(['labels', 'task', 'n', 'accuracy %', 'HumanEval', 'ClassEval', 'constant', 'F1'], rows)];
}

function drawData(root, datasets) {
  if (!datasets.length) { root.append(element('p', {}, 'No dataset here.')); return; }
  for (const one of datasets) {
    const most = Math.max(...one.funnel.map((x) => x[1]), 1);
    root.append(element('h3', {}, one.name), ...one.funnel.map(([what, count]) => {
      const bar = element('div', { class: what.startsWith('dropped') ? 'bar drop' : 'bar' }, element('span', {}, what),
        element('i', { style: `width:${100 * count / most}%` }), element('span', {}, count.toLocaleString('en')));
      return bar;
    }));
    const more = element('details', {}, element('summary', {}, 'The whole manifest'));
    more.append(element('pre', {}, JSON.stringify(one.manifest, null, 1)));
    root.append(more);
  }
}

function clock(seconds) {
  if (!seconds) return '-';
  if (seconds < 90) return `${seconds.toFixed(0)} s`;
  return seconds < 5400 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function drawSpeed(root, index) {
  root.append(table(['run', 'steps', 'time', 'tokens', 'tokens/s', 's/step', 'peak memory'], index.trainings.map((run) => ({
    cells: [run.name, run.steps, clock(run.seconds), run.tokens.toLocaleString('en'), figures(run.tokens_per_s), figures(run.step_s),
      Object.entries(run.memory).map(([k, v]) => `${k} ${figures(v)}`).join(', ') || 'not recorded'] })).concat(
    index.evaluations.filter((one) => one.seconds).map((one) => ({ cells: [one.name, '-', clock(one.seconds), '-', '-', '-', '-'] })))));
}

function drawAgain(root, index) {
  for (const run of [...index.datasets, ...index.trainings, ...index.evaluations]) {
    const versions = Object.entries(run.versions || {}).filter(([, v]) => typeof v === 'string' && v.length < 40).map(([k, v]) => `${k} ${v}`).join(', ');
    const more = element('details', {}, element('summary', {}, run.name));
    more.append(element('pre', { class: 'wrap' }, run.command || 'The command was not recorded.'));
    more.append(element('p', {}, versions || 'Versions were not recorded by this run.'),
      element('pre', {}, JSON.stringify(run.config || run.settings || (run.manifest || {}).settings || {}, null, 1)));
    root.append(more);
  }
}
