// Small multiples: one figure a metric, one line a run.
const INKS = ['#0b74de', '#d9480f', '#2b8a3e', '#9c36b5', '#c2255c', '#0c8599', '#a07800', '#5f3dc4'];
const FIRST = ['reward', 'loss', 'format_rate', 'completion/length', 'entropy', 'completion/truncated', 'grad_norm', 'lr'];
const SVG = 'http://www.w3.org/2000/svg';

function element(name, attributes, ...children) {
  const node = name === 'svg' || ['polyline', 'line', 'text', 'rect', 'circle'].includes(name)
    ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value !== undefined && value !== null) node.setAttribute(key, value);
  }
  node.append(...children.filter((x) => x !== null && x !== undefined));
  return node;
}

function figures(number, digits = 3) {
  if (number === null || number === undefined) return '-';
  const size = Math.abs(number);
  if (size >= 10000) return Math.round(number).toLocaleString('en');
  if (size && size < 0.001) return number.toExponential(1);
  return String(+number.toPrecision(digits));
}

// The mean of a window of a fifteenth of the run, behind which the values stand.
function smooth(points) {
  const reach = Math.max(1, Math.round(points.length / 30));
  return points.map(([x], i) => {
    const near = points.slice(Math.max(0, i - reach), i + reach + 1);
    return [x, near.reduce((sum, p) => sum + p[1], 0) / near.length];
  });
}

function figure(metric, runs) {
  const lines = runs.filter((run) => run.series[metric]);
  const all = lines.flatMap((run) => run.series[metric]);
  const xs = all.map((p) => p[0]), ys = all.map((p) => p[1]);
  const x0 = Math.min(...xs), x1 = Math.max(...xs);
  let y0 = Math.min(...ys), y1 = Math.max(...ys);
  if (y0 === y1) { y0 -= Math.abs(y0) / 10 || 1; y1 += Math.abs(y1) / 10 || 1; }
  const W = 300, H = 130, left = 4, bottom = 14, top = 8;
  const px = (x) => left + (W - 2 * left) * (x - x0) / (x1 - x0 || 1);
  const py = (y) => top + (H - bottom - top) * (1 - (y - y0) / (y1 - y0));
  const line = (points, ink, opacity) => element('polyline', {
    points: points.map((p) => `${px(p[0]).toFixed(1)},${py(p[1]).toFixed(1)}`).join(' '),
    fill: 'none', stroke: ink, 'stroke-width': 1.6, 'vector-effect': 'non-scaling-stroke',
    'stroke-linejoin': 'round', opacity,
  });
  const drawn = lines.flatMap((run) => {
    const points = run.series[metric];
    if (points.length < 40 || metric === 'lr') return [line(points, run.ink, 1)];
    return [line(points, run.ink, 0.25), line(smooth(points), run.ink, 1)];
  });
  const cross = element('line', { class: 'axis', y1: top, y2: H - bottom, visibility: 'hidden' });
  const svg = element('svg', { viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: 'none', role: 'img', 'aria-label': metric },
    element('line', { class: 'axis', x1: left, x2: W - left, y1: H - bottom, y2: H - bottom }), cross, ...drawn);
  const last = lines.map((run) => figures(run.series[metric].at(-1)[1])).join(' / ');
  const output = element('output', {}, last);
  const range = element('div', { class: 'note' }, `${figures(y0)} to ${figures(y1)}, steps ${x0} to ${x1}`);
  svg.addEventListener('pointermove', (event) => {
    const box = svg.getBoundingClientRect();
    const x = x0 + (x1 - x0) * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const near = lines.map((run) => run.series[metric].reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
    cross.setAttribute('visibility', 'visible');
    cross.setAttribute('x1', px(near[0][0])); cross.setAttribute('x2', px(near[0][0]));
    output.textContent = `step ${near[0][0]}: ${near.map((p) => figures(p[1])).join(' / ')}`;
  });
  svg.addEventListener('pointerleave', () => { cross.setAttribute('visibility', 'hidden'); output.textContent = last; });
  return element('figure', {}, element('figcaption', {}, element('b', {}, metric), output), svg, range);
}

function drawCurves(root, trainings) {
  if (!trainings.length) { root.append(element('p', {}, 'No training run here.')); return; }
  const tasks = [...new Set(trainings.map((run) => run.task))];
  for (const task of tasks) {
    const runs = trainings.filter((run) => run.task === task);
    runs.forEach((run, i) => { run.ink = INKS[i % INKS.length]; });
    const rank = (name) => (FIRST.indexOf(name) + 1 || FIRST.length + 1);
    const metrics = [...new Set(runs.flatMap((run) => Object.keys(run.series)))].filter((m) => m !== 'tokens')
      .sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
    root.append(element('h3', {}, task.toUpperCase()), element('div', { class: 'keys' }, ...runs.map((run) =>
      element('span', { class: 'key', style: `--ink:${run.ink}` }, `${run.name}, ${run.steps}${run.total ? ` of ${run.total}` : ''} steps`))));
    const main = metrics.slice(0, 8), rest = metrics.slice(8);
    root.append(element('div', { class: 'grid' }, ...main.map((m) => figure(m, runs))));
    if (rest.length) {
      const more = element('details', {}, element('summary', {}, `${rest.length} more curves`));
      more.addEventListener('toggle', () => {
        if (more.children.length === 1) more.append(element('div', { class: 'grid' }, ...rest.map((m) => figure(m, runs))));
      });
      root.append(more);
    }
  }
}
