// The graph of runs over time. Dots and lines are drawn on a canvas, because there may be ten thousand; what can be focused,
// the steps, are buttons above it.

import { element, figure, moment } from './words.js';
import { times, linear, logarithmic, lower } from './scale.js';

/** Lines differ in colour, in dash and in the shape of their dots. */
export const STYLES = [
  { color: '--line-1', dash: [], shape: 'circle' },
  { color: '--line-2', dash: [7, 4], shape: 'square' },
  { color: '--line-3', dash: [2, 3], shape: 'triangle' },
  { color: '--line-4', dash: [10, 3, 2, 3], shape: 'diamond' },
];
/** How near the pointer must be to a run, in pixels. */
const NEAR = 22;

/** Draws a dot of a shape; it is part of the path that has been begun. */
export function dot(context, shape, x, y, r) {
  if (shape === 'square') context.rect(x - r * 0.88, y - r * 0.88, r * 1.76, r * 1.76);
  else if (shape === 'triangle') {
    context.moveTo(x, y - r * 1.15);
    context.lineTo(x + r * 1.1, y + r * 0.85);
    context.lineTo(x - r * 1.1, y + r * 0.85);
    context.closePath();
  } else if (shape === 'diamond') {
    context.moveTo(x, y - r * 1.25);
    context.lineTo(x + r * 1.1, y);
    context.lineTo(x, y + r * 1.25);
    context.lineTo(x - r * 1.1, y);
    context.closePath();
  } else {
    context.moveTo(x + r, y);
    context.arc(x, y, r, 0, 7);
  }
}

export class Graph {
  constructor(root, flags, tip, said) {
    [this.base, this.over] = root.querySelectorAll('canvas');
    Object.assign(this, { root, flags, tip, said, lines: [], range: [0, 1], log: false, unit: '_ms' });
    this.focus = null;
    this.chosen = null;
    this.onpick = () => {};
    new ResizeObserver(() => this.draw()).observe(root);
    root.addEventListener('pointermove', (event) => this.point(event));
    root.addEventListener('pointerleave', () => this.mark(null));
    root.addEventListener('click', (event) => {
      if (event.target.closest('button')) return;
      this.point(event);
      if (this.focus) this.onpick(this.idOf(this.focus));
    });
    root.addEventListener('keydown', (event) => this.key(event));
    root.addEventListener('blur', () => this.mark(null));
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.draw());
  }

  /** Shows lines: `{name, style, at, value, id, broken, steps}`, with columns in order of time. */
  show(lines, range, log, unit) {
    Object.assign(this, { lines, range, log, unit });
    this.focus = null;
    this.draw();
  }

  choose(id) {
    this.chosen = id;
    this.drawOver();
  }

  idOf({ line, at }) {
    return line.id[at];
  }

  place(line, at) {
    return [this.x(line.at[at]), this.y(line.value[at])];
  }

  /** Sizes the canvases for the screen's pixels, and makes the scales. */
  measure() {
    const { clientWidth: width, clientHeight: height } = this.root;
    const ratio = window.devicePixelRatio || 1;
    for (const canvas of [this.base, this.over]) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    this.edge = { left: width < 500 ? 46 : 58, right: width - 14, top: 34, bottom: height - 26 };
    const { left, right, top, bottom } = this.edge;
    const values = [];
    for (const line of this.lines) {
      const [from, to] = [lower(line.at, this.range[0]), lower(line.at, this.range[1] + 1)];
      for (let at = from; at < to; at += 1) if (line.value[at] > 0) values.push(line.value[at]);
    }
    values.sort((a, b) => a - b);
    // A single slow run must not press all the others to the floor: it is drawn at the edge.
    const usual = values[Math.floor(values.length * 0.995)] ?? 1;
    const greatest = values.at(-1) ?? 1;
    const most = (greatest > usual * 1.6 ? usual * 1.25 : greatest * 1.06) || 1;
    const least = Math.min((values[0] ?? most / 10) * 0.9, most / 2);
    const [from, to] = this.range;
    this.x = (at) => left + ((at - from) / Math.max(1, to - from)) * (right - left);
    const share = this.log
      ? (value) => Math.log(Math.max(value, least) / least) / Math.log(most / least)
      : (value) => value / most;
    this.y = (value) => bottom - Math.min(1, Math.max(0, share(value))) * (bottom - top);
    this.ticks = {
      x: times(from, to, Math.max(2, Math.floor((right - left) / 84))),
      y: this.log ? logarithmic(least, most) : linear(most, Math.max(2, Math.floor((bottom - top) / 56))),
    };
    this.most = most;
    return ratio;
  }

  color(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  draw() {
    if (!this.root.clientWidth) return;
    const ratio = this.measure();
    const context = this.base.getContext('2d');
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.base.width, this.base.height);
    const { left, right, top, bottom } = this.edge;
    this.flags.replaceChildren();
    // Axes of nothing would say something.
    if (!this.lines.some((line) => line.at.length > 0)) return;
    context.font = `12px ${getComputedStyle(this.root).fontFamily}`;
    context.lineWidth = 1;
    context.strokeStyle = this.color('--grid');
    context.fillStyle = this.color('--soft');
    context.textBaseline = 'middle';
    context.textAlign = 'right';
    context.beginPath();
    for (const tick of this.ticks.y) {
      const y = Math.round(this.y(tick)) + 0.5;
      context.moveTo(left, y);
      context.lineTo(right, y);
      context.fillText(tick === 0 ? '0' : figure(this.unit, tick).replace(/(\.\d*?)0+ /, '$1 ').replace('. ', ' '), left - 8, y);
    }
    context.stroke();
    context.textBaseline = 'top';
    for (const tick of this.ticks.x) {
      const x = this.x(tick.at);
      const half = context.measureText(tick.text).width / 2;
      context.textAlign = x - half < left - 10 ? 'left' : x + half > right + 12 ? 'right' : 'center';
      context.fillText(tick.text, x, bottom + 9);
    }
    for (const line of this.lines) this.drawSteps(context, line);
    for (const line of this.lines) this.drawLine(context, line);
    this.placeFlags();
    this.drawOver();
  }

  drawSteps(context, line) {
    context.save();
    context.strokeStyle = this.color(line.style.color);
    context.globalAlpha = 0.55;
    context.setLineDash([3, 3]);
    for (const step of line.steps) {
      if (step.at < this.range[0] || step.at > this.range[1]) continue;
      const x = Math.round(this.x(step.at)) + 0.5;
      context.beginPath();
      context.moveTo(x, this.edge.top - 8);
      context.lineTo(x, this.edge.bottom);
      context.stroke();
    }
    context.restore();
  }

  drawLine(context, line) {
    const [from, to] = [lower(line.at, this.range[0]), lower(line.at, this.range[1] + 1)];
    const count = to - from;
    if (count <= 0) return;
    const color = this.color(line.style.color);
    const radius = count > 2000 ? 1.3 : count > 400 ? 2 : 2.8;
    context.save();
    context.beginPath();
    context.rect(this.edge.left - 4, this.edge.top - 12, this.edge.right - this.edge.left + 8, this.edge.bottom - this.edge.top + 16);
    context.clip();
    // The dots of a pixel are drawn once: more would not be seen.
    const drawn = new Set();
    context.fillStyle = color;
    context.globalAlpha = count > 2000 ? 0.28 : count > 400 ? 0.4 : 0.6;
    context.beginPath();
    const above = [];
    for (let at = from; at < to; at += 1) {
      if (Number.isNaN(line.value[at]) || line.broken.has(at)) continue;
      const [x, y] = this.place(line, at);
      if (line.value[at] > this.most) above.push(x);
      const pixel = Math.round(x * 1.5) * 8192 + Math.round(y * 1.5);
      if (drawn.has(pixel)) continue;
      drawn.add(pixel);
      dot(context, line.style.shape, x, y, radius);
    }
    context.fill();
    context.globalAlpha = 1;
    context.beginPath();
    for (const x of above) {
      context.moveTo(x - 4, this.edge.top - 1);
      context.lineTo(x, this.edge.top - 7);
      context.lineTo(x + 4, this.edge.top - 1);
    }
    context.fill();
    this.drawMedian(context, line, from, to, color);
    context.strokeStyle = this.color('--bad');
    context.lineWidth = 1.4;
    context.beginPath();
    for (const at of line.broken) {
      if (at < from || at >= to) continue;
      const x = this.x(line.at[at]);
      const y = Number.isNaN(line.value[at]) ? this.edge.bottom - 5 : this.y(line.value[at]);
      context.moveTo(x - 3, y - 3);
      context.lineTo(x + 3, y + 3);
      context.moveTo(x + 3, y - 3);
      context.lineTo(x - 3, y + 3);
    }
    context.stroke();
    context.restore();
  }

  /** The median of neighbours, from step to step: a step stays sharp. */
  drawMedian(context, line, from, to, color) {
    context.strokeStyle = color;
    context.lineWidth = 2;
    context.lineJoin = 'round';
    context.setLineDash(line.style.dash);
    const width = this.edge.right - this.edge.left;
    const bounds = line.steps.map((step) => lower(line.at, step.at)).filter((at) => at > from && at < to);
    let begin = from;
    for (const end of [...bounds, to]) {
      const group = Math.max(1, Math.min(51, Math.round((to - from) / Math.max(60, width / 6))), end - begin > 12 ? 5 : 1);
      context.beginPath();
      let first = true;
      for (let at = begin; at < end; at += group) {
        const values = [];
        for (let one = at; one < Math.min(end, at + group); one += 1) {
          if (!Number.isNaN(line.value[one]) && !line.broken.has(one)) values.push(line.value[one]);
        }
        if (values.length === 0) continue;
        values.sort((a, b) => a - b);
        const middle = line.at[Math.min(end - 1, at + (group >> 1))];
        const [x, y] = [this.x(first ? line.at[at] : at + group >= end ? line.at[end - 1] : middle), this.y(values[values.length >> 1])];
        if (first) context.moveTo(x, y);
        else context.lineTo(x, y);
        first = false;
      }
      context.stroke();
      begin = end;
    }
    context.setLineDash([]);
  }

  /** The steps as buttons; those that would overlap go to the row below. */
  placeFlags() {
    this.flags.replaceChildren();
    const ends = [-Infinity, -Infinity];
    const all = this.lines.flatMap((line) => line.steps.map((step) => ({ line, step })));
    all.sort((a, b) => a.step.at - b.step.at);
    for (const { line, step } of all) {
      if (step.at < this.range[0] || step.at > this.range[1]) continue;
      const slower = step.after > step.before;
      const size = `${slower ? '+' : '−'}${figure(this.unit, Math.abs(step.after - step.before))}`;
      const button = element('button', {
        type: 'button',
        class: 'flag',
        data: { tone: slower ? 'bad' : 'good', run: step.id },
        'aria-label': `Step of ${line.name}, ${moment(step.at)}: ${size}. Open the first run after it`,
        onclick: () => this.onpick(step.id),
      }, element('span', { 'aria-hidden': 'true' }, slower ? '▲ ' : '▼ '), size);
      this.flags.append(button);
      const half = button.offsetWidth / 2;
      const middle = Math.min(this.edge.right - half, Math.max(this.edge.left + half, this.x(step.at)));
      const row = ends.findIndex((end) => end + 4 < middle - half);
      ends[Math.max(0, row)] = middle + half;
      button.style.left = `${middle - half}px`;
      button.style.top = `${Math.max(0, row) * 24 + 4}px`;
    }
  }

  drawOver() {
    const context = this.over.getContext('2d');
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.over.width, this.over.height);
    if (!this.edge) return;
    for (const line of this.lines) {
      const at = this.chosen === null ? -1 : line.id.indexOf(this.chosen);
      if (at >= 0) this.ring(context, line, at, 7, 2.5);
    }
    if (!this.focus) return;
    const { line, at } = this.focus;
    const x = Math.round(this.x(line.at[at])) + 0.5;
    context.strokeStyle = this.color('--soft');
    context.globalAlpha = 0.5;
    context.beginPath();
    context.moveTo(x, this.edge.top);
    context.lineTo(x, this.edge.bottom);
    context.stroke();
    context.globalAlpha = 1;
    this.ring(context, line, at, 5, 2);
  }

  ring(context, line, at, radius, width) {
    if (line.at[at] < this.range[0] || line.at[at] > this.range[1]) return;
    const [x, y] = this.place(line, at);
    context.lineWidth = width + 2;
    context.strokeStyle = this.color('--card');
    context.beginPath();
    context.arc(x, Number.isNaN(y) ? this.edge.bottom : y, radius, 0, 7);
    context.stroke();
    context.lineWidth = width;
    context.strokeStyle = this.color('--ink');
    context.stroke();
  }

  /** Focuses the run that is nearest to the pointer. */
  point(event) {
    if (!this.edge) return;
    const box = this.root.getBoundingClientRect();
    const [px, py] = [event.clientX - box.left, event.clientY - box.top];
    const [from, to] = this.range;
    const { left, right } = this.edge;
    const per = (to - from) / Math.max(1, right - left);
    const middle = from + (px - left) * per;
    let [best, nearest] = [null, NEAR * NEAR];
    for (const line of this.lines) {
      const last = lower(line.at, Math.min(to + 1, middle + NEAR * per));
      for (let at = lower(line.at, Math.max(from, middle - NEAR * per)); at < last; at += 1) {
        if (Number.isNaN(line.value[at])) continue;
        const [x, y] = this.place(line, at);
        const distance = (x - px) ** 2 + (y - py) ** 2;
        if (distance < nearest) [best, nearest] = [{ line, at }, distance];
      }
    }
    this.mark(best);
  }

  mark(focus, speaks = false) {
    this.focus = focus;
    this.drawOver();
    this.tip.hidden = !focus;
    this.root.classList.toggle('aims', Boolean(focus));
    if (!focus) return;
    const { line, at } = focus;
    const value = figure(line.unit, Number.isNaN(line.value[at]) ? null : line.value[at]);
    const note = line.broken.has(at) ? 'did not end as planned' : '';
    this.tip.replaceChildren(
      element('b', {}, value),
      element('span', {}, `${line.name} · ${moment(line.at[at])}`),
      note ? element('em', {}, note) : null,
    );
    const [x, y] = this.place(line, at);
    const { offsetWidth: width, offsetHeight: height } = this.tip;
    this.tip.style.left = `${Math.max(4, Math.min(this.root.clientWidth - width - 4, x - width / 2))}px`;
    this.tip.style.top = `${y - height - 14 > 0 ? y - height - 14 : y + 16}px`;
    if (speaks) this.said.textContent = `${line.name}, ${moment(line.at[at])}: ${value}. ${note}`;
  }

  /** Moves along the runs by keys. */
  key(event) {
    if (event.target !== this.root || this.lines.length === 0) return;
    const visible = (line) => [lower(line.at, this.range[0]), lower(line.at, this.range[1] + 1) - 1];
    if (event.key === 'Enter' || event.key === ' ') {
      if (!this.focus) return;
      event.preventDefault();
      this.onpick(this.idOf(this.focus));
      return;
    }
    const filled = this.lines.filter((line) => visible(line)[1] >= visible(line)[0]);
    if (filled.length === 0) return;
    const current = this.focus ?? { line: filled[0], at: visible(filled[0])[1] + (event.key === 'ArrowLeft' ? 1 : 0) };
    let { line, at } = current;
    const [first, last] = visible(line);
    const page = Math.max(1, Math.round((last - first) / 10));
    const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity };
    if (event.key in moves) at = Math.max(first, Math.min(last, at + moves[event.key]));
    else if (event.key === 'ArrowUp' || event.key === 'ArrowDown') {
      const next = (filled.indexOf(line) + (event.key === 'ArrowUp' ? filled.length - 1 : 1)) % filled.length;
      const time = line.at[Math.max(first, Math.min(last, at))];
      line = filled[next];
      const [low, high] = visible(line);
      at = Math.max(low, Math.min(high, lower(line.at, time)));
    } else if (event.key === 'Escape') {
      this.mark(null);
      return;
    } else return;
    event.preventDefault();
    this.mark({ line, at }, true);
  }
}

/** A step in a sentence's parts, for the list. */
export function described(step, unit) {
  const slower = step.after > step.before;
  const share = step.before > 0 ? step.after / step.before : 0;
  return {
    slower,
    size: `${slower ? '+' : '−'}${figure(unit, Math.abs(step.after - step.before))}`,
    share: share >= 2 ? `×${share.toFixed(1)}` : share > 0 ? `${slower ? '+' : '−'}${Math.abs(Math.round((share - 1) * 100))} %` : '',
    from: figure(unit, step.before),
    to: figure(unit, step.after),
    what: step.changed.map(({ what, from, to }) => `${what} ${from} → ${to}`),
  };
}
