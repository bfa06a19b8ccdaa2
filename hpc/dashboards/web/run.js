// One run: its stages as arrays, what failed, its clips, its trainings, its files.
'use strict';

const chosen = {}; // of each run: which stage, coloured by what

const REASONS = {Resources: 'nothing free yet', Priority: 'others come first', JobArrayTaskLimit: 'the throttle of its array', Dependency: 'for what comes before it',
  DependencyNeverSatisfied: 'what it waits for has failed', BeginTime: 'requeued, starts in a moment', ReqNodeNotAvail: 'its nodes are down or reserved', PartitionDown: 'the partition is down',
  PartitionTimeLimit: 'asks for more time than the partition gives', PartitionConfig: 'asks for more than the partition has', JobHeldUser: 'held: scontrol release', JobHeldAdmin: 'held by an administrator',
  QOSMaxJobsPerUserLimit: 'a limit of its QOS', QOSGrpGRES: 'a limit of its QOS', AssocGrpGRES: 'a limit of its account', AssocGrpCpuLimit: 'a limit of its account', AssocMaxJobsLimit: 'a limit of its account',
  Licenses: 'for a licence', Reservation: 'for its reservation', None: 'not looked at yet'};

function bars(map, {words = {}, of = 0, kind = '', say = count} = {}) {
  const top = Math.max(...Object.values(map)) || 1;
  return h('ul.rows', {}, Object.entries(map).sort((a, b) => b[1] - a[1]).map(([name, n]) => h('li', {}, h('span', {}, name, words[name.split(/[,\s(]/)[0]] ? h('span.dim', {}, ` ${words[name.split(/[,\s(]/)[0]]}`) : null), h('span.n', {}, say(n), of ? h('span.dim', {}, ` ${percent(n / of)}`) : null),
    h('span.track', {}, h(kind ? `i.${kind}` : 'i', {style: {width: `${100 * n / top}%`}})))));
}

function flowChart(flow) {
  const top = Math.max(...flow.bins, 1), n = flow.bins.length;
  const picture = svg('svg', {class: 'flow', viewBox: `0 0 ${n} 46`, preserveAspectRatio: 'none', role: 'img', 'aria-label': `${n} bars of finished shards over time`});
  flow.bins.forEach((value, i) => { if (value) picture.append(svg('rect', {x: i + 0.08, width: 0.84, y: 46 - Math.max(1.5, 46 * value / top), height: Math.max(1.5, 46 * value / top)})); });
  return h('div', {}, picture, h('div.dim', {style: {display: 'flex', justifyContent: 'space-between', fontSize: '11.5px'}}, h('span', {}, clock(flow.start)), h('span', {}, `${count(flow.rate)} shards/h`), h('span', {}, clock(flow.end))));
}

function runView(main, run, tab, parameters) {
  const head = h('div'), tabs = h('nav.tabs'), content = h('div');
  main.replaceChildren(head, tabs, content);
  let data = null, drawn = '', part = null;
  const pick = chosen[run] ||= {stage: '', mode: 'state'};
  const isLive = d => ['running', 'waiting'].includes(d.state);

  function drawHead() {
    const facts = [[`attempt ${data.attempt}`], data.started ? [`${isLive(data) ? 'for' : 'took'} `, h('b', {}, duration(isLive(data) ? now() - data.started : data.wall) || '0s')] : null,
      data.rate ? [h('b', {}, count(data.rate)), ' shards/h'] : null, data.eta && isLive(data) ? ['ends in ', h('b', {}, duration(data.eta))] : null,
      data.gpus ? [h('b', {}, count(data.gpus)), ` GPUs held${data.gpu_busy === null ? '' : `, busy ${percent(data.gpu_busy)}`}`] : null,
      [`by ${data.user || '?'} on ${data.cluster || data.host}`], data.spec ? ['spec ', h('code', {}, data.spec)] : null,
      data.git?.sha ? ['code ', h('code', {}, data.git.sha.slice(0, 12)), data.git.changed ? ' + changes' : ''] : null].filter(Boolean);
    const calm = data.state !== 'failed' && data.state !== 'incomplete';
    head.replaceChildren(h('div.head', {}, h('h1', {}, run), state(data.state), h('span.facts', {}, facts.flatMap((f, i) => i ? [' · ', ...f] : f))),
      data.advice.length && tab === 'overview' ? advice(calm) : '');
    const bad = data.failed + data.quarantined;
    const names = [['overview', 'Stages'], ['failures', `Failures${bad ? ` ${count(bad)}` : ''}`], ['clips', 'Clips'],
      ...data.stages.some(s => s.training) ? [['training', 'Training']] : [], ['files', 'Files & cost']];
    tabs.replaceChildren(...names.map(([key, title]) => h('a', {href: place(run, key), 'aria-current': key === tab ? 'page' : null}, title)));
  }

  const marked = text => text.split('`').map((w, i) => i % 2 ? h('code', {}, w) : w);

  function advice(calm) { // what failed is told again below: next to it, what to do
    const lines = data.advice.map(a => h('p', {}, marked(a)));
    const few = lines.length <= 3, folded = few ? null : h('details', {open: pick.open}, h('summary', {}, plural(lines.length, 'thing'), ' to know; ', marked(data.advice.find(a => a.startsWith('next:')) || data.advice[0])), lines);
    folded?.addEventListener('toggle', () => { pick.open = folded.open; });
    return h(`div.advice${calm ? '.calm' : ''}`, {}, folded || lines);
  }

  // Stages

  function stagesTable() {
    return h('div.scroll', {}, h('table.stages', {}, h('thead', {}, h('tr', {}, h('th', {}, 'stage'), h('th', {style: {width: '22%'}}, 'progress'), h('th.n', {}, 'shards'), h('th.n', {}, 'failed'), h('th.n.wide', {}, 'shards/h'), h('th.n.wide', {}, 'a shard'), h('th.n', {}, 'ends in'), h('th.wide', {}, 'tasks'), h('th.wide', {}, 'made'), h('th.n.wide', {}, 'GPU-h'), h('th.n.wide', {}, 'CPU-h'))),
      h('tbody', {}, data.stages.map(s => h(`tr${s.stage === pick.stage ? '.on' : ''}`, {'data-row': s.stage, onclick: () => { pick.stage = s.stage; drawn = ''; draw(); }},
        h('td', {}, h('b', {}, s.stage), h('br'), h('span.dim', {}, s.kind)),
        h('td', {}, meter(s), h('span.dim', {}, s.planned ? percent(s.fraction) : 'planned by a barrier')),
        h('td.n', {}, s.planned ? `${count(s.done)} / ${count(s.shards)}` : `${count(s.done)} / ?`),
        h('td.n', {}, s.failed ? h('span.bad', {}, count(s.failed)) : '', s.quarantined ? h('div.dim', {}, `${plural(s.quarantined, 'input')} out`) : ''),
        h('td.n.wide', {}, s.flow.rate ? count(s.flow.rate) : ''),
        h('td.n.wide', {}, s.time?.shards ? h('span', {title: `median; slowest ${duration(s.time.slowest_shard)}`}, duration(s.time.median_shard) || '0s') : ''),
        h('td.n', {}, s.eta && isLive(data) ? duration(s.eta) : ''),
        h('td.wide', {}, Object.entries(s.tasks).map(([word, n]) => h('div', {}, `${word.toLowerCase()} ${count(n)}`))),
        h('td.wide.dim', {}, s.training ? s.training.words : s.made.join(', ')),
        h('td.n.wide', {}, s.gpu_hours ? s.gpu_hours.toFixed(2) : ''), h('td.n.wide', {}, s.cpu_hours ? s.cpu_hours.toFixed(2) : ''))))));
  }

  function measured(told) { // what an evaluation found
    const value = (v, unit) => v === null || v === undefined ? '' : `${number(v)}${unit ? ` ${unit}` : ''}`;
    return h('section', {}, h('h2', {}, 'Figures ', h('span.dim', {}, told.of)), h('div.scroll', {}, h('table', {}, h('thead', {}, h('tr', {}, h('th', {}, 'figure'), h('th.n', {}, 'value'), h('th.n', {}, 'interval'), h('th.n', {}, 'of'), h('th', {}, ''))),
      h('tbody', {}, told.rows.map(r => h('tr', {}, h('td', {}, r.name), h('td.n', {}, value(r.value, r.unit) || 'none'), h('td.n', {}, r.low === null || r.low === undefined ? '' : `${number(r.low)} to ${number(r.high)}`), h('td.n', {}, count(r.n)),
        h('td.dim', {}, [r.better && `${r.better} is better`, r.band, r.note].filter(Boolean).join('; '))))))));
  }

  function overview() {
    if (!data.stages.some(s => s.stage === pick.stage)) pick.stage = parameters.get('stage') || (data.stages.find(s => s.running) || data.stages.find(s => s.failed) || data.stages[0])?.stage;
    const s = data.stages.find(one => one.stage === pick.stage) || data.stages[0];
    if (!s) return;
    const side = h('div', {},
      s.flow.bins.length > 7 ? [h('h3', {}, 'finished over time'), flowChart(s.flow)] : null,
      Object.keys(s.reasons).length ? [h('h2', {}, 'Tasks pending for'), bars(s.reasons, {words: REASONS})] : null,
      Object.keys(s.failures).length ? [h('h2', {}, h('a', {href: place(run, 'failures')}, 'Failed shards by class')), bars(s.failures, {of: s.shards, kind: 'failed'})] : null,
      Object.keys(s.dropped).length ? [h('h2', {}, 'Clips dropped for'), bars(s.dropped, {of: s.clips + Object.values(s.dropped).reduce((a, b) => a + b, 0)})] : null,
      s.time && s.time.shards ? [h('h2', {}, 'Where the time of its workers went'), bars(Object.fromEntries(Object.entries({start: s.time.start, ...(Object.keys(s.time.spent).length ? s.time.spent : {work: s.time.work}), publish: s.time.publish, rest: s.time.rest}).filter(([, v]) => v >= 0.01)), {say: duration})] : null,
      Object.keys(data.nodes).length > 1 ? [h('h2', {}, `Nodes ${count(Object.keys(data.nodes).length)}`), bars(Object.fromEntries(Object.entries(data.nodes).sort((a, b) => b[1] - a[1]).slice(0, 6)), {say: n => plural(n, 'shard')})] : null);
    const array = s.shards ? heat({...s.cells}, {mode: pick.mode, onmode: mode => { pick.mode = mode; }, onpick: (shard, more) => openShard(run, s.stage, shard, more)}) : null;
    const title = h('h2', {}, s.stage, ' ', h('span.dim', {}, s.planned ? plural(s.shards, 'shard') : 'a barrier has still to plan its shards'));
    const tableBox = h('div', {}, stagesTable());
    content.replaceChildren(tableBox, title, h('div.two', {}, h('div', {}, array ? array.element : '', s.figures ? measured(s.figures) : ''), side));
    part = {stage: s.stage, array, tableBox, side};
  }

  // Failures

  function failures() {
    const search = h('input', {type: 'search', placeholder: 'filter failures   /', 'aria-label': 'filter failures', oninput: later(event => show(event.target.value.toLowerCase()))});
    const listed = h('div');
    function show(text) {
      const groups = data.failed_shards.map(group => {
        const rows = group.shards.filter(f => !text || `${f.shard} ${f.detail} ${f.node} ${f.job} ${group.class} ${group.stage}`.toLowerCase().includes(text));
        if (!rows.length) return null;
        return h('section.class', {}, h('header', {}, h('h3', {}, h('span.swatch.failed'), group.class), h('span', {}, h('b', {}, count(group.count)), ` of ${group.stage}`), h('span.dim', {}, marked(group.remedy)), h('span.dim', {}, `nodes: ${group.nodes.map(([name, n]) => `${name} ${n}`).join(', ')}${group.nodes.length === 8 ? ', …' : ''}`)),
          h('table.fail', {}, h('tbody', {}, rows.map(f => h('tr', {'data-row': `${group.stage}/${f.shard}`, title: 'its log', onclick: () => openShard(run, group.stage, f.shard, {state: 'failed', class: group.class, what: f.detail})},
            h('td.mono', {}, f.shard), h('td.what', {}, h('code', {}, f.detail)), h('td.nowrap.narrowless', {}, f.node), h('td.nowrap.mono.dim.narrowless', {}, f.job))))),
          group.count > group.shards.length ? h('p.dim', {}, `${count(group.count - group.shards.length)} more: hpc logs ${run} --failed, or the array's cells`) : null);
      });
      const out = data.quarantine.map(q => {
        const rows = q.inputs.filter(i => !text || `${i.uri} ${i.detail} ${q.reason}`.toLowerCase().includes(text));
        return rows.length ? h('section.class', {}, h('header', {}, h('h3', {}, q.reason), h('span', {}, h('b', {}, count(q.count)), ` ${q.count === 1 ? 'input' : 'inputs'} quarantined`)),
          h('table.fail', {}, h('tbody', {}, rows.map(i => h('tr', {'data-row': i.uri, onclick: () => openShard(run, i.stage, i.shard)}, h('td.mono', {}, i.shard), h('td.what', {}, h('div', {}, h('code', {}, i.uri)), h('span.dim', {}, i.detail))))))) : null;
      }).filter(Boolean);
      const shown = groups.filter(Boolean);
      listed.replaceChildren(...shown, ...out.length ? [h('h2', {}, 'Inputs that can never work'), ...out] : [], ...shown.length || out.length ? [] : [h('p.dim', {}, text ? 'no failure is like that' : 'nothing failed')]);
    }
    show('');
    content.replaceChildren(h('div.bar', {}, search), listed);
    part = {search};
  }

  // Training

  async function training() {
    const stages = data.stages.filter(s => s.training);
    const stage = stages.find(s => s.stage === (parameters.get('stage') || pick.training)) || stages[0];
    if (!stage) { content.replaceChildren(h('p.dim', {}, 'no training has written metrics yet')); return; }
    pick.training = stage.stage;
    const t = stage.training, choice = stages.length > 1 ? h('div.segment', {}, stages.map(s => h('button', {type: 'button', 'aria-pressed': String(s === stage), onclick: () => { pick.training = s.stage; parameters.delete('stage'); training(); }}, s.stage))) : null;
    const told = h('p', {}, h('b', {}, stage.stage), ` ${t.words}`, t.steps && t.step_seconds && t.steps > t.step ? `, ${duration((t.steps - t.step) * t.step_seconds)} to go` : '', h('span.dim', {}, t.time ? `; last step ${ago(t.time)}` : ''));
    const box = h('div', {}, h('p.dim', {}, 'reading…')), shown = h('div');
    content.replaceChildren(choice || '', told, box, shown);
    const mine = part = {training: stage.stage, told};
    let found = null, at = null, files = '';
    const redraw = () => box.replaceChildren(curves(found, redraw));
    part.refresh = async () => {
      try {
        const next = await ask('metrics', run, {stage: stage.stage});
        if (part !== mine) return;
        const changed = !found || next.step !== found.step || next.time !== found.time;
        found = next;
        if (changed && !box.matches(':hover')) redraw();
        if (JSON.stringify(next.pictures.map(p => p.files)) !== files) {
          const last = at === null || !shown.querySelector('video:not([paused])');
          files = JSON.stringify(next.pictures.map(p => p.files));
          if (last) shown.replaceChildren(samples(run, stage.stage, next.pictures, at, step => { at = step; }) || '');
        }
      } catch (error) { if (part === mine && !found) box.replaceChildren(h('p.dim', {}, error.message)); }
    };
    await part.refresh();
  }

  // Files, and what it cost

  function files() {
    const a = data.account, share = v => v === null ? '' : percent(v);
    const columns = ['stage', 'CPU-hours', 'GPU-hours', 'GPUs busy', 'kWh', `cost ${a.currency}`, 'time asked', 'longest task', 'ask next', 'memory asked', 'held', 'ask next'];
    const fixed = v => v === null ? '' : v.toFixed(2);
    content.replaceChildren(
      h('h2', {}, 'Reports and pages'), data.links.length ? h('div.links', {}, data.links.map(l => h('a', {href: l.address || `files/${path(run, ...l.path.split('/'))}`, target: '_blank', rel: 'noreferrer', 'data-row': l.path}, l.title))) : h('p.dim', {}, `none yet: hpc report ${run}`),
      h('h2', {}, 'Asked for and used'), h('p.dim', {}, a.words),
      h('div.scroll', {}, h('table', {}, h('thead', {}, h('tr', {}, columns.map((c, i) => h(i ? 'th.n' : 'th', {}, c)))), h('tbody', {}, a.stages.filter(u => u.tasks).map(u => h('tr', {}, h('td', {}, u.stage),
        [u.cpu_hours.toFixed(2), u.gpu_hours.toFixed(2), share(u.gpu_utilization), fixed(u.energy_kwh), fixed(u.cost), duration(u.requested_time), duration(u.used_time), duration(u.next_time), bytes(u.requested_memory), bytes(u.used_memory), bytes(u.next_memory)].map(v => h('td.n', {}, v))))))),
      h('h2', {}, 'Where things are'), h('dl', {}, [['run', data.folder], ['output', data.output], ...data.stages.filter(s => s.folder).map(s => [s.stage, s.folder]), ['planned', data.time], ['command', data.command]].filter(r => r[1]).flatMap(([k, v]) => [h('dt', {}, k), h('dd', {}, h('code', {}, v))])));
    part = {};
  }

  function draw() {
    if (!data) return;
    drawHead();
    const key = JSON.stringify(tab === 'overview' ? data.stages : tab === 'failures' ? [data.failed_shards, data.quarantine] : tab === 'files' ? [data.account, data.links] : tab);
    if (tab === 'training' && part) { part.refresh?.(); return; }
    if (key === drawn) return;
    const again = drawn !== '';
    drawn = key;
    if (tab === 'overview' && again && part?.array && part.stage === pick.stage) { // the array stays, with its cursor
      const s = data.stages.find(one => one.stage === pick.stage), old = part;
      if (s && old.array.update(s.cells)) { const held = old.array; overviewAround(held); return; }
    }
    ({overview, failures, training, files, clips() { if (!part) { part = gallery(run); content.replaceChildren(part.element); } }}[tab] || overview)();
  }

  function overviewAround(held) { // all but the array anew
    const canvas = held.element;
    overview();
    const fresh = part.array.element;
    fresh.replaceWith(canvas);
    part.array = held;
    held.draw();
  }

  return {title: run, crumbs: [run], ask: () => ask('run', run), take(fresh) { data = fresh; draw(); },
    leave() { part?.leave?.(); part = null; }, tabs: () => [...tabs.querySelectorAll('a')]};
}
