// Puts the parts of the page together. What is chosen is in the address, so that it can be sent to somebody.

import { find, say } from './words.js';
import { History } from './history.js';
import { RunView } from './run.js';
import { Live } from './live.js';
import { Stream } from './stream.js';

/** What is chosen, as the fragment of the address: `#run=12&range=7`. */
class Chosen {
  constructor() {
    this.read();
  }

  read() {
    this.fields = new URLSearchParams(location.hash.slice(1));
  }

  get(name) {
    return this.fields.get(name);
  }

  /** The id of the run that is chosen, or null. */
  run() {
    const id = this.get('run');
    return id !== null && /^\d{1,18}$/.test(id) ? Number(id) : null;
  }

  set(changed) {
    for (const [name, value] of Object.entries(changed)) {
      if (value === null) this.fields.delete(name);
      else this.fields.set(name, value);
    }
    const text = this.fields.toString();
    history.replaceState(null, '', text ? `#${text}` : location.pathname);
  }
}

const chosen = new Chosen();
const past = new History(chosen);
const run = new RunView(find('run'));
const live = new Live(chosen);

function open(id, takesFocus) {
  chosen.set({ run: id });
  past.graph.choose(id);
  for (const button of document.querySelectorAll('.step')) button.setAttribute('aria-current', String(Number(button.dataset.run) === id));
  return run.show(id, past.neighbours(id), takesFocus);
}

/** Opens a run that was not picked in the graph, which may be that of another series. */
async function visit(id) {
  const series = await open(id, false);
  if (series && await past.select(series)) open(id, false);
}

function close() {
  chosen.set({ run: null });
  past.graph.choose(null);
  run.hide();
  find('plot').focus({ preventScroll: true });
}

past.onpick = (id) => open(id, true);
run.onmove = (id) => open(id, true);
run.onclose = close;
addEventListener('hashchange', () => {
  chosen.read();
  const id = chosen.run();
  if (id !== null) visit(id);
  else run.hide();
});

// The fragment of the address is taken: it says what is chosen.
for (const link of document.querySelectorAll('.skip')) {
  link.addEventListener('click', (event) => {
    event.preventDefault();
    const target = find(link.getAttribute('href').slice(1));
    target.focus({ preventScroll: true });
    target.scrollIntoView();
  });
}

const THEMES = { auto: ['Auto', 'as the system has it'], light: ['Light', 'light'], dark: ['Dark', 'dark'] };

function showTheme() {
  const [text, label] = THEMES[document.documentElement.dataset.theme];
  say(find('theme'), text);
  find('theme').setAttribute('aria-label', `Theme: ${label}`);
}

find('theme').addEventListener('click', () => {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length];
  document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem('theme', next);
  } catch {
    // It holds until the page is left.
  }
  showTheme();
  past.redraw();
  live.redraw();
});
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
  past.redraw();
  live.redraw();
});
showTheme();

let known = null;
const stream = {
  whole: (told) => {
    // Runs may have come while this page did not listen.
    if (known !== null && known !== told.runs) past.load();
    known = told.runs;
    live.whole(told);
  },
  change: (told) => live.change(told),
  happened: (told) => live.happened(told),
  runs: (told) => {
    known = told;
    past.load();
  },
  lost: () => live.lost(),
};

past.load().then(() => {
  const id = chosen.run();
  if (id !== null) visit(id);
});
new Stream(stream);
