// Curves of a training: mean of each point, the band of its least and largest step behind, what the pointer is at.
'use strict';

const FIRST = ['loss', 'held_out', 'grad_norm', 'rate', 'mfu', 'seconds', 'waited'];
const TITLES = {rate: 'learning rate', seconds: 'seconds a step', waited: 'seconds waited for data', mfu: 'MFU', memory_bytes: 'GPU memory, bytes'};
const options = {log: false, by: 'step', smooth: 0};

function together(names) { // curves that share a chart: a loss and what is held out, noise levels
  const groups = new Map();
  for (const name of names) {
    const validation = /^(validation|val)_?(loss|nll)?$/.test(name) || name === 'held_out' || name === 'loss';
    const group = validation ? 'loss' : /^held_out_/.test(name) ? 'held out, by noise level' : name;
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push(name);
  }
  const rank = name => { const i = FIRST.indexOf(name); return i < 0 ? FIRST.length : i; };
  return [...groups].sort((a, b) => rank(a[0]) - rank(b[0]) || (a[0] < b[0] ? -1 : 1));
}

function ticks(low, high, most) {
  const span = high - low || Math.abs(high) || 1, raw = span / most, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find(s => s * power >= raw) * power, found = [];
  for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + 1e-9 * span; t += step) found.push(+t.toPrecision(12));
  return found;
}

function decades(low, high) {
  const found = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
    for (const m of Math.log10(high / low) < 2 ? [1, 2, 5] : [1]) if (m * 10 ** e >= low && m * 10 ** e <= high) found.push(m * 10 ** e);
  }
  return found.length > 1 ? found : [low, high];
}

function smoothed(points, weight) { // as others do it: an exponential mean, corrected for its beginning
  if (!weight) return points;
  let mean = 0, share = 0;
  return points.map(([x, y, low, high]) => {
    mean = weight * mean + (1 - weight) * y;
    share = weight * share + (1 - weight);
    return [x, mean / share, low, high];
  });
}

function chart(title, names, data) {
  const W = 460, H = 190, L = 52, R = 8, T = 6, B = 20;
  const shown = names.filter(name => data.curves[name]?.length);
  const start = data.times.length ? data.times[0][1] : 0;
  const timeOf = step => { // of a step, between those that are known
    const t = data.times;
    if (!t.length) return step;
    let i = t.findIndex(([s]) => s >= step);
    if (i < 0) return (t[t.length - 1][1] - start) / 3600;
    if (i === 0) return 0;
    const [a, b] = [t[i - 1], t[i]];
    return (a[1] + (b[1] - a[1]) * (step - a[0]) / (b[0] - a[0] || 1) - start) / 3600;
  };
  const curves = shown.map(name => {
    const points = data.curves[name].filter(p => !options.log || p[2] > 0);
    const placed = options.by === 'time' ? points.map(([s, ...rest]) => [timeOf(s), ...rest]) : points;
    return {name, steps: points.map(p => p[0]), raw: placed, points: smoothed(placed, placed.length > 4 ? options.smooth : 0)};
  }).filter(c => c.points.length);
  const heading = h('h3', {}, TITLES[title] || title.replaceAll('_', ' '));
  if (!curves.length) return h('div.chart', {}, heading, h('p.dim', {}, options.log ? 'nothing above zero' : 'nothing yet'));
  const xs = curves.flatMap(c => [c.raw[0][0], c.raw[c.raw.length - 1][0]]);
  const values = curves.flatMap(c => c.raw.flatMap(p => [p[2], p[3]])).sort((a, b) => a - b);
  let [x0, x1] = [Math.min(...xs), Math.max(...xs)], y0 = values[0], y1 = values[values.length - 1];
  const rough = values[Math.floor(values.length * 0.995)]; // one spike must not flatten all the rest
  const clipped = values.length > 200 && y1 - y0 > 4 * (rough - y0);
  if (clipped) y1 = rough + 0.15 * (rough - y0);
  if (y0 === y1) { y0 -= Math.abs(y0) * 0.1 || 1; y1 += Math.abs(y1) * 0.1 || 1; if (options.log) y0 = y1 / 2; }
  if (x0 === x1) x1 = x0 + 1;
  const f = options.log ? Math.log : v => v;
  const X = x => L + (W - L - R) * (x - x0) / (x1 - x0);
  const Y = y => Math.max(T, Math.min(H - B, H - B - (H - T - B) * (f(y) - f(y0)) / (f(y1) - f(y0))));
  const picture = svg('svg', {viewBox: `0 0 ${W} ${H}`, role: 'img', 'aria-label': `${title}: ${curves.map(c => `${c.name} ${number(c.raw[c.raw.length - 1][1])}`).join(', ')}`});
  for (const t of options.log ? decades(y0, y1) : ticks(y0, y1, 5)) {
    picture.append(svg('path', {class: 'grid', d: `M${L} ${Y(t)}H${W - R}`}), svg('text', {x: L - 5, y: Y(t) + 4, 'text-anchor': 'end'}, number(t)));
  }
  for (const t of ticks(x0, x1, 5)) picture.append(svg('text', {x: X(t), y: H - 5, 'text-anchor': X(t) > W - 30 ? 'end' : 'middle'}, options.by === 'time' ? `${number(t)} h` : count(t)));
  curves.forEach((c, i) => {
    const colour = `var(--c${i % 6})`, line = points => points.map(p => `${X(p[0]).toFixed(1)},${Y(p[1]).toFixed(1)}`).join(' ');
    if (c.raw.some(p => p[3] > p[2])) {
      const edge = [...c.raw.map(p => [p[0], p[3]]), ...c.raw.map(p => [p[0], p[2]]).reverse()];
      picture.append(svg('polygon', {class: 'band', points: line(edge), fill: colour}));
    }
    if (c.points !== c.raw) picture.append(svg('polyline', {class: 'raw', points: line(c.raw), stroke: colour}));
    picture.append(svg('polyline', {class: 'line', points: line(c.points), stroke: colour}));
    if (c.raw.length < 30) for (const p of c.points) picture.append(svg('circle', {cx: X(p[0]), cy: Y(p[1]), r: 2.2, fill: colour}));
  });
  const cross = svg('path', {class: 'cross', d: ''});
  picture.append(cross);
  const values_ = curves.map((c, i) => h('span', {style: {color: `var(--c${i % 6})`}}));
  const place = h('span.dim');
  const say = x => { // the last ones, or those at the pointer
    curves.forEach((c, i) => {
      let k = c.raw.length - 1;
      if (x !== null) c.raw.forEach((p, j) => { if (Math.abs(p[0] - x) < Math.abs(c.raw[k][0] - x)) k = j; });
      const [, mean, low, high] = c.raw[k];
      values_[i].textContent = `${curves.length > 1 || c.name !== title ? `${c.name} ` : ''}${number(mean)}${high > low ? ` (${number(low)} to ${number(high)})` : ''}`;
      if (!i) place.textContent = x === null ? '' : `step ${count(c.steps[k])}`;
    });
    cross.setAttribute('d', x === null ? '' : `M${X(x)} ${T}V${H - B}`);
  };
  picture.addEventListener('pointermove', event => {
    const box = picture.getBoundingClientRect(), x = x0 + (x1 - x0) * ((event.clientX - box.left) * W / box.width - L) / (W - L - R);
    say(Math.max(x0, Math.min(x1, x)));
  });
  picture.addEventListener('pointerleave', () => say(null));
  say(null);
  if (clipped) heading.append(h('span.dim', {title: 'the highest values are cut off'}, `up to ${number(values[values.length - 1])}`));
  heading.append(...values_, place);
  return h('div.chart', {}, heading, picture);
}

function curves(data, redraw) {
  const toggle = (title, on, flip) => h('button', {type: 'button', 'aria-pressed': String(on), onclick: () => { flip(); redraw(); }}, title);
  const smooth = h('input', {type: 'range', min: 0, max: 0.98, step: 0.02, value: options.smooth, 'aria-label': 'smoothing',
    onchange: event => { options.smooth = +event.target.value; redraw(); }});
  const odd = Object.entries(data.odd || {});
  return h('div', {},
    h('div.bar', {},
      h('div.segment', {}, toggle('by step', options.by === 'step', () => { options.by = 'step'; }), toggle('by time', options.by === 'time', () => { options.by = 'time'; })),
      h('div.segment', {}, toggle('linear', !options.log, () => { options.log = false; }), toggle('log', options.log, () => { options.log = true; })),
      h('label.dim', {}, 'smooth ', smooth),
      odd.length ? h('span.bad', {}, odd.map(([name, n]) => `${name}: ${plural(n, 'value')} not finite`).join(', ')) : null),
    h('div.charts', {}, together(Object.keys(data.curves)).map(([title, names]) => chart(title, names, data))));
}

function samples(run, stage, pictures, at, onstep) {
  if (!pictures.length) return null;
  const address = (one, name) => one.addresses ? one.addresses[name] : `files/${path(run, 'pictures', stage, name)}`;
  let number_ = at === null ? pictures.length - 1 : Math.max(0, pictures.findIndex(p => p.step === at));
  const words = h('span'), shown = h('div');
  const slider = h('input', {type: 'range', min: 0, max: pictures.length - 1, value: number_, 'aria-label': 'step', oninput: event => show(+event.target.value)});
  function show(i) {
    number_ = i;
    const one = pictures[i];
    words.textContent = `step ${count(one.step)}, ${i + 1} of ${pictures.length}`;
    const stills = one.files.filter(f => /\.(webp|png)$/.test(f)), videos = one.files.filter(f => f.endsWith('.mp4'));
    shown.replaceChildren(
      ...stills.map(f => h('img.strip', {src: address(one, f), alt: `samples of step ${one.step}`, loading: 'lazy'})),
      h('div.videos', {}, videos.map(f => h('figure', {style: {margin: 0}}, h('video', {src: address(one, f), controls: true, loop: true, muted: true, playsinline: true, preload: 'metadata'}),
        h('figcaption.dim', {}, f.replace(/^\d+_/, '').replace(/\.mp4$/, '').replaceAll('_', ', '))))));
    onstep(one.step);
  }
  show(number_);
  const play = h('button', {type: 'button', onclick: () => shown.querySelectorAll('video').forEach(v => v.paused ? v.play() : v.pause())}, 'play all');
  return h('section', {}, h('h2', {}, 'Samples'), h('div.steps', {}, words, slider, play), shown);
}
