// The history: which series are shown, their graph, and the list of their steps.

import { element, find, say, moment, title, age, day } from './words.js';
import { Graph, STYLES, described, dot } from './graph.js';

const DAYS = 86_400_000;
/** Complete runs of a series in which steps are looked for (`steps::SHORTEST` on each side). */
const FEWEST = 12;

async function fetched(path) {
  const answer = await fetch(path);
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error ?? answer.statusText);
  return told;
}

/** A small picture of a line, for the legend. */
function sample(style) {
  const canvas = element('canvas', { class: 'sample', 'aria-hidden': 'true' });
  const draw = () => {
    const ratio = window.devicePixelRatio || 1;
    [canvas.width, canvas.height] = [28 * ratio, 12 * ratio];
    const context = canvas.getContext('2d');
    context.scale(ratio, ratio);
    const color = getComputedStyle(document.documentElement).getPropertyValue(style.color).trim();
    [context.strokeStyle, context.fillStyle, context.lineWidth] = [color, color, 2];
    context.setLineDash(style.dash);
    context.beginPath();
    context.moveTo(0, 6);
    context.lineTo(28, 6);
    context.stroke();
    context.beginPath();
    dot(context, style.shape, 14, 6, 3.6);
    context.fill();
  };
  draw();
  canvas.redraw = draw;
  return canvas;
}

/** Why there is no step in these lines. */
function noSteps(lines) {
  const most = Math.max(0, ...lines.map((line) => line.id.length - line.broken.size));
  if (lines.length === 0) return '';
  return most < FEWEST ? `Steps are looked for from ${FEWEST} complete runs on.` : 'No step: every line is level.';
}

export class History {
  constructor(state) {
    this.state = state;
    this.graphs = new Map();
    this.hiddenLines = new Set();
    this.lines = [];
    this.graph = new Graph(find('plot'), find('flags'), find('tip'), find('plot-said'));
    this.onpick = () => {};
    this.graph.onpick = (id) => this.onpick(id);
    find('graph-choice').addEventListener('change', (event) => {
      this.state.set({ graph: event.target.value });
      this.hiddenLines.clear();
      this.load();
    });
    for (const [group, key] of [['range', 'range'], ['scale', 'scale']]) {
      find(group).addEventListener('click', (event) => {
        const value = event.target.dataset?.[key];
        if (!value) return;
        this.state.set({ [key]: value });
        this.show();
      });
    }
    // The right end of the graph is now.
    setInterval(() => this.show(), 60_000);
  }

  /** Reads the series, and the points of those that are shown. */
  async load() {
    try {
      const all = await fetched('series');
      this.graphs.clear();
      for (const series of all) {
        if (!this.graphs.has(series.graph)) this.graphs.set(series.graph, []);
        this.graphs.get(series.graph).push(series);
      }
      this.choices();
      const wanted = this.graphs.get(this.chosen) ?? [];
      // Colours stay with their lines: what streams is the first one, as in every other picture.
      wanted.sort((a, b) => (b.mode === 'stream') - (a.mode === 'stream') || a.key.localeCompare(b.key));
      const points = await Promise.all(wanted.map((one) => fetched(`points?series=${encodeURIComponent(one.key)}`)));
      this.lines = wanted.map((series, at) => this.line(series, points[at], at));
      this.failed = null;
    } catch (error) {
      this.failed = error.message;
    }
    this.legend();
    this.show();
  }

  line(series, points, at) {
    return {
      key: series.key,
      name: this.nameOf(series),
      style: STYLES[at % STYLES.length],
      unit: series.headline,
      id: points.id,
      at: Float64Array.from(points.at),
      value: Float64Array.from(points.value, (value) => value ?? NaN),
      broken: new Set(points.broken),
      steps: points.steps,
    };
  }

  /** What distinguishes a series from the others of its graph. */
  nameOf(series) {
    const others = this.graphs.get(series.graph) ?? [];
    const engines = new Set(others.map((other) => other.engine));
    const modes = new Set(others.map((other) => other.mode));
    const parts = [];
    if (engines.size > 1 || !series.mode) parts.push(series.engine);
    if (series.mode && (modes.size > 1 || parts.length === 0)) parts.push(series.mode);
    return parts.join(' ') || series.experiment;
  }

  /** Fills the choice of experiments; the one with the latest run comes first. */
  choices() {
    const select = find('graph-choice');
    const latest = (list) => Math.max(...list.map((series) => series.last_ms));
    const keys = [...this.graphs.keys()].sort((a, b) => latest(this.graphs.get(b)) - latest(this.graphs.get(a)));
    const wanted = this.state.get('graph');
    this.chosen = keys.includes(wanted) ? wanted : keys[0];
    const hosts = new Set([...this.graphs.values()].flat().map((series) => series.host));
    const options = keys.map((key) => {
      const [first] = this.graphs.get(key);
      const text = [first.experiment, first.parameters, hosts.size > 1 ? `on ${first.host}` : ''].filter(Boolean).join(' · ');
      return element('option', { value: key, selected: key === this.chosen }, text);
    });
    select.replaceChildren(...(options.length > 0 ? options : [element('option', {}, 'no runs yet')]));
    select.disabled = options.length < 2;
    const [first] = this.graphs.get(this.chosen) ?? [];
    say(find('history-title'), first ? title(first.headline).replace(/^Waiting$/, 'Waiting time') : 'Waiting time');
  }

  legend() {
    const buttons = this.lines.map((line) => element('button', {
      type: 'button',
      class: 'quiet line',
      'aria-pressed': String(!this.hiddenLines.has(line.key)),
      onclick: (event) => {
        if (!this.hiddenLines.delete(line.key)) this.hiddenLines.add(line.key);
        event.currentTarget.setAttribute('aria-pressed', String(!this.hiddenLines.has(line.key)));
        this.show();
      },
    }, sample(line.style), line.name, element('small', {}, String(line.id.length))));
    find('legend').replaceChildren(...buttons);
  }

  /** Draws what is chosen. */
  show() {
    const chosen = this.state.get('range') ?? '30';
    const lines = this.lines.filter((line) => !this.hiddenLines.has(line.key));
    const last = Math.max(0, ...lines.map((line) => line.at.at(-1) ?? 0));
    const first = Math.min(Infinity, ...lines.map((line) => line.at[0] ?? Infinity));
    const now = Date.now();
    let to = Math.max(now, last);
    let from = chosen === 'all' ? first : to - Number(chosen) * DAYS;
    if (chosen === 'all' && Number.isFinite(first)) {
      to = last;
      const room = Math.max((last - first) * 0.02, 60_000);
      [from, to] = [first - room, last + room];
    }
    if (!Number.isFinite(from)) [from, to] = [now - 30 * DAYS, now];
    for (const [group, key, value] of [['range', 'range', chosen], ['scale', 'scale', this.state.get('scale') ?? 'linear']]) {
      for (const button of find(group).children) button.setAttribute('aria-pressed', String(button.dataset[key] === value));
    }
    const unit = lines[0]?.unit ?? '_ms';
    this.graph.show(lines, [from, to], this.state.get('scale') === 'log', unit);
    this.graph.choose(this.state.run());
    const inRange = lines.some((line) => line.at.some((at) => at >= from && at <= to));
    this.tellEmpty(inRange, last, now);
    this.listSteps(lines);
  }

  tellEmpty(inRange, last, now) {
    const empty = find('empty');
    empty.hidden = inRange && !this.failed;
    if (this.failed) say(empty, `The history cannot be read: ${this.failed}`);
    else if (this.lines.length === 0) say(empty, 'No runs yet. Each `wardian lab scale` adds one.');
    else if (this.hiddenLines.size === this.lines.length) say(empty, 'All lines are hidden');
    else say(empty, `No run in this range. The last one was ${age(now - last)} ago: choose a longer range`);
  }

  /** The steps of all times, newest first: one that is out of the range is still a step. */
  listSteps(lines) {
    const all = lines.flatMap((line) => line.steps.map((step) => ({ line, step })));
    all.sort((a, b) => b.step.at - a.step.at);
    const items = all.slice(0, 50).map(({ line, step }) => {
      const told = described(step, line.unit);
      return element('li', {}, element('button', {
        type: 'button',
        class: 'step',
        data: { run: step.id, tone: told.slower ? 'bad' : 'good' },
        'aria-current': String(step.id === this.state.run()),
        onclick: () => this.onpick(step.id),
      },
      element('b', {}, element('span', { 'aria-hidden': 'true' }, told.slower ? '▲ ' : '▼ '), told.size, ' ', element('small', {}, told.share)),
      element('time', { dateTime: new Date(step.at).toISOString(), title: moment(step.at) }, day(step.at)),
      element('span', { class: 'levels' }, `${line.name}: ${told.from} → ${told.to}`),
      element('small', { title: 'Ratio of the two levels: its confidence interval of 95 %' }, `× ${step.low.toFixed(2)} – ${step.high.toFixed(2)}`),
      ...told.what.map((what) => element('span', { class: 'cause' }, what)),
      told.what.length === 0 ? element('span', { class: 'cause' }, 'kernel and version as before') : null,
      ));
    });
    if (items.length === 0) items.push(element('li', { class: 'none' }, noSteps(lines)));
    find('steps').replaceChildren(...items);
  }

  /** Chooses the graph of a series, and reads it. Returns whether there is one that is not chosen yet. */
  async select(key) {
    const found = [...this.graphs].find(([, list]) => list.some((series) => series.key === key));
    if (!found || found[0] === this.chosen) return false;
    this.state.set({ graph: found[0] });
    this.hiddenLines.clear();
    await this.load();
    return true;
  }

  /** The runs before and after one in its line. */
  neighbours(id) {
    for (const line of this.lines) {
      const at = line.id.indexOf(id);
      if (at >= 0) return { line, before: line.id[at - 1] ?? null, after: line.id[at + 1] ?? null };
    }
    return { line: null, before: null, after: null };
  }

  redraw() {
    this.graph.draw();
    for (const canvas of document.querySelectorAll('canvas.sample')) canvas.redraw();
  }
}
