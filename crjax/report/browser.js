// Completions: columns in memory to filter by, texts in chunks opened on demand.
const ROW = 34;
const READERS = { u2: Uint16Array, u4: Uint32Array, i4: Int32Array, f4: Float32Array };

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return new Response(stream).arrayBuffer();
}

const KEYWORDS = new Set(('False None True and as assert async await break class continue def del elif else except finally for from ' +
  'global if import in is lambda nonlocal not or pass raise return try while with yield').split(' '));

function highlighted(line) {
  const parts = [];
  const token = /(#.*$)|('(?:[^'\\]|\\.)*'?|"(?:[^"\\]|\\.)*"?)|(\b\d[\d._]*\b)|([A-Za-z_]\w*)|([^A-Za-z_\d#'"]+)|(.)/g;
  for (const m of line.matchAll(token)) {
    const kind = m[1] ? 'c' : m[2] ? 's' : m[3] ? 'n' : KEYWORDS.has(m[4]) ? 'k' : '';
    parts.push(kind ? element('span', { class: kind }, m[0]) : m[0]);
  }
  return parts;
}

function program(code, asked) {
  const pre = element('pre', { class: 'code' });
  code.replace(/\n$/, '').split('\n').forEach((line, i) => {
    pre.append(element('span', { class: i + 1 === asked ? 'codeline asked' : 'codeline', 'data-line': i + 1 }, ...highlighted(line), '\n'));
  });
  return pre;
}

function light(pre, numbers) {
  pre.querySelectorAll('.codeline').forEach((x) => x.classList.toggle('on', numbers.includes(+x.dataset.line)));
}

// The text of a chain, whose lines point at the lines of the program they name.
function chain(text, pre, code) {
  const box = element('pre', { class: 'wrap' });
  const lines = code.split('\n').map((x) => x.trim());
  for (const line of text.split('\n')) {
    const named = [...line.matchAll(/\b[Ll](?:ine )?(\d{1,3})\b/g)].map((m) => +m[1]);
    const bare = line.replace(/\s+#.*$/, '').trim();
    const same = lines.findIndex((x) => x && x === bare);
    const numbers = named.length ? named : same >= 0 ? [same + 1] : [];
    const step = element('span', numbers.length ? { class: 'step' } : {}, line, '\n');
    if (numbers.length) {
      step.addEventListener('pointerenter', () => light(pre, numbers));
      step.addEventListener('click', () => light(pre, numbers));
    }
    box.append(step);
  }
  return box;
}

function trace(steps, pre) {
  const box = element('pre', { class: 'wrap' });
  steps.forEach(([line, changed], i) => {
    const told = Object.entries(changed).map(([k, v]) => `${k} = ${v}`).join(', ');
    const step = element('span', { class: 'step' }, `${String(i + 1).padStart(3)}  line ${String(line).padEnd(3)} ${told}\n`);
    step.addEventListener('pointerenter', () => light(pre, [line]));
    step.addEventListener('click', () => light(pre, [line]));
    box.append(step);
  });
  return box;
}

class Browser {
  constructor(index) {
    this.index = index;
    this.chunks = new Map();
    this.list = document.getElementById('list');
    this.sizer = document.getElementById('sizer');
    this.shown = new Uint32Array(0);
    this.open = -1;
  }

  async start() {
    this.columns = {};
    for (const [name, text] of Object.entries(this.index.columns)) {
      this.columns[name] = new READERS[this.index.types[name]](await unpack(text));
    }
    this.controls();
    this.list.addEventListener('scroll', () => this.draw());
    window.addEventListener('resize', () => this.draw());
    this.list.addEventListener('keydown', (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const place = Math.min(this.shown.length - 1, Math.max(0, this.shown.indexOf(this.open) + step));
      this.show(this.shown[place]);
      this.list.scrollTop = Math.max(0, place * ROW - this.list.clientHeight / 2);
    });
    this.filter();
  }

  controls() {
    const form = document.getElementById('filters');
    const choose = (name, options) => element('label', {}, name, element('select', { name }, element('option', { value: '' }, 'all'),
      ...options.map(([value, text]) => element('option', { value }, text))));
    const names = (field) => this.index.names[field].map((x, i) => [String(i), x || '-']);
    const range = (name, step) => [`${name} from`, `${name} to`].map((x) => element('label', {}, x, element('input', { name: x, type: 'number', step })));
    form.append(choose('run', names('run')), choose('kind', names('kind')), choose('right', [['1', 'right'], ['0', 'wrong']]),
      choose('verdict', names('verdict')), ...range('reward', 'any'), ...range('length', '1'));
    const again = element('button', { type: 'reset' }, 'Clear');
    form.append(again);
    form.addEventListener('input', () => this.filter());
    form.addEventListener('reset', () => setTimeout(() => this.filter()));
    form.addEventListener('submit', (event) => event.preventDefault());
  }

  filter() {
    const began = performance.now();
    const form = document.getElementById('filters').elements;
    const equal = ['run', 'kind', 'right', 'verdict'].filter((x) => form[x].value !== '').map((x) => [this.columns[x], +form[x].value]);
    const within = ['reward', 'length'].flatMap((x) => {
      const [low, high] = [form[`${x} from`].value, form[`${x} to`].value];
      return low === '' && high === '' ? [] : [[this.columns[x], low === '' ? -Infinity : +low, high === '' ? Infinity : +high]];
    });
    const found = new Uint32Array(this.index.n);
    let count = 0;
    for (let i = 0; i < this.index.n; i++) {
      let keep = true;
      for (const [column, value] of equal) if (column[i] !== value) { keep = false; break; }
      if (keep) for (const [column, low, high] of within) if (!(column[i] >= low && column[i] <= high)) { keep = false; break; }
      if (keep) found[count++] = i;
    }
    this.shown = found.slice(0, count);
    let right = 0;
    for (const i of this.shown) right += this.columns.right[i];
    document.getElementById('count').textContent = `${count.toLocaleString('en')} of ${this.index.n.toLocaleString('en')} completions` +
      (count ? `, ${(100 * right / count).toFixed(1)} % right` : '');
    this.sizer.style.height = `${count * ROW}px`;
    this.list.scrollTop = 0;
    this.draw();
    performance.measure('filter', { start: began, end: performance.now() });
  }

  draw() {
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW) - 5);
    const last = Math.min(this.shown.length, first + Math.ceil(this.list.clientHeight / ROW) + 10);
    const rows = [];
    for (let place = first; place < last; place++) {
      const i = this.shown[place], c = this.columns;
      const reward = c.reward[i], step = c.step[i];
      const row = element('div', { class: i === this.open ? 'row open' : 'row', style: `top:${place * ROW}px`, 'data-row': i },
        element('b', { class: c.right[i] ? 'yes' : 'no' }, c.right[i] ? '✓' : '✗'), this.index.names.kind[c.kind[i]],
        element('span', { class: 'grow' }, `${this.index.names.run[c.run[i]]}${step >= 0 ? `, step ${step}` : ''} ${this.index.names.mode[c.mode[i]]}`),
        element('span', {}, Number.isNaN(reward) ? '-' : figures(reward)), element('span', {}, c.length[i]));
      row.addEventListener('click', () => this.show(i));
      rows.push(row);
    }
    this.sizer.replaceChildren(...rows);
  }

  // Whether a reload would take something away from a reader.
  busy() {
    const form = document.getElementById('filters').elements;
    return this.open >= 0 || [...form].some((x) => x.value);
  }

  async read(i) {
    const number = Math.floor(i / this.index.chunk);
    if (!this.chunks.has(number)) {
      const text = document.getElementById(`chunk-${number}`).textContent;
      this.chunks.set(number, unpack(text).then((data) => JSON.parse(new TextDecoder().decode(data))));
    }
    return (await this.chunks.get(number))[i % this.index.chunk];
  }

  async show(i) {
    this.open = i;
    this.draw();
    const row = await this.read(i);
    if (this.open !== i) return;
    const c = this.columns, right = c.right[i];
    const kind = this.index.names.kind[c.kind[i]];
    const box = document.getElementById('detail');
    const pre = program(row.code || '', row.line);
    const call = row.entry !== undefined ? `${row.entry}(${row.args})` : row.invocation || '';
    const gold = row.gold || row.corrected || (kind === 'input' ? call : row.output) || '-';
    box.replaceChildren(
      element('h3', {}, element('span', { class: right ? 'yes' : 'no' }, right ? 'Right' : 'Wrong'),
        ` · ${kind} · ${row.verdict || ''} · reward ${Number.isNaN(c.reward[i]) ? '-' : figures(c.reward[i])} · length ${c.length[i]}`),
      element('h3', {}, 'Program'), pre,
      element('h3', {}, 'Asked'), element('pre', { class: 'wrap' }, asked(kind, row, call)),
      element('h3', {}, 'Chain'), chain(row.text || '(nothing)', pre, row.code || ''),
      element('h3', {}, 'Answer'), element('pre', { class: 'wrap' }, row.answer === undefined ? '(none)' : row.answer),
      element('h3', {}, 'Gold'), element('pre', { class: 'wrap' }, typeof gold === 'string' ? gold : gold.join('\n')),
      ...(row.detail ? [element('p', {}, row.detail)] : []),
      ...(row.trace ? [element('h3', {}, 'Trace of the call'), trace(row.trace, pre)]
        : [element('p', {}, 'This program was not traced for the page.')]));
    box.scrollTop = 0;
  }
}

function asked(kind, row, call) {
  if (kind === 'input') return `${row.entry}(??) == ${row.output}`;
  if (kind === 'output') return row.asked || `${call} == ??`;
  if (row.line) return `${kind} of line ${row.line}${row.var && kind === 'state' ? `, ${row.var}` : ''}\n${call}`;
  return `${kind}: ${call}`;
}
