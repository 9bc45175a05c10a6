// The stream of what is live. It is closed while the page is hidden: the server looks at nothing then.

/** How long a hidden page goes on listening. */
const HIDDEN = 30_000;
/** A message comes each second. After this time without one the connection is taken for dead: a browser does not notice that
 *  a tunnel hangs, or that the machine slept. */
const SILENT = 6_000;
/** How long until the stream is opened again after an answer that is none. */
const AGAIN = 3_000;

export class Stream {
  constructor(handlers) {
    this.handlers = handlers;
    this.source = null;
    this.open();
    setInterval(() => this.watch(), 1000);
    document.addEventListener('visibilitychange', () => {
      clearTimeout(this.hidden);
      if (document.hidden) this.hidden = setTimeout(() => this.close(), HIDDEN);
      else if (!this.source) this.open();
    });
  }

  close() {
    clearTimeout(this.again);
    this.source?.close();
    this.source = null;
  }

  open() {
    this.close();
    const source = new EventSource('events');
    this.source = source;
    this.heard = performance.now();
    for (const name of ['whole', 'change', 'happened', 'runs']) {
      source.addEventListener(name, (event) => {
        this.heard = performance.now();
        this.handlers[name](JSON.parse(event.data));
      });
    }
    source.addEventListener('error', () => {
      this.handlers.lost();
      // After an answer that is no stream the browser does not try again by itself.
      if (source.readyState === EventSource.CLOSED && this.source === source) {
        this.source = null;
        this.again = setTimeout(() => {
          if (!document.hidden) this.open();
        }, AGAIN);
      }
    });
  }

  /** Opens the stream again if it has fallen silent. */
  watch() {
    if (!this.source || document.hidden || performance.now() - this.heard < SILENT) return;
    this.handlers.lost();
    this.open();
  }
}
