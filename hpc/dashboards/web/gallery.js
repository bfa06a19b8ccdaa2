// Clips: found by the words of their captions, kept between two scores, played in place.
'use strict';

function filtered(all, wanted) { // what the server does, for exported pages
  const words = (wanted.text || '').toLocaleLowerCase().split(/\s+/).filter(Boolean);
  const has = c => { const text = `${c.caption}\n${c.title}\n${c.key}`.toLocaleLowerCase(); return words.every(w => text.includes(w)); };
  const stages = {}, verdicts = {}, of = c => !wanted.stage || c.stage === wanted.stage;
  for (const c of all.page) {
    stages[c.stage] = (stages[c.stage] || 0) + 1;
    if (of(c)) verdicts[c.verdict] = (verdicts[c.verdict] || 0) + 1;
  }
  let found = all.page.filter(c => (!wanted.verdict || c.verdict === wanted.verdict) && of(c) && has(c));
  const scores = {};
  for (const c of found) for (const [name, v] of Object.entries(c.scores)) {
    const r = scores[name] ||= [v, v];
    r[0] = Math.min(r[0], v);
    r[1] = Math.max(r[1], v);
  }
  const bins = [], [low, high] = scores[wanted.column] || [0, 0];
  if (scores[wanted.column]) {
    bins.push(...new Array(40).fill(0));
    for (const c of found) if (wanted.column in c.scores) bins[high > low ? Math.min(39, Math.floor(40 * (c.scores[wanted.column] - low) / (high - low))) : 0]++;
  }
  const number_ = v => v === '' || v === undefined ? null : +v;
  const [from, to] = [number_(wanted.low), number_(wanted.high)];
  if (from !== null || to !== null) found = found.filter(c => c.scores[wanted.column] !== undefined && (from === null || c.scores[wanted.column] >= from) && (to === null || c.scores[wanted.column] <= to));
  if (wanted.sort) {
    const name = wanted.sort.replace(/^-/, ''), sign = wanted.sort.startsWith('-') ? -1 : 1;
    found = found.filter(c => name in c.scores).sort((a, b) => sign * (a.scores[name] - b.scores[name]));
  }
  const offset = +wanted.offset || 0;
  return {...all, stages, verdicts, scores, bins, found: found.length, page: found.slice(offset, offset + (+wanted.limit || 60))};
}

function gallery(run) {
  const wanted = {text: '', column: '', low: '', high: '', verdict: 'keep', stage: '', sort: '', offset: 0, limit: 60};
  const cards = h('div.cards'), said = h('p.dim'), verdicts = h('div.chips'), stages = h('div.chips'), histogram = h('div.range');
  const search = h('input', {type: 'search', placeholder: 'words of captions   /', 'aria-label': 'search captions', oninput: later(event => { wanted.text = event.target.value; fresh(); })});
  const column = h('select', {'aria-label': 'score', onchange: () => { wanted.column = column.value; wanted.low = wanted.high = ''; wanted.sort = wanted.column && `-${wanted.column}`; fresh(); }});
  const order = h('button', {type: 'button', hidden: true, onclick: () => { wanted.sort = wanted.sort.startsWith('-') ? wanted.sort.slice(1) : `-${wanted.sort}`; fresh(); }});
  const more = h('button.more', {type: 'button', hidden: true, onclick: () => { wanted.offset += wanted.limit; look(true); }}, 'more');
  let serial = 0, names = '', alive = true;

  async function look(append) {
    const mine = ++serial;
    let found;
    try {
      found = STATIC ? filtered(await ask('clips', run), wanted) : await ask('clips', run, wanted);
    } catch (error) {
      said.textContent = error.message;
      return;
    }
    if (mine !== serial || !alive) return;
    if (append) cards.append(...found.page.map(card));
    else cards.replaceChildren(...found.page.map(card));
    told(found, mine);
  }

  function told(found, mine) {
    controls(found);
    more.hidden = cards.children.length >= found.found;
    if (found.more) setTimeout(() => again(mine), 1200); // the server reads on while somebody looks
  }

  async function again(mine) {
    const current = () => mine === serial && alive;
    if (!current()) return;
    if (document.hidden) { setTimeout(() => again(mine), 3000); return; }
    try {
      const found = await ask('clips', run, {...wanted, offset: 0, limit: Math.max(wanted.limit, cards.children.length)});
      if (!current()) return;
      if (!cards.querySelector('video[controls]')) cards.replaceChildren(...found.page.map(card)); // what plays goes on
      told(found, mine);
    } catch { /* it is asked again with the next search */ }
  }

  const fresh = () => { wanted.offset = 0; look(false); };

  function controls(found) {
    const all = Object.values(found.verdicts).reduce((a, b) => a + b, 0);
    verdicts.replaceChildren(...[['', 'all', all], ...Object.entries(found.verdicts).sort((a, b) => (b[0] === 'keep') - (a[0] === 'keep') || b[1] - a[1]).map(([k, n]) => [k, k === 'keep' ? 'kept' : k, n])]
      .map(([key, title, n]) => h('button.chip', {type: 'button', 'aria-pressed': String(wanted.verdict === key), onclick: () => { wanted.verdict = key; fresh(); }}, `${title} `, h('b', {}, count(n)))));
    const made = Object.entries(found.stages);
    stages.replaceChildren(...made.length < 2 ? [] : [['', 'all stages', made.reduce((a, b) => a + b[1], 0)], ...made.map(([k, n]) => [k, k, n])]
      .map(([key, title, n]) => h('button.chip', {type: 'button', 'aria-pressed': String(wanted.stage === key), onclick: () => { wanted.stage = key; fresh(); }}, `${title} `, h('b', {}, count(n)))));
    const there = Object.keys(found.scores);
    if (names !== there.join()) {
      names = there.join();
      column.replaceChildren(h('option', {value: ''}, 'any score'), ...there.map(n => h('option', {value: n, selected: n === wanted.column}, n.replaceAll('_', ' '))));
    }
    order.hidden = !wanted.sort;
    order.textContent = wanted.sort.startsWith('-') ? 'highest first' : 'lowest first';
    if (wanted.column && found.scores[wanted.column]) {
      const [low, high] = found.scores[wanted.column], top = Math.max(...found.bins, 1);
      const from = wanted.low === '' ? low : +wanted.low, to = wanted.high === '' ? high : +wanted.high;
      const bars = svg('svg', {class: 'histo', viewBox: '0 0 240 30', preserveAspectRatio: 'none', role: 'img', 'aria-label': `${wanted.column} from ${number(low)} to ${number(high)}`});
      found.bins.forEach((n, i) => {
        const middle = low + (i + 0.5) * (high - low) / 40;
        if (n) bars.append(svg('rect', {class: middle >= from && middle <= to ? 'in' : '', x: 6 * i, width: 5, y: 30 - Math.max(2, 30 * n / top), height: Math.max(2, 30 * n / top)}));
      });
      const bound = (key, value, label) => h('input', {type: 'number', step: 'any', value: wanted[key], placeholder: number(value), 'aria-label': `${label} ${wanted.column}`,
        onchange: event => { wanted[key] = event.target.value; fresh(); }});
      if (!histogram.contains(document.activeElement)) histogram.replaceChildren(bars, h('div', {}, bound('low', low, 'least'), h('span.dim', {}, 'to'), bound('high', high, 'largest')));
    } else histogram.replaceChildren();
    const of = found.of ? `; looked at ${count(found.looked)} of ${plural(found.of, 'shard')}${found.more ? '…' : ''}` : '';
    const all_ = STATIC && found.total > all ? `, of ${count(found.total)} in the run` : '';
    said.textContent = found.of || STATIC ? `${count(found.found)} of ${plural(found.clips, 'clip')}${all_}${of}${found.problems?.length ? `; ${found.problems.join('; ')}` : ''}` : 'no stage of this run has made clips yet';
  }

  function card(clip) {
    const address = kind => clip.addresses ? clip.addresses[kind] : clip.media[kind] && `media/${path(run, clip.stage, clip.shard, `${clip.key}.${kind}`)}`;
    const still = address('webp') || address('preview'), moving = address('preview'), video = address('mp4');
    const picture = still ? h('img', {src: still, alt: clip.caption || clip.title, loading: 'lazy'}) : video ? h('video', {src: `${video}#t=0.1`, preload: 'metadata', muted: true, playsinline: true, tabindex: -1}) : null;
    const frame = h('button.frame', {type: 'button', 'aria-label': `play ${clip.title}`, onclick: play}, picture || h('span.none', {}, clip.verdict === 'keep' ? 'no picture' : `not kept: ${clip.verdict}`), video ? h('span.play', {}, '▶') : null);
    if (still && moving && moving !== still) {
      frame.addEventListener('mouseenter', () => { picture.src = moving; });
      frame.addEventListener('mouseleave', () => { picture.src = still; });
    }
    function play() {
      if (!video) return;
      const player = h('video', {src: video, controls: true, autoplay: true, loop: true, playsinline: true, poster: still});
      player.muted = true;
      frame.replaceWith(h('div.frame', {}, player));
      player.focus();
    }
    const score = wanted.column && clip.scores[wanted.column] !== undefined ? `${wanted.column.replaceAll('_', ' ')} ${number(clip.scores[wanted.column])} · ` : '';
    const caption = clip.caption ? h('p.caption', {title: 'all of it', onclick: event => event.currentTarget.classList.toggle('open')}, clip.caption) : null;
    const about = Object.entries(clip.scores).map(([k, v]) => `${k} ${number(v)}`).join('\n');
    const element = h('article.card', {'data-row': '', title: about || null}, frame, caption, h('p.small', {}, score, clip.title, clip.words ? ` · ${clip.words}` : ''));
    element.addEventListener('open', play);
    return element;
  }

  look(false);
  return {element: h('section', {}, h('div.bar', {}, search, column, histogram, order), h('div.bar', {}, stages, verdicts), said, cards, more), leave() { alive = false; }};
}
