// Sparklines: a figure and its last two minutes.

import { element, say } from './words.js';

/** Looks that are shown, one a second. */
const LOOKS = 120;

export class Spark {
  constructor(label, { format, hint, most, color }) {
    Object.assign(this, { format, most, color, values: [] });
    this.canvas = element('canvas', { 'aria-hidden': 'true' });
    this.value = element('output', {}, '–');
    this.root = element('div', { class: 'spark', title: hint ?? '' }, element('span', {}, label), this.value, this.canvas);
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  add(value) {
    this.values.push(value ?? null);
    if (this.values.length > LOOKS) this.values.shift();
    say(this.value, value === null || value === undefined ? '–' : this.format(value));
    this.draw();
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width) return;
    const ratio = window.devicePixelRatio || 1;
    [this.canvas.width, this.canvas.height] = [width * ratio, height * ratio];
    const context = this.canvas.getContext('2d');
    context.scale(ratio, ratio);
    const known = this.values.filter((value) => value !== null);
    if (known.length < 2) return;
    const style = getComputedStyle(document.documentElement);
    const color = style.getPropertyValue(this.color ?? '--accent').trim();
    const most = Math.max(this.most ?? 0, ...known) || 1;
    const x = (at) => width - (this.values.length - 1 - at) * (width / (LOOKS - 1));
    const y = (value) => height - 1.5 - (value / most) * (height - 4);
    context.beginPath();
    let [first, last] = [null, null];
    this.values.forEach((value, at) => {
      if (value === null) return;
      if (first === null) context.moveTo(x(at), y(value));
      else context.lineTo(x(at), y(value));
      first ??= at;
      last = at;
    });
    context.strokeStyle = color;
    context.lineWidth = 1.5;
    context.lineJoin = 'round';
    context.stroke();
    context.lineTo(x(last), height);
    context.lineTo(x(first), height);
    context.closePath();
    context.globalAlpha = 0.13;
    context.fillStyle = color;
    context.fill();
  }
}
