// Which view, how often it asks, and the keys.
'use strict';

const PAUSE = 5000;
let view = null, timer = null, shown = false, heard = 0, failing = '';

function route() {
  const [where, query] = location.hash.replace(/^#\/?/, '').split('?');
  const words = where.split('/').filter(Boolean).map(decodeURIComponent), parameters = new URLSearchParams(query || '');
  view?.leave?.();
  if (!$('#drawer').hidden) closeDrawer();
  const main = $('#main');
  main.replaceChildren(h('p.dim', {}, 'reading…'));
  window.scrollTo(0, 0);
  view = words[0] === 'run' && words[1] ? runView(main, words[1], words[2] || 'overview', parameters) : runsView(main);
  document.title = `${view.title} · hpc`;
  $('#crumbs').textContent = view.crumbs.join(' / ');
  shown = false;
  refresh();
}

async function refresh() {
  clearTimeout(timer);
  const mine = view;
  let fresh = null;
  try {
    fresh = await mine.ask();
    if (mine !== view) return;
    heard = Date.now();
    failing = '';
    shown = true;
    mine.take(fresh);
  } catch (error) {
    if (mine !== view) return;
    failing = error.status ? error.message : 'no answer: has `hpc dashboard` ended?';
    if (!shown) $('#main').replaceChildren(h('p', {}, failing), h('p', {}, h('a', {href: '#/'}, 'all runs')));
  }
  said();
  if (!STATIC && !document.hidden) timer = setTimeout(refresh, !shown || (fresh && fresh.reading) ? 1500 : failing ? 2 * PAUSE : PAUSE);
}

function said() {
  const fresh = $('#fresh');
  fresh.classList.toggle('stale', Boolean(failing));
  if (STATIC) fresh.textContent = `as of ${clock(STATIC.at)}`;
  else if (failing) fresh.textContent = failing;
  else fresh.textContent = heard ? `live · ${new Date(heard).toLocaleTimeString([], {hourCycle: 'h23'})}` : '';
}

document.addEventListener('visibilitychange', () => { if (!document.hidden && !STATIC) refresh(); else clearTimeout(timer); });
window.addEventListener('hashchange', route);

// Keys

function rows() {
  return [...$('#main').querySelectorAll('[data-row]')].filter(e => e.offsetParent);
}

function move(by) {
  const all = rows();
  if (!all.length) return;
  const at = all.findIndex(e => e.classList.contains('on'));
  all[at]?.classList.remove('on');
  const next = all[Math.max(0, Math.min(all.length - 1, at < 0 ? (by > 0 ? 0 : all.length - 1) : at + by))];
  next.classList.add('on');
  next.scrollIntoView({block: 'nearest'});
}

const KEYS = [['j k', 'next, previous row or clip'], ['enter', 'open it: a run, a log, play a clip'], ['esc', 'close, go up'], ['/', 'search or filter'], ['1 to 5', 'the parts of a run'], ['arrows', 'in an array: from shard to shard'], ['t', 'light, dark, or as the system has it'], ['?', 'these keys']];

function help() {
  const dialog = $('#keys');
  dialog.replaceChildren(h('h2', {style: {marginTop: 0}}, 'Keys'), h('dl', {}, KEYS.flatMap(([k, v]) => [h('dt', {}, k.split(' ').map(w => w === 'to' ? ' to ' : [h('kbd', {}, w), ' '])), h('dd', {}, v)])));
  dialog.showModal();
}

document.addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey || $('#keys').open) return;
  const typing = event.target.matches('input, select, textarea');
  if (event.key === 'Escape') {
    if (!$('#drawer').hidden) closeDrawer();
    else if (typing) event.target.blur();
    else if (location.hash.replace(/^#\/?/, '')) location.hash = '#/';
    return;
  }
  if (typing) {
    if (event.key === 'Enter' && event.target.type === 'search') { event.target.blur(); move(1); }
    return;
  }
  const inside = event.target.closest('button, a, video');
  if (event.key === 'Enter' && inside) return;
  const call = {
    j: () => move(1), k: () => move(-1), ArrowDown: () => move(1), ArrowUp: () => move(-1),
    Enter() { const on = $('#main .on'); if (on) { if (on.matches('.card')) on.dispatchEvent(new Event('open')); else on.click(); } },
    '/'() { $('#main input[type=search]')?.focus(); }, '?': help, t: theme,
  }[event.key] || (/^[1-5]$/.test(event.key) && view.tabs ? () => view.tabs()[event.key - 1]?.click() : null);
  if (!call || ((event.key === 'ArrowDown' || event.key === 'ArrowUp') && !$('#drawer').hidden)) return;
  event.preventDefault();
  call();
});

function theme() {
  const next = {'': 'dark', dark: 'light', light: ''}[document.documentElement.dataset.theme || ''];
  wear(next);
  remember('theme', next);
}

function wear(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  window.dispatchEvent(new Event('resize'));
  document.querySelectorAll('canvas.heat').forEach(c => c.dispatchEvent(new Event('theme')));
}

$('#theme').addEventListener('click', theme);
$('#help').addEventListener('click', help);
$('#keys').addEventListener('click', event => { if (event.target === $('#keys')) $('#keys').close(); });
wear(remember('theme') || '');
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => wear(document.documentElement.dataset.theme || ''));
route();
