// One run: what it was, its figures, and the picture of its timeline.

import { element, figure, title, moment, duration, bytes } from './words.js';

/** Waits that are listed. */
const WAITS = 100;

/**
 * Makes a node of a picture that the server has drawn. It is text that may contain names of containers: whatever could run or
 * fetch something is left out, though the pictures have nothing of the kind and the policy forbids it.
 */
export function picture(text) {
  const svg = new DOMParser().parseFromString(text, 'image/svg+xml').documentElement;
  if (svg.localName !== 'svg') throw new Error('the picture is no SVG');
  for (const node of svg.querySelectorAll('script, style, foreignObject, iframe, image, use, a')) node.remove();
  for (const node of [svg, ...svg.querySelectorAll('*')]) {
    for (const { name } of [...node.attributes]) {
      if (name.startsWith('on') || name.endsWith('href') || name === 'style') node.removeAttribute(name);
    }
  }
  return document.importNode(svg, true);
}

const fact = (name, value) => (value ? [element('dt', {}, name), element('dd', {}, value)] : []);

function facts(run) {
  const { machine } = run;
  const parameters = Object.entries(run.parameters).map(([name, value]) => `${name} ${value}`);
  return element('dl', { class: 'facts' },
    ...fact('engine', `${run.engine} ${run.version}${run.revision ? ` (${run.revision.slice(0, 12)})` : ''}`),
    ...fact('kernel', machine.kernel),
    ...fact('host', machine.host && `${machine.host}, ${machine.cpus} CPUs, ${bytes(machine.memory_bytes)}, load ${machine.load.toFixed(1)}`),
    ...fact('disk', [machine.filesystem, machine.mount_options].filter(Boolean).join(' ')),
    ...fact('cgroups', machine.cgroups),
    ...fact('parameters', parameters.join(', ')),
  );
}

function figures(run) {
  const rows = Object.entries(run.figures)
    .sort(([a], [b]) => (b === run.headline) - (a === run.headline) || a.localeCompare(b))
    .map(([name, value]) => element('tr', {}, element('th', { scope: 'row' }, title(name)), element('td', {}, figure(name, value))));
  return element('table', { class: 'figures' }, element('caption', { class: 'hidden' }, 'Figures'), element('tbody', {}, ...rows));
}

function waits(all) {
  if (all.length === 0) return null;
  const longest = [...all].sort((a, b) => b.ms - a.ms).slice(0, WAITS);
  const rows = longest.map((wait) => element('tr', {},
    element('td', { class: 'number' }, duration(wait.ms)),
    element('td', {}, wait.row ? `${wait.row}: ${wait.who}` : wait.who),
    element('td', {}, wait.place),
    element('td', {}, wait.on ?? '–')));
  return element('details', { class: 'waits', open: all.length <= 12 },
    element('summary', {}, `Who waited for whom (${all.length > WAITS ? `the longest ${WAITS} of ${all.length}` : all.length})`),
    element('div', { class: 'scroll-x', tabindex: '0', role: 'region', 'aria-label': 'Who waited for whom' }, element('table', {},
      element('thead', {}, element('tr', {}, ...['for', 'who', 'in', 'waited for'].map((text) => element('th', { scope: 'col' }, text)))),
      element('tbody', {}, ...rows))));
}

export class RunView {
  constructor(root) {
    this.root = root;
    this.onclose = () => {};
    this.onmove = () => {};
    root.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') this.onclose();
    });
  }

  /** The width of a picture: that of the page, less what is around it. */
  width() {
    return Math.max(280, Math.floor(this.root.parentElement.clientWidth - 32));
  }

  hide() {
    this.asked = null;
    this.root.hidden = true;
    this.root.replaceChildren();
  }

  /** Shows the run of this id. `takesFocus`: somebody has asked for it. Returns its series, if there is such a run. */
  async show(id, neighbours, takesFocus) {
    this.asked = id;
    let told;
    try {
      const answer = await fetch(`run?id=${encodeURIComponent(id)}&width=${this.width()}`);
      told = await answer.json();
      if (answer.status === 404) throw new Error(`there is no run ${id}`);
      if (!answer.ok) throw new Error(told.error);
    } catch (error) {
      if (this.asked === id) this.tell(`Run ${id} cannot be shown: ${error.message}`, takesFocus);
      return null;
    }
    // Another one may have been asked for meanwhile.
    if (this.asked !== id) return null;
    this.fill(told, neighbours);
    this.reveal(takesFocus);
    return told.series;
  }

  tell(text, takesFocus) {
    this.root.replaceChildren(this.bar('Run', null), element('p', { class: 'empty' }, text));
    this.reveal(takesFocus);
  }

  reveal(takesFocus) {
    this.root.hidden = false;
    if (!takesFocus) return;
    const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
    this.root.querySelector('h2').focus({ preventScroll: true });
    this.root.scrollIntoView({ behavior: calm ? 'auto' : 'smooth', block: 'nearest' });
  }

  bar(text, neighbours) {
    const move = (label, sign, id) => element('button', {
      type: 'button', class: 'quiet', disabled: id === null, 'aria-label': label, onclick: () => this.onmove(id),
    }, sign);
    return element('div', { class: 'bar' },
      element('h2', { id: 'run-title', tabindex: '-1' }, text),
      neighbours ? move('The run before', '←', neighbours.before) : null,
      neighbours ? move('The run after', '→', neighbours.after) : null,
      element('button', { type: 'button', class: 'quiet close', 'aria-label': 'Close the run', onclick: () => this.onclose() }, '✕'));
  }

  fill({ run, rows, waits: all, picture: text }, neighbours) {
    const value = figure(run.headline, run.figures[run.headline]);
    const heading = [run.experiment, run.mode, moment(run.begun_ms)].filter(Boolean).join(' · ');
    let drawn = element('p', { class: 'empty' }, 'This run has kept no timeline');
    if (text) {
      try {
        drawn = picture(text);
        if (!drawn.hasAttribute('aria-label')) drawn.setAttribute('aria-label', `Timeline of ${rows} rows`);
      } catch (error) {
        drawn = element('p', { class: 'empty' }, `The timeline cannot be shown: ${error.message}`);
      }
    }
    this.root.replaceChildren(
      this.bar(heading, neighbours),
      element('p', { class: 'headline' }, element('b', {}, value), ` ${title(run.headline).toLowerCase()}`,
        run.complete ? null : element('em', {}, ` failed or was interrupted${run.error ? `: ${run.error}` : ''}`)),
      element('div', { class: 'timeline', tabindex: '0', role: 'region', 'aria-label': 'Timeline' }, drawn),
      ...[waits(all)].filter(Boolean),
      element('div', { class: 'about' }, facts(run), figures(run)),
      ...(run.command.length > 0 ? [element('p', { class: 'command' }, element('span', {}, 'Repeat it: '), element('code', {}, run.command.map(quoted).join(' ')))] : []),
    );
  }
}

/** A word as a shell reads it. */
function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
