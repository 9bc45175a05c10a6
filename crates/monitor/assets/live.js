// What is live: the server's state, the strip of the host, the events, and the store.

import { element, find, say, bytes, duration, seconds } from './words.js';
import { Spark } from './spark.js';
import { Table } from './table.js';

/** Events that are shown, and kept for the summary. */
const SHOWN = 80;
const KEPT = 5000;
/** Phases have these colours in turn. */
const HUES = 6;
const VERBS = {
  create: 'created', destroy: 'destroyed', stop: 'stopped', pause: 'paused', unpause: 'goes on', oom: 'out of memory',
  broken: 'broken', 'process-start': 'started', 'process-exit': 'ended', lost: 'events lost', forgotten: 'earlier events forgotten',
};
const percent = (value) => `${value < 0.05 ? 0 : value.toFixed(value < 10 ? 1 : 0)} %`;

export class Live {
  constructor(state) {
    this.table = new Table(find('scroll'), find('table'), find('none'), find('count'), find('filter'), state);
    this.events = [];
    this.sparks = {
      dirty: new Spark('Dirty', { format: bytes, hint: 'Dirty of /proc/meminfo: data that waits for the flusher', most: 1e6 }),
      writeback: new Spark('Writeback', { format: bytes, hint: 'Writeback of /proc/meminfo: data that is being written', most: 1e6 }),
      io: new Spark('PSI io', { format: percent, hint: 'Share of time in which some task waited for a disk (/proc/pressure/io)', most: 5, color: '--warn' }),
      memory: new Spark('PSI memory', { format: percent, hint: 'Share of time in which some task waited for memory (/proc/pressure/memory)', most: 5, color: '--warn' }),
      cpu: new Spark('PSI cpu', { format: percent, hint: 'Share of time in which some task waited for a processor (/proc/pressure/cpu)', most: 5, color: '--warn' }),
      containers: new Spark('Containers', { format: String, hint: 'Containers of this server', most: 4, color: '--line-3' }),
    };
    find('strip').append(...Object.values(this.sparks).map((spark) => spark.root));
    setInterval(() => this.summary(), 1000);
  }

  whole(told) {
    this.table.take(told.rows, null);
    this.events = told.past;
    find('events').replaceChildren(...told.past.slice(-SHOWN).reverse().map((event) => this.line(event)));
    this.seen(told);
  }

  change(told) {
    this.table.take(told.rows, told.gone);
    this.seen(told);
  }

  happened(events) {
    this.events.push(...events);
    this.events.splice(0, Math.max(0, this.events.length - KEPT));
    const list = find('events');
    list.prepend(...events.slice(-SHOWN).reverse().map((event) => this.line(event)));
    while (list.children.length > SHOWN) list.lastChild.remove();
    this.summary();
  }

  /** The monitor itself is not reached. */
  lost() {
    this.lamp('down', 'no answer');
    this.banner('The monitor does not answer. This page tries again by itself; what it shows is old.');
  }

  lamp(kind, text) {
    document.querySelector('#status .lamp').dataset.state = kind;
    say(find('status-text'), text);
  }

  banner(text) {
    const banner = find('banner');
    banner.hidden = !text;
    say(banner, text ?? '');
  }

  seen({ at_ms: at, server, down, host }) {
    // Nothing was looked at yet.
    if (!at) return this.banner(null);
    if (server) {
      this.lamp('up', 'live');
      this.banner(null);
    } else {
      this.lamp('down', 'server down');
      this.banner(`The server does not answer: ${down}. The monitor tries again each second; the history is still here.`);
    }
    const facts = [
      host?.name,
      server?.version ? `wardian ${server.version}` : server ? 'a Garden server' : null,
      server?.kernel && `Linux ${server.kernel}`,
      server?.cgroups && `cgroups ${server.cgroups}`,
      host && `load ${host.load.toFixed(2)}`,
    ];
    say(find('facts'), facts.filter(Boolean).join('  ·  '));
    this.sparks.dirty.add(host?.dirty);
    this.sparks.writeback.add(host?.writeback);
    for (const name of ['io', 'memory', 'cpu']) this.sparks[name].add(host?.pressure[name]);
    this.sparks.containers.add(server ? this.table.rows.size : null);
    this.store(server);
  }

  store(server) {
    const { store } = server ?? {};
    const told = [];
    const tell = (name, value, tone) => told.push([name, value, tone]);
    if (store) {
      if (store.layers !== null) tell('Layers', `${store.layers}, ${bytes(store.layers_bytes)}`);
      else tell('Layers', bytes(store.layers_bytes));
      tell('Images', String(store.images));
      if (store.fragile !== null) tell('Durable', store.fragile === 0 ? '✓ all layers' : `◔ ${store.fragile} not yet`, store.fragile > 0 ? 'warn' : 'good');
      if (store.suspect) tell('Suspect', `▲ ${store.suspect} after a write error`, 'bad');
      if (store.trash !== null) tell('Trash', store.trash === 0 ? 'empty' : `${store.trash} waiting`);
      tell('Free', bytes(store.available_bytes));
      if (server.disk_driver) tell('Disk limits', server.disk_driver);
    } else {
      tell('Store', server ? 'this server tells nothing of it' : 'unknown');
    }
    const text = JSON.stringify(told);
    if (this.stored === text) return;
    this.stored = text;
    find('store').replaceChildren(...told.flatMap(([name, value, tone]) => [element('dt', {}, name), element('dd', { data: { tone: tone ?? '' } }, value)]));
  }

  line(event) {
    const verb = VERBS[event.what] ?? event.what;
    const more = [];
    if (event.process) more.push(event.process);
    if (event.status !== undefined) more.push(`status ${event.status}`);
    if (event.lost) more.push(String(event.lost));
    if (event.reason) more.push(event.reason);
    return element('li', { data: { what: event.what } },
      element('time', {}, seconds(event.at_ms)),
      element('span', { class: 'verb' }, verb),
      element('span', { class: 'who', title: event.handle }, event.handle, more.length > 0 ? element('small', {}, ` ${more.join(', ')}`) : null),
      event.ms !== undefined ? element('span', { class: 'ms' }, duration(event.ms)) : element('span', {}),
      event.phases ? this.phases(event) : null);
  }

  /** The phases of a create or destroy as one bar. */
  phases(event) {
    const told = event.phases.map(([name, ms]) => `${name} ${duration(ms)}`).join(', ');
    const bar = element('span', { class: 'phases', title: told, role: 'img', 'aria-label': told });
    event.phases.forEach(([, ms], at) => {
      const part = element('i', { data: { hue: at % HUES } });
      part.style.flexGrow = String(Math.max(ms, event.ms / 400));
      bar.append(part);
    });
    return bar;
  }

  /** Creates and destroys of the last minute. */
  summary() {
    const since = Date.now() - 60_000;
    const recent = this.events.filter((event) => event.at_ms >= since);
    const told = [['create', 'created'], ['destroy', 'destroyed']].map(([what, word]) => {
      const some = recent.filter((event) => event.what === what);
      const times = some.map((event) => event.ms).filter((ms) => ms !== undefined).sort((a, b) => a - b);
      const median = times.length > 0 ? ` (${duration(times[times.length >> 1])})` : '';
      return `${some.length} ${word}${median}`;
    });
    say(find('rates'), `${told.join(', ')} in a minute`);
  }

  redraw() {
    for (const spark of Object.values(this.sparks)) spark.draw();
  }
}
