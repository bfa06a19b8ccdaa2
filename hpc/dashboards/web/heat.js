// An array as an array: a cell for each shard, on one canvas, so that ten thousand are drawn in some milliseconds.
'use strict';

const MODES = {state: 'state', attempt: 'attempt', reason: 'pending for', seconds: 'time'};
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function mixed(a, b, share) { // "#rrggbb" and "#rrggbb"
  const part = (text, i) => parseInt(text.slice(1 + 2 * i, 3 + 2 * i), 16);
  return `rgb(${[0, 1, 2].map(i => Math.round(part(a, i) + (part(b, i) - part(a, i)) * share)).join(',')})`;
}

function heat(cells, {onpick, mode = 'state', onmode}) {
  const canvas = h('canvas.heat', {tabindex: 0, role: 'img'});
  const legend = h('div.legend');
  const tip = h('div.tip', {hidden: true});
  const modes = h('div.segment', {role: 'group', 'aria-label': 'colour by'});
  const total = cells.state.length;
  let columns = 1, size = 10, at = -1, only = null, colours = {};

  const id = i => cells.ids ? cells.ids[i] : String(Number(cells.first) + i).padStart(cells.first.length, '0');
  let known = [], low = 0, high = 0;
  function measure() {
    known = cells.seconds.filter(s => s > 0).sort((a, b) => a - b);
    low = known[Math.floor(known.length * 0.02)] || 0;
    high = known[Math.floor(known.length * 0.98)] || 0;
  }

  function key(i) { // what a cell is, in this mode
    if (mode === 'state') return cells.state[i];
    if (mode === 'attempt') return cells.attempt[i];
    if (mode === 'reason') return cells.reason[i];
    const s = cells.seconds[i];
    return s > 0 ? String(Math.max(0, Math.min(7, Math.floor(8 * Math.log(s / low) / Math.log(high / low || 2) + 1e-9) || 0))) : '.';
  }

  function palette() {
    const blank = css('--waiting');
    colours = {'.': blank};
    if (mode === 'state') for (const [code, word] of Object.entries(CODES)) colours[code] = css(`--${word}`);
    else if (mode === 'attempt') '0123456789abcdefghijklmnopqrstuvwxyz'.split('').forEach((k, i) => { colours[k] = i === 0 ? css('--queued') : css(`--c${(i - 1) % 6}`); });
    else if (mode === 'reason') cells.reasons.forEach((_, i) => { colours[i.toString(36)] = css(`--c${(i + 1) % 6}`); });
    else for (let i = 0; i < 8; i++) colours[i] = mixed(css('--ramp0'), css('--ramp1'), i / 7);
  }

  function draw() {
    const width = canvas.clientWidth;
    if (!width) return;
    const wanted = total <= 60 ? 26 : total <= 300 ? 18 : total <= 800 ? 14 : total <= 3000 ? 11 : total <= 6000 ? 8 : 7;
    size = Math.max(5, Math.min(wanted, width / 12));
    columns = Math.max(1, Math.floor(width / size));
    if (columns > 50 && total > columns) columns -= columns % 10; // rows begin with round numbers
    size = Math.min(width / columns, wanted * 1.25);
    const rows = Math.ceil(total / columns), scale = window.devicePixelRatio || 1, gap = size > 9 ? 1.5 : size > 6 ? 1 : 0.5;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(rows * size * scale);
    canvas.style.height = `${rows * size}px`;
    const g = canvas.getContext('2d');
    g.scale(scale, scale);
    palette();
    const groups = new Map();
    for (let i = 0; i < total; i++) {
      const k = key(i);
      if (!groups.has(k)) groups.set(k, []);
      groups.get(k).push(i);
    }
    for (const [k, members] of groups) {
      g.globalAlpha = only !== null && only !== k ? 0.15 : 1;
      g.fillStyle = colours[k] || colours['.'];
      for (const i of members) g.fillRect((i % columns) * size, Math.floor(i / columns) * size, size - gap, size - gap);
      if (mode === 'state' && size >= 7 && 'frl'.includes(k)) { // told apart by more than colour
        g.fillStyle = g.strokeStyle = css('--paper');
        g.lineWidth = 1.2;
        for (const i of members) {
          const x = (i % columns) * size + (size - gap) / 2, y = Math.floor(i / columns) * size + (size - gap) / 2, r = size * 0.2;
          g.beginPath();
          if (k === 'f') { g.moveTo(x - r, y - r); g.lineTo(x + r, y + r); g.moveTo(x + r, y - r); g.lineTo(x - r, y + r); g.stroke(); }
          else if (k === 'r') { g.arc(x, y, r, 0, 7); g.fill(); }
          else { g.moveTo(x - r, y); g.lineTo(x + r, y); g.stroke(); }
        }
      }
    }
    g.globalAlpha = 1;
    if (at >= 0) {
      g.strokeStyle = css('--ink');
      g.lineWidth = 2;
      g.strokeRect((at % columns) * size, Math.floor(at / columns) * size, size - gap, size - gap);
    }
    describe(groups);
  }

  function words(k) {
    if (mode === 'state') return CODES[k];
    if (mode === 'attempt') return k === '.' ? 'not begun' : k === '0' ? 'of another run' : `attempt ${k}`;
    return k === '.' ? 'not pending' : cells.reasons[parseInt(k, 36)];
  }

  function describe(groups) {
    const entries = [...groups].sort((a, b) => mode === 'state' ? ORDER.indexOf(a[0]) - ORDER.indexOf(b[0]) : a[0] < b[0] ? -1 : 1);
    canvas.setAttribute('aria-label', `${total} shards: ${entries.map(([k, m]) => `${m.length} ${mode === 'seconds' ? k : words(k)}`).join(', ')}`);
    if (mode === 'seconds') {
      const ramp = h('span.ramp', {style: {background: `linear-gradient(90deg, ${colours[0]}, ${colours[7]})`}});
      const median = known[Math.floor(known.length / 2)];
      legend.replaceChildren(known.length ? h('span', {}, duration(low), ramp, duration(high), h('span.dim', {}, `  median ${duration(median)}, slowest ${duration(known[known.length - 1])}`)) : h('span.dim', {}, 'none has ended yet'));
      return;
    }
    legend.replaceChildren(...entries.map(([k, members]) => h('button', {type: 'button', 'aria-pressed': String(only === k), title: 'show these alone',
      onclick: () => { only = only === k ? null : k; draw(); }},
      h('span.swatch', {style: {background: colours[k] || colours['.']}}), `${words(k)} `, h('b', {}, count(members.length)))));
  }

  function say(i) {
    const parts = [id(i), CODES[cells.state[i]]];
    if (cells.reason[i] !== '.') parts.push(`for ${cells.reasons[parseInt(cells.reason[i], 36)]}`);
    if (!'.01'.includes(cells.attempt[i])) parts.push(`attempt ${cells.attempt[i]}`);
    if (cells.again[i] !== '0') parts.push(`${cells.again[i]} workers vanished on it`);
    if (cells.seconds[i]) parts.push(duration(cells.seconds[i]));
    return parts.join(' · ');
  }

  function where(event) {
    const box = canvas.getBoundingClientRect(), x = Math.floor((event.clientX - box.left) / size), y = Math.floor((event.clientY - box.top) / size);
    const i = y * columns + x;
    return x >= 0 && x < columns && i >= 0 && i < total ? i : -1;
  }

  function point(i, x, y) {
    tip.hidden = i < 0;
    if (i < 0) return;
    tip.textContent = say(i);
    tip.style.left = `${Math.min(x + 14, window.innerWidth - 260)}px`;
    tip.style.top = `${y + 18}px`;
  }

  const pick = i => onpick(id(i), {state: CODES[cells.state[i]], pending: cells.reason[i] === '.' ? '' : cells.reasons[parseInt(cells.reason[i], 36)]});
  canvas.addEventListener('mousemove', event => point(where(event), event.clientX, event.clientY));
  canvas.addEventListener('mouseleave', () => point(-1));
  canvas.addEventListener('click', event => { const i = where(event); if (i >= 0) { at = i; draw(); pick(i); } });
  canvas.addEventListener('blur', () => point(-1));
  canvas.addEventListener('keydown', event => {
    const step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns}[event.key];
    if (event.key === 'Enter' && at >= 0) pick(at);
    else if (step) {
      at = Math.max(0, Math.min(total - 1, at < 0 ? 0 : at + step));
      draw();
      const box = canvas.getBoundingClientRect();
      point(at, box.left + (at % columns) * size, box.top + Math.floor(at / columns) * size);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
  for (const [name, title] of Object.entries(MODES)) {
    modes.append(h('button', {type: 'button', 'aria-pressed': String(name === mode), onclick: event => {
      mode = name;
      only = null;
      modes.querySelectorAll('button').forEach(b => b.setAttribute('aria-pressed', String(b === event.target)));
      onmode?.(mode);
      draw();
    }}, title));
  }
  measure();
  new ResizeObserver(draw).observe(canvas);
  canvas.addEventListener('theme', draw);
  return {element: h('div', {}, h('div.bar', {}, h('span.dim', {}, 'colour by'), modes), canvas, legend, tip), draw,
    update(fresh) { const same = fresh.state.length === total; if (same) { Object.assign(cells, fresh); measure(); draw(); } return same; }};
}
