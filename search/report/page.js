'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const trials = new Map(data.trials.map(t => [t.number, t]));
const front = data.front.map(n => trials.get(n));
const larger = new Map(data.objectives.map(o => [o.key, o.larger]));
let chosen = null;

// --- making elements: all text goes in as text, only pictures (drawn by archc itself) as markup

const byId = id => document.getElementById(id);
const NS = 'http://www.w3.org/2000/svg';

function add(parent, name, attributes = {}, text = null) {
  const svg = name === 'svg' || parent.namespaceURI === NS;
  const made = svg ? document.createElementNS(NS, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  parent.append(made);
  return made;
}

function number(value) {
  if (value === null || value === undefined) return '–';
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return value.toLocaleString('en');
  const size = Math.abs(value);
  return size >= 1e4 ? Math.round(value).toLocaleString('en') : size >= 1e-3 ? String(+value.toPrecision(4)) : value.toExponential(2);
}

const percent = value => `${number(+(100 * value).toFixed(1))} %`;

function table(place, head, rows) {
  const line = add(add(place, 'thead'), 'tr');
  for (const [name, right] of head) add(line, 'th', { scope: 'col', class: right ? 'n' : '' }, name);
  const body = add(place, 'tbody');
  return rows.map(cells => {
    const row = add(body, 'tr');
    cells.forEach((cell, i) => {
      const place = add(row, 'td', { class: head[i][1] ? 'n' : '' });
      if (typeof cell === 'function') cell(place); else place.textContent = cell;
    });
    return row;
  });
}

const bar = (share, said) => place => {
  add(place, 'span', { class: 'bar', style: `width:${Math.max(0, 120 * share).toFixed(1)}px`, 'aria-hidden': 'true' });
  place.append(said);
};

// --- one trial: in the tooltip, and beside the chart

const pictureOf = t => data.pictures[t.hash];
const axisName = key => larger.has(key) ? `${key} (${larger.get(key) ? 'more' : 'less'} is better)` : key;

function state(t) {
  if (t.front) return 'on the front';
  if (t.status === 'infeasible') return `infeasible: ${t.reason}`;
  if (t.status === 'stopped') return 'stopped early';
  return t.fidelity < 1 ? `trained for ${percent(t.fidelity)} of the steps` : 'not on the front';
}

function madeOf(t) {
  const from = t.parents.length ? ` of ${t.parents.map(p => `#${p}`).join(' and ')}` : '';
  return t.origin + from + (t.inherit === null ? '' : `, with the weights of #${t.inherit}`);
}

function values(place, t, keys) {
  const list = add(place, 'dl');
  const put = (name, value) => { add(list, 'dt', {}, name); add(list, 'dd', {}, value); };
  for (const key of keys) if (key in t.values) put(key, number(t.values[key]));
  put('made by', madeOf(t));
  return put;
}

function describe(t) {
  const goals = data.objectives.filter(o => o.key in t.values).map(o => `${o.key} ${number(t.values[o.key])}`);
  return `trial ${t.number}, ${state(t)}, ${goals.join(', ')}`;
}

function choose(t) {
  chosen = t.number;
  for (const shape of document.querySelectorAll('[data-trial]'))
    shape.classList.toggle('chosen', +shape.dataset.trial === chosen);
  const place = byId('detail');
  place.replaceChildren();
  add(place, 'h3', {}, `Trial ${t.number}: ${state(t)}`);
  const put = values(place, t, data.quantities);
  put('spent', `${number(t.cost)} of a whole training, ${number(t.seconds)} s`);
  if (t.shares !== null) put('result of', `trial ${t.shares}, the same architecture`);
  if (t.message) put('said', t.message);
  if (pictureOf(t)) add(place, 'div', { class: 'picture' }).innerHTML = pictureOf(t);
  if (t.curve.length > 1) curve(place, t);
  if (t.text !== null) {
    const more = add(place, 'details', t.front ? {} : { open: '' });
    add(more, 'summary', {}, 'the program');
    add(more, 'pre', {}, data.texts[t.text]);
  }
  if (data.again[t.number]) commands(place, data.again[t.number]);
}

function commands(place, lines) {
  const box = add(place, 'div', { class: 'copy' });
  const text = lines.join('\n');
  add(box, 'pre', {}, text);
  const button = add(box, 'button', { type: 'button' }, 'copy');
  button.onclick = async () => {
    try { await navigator.clipboard.writeText(text); button.textContent = 'copied'; }
    catch { getSelection().selectAllChildren(box.firstChild); button.textContent = 'selected'; }
  };
}

function showTip(t, event) {
  const tip = byId('tip');
  tip.replaceChildren();
  add(tip, 'b', {}, `Trial ${t.number}: ${state(t)}`);
  values(tip, t, data.quantities.slice(0, 5));
  if (pictureOf(t)) add(tip, 'div', { class: 'picture' }).innerHTML = pictureOf(t);
  tip.hidden = false;
  const at = event.target.getBoundingClientRect(), x = event.clientX || at.right, y = event.clientY || at.bottom;
  const left = x + 16 + tip.offsetWidth > innerWidth ? x - 16 - tip.offsetWidth : x + 16;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, Math.min(y + 12, innerHeight - tip.offsetHeight - 6))}px`;
}

const hideTip = () => { byId('tip').hidden = true; };
addEventListener('keydown', event => { if (event.key === 'Escape') hideTip(); });

function live(shape, t) {
  shape.dataset.trial = t.number;
  shape.setAttribute('tabindex', t.front ? 0 : -1);
  shape.setAttribute('role', 'button');
  shape.setAttribute('aria-label', describe(t));
  shape.onpointerenter = shape.onfocus = event => showTip(t, event);
  shape.onpointerleave = shape.onblur = hideTip;
  shape.onclick = () => choose(t);
  shape.onkeydown = event => { if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); choose(t); } };
}

// --- charts

const BOX = { width: 680, height: 400, left: 66, right: 16, top: 14, bottom: 44 };

function scale(found, from, to, mayLog) {
  let low = Math.min(...found), high = Math.max(...found);
  const log = mayLog && low > 0 && high / low > 30;
  const bend = log ? Math.log10 : v => v;
  const pad = (bend(high) - bend(low)) * 0.04 || Math.abs(bend(high)) * 0.05 || 1;
  const a = bend(low) - pad, b = bend(high) + pad;
  const at = v => from + (bend(v) - a) / (b - a) * (to - from);
  return { at, ticks: log ? decades(a, b) : steps(a, b) };
}

function steps(a, b) {
  const rough = (b - a) / 5, unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * [1, 2, 5, 10].find(m => m * unit >= rough);
  const ticks = [];
  for (let i = Math.ceil(a / step); i * step <= b; i++) ticks.push(+(i * step).toPrecision(12));
  return ticks;
}

function decades(a, b) {
  const ticks = [];
  for (let e = Math.floor(a); e <= b; e++)
    for (const m of b - a > 2.5 ? [1] : [1, 2, 5]) {
      const at = e + Math.log10(m);
      if (at >= a && at <= b) ticks.push(m * 10 ** e);
    }
  return ticks;
}

function short(value) {
  for (const [size, letter] of [[1e9, 'G'], [1e6, 'M'], [1e3, 'k']])
    if (Math.abs(value) >= size) return `${+(value / size).toPrecision(3)}${letter}`;
  return String(+value.toPrecision(3));
}

function chart(place, label, xs, ys, xName, yName, box, logs) {
  place.replaceChildren();
  const svg = add(place, 'svg', { viewBox: `0 0 ${box.width} ${box.height}`, role: 'group', 'aria-label': label });
  const x = scale(xs, box.left, box.width - box.right, logs);
  const y = scale(ys, box.height - box.bottom, box.top, logs);
  for (const tick of x.ticks) {
    add(svg, 'line', { class: 'grid', x1: x.at(tick), x2: x.at(tick), y1: box.top, y2: box.height - box.bottom });
    add(svg, 'text', { x: x.at(tick), y: box.height - box.bottom + 17, 'text-anchor': 'middle' }, short(tick));
  }
  for (const tick of y.ticks) {
    add(svg, 'line', { class: 'grid', x1: box.left, x2: box.width - box.right, y1: y.at(tick), y2: y.at(tick) });
    add(svg, 'text', { x: box.left - 8, y: y.at(tick) + 4, 'text-anchor': 'end' }, short(tick));
  }
  const middle = (box.left + box.width - box.right) / 2, centre = (box.top + box.height - box.bottom) / 2;
  add(svg, 'text', { class: 'name', x: middle, y: box.height - 8, 'text-anchor': 'middle' }, xName);
  add(svg, 'text', { class: 'name', x: 14, y: centre, 'text-anchor': 'middle', transform: `rotate(-90 14 ${centre})` }, yName);
  return { svg, x: x.at, y: y.at };
}

function none(place, said) {
  place.replaceChildren();
  add(place, 'p', { class: 'remark' }, said);
}

function scatter() {
  const [kx, ky] = [byId('x').value, byId('y').value], place = byId('scatter');
  const have = data.trials.filter(t => t.status !== 'infeasible' && t.shares === null && kx in t.values && ky in t.values);
  const shown = have.filter(t => t.front || byId('others').checked);
  const away = data.trials.filter(t => t.status !== 'infeasible' && t.shares === null).length - have.length;
  byId('outside').textContent = away ? `${away} more trials have no ${[kx, ky].join(' or ')}: they were stopped, or not measured.` : '';
  if (!shown.length) return none(place, 'Nothing has been evaluated yet.');
  const label = `${shown.length} architectures: ${ky} against ${kx}`;
  const { svg, x, y } = chart(place, label, shown.map(t => t.values[kx]), shown.map(t => t.values[ky]), axisName(kx), axisName(ky), BOX, true);
  const sorted = shown.filter(t => t.front).sort((a, b) => a.values[kx] - b.values[kx]);
  if (sorted.length > 1 && data.objectives.length === 2 && larger.has(kx) && larger.has(ky) && kx !== ky) {
    const up = larger.get(kx);  // the corner of each step is where the next one has not yet begun
    let path = '';
    sorted.forEach((t, i) => {
      const [px, py] = [x(t.values[kx]), y(t.values[ky])];
      path += i ? (up ? `V${py}H${px}` : `H${px}V${py}`) : `M${px} ${py}`;
    });
    add(svg, 'path', { class: 'stair', d: path });
  }
  for (const t of [...shown].sort((a, b) => a.front - b.front)) {
    const kind = t.front ? 'front' : t.status === 'stopped' ? 'stopped' : t.fidelity < 1 ? 'partial' : '';
    const classes = `point ${kind} ${t.number === chosen ? 'chosen' : ''}`;
    live(add(svg, 'circle', { class: classes, cx: x(t.values[kx]), cy: y(t.values[ky]), r: t.front ? 6.5 : 4 }), t);
  }
}

const SMALL = { width: 520, height: 250, left: 66, right: 14, top: 12, bottom: 42 };

function progress(id, column, name, said) {
  const rows = data.progress.filter(row => row[column] !== null);
  if (!rows.length) return none(byId(id), said);
  const goal = data.objectives[0].key, dots = column === 1 ? data.trials.filter(t => t.whole && goal in t.values) : [];
  const ys = [...rows.map(row => row[column]), ...dots.map(t => t.values[goal])];
  const xs = [0, ...rows.map(row => row[0]), ...dots.map(t => t.spent)];
  const { svg, x, y } = chart(byId(id), name, xs, ys, 'whole trainings spent', name, SMALL, false);
  for (const t of dots) add(svg, 'circle', { class: 'point', cx: x(t.spent), cy: y(t.values[goal]), r: 2.4 });
  let path = '';
  rows.forEach((row, i) => { path += i ? `H${x(row[0])}V${y(row[column])}` : `M${x(row[0])} ${y(row[column])}`; });
  add(svg, 'path', { class: column === 1 ? 'step best' : 'step', d: `${path}H${x(data.spent)}` });
}

function curve(place, t) {
  const box = { width: 380, height: 130, left: 52, right: 8, top: 8, bottom: 38 };
  const { svg, x, y } = chart(add(place, 'div', { class: 'chart' }), 'learning curve', t.curve.map(p => p[0]), t.curve.map(p => p[1]), 'samples', 'validation', box, false);
  add(svg, 'path', { class: 'step', d: 'M' + t.curve.map(p => `${x(p[0])} ${y(p[1])}`).join('L') });
}

// --- ancestry: a column for each generation

function ancestry() {
  const place = byId('ancestry'), wanted = new Set(), todo = front.map(t => t.number);
  while (todo.length) {
    const n = todo.pop();
    if (wanted.has(n) || !trials.has(n)) continue;
    wanted.add(n);
    todo.push(...trials.get(n).parents);
  }
  const nodes = [...wanted].sort((a, b) => a - b).map(n => trials.get(n)), depth = new Map(), columns = [];
  for (const t of nodes) {  // parents have smaller numbers
    const at = Math.max(-1, ...t.parents.map(p => depth.get(p) ?? -1)) + 1;
    depth.set(t.number, at);
    (columns[at] ??= []).push(t);
  }
  if (!nodes.length) return none(place, 'The front is empty.');
  const row = new Map(), order = t => { const found = t.parents.map(p => row.get(p)).filter(r => r !== undefined);
    return found.length ? found.reduce((a, b) => a + b) / found.length : 1e9; };
  for (const column of columns) column.sort((a, b) => order(a) - order(b) || a.number - b.number).forEach((t, i) => row.set(t.number, i));
  const [wide, high] = [168, 40], tallest = Math.max(...columns.map(c => c.length));
  const size = { width: columns.length * wide + 30, height: tallest * high + 16 };
  const svg = add(place, 'svg', { ...size, viewBox: `0 0 ${size.width} ${size.height}`, role: 'group', 'aria-label': `${nodes.length} trials in ${columns.length} generations` });
  const at = t => { const inside = columns[depth.get(t.number)].length;
    return [16 + depth.get(t.number) * wide, 18 + (row.get(t.number) + (tallest - inside) / 2) * high]; };
  for (const t of nodes) for (const p of t.parents.filter(p => wanted.has(p))) {
    const [x1, y1] = at(trials.get(p)), [x2, y2] = at(t), bend = (x2 - x1) / 2;
    add(svg, 'path', { class: 'edge', d: `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}` });
  }
  const goal = data.objectives[0].key;
  for (const t of nodes) {
    const [x, y] = at(t);
    live(add(svg, 'circle', { class: `point ${t.front ? 'front' : ''}`, cx: x, cy: y, r: t.front ? 7 : 5 }), t);
    add(svg, 'text', { class: t.front ? 'name' : '', x: x + 11, y: y - 1 }, `#${t.number}${goal in t.values ? ` · ${number(t.values[goal])}` : ''}`);
    add(svg, 'text', { class: 'origin', x: x + 11, y: y + 12 }, t.origin.replace(/^(mutation|transform)\//, ''));
  }
}

// --- the page

byId('subtitle').textContent = data.subtitle;
for (const [value, label] of data.tiles) {
  const tile = add(byId('tiles'), 'div');
  add(tile, 'b', {}, value);
  add(tile, 'span', {}, label);
}

const second = data.objectives[1]?.key ?? data.quantities.find(k => k !== data.objectives[0].key) ?? data.objectives[0].key;
for (const [id, picked] of [['x', second], ['y', data.objectives[0].key]])
  for (const key of data.quantities) {
    const option = add(byId(id), 'option', { value: key }, key);
    option.selected = key === picked;
  }
byId('axes').oninput = scatter;
byId('axes').onsubmit = event => event.preventDefault();
scatter();

const columns = data.quantities.slice(0, 5);
table(byId('front'), [['trial', true], ...columns.map(c => [c, true]), ['made by', false]],
  front.map(t => [`${t.number}`, ...columns.map(k => number(t.values[k])), madeOf(t)])
).forEach((row, i) => {
  row.tabIndex = 0;
  row.onclick = () => { choose(front[i]); byId('detail').scrollIntoView({ block: 'nearest' }); };
  row.onkeydown = event => { if (event.key === 'Enter') row.onclick(); };
});

progress('best', 1, `${data.objectives[0].key}, best so far`, 'Nothing has been evaluated yet.');
progress('volume', 2, 'hypervolume of the front', data.objectives.length === 1 ? 'One objective: there is no front to measure.' : 'Nothing to measure yet.');
ancestry();

table(byId('origins'), [['made by', false], ['trials', true], ['infeasible', true], ['compared', true], ['better than its parents', false], ['on the front', true], ['without it', true]],
  data.origins.map(o => [o.origin, number(o.trials), number(o.infeasible), number(o.compared),
    o.compared ? bar(o.better / o.compared, `${o.better} (${percent(o.better / o.compared)})`) : '–',
    number(o.front), o.loss === null ? '–' : o.loss ? `−${percent(o.loss)}` : '0 %']));
byId('savings').textContent = data.savings;

if (data.reasons.length) {
  const most = Math.max(...data.reasons.map(r => r.count));
  table(byId('infeasible'), [['reason', false], ['trials', false], ['for example', false]],
    data.reasons.map(r => [r.reason, bar(r.count / most, `${r.count}`), `#${r.example}: ${r.message}`]));
} else none(byId('infeasible').parentElement, 'Every architecture could be evaluated.');

commands(byId('again'), data.again.study);
for (const t of front) if (data.again[t.number]) {
  const one = add(byId('again'), 'details');
  add(one, 'summary', {}, describe(t));
  commands(one, data.again[t.number]);
}

for (const [name, value] of data.setup) {
  add(byId('setup'), 'dt', {}, name);
  add(byId('setup'), 'dd', {}, value);
}
byId('space').textContent = data.space;
if (front.length) choose(front[0]); else none(byId('detail'), 'Nothing is on the front yet.');
