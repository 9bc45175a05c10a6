// The table of containers. Only rows that can be seen are in the document: a thousand cost as much as thirty.

import { element, say, bytes, age } from './words.js';

/** Rows above and below the visible ones. */
const SPARE = 6;
const SYMBOLS = { running: '●', idle: '○', creating: '◔', destroying: '◕', broken: '▲', paused: '‖', stopped: '■', exited: '□' };

const number = (value) => value ?? -1;
const part = (used, limit) => (limit > 0 ? Math.min(1, used / limit) : null);
const limited = (used, limit) => (limit > 0 ? `${bytes(used)} / ${bytes(limit)}` : bytes(used));
const rate = (value) => (value === null || value === undefined ? '–' : value === 0 ? '0' : bytes(value));
const percent = (value) => (value === null || value === undefined ? '–' : value < 0.05 ? '0' : `${value.toFixed(value < 10 ? 1 : 0)} %`);

/** The columns: `by` is what they are sorted by, `low` of less importance: it is hidden on narrow screens first. */
const COLUMNS = [
  { key: 'handle', name: 'Handle', by: (row) => row.handle, text: (row) => row.handle },
  { key: 'state', name: 'State', by: (row) => row.state, text: (row) => `${SYMBOLS[row.state] ?? '·'} ${row.state}` },
  { key: 'for', name: 'For', number: true, by: (row, now) => (row.since_ms ? now - row.since_ms : -1), text: (row, now) => (row.since_ms ? age(now - row.since_ms) : '–'), low: 2 },
  { key: 'memory', name: 'Memory', number: true, by: (row) => row.memory, text: (row) => limited(row.memory, row.memory_limit), part: (row) => part(row.memory, row.memory_limit) },
  { key: 'dirty', name: 'Dirty', hint: 'Written by it, not on the disk yet', number: true, by: (row) => number(row.dirty) + number(row.writeback), text: (row) => bytes(row.dirty) },
  { key: 'cpu', name: 'CPU', hint: 'Percent of one processor', number: true, by: (row) => number(row.cpu), text: (row) => percent(row.cpu) },
  { key: 'stall', name: 'PSI io', hint: 'Share of time in which some of its tasks waited for a disk (pressure stall information, cgroup v2)', number: true, by: (row) => number(row.pressure.io), text: (row) => percent(row.pressure.io), low: 3 },
  { key: 'rx', name: '↓ /s', hint: 'Received per second', number: true, by: (row) => number(row.rx), text: (row) => rate(row.rx), low: 2 },
  { key: 'tx', name: '↑ /s', hint: 'Sent per second', number: true, by: (row) => number(row.tx), text: (row) => rate(row.tx), low: 2 },
  { key: 'disk', name: 'Disk', hint: 'What it wrote', number: true, by: (row) => row.disk, text: (row) => limited(row.disk, row.disk_limit), part: (row) => part(row.disk, row.disk_limit), low: 1 },
  { key: 'pids', name: 'Pids', hint: 'Processes and threads', number: true, by: (row) => row.pids, text: (row) => (row.pids_limit > 0 ? `${row.pids} / ${row.pids_limit}` : String(row.pids)), part: (row) => part(row.pids, row.pids_limit), low: 3 },
  { key: 'image', name: 'Image', by: (row) => row.image, text: (row) => row.image, low: 4 },
  { key: 'command', name: 'Command', by: (row) => row.command, text: (row) => row.command, low: 5 },
];

export class Table {
  constructor(scroll, table, none, count, filter, state) {
    Object.assign(this, { scroll, table, none, count, state });
    this.rows = new Map();
    this.pool = [];
    this.order = [];
    [this.by, this.down] = (state.get('sort') ?? 'handle').split(':');
    this.down = this.down === 'down';
    if (!COLUMNS.some((column) => column.key === this.by)) this.by = 'handle';
    this.words = [];
    this.above = element('tr', { class: 'spacer', 'aria-hidden': 'true' }, element('td', { colSpan: COLUMNS.length }));
    this.below = this.above.cloneNode(true);
    this.head();
    table.tBodies[0].append(this.above, this.below);
    scroll.addEventListener('scroll', () => this.later(), { passive: true });
    new ResizeObserver(() => this.later()).observe(scroll);
    filter.addEventListener('input', () => {
      this.words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      this.arrange();
    });
  }

  head() {
    const cells = COLUMNS.map((column) => element('th', {
      scope: 'col', class: column.number ? 'number' : '', data: { low: column.low ?? 0, key: column.key },
    }, element('button', {
      type: 'button',
      title: column.hint ?? '',
      onclick: () => {
        if (this.by === column.key) this.down = !this.down;
        else [this.by, this.down] = [column.key, Boolean(column.number)];
        this.state.set({ sort: `${this.by}:${this.down ? 'down' : 'up'}` });
        this.arrange();
      },
    }, column.name)));
    this.table.tHead.rows[0].replaceChildren(...cells);
  }

  /** Takes all rows anew, or some that have changed and the ids of those that are gone. */
  take(rows, gone) {
    if (gone === null) this.rows.clear();
    for (const row of rows) {
      row.search = `${row.handle} ${row.image} ${row.state} ${row.command} ${row.address} ${row.id}`.toLowerCase();
      this.rows.set(row.id, row);
    }
    for (const id of gone ?? []) this.rows.delete(id);
    this.arrange();
  }

  arrange() {
    const column = COLUMNS.find((one) => one.key === this.by);
    const now = Date.now();
    const sign = this.down ? -1 : 1;
    const fits = (row) => this.words.every((word) => row.search.includes(word));
    const keyed = [...this.rows.values()].filter(fits).map((row) => [column.by(row, now), row]);
    const compare = new Intl.Collator('en', { numeric: true }).compare;
    keyed.sort(([a, one], [b, other]) => {
      const first = typeof a === 'string' ? compare(a, b) : a - b;
      return first * sign || compare(one.handle, other.handle);
    });
    this.order = keyed.map(([, row]) => row);
    for (const cell of this.table.tHead.rows[0].cells) {
      if (cell.dataset.key === this.by) cell.setAttribute('aria-sort', this.down ? 'descending' : 'ascending');
      else cell.removeAttribute('aria-sort');
    }
    const [shown, all] = [this.order.length, this.rows.size];
    say(this.count, all === shown ? String(all) : `${shown} of ${all}`);
    this.table.setAttribute('aria-rowcount', String(shown + 1));
    this.none.hidden = shown > 0;
    say(this.none, all === 0 ? 'No container is here' : 'No container fits the filter');
    this.later();
  }

  later() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  draw() {
    const height = this.height ?? 29;
    const first = Math.max(0, Math.floor(this.scroll.scrollTop / height) - SPARE);
    const last = Math.min(this.order.length, Math.ceil((this.scroll.scrollTop + this.scroll.clientHeight) / height) + SPARE);
    const count = Math.max(0, last - first);
    while (this.pool.length < count) {
      const line = element('tr', {}, ...COLUMNS.map((column) => element('td', {
        class: column.number ? 'number' : '', data: { low: column.low ?? 0, key: column.key },
      }, element('span', {}), column.part ? element('i', { class: 'meter' }, element('b')) : null)));
      this.pool.push(line);
      this.below.before(line);
    }
    while (this.pool.length > count) this.pool.pop().remove();
    this.above.firstChild.style.height = `${first * height}px`;
    this.below.firstChild.style.height = `${(this.order.length - last) * height}px`;
    this.above.hidden = first === 0;
    this.below.hidden = last === this.order.length;
    const now = Date.now();
    for (let at = 0; at < count; at += 1) this.fill(this.pool[at], this.order[first + at], first + at, now);
    if (count > 0) this.height = this.pool[0].offsetHeight || height;
  }

  fill(line, row, place, now) {
    if (line.dataset.state !== row.state) line.dataset.state = row.state;
    if (line.dataset.id !== row.id) line.dataset.id = row.id;
    line.setAttribute('aria-rowindex', String(place + 2));
    line.classList.toggle('odd', place % 2 === 1);
    COLUMNS.forEach((column, at) => {
      const cell = line.cells[at];
      const text = column.text(row, now);
      const [span, meter] = cell.children;
      if (span.textContent !== text) span.textContent = text;
      const hint = column.key === 'state' && row.reason ? row.reason : column.number ? '' : text;
      if (cell.title !== hint) cell.title = hint;
      if (!meter) return;
      const share = column.part(row);
      meter.hidden = share === null;
      if (share === null) return;
      const width = `${(share * 100).toFixed(1)}%`;
      if (meter.firstChild.style.width !== width) meter.firstChild.style.width = width;
      meter.classList.toggle('full', share >= 0.9);
    });
  }
}
