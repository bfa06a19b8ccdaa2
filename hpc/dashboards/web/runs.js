// The list of runs.
'use strict';

const list = {text: '', state: ''};

function meter(stage) {
  const waiting_ = Math.max(0, stage.shards - stage.done - stage.failed - stage.running);
  const parts = [['done', stage.done], ['running', stage.running], ['failed', stage.failed]];
  const words = stage.planned ? `${stage.stage}: ${parts.filter(p => p[1]).map(p => `${count(p[1])} ${p[0]}`).concat(waiting_ ? [`${count(waiting_)} to do`] : []).join(', ') || 'nothing'} of ${count(stage.shards)}` : `${stage.stage}: not planned yet`;
  return h(`span.meter${stage.planned ? '' : '.unplanned'}`, {title: words, role: 'img', 'aria-label': words}, parts.filter(p => p[1]).map(([kind, n]) => h(`i.${kind}`, {style: {width: `max(2px, ${100 * n / stage.shards}%)`}})));
}

const reasons = map => Object.entries(map).map(([why, n]) => `${why} ${count(n)}`).join(', ');

function runsView(main) {
  const chips = h('div.chips'), facts = h('span.facts'), body = h('tbody'), problems = h('div');
  const search = h('input', {type: 'search', placeholder: 'filter runs   /', 'aria-label': 'filter runs', value: list.text, oninput: event => { list.text = event.target.value; draw(); }});
  const head = ['state', 'run', 'stages', 'shards', 'failed', 'shards/h', 'ends in', 'GPUs', 'last word', 'user', 'cluster'];
  const left = ['state', 'run', 'stages', 'user', 'cluster'];
  let data = null;
  main.replaceChildren(
    h('div.bar', {}, search, chips, facts),
    h('table.runs', {}, h('thead', {}, h('tr', {}, head.map(t => h(left.includes(t) ? 'th' : 'th.n', {}, t)))), body), problems);

  function row(r) {
    const failures = Object.entries(r.failures).map(([why, n]) => `${n} ${why}`).join(', ');
    return h('tr', {'data-row': r.run, onclick: event => { if (!event.target.closest('a')) location.hash = place(r.run); }},
      h('td.st', {}, state(r.state)),
      h('td.name', {title: r.training || null}, h('a', {href: place(r.run)}, r.run), r.attempts > 1 ? h('span.dim', {}, ` attempt ${r.attempt}`) : null,
        r.training && ['running', 'waiting'].includes(r.state) ? h('div.training', {}, r.training) : null),
      h('td.me', {}, h('div.meters', {}, r.stages.map(meter))),
      h('td.n', {}, `${count(r.done)} / ${count(r.shards)}`),
      h('td.n', {'data-label': 'failed', title: failures || null}, r.failed ? h('span.bad', {}, count(r.failed)) : null),
      h('td.n.wide', {}, r.rate ? count(r.rate) : null),
      h('td.n', {'data-label': 'ends in'}, r.eta && r.state === 'running' ? duration(r.eta) : null),
      h('td.n.wide', {title: r.gpu_busy === null ? null : `busy ${percent(r.gpu_busy)}`}, r.gpus ? count(r.gpus) : null),
      h('td.n.last', {title: clock(r.last || r.created)}, ago(r.last || r.created)),
      h('td.wide', {}, r.user), h('td.wide', {}, r.cluster));
  }

  function draw() {
    if (!data) return;
    const t = data.totals, words = list.text.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = data.runs.filter(r => (!list.state || r.state === list.state) && words.every(w => `${r.run} ${r.user} ${r.cluster} ${r.state} ${r.stages.map(s => `${s.stage} ${s.kind}`).join(' ')}`.toLowerCase().includes(w)));
    const order = ['running', 'waiting', 'failed', 'incomplete', 'done'].filter(s => t.states[s]);
    chips.replaceChildren(...[['', 'all', data.runs.length], ...order.map(s => [s, s, t.states[s]])].map(([key, title, n]) =>
      h('button.chip', {type: 'button', 'aria-pressed': String(list.state === key), onclick: () => { list.state = key; draw(); }}, `${title} `, h('b', {}, count(n)))));
    const said = [];
    if (t.running) said.push([h('b', {}, count(t.running)), ' shards in flight']);
    if (t.gpus || t.cpus) said.push([h('b', {}, count(t.gpus)), ` GPUs, ${count(t.cpus)} CPUs held`]);
    if (t.pending) said.push([h('b', {}, count(t.pending)), ` tasks pending: ${reasons(t.reasons)}`]);
    facts.replaceChildren(...said.flatMap((s, i) => i ? [' · ', ...s] : s));
    const selected = body.querySelector('.on')?.dataset.row;
    body.replaceChildren(...shown.map(row));
    if (selected) body.querySelector(`[data-row="${CSS.escape(selected)}"]`)?.classList.add('on');
    if (!shown.length) body.append(h('tr', {}, h('td', {colspan: head.length}, h('span.dim', {}, data.runs.length ? 'no run is like that' : data.reading ? 'reading…' : `no runs under ${data.folder} yet`))));
    problems.replaceChildren(...data.problems.length ? [h('h2', {}, 'Could not be read'), ...data.problems.map(p => h('p.dim', {}, h('code', {}, p.run), ` ${p.why}`))] : []);
  }

  return {title: 'runs', crumbs: [], ask: () => ask('runs'), take(fresh) { data = fresh; $('#crumbs').textContent = data.folder; draw(); }, search};
}
