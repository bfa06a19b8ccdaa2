// What every view uses: elements without markup (texts are never parsed), figures in words, and the server's answers.
'use strict';

const STATIC = window.HPC_STATIC || null; // an exported page: {"at": seconds}

function h(tag, attributes, ...children) {
  const [name, ...classes] = tag.split('.');
  const element = document.createElement(name || 'div');
  if (classes.length) element.className = classes.join(' ');
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
    else if (key === 'style') Object.assign(element.style, value);
    else element.setAttribute(key, value === true ? '' : value);
  }
  element.append(...children.flat(3).filter(c => c !== null && c !== undefined && c !== false));
  return element;
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const $ = selector => document.querySelector(selector);

// Figures

const whole = new Intl.NumberFormat('en');
const count = n => whole.format(Math.round(n || 0));
const percent = share => share === null || share === undefined ? '' : `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;

function number(value) {
  const size = Math.abs(value);
  if (!size) return '0';
  if (size < 1e-3) return value.toExponential(Number.isInteger(+(value / 10 ** Math.floor(Math.log10(size))).toFixed(6)) ? 0 : 2);
  const unit = size < 1e5 ? 0 : Math.min(4, Math.floor(Math.log10(size) / 3));
  return `${+(value / 1000 ** unit).toPrecision(4)}${['', 'k', 'M', 'G', 'T'][unit]}`;
}

function duration(seconds) { // 75 -> "1m15s", as short as it is of use
  if (!seconds || seconds < 0) return '';
  if (seconds < 60) return `${seconds < 10 ? +seconds.toPrecision(2) : Math.round(seconds)}s`;
  seconds = Math.round(seconds);
  const [days, hours, minutes] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
  if (days) return `${days}d${String(hours).padStart(2, '0')}h`;
  if (hours) return `${hours}h${String(minutes).padStart(2, '0')}m`;
  return `${minutes}m${String(Math.floor(seconds % 60)).padStart(2, '0')}s`;
}

function bytes(value) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit++; }
  return value ? `${unit ? value.toFixed(1) : value} ${units[unit]}` : '';
}

const now = () => STATIC ? STATIC.at : Date.now() / 1000;
const ago = t => !t ? '' : now() - t < 2 ? 'now' : `${duration(now() - t)} ago`;
const clock = t => t ? new Date(1000 * t).toLocaleString([], {dateStyle: 'medium', timeStyle: 'short', hourCycle: 'h23'}) : '';
const state = word => h(`span.state.${word}`, {}, h('i'), word);
const plural = (n, word) => `${count(n)} ${word}${n === 1 ? '' : 's'}`;

// Answers

const waiting = new Map(); // of an exported page: file -> resolve
window.hpcData = (file, value) => { waiting.get(file)?.(value); waiting.delete(file); };
const loaded = new Map();

function file(name) { // data as scripts: pages opened from a disk may load nothing else
  if (!loaded.has(name)) {
    loaded.set(name, new Promise((resolve, reject) => {
      waiting.set(name, resolve);
      document.head.append(h('script', {src: `data/${name}.js`, onerror: () => reject(new Error(`${name} is not here`))}));
    }));
  }
  return loaded.get(name);
}

async function ask(kind, run, parameters = {}) {
  if (STATIC) {
    const key = [kind, run, parameters.stage, parameters.shard].filter(Boolean).join('/');
    const index = await file('index');
    if (!index[key]) throw new Error('not a part of this exported page');
    return file(index[key]);
  }
  const words = new URLSearchParams(Object.entries(parameters).filter(([, v]) => v !== '' && v !== null && v !== undefined));
  const url = ['api', kind, ...(run ? [encodeURIComponent(run)] : [])].join('/') + (words.size ? `?${words}` : '');
  const answer = await fetch(url, {headers: {Accept: 'application/json'}});
  if (!answer.ok) throw Object.assign(new Error((await answer.text()).trim() || answer.statusText), {status: answer.status});
  return answer.json();
}

const path = (...words) => words.map(encodeURIComponent).join('/');
const place = (run, tab, parameters) => {
  const words = new URLSearchParams(Object.entries(parameters || {}).filter(([, v]) => v));
  return `#/run/${encodeURIComponent(run)}${tab && tab !== 'overview' ? `/${tab}` : ''}${words.size ? `?${words}` : ''}`;
};

function remember(key, value) { // survives where a browser keeps nothing
  try {
    if (value === undefined) return localStorage.getItem(`hpc.${key}`);
    localStorage.setItem(`hpc.${key}`, value);
  } catch { /* a page from a disk, or a private window */ }
  return value;
}

function later(call, pause = 180) {
  let timer;
  return (...given) => { clearTimeout(timer); timer = setTimeout(() => call(...given), pause); };
}

// The drawer: a shard, a log

let before = null;

function openDrawer(title, ...content) {
  const drawer = $('#drawer');
  if (drawer.hidden) before = document.activeElement;
  drawer.replaceChildren(
    h('header', {}, h('h2', {}, title), h('button', {type: 'button', onclick: closeDrawer, title: 'esc'}, 'close')), ...content);
  drawer.hidden = false;
  drawer.scrollTop = 0;
  drawer.focus();
}

function closeDrawer() {
  $('#drawer').hidden = true;
  before?.focus?.();
}

const CODES = {d: 'done', r: 'running', f: 'failed', q: 'queued', s: 'stopped', l: 'lost', w: 'waiting'};
const ORDER = 'rfqslwd';

async function openShard(run, stage, shard, more = {}) {
  const facts = h('dl'), log = h('div', {}, h('p.dim', {}, 'reading the log…'));
  const row = (name, value) => value ? facts.append(h('dt', {}, name), h('dd', {}, value)) : null;
  openDrawer(`${stage} ${shard}`, facts, log);
  for (const [name, value] of Object.entries(more)) row(name, value);
  const title = $('#drawer h2').textContent;
  const still = () => !$('#drawer').hidden && $('#drawer h2').textContent === title;
  if (!STATIC) {
    try {
      const s = await ask('shard', run, {stage, shard});
      if (!still()) return;
      facts.replaceChildren();
      row('state', more.state || s.said);
      row('class', s.failure);
      row('what', s.detail && h('code', {}, s.detail));
      row('attempt', s.attempt && `${s.attempt}${s.restart ? `, start ${s.restart + 1}` : ''}${s.run && s.run !== run ? `, of run ${s.run}` : ''}`);
      row('vanished', s.vanished ? `${s.vanished} workers vanished while they were on it` : '');
      row('pending', more.pending);
      row('node', s.node);
      row('task', s.job);
      row('last word', s.t && `${clock(s.t)}, ${ago(s.t)}`);
      row('took', s.seconds && duration(s.seconds) + (Object.keys(s.times || {}).length ? ` (${Object.entries(s.times).map(([k, v]) => `${k} ${duration(v) || '0s'}`).join(', ')})` : ''));
      row('part done', s.said === 'progress' && percent(s.fraction));
      row('memory', s.memory && bytes(s.memory));
      row('GPU', s.gpu && s.gpu.seconds && `busy ${percent((s.gpu.busy || 0) / s.gpu.seconds)}`);
      row('counts', Object.entries(s.counts || {}).filter(([k]) => !k.startsWith('time_')).map(([k, v]) => `${k.replaceAll('_', ' ')} ${number(v)}`).join(', '));
      row('written', s.bytes && bytes(s.bytes));
    } catch (error) { row('error', error.message); }
  }
  try {
    const found = await ask('log', run, {stage, shard});
    if (!still()) return;
    const end = h('pre', {tabindex: 0}, found.lines.map(line => line.includes(shard) ? [h('mark', {}, line), '\n'] : `${line}\n`));
    log.replaceChildren(h('h3', {}, 'end of its log'), h('p.dim', {}, h('code', {}, found.path || `no log of ${found.job} is here`)), found.lines.length ? end : '',
      found.after ? h('p.dim', {}, `${plural(found.after, 'line')} of other shards behind it`) : '');
    end.scrollTop = end.scrollHeight;
  } catch (error) {
    if (still()) log.replaceChildren(h('p.dim', {}, error.message));
  }
}
