// The stream of what is live. It is closed while the page is hidden: the server looks at nothing then.

/** How long a hidden page goes on listening. */
const HIDDEN = 30_000;

export class Stream {
  constructor(handlers) {
    this.handlers = handlers;
    this.source = null;
    this.open();
    document.addEventListener('visibilitychange', () => {
      clearTimeout(this.timer);
      if (document.hidden) this.timer = setTimeout(() => this.close(), HIDDEN);
      else if (!this.source) this.open();
    });
  }

  close() {
    this.source?.close();
    this.source = null;
  }

  open() {
    this.close();
    const source = new EventSource('events');
    this.source = source;
    for (const name of ['whole', 'change', 'happened', 'runs']) {
      source.addEventListener(name, (event) => this.handlers[name](JSON.parse(event.data)));
    }
    source.addEventListener('error', () => {
      this.handlers.lost();
      // After an answer that is no stream the browser does not try again by itself.
      if (source.readyState === EventSource.CLOSED && this.source === source) {
        this.source = null;
        this.timer = setTimeout(() => this.open(), 3000);
      }
    });
  }
}
