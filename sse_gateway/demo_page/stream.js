// One native EventSource, and what a careful page keeps beside it: the cursor, whether it is
// connected, and how long it was not.

const GATEWAY_TYPES = ["open", "heartbeat", "gap", "close", "unavailable"];
const ANEW_MS = 2000;

export class Stream {
  #path;
  #query;
  #handlers;
  #source = null;
  #opened = false;
  #lostAt = null;
  cursor = "";

  // handlers: { open, heartbeat, gap, close, unavailable, message, lost }, each optional.
  constructor(path, query, handlers) {
    this.#path = path;
    this.#query = query;
    this.#handlers = handlers;
    this.#connect();
  }

  close() {
    this.#source?.close();
    this.#source = null;
  }

  #connect() {
    const query = new URLSearchParams(this.#query);
    // An EventSource that reconnects sends its last id itself; a new one has to be told.
    if (this.cursor) query.set("last_event_id", this.cursor);
    const source = new EventSource(`${this.#path}?${query}`);
    this.#source = source;
    for (const name of GATEWAY_TYPES) {
      source.addEventListener(`gateway.${name}`, (event) => {
        this.#keep(event);
        this.#take(name, JSON.parse(event.data));
      });
    }
    source.addEventListener("message", (event) => {
      this.#keep(event);
      this.#handlers.message?.(JSON.parse(event.data));
    });
    source.addEventListener("error", () => this.#lost(source));
  }

  #keep(event) {
    if (event.lastEventId) this.cursor = event.lastEventId;
  }

  #take(name, told) {
    if (name === "open") {
      told.again = this.#opened;
      told.awayMs = this.#lostAt === null ? 0 : performance.now() - this.#lostAt;
      this.#opened = true;
      this.#lostAt = null;
    }
    this.#handlers[name]?.(told);
  }

  #lost(source) {
    if (source !== this.#source) return;
    const isNews = this.#lostAt === null;
    this.#lostAt ??= performance.now();
    if (isNews) this.#handlers.lost?.();
    // After any answer but 200 a native EventSource gives up for ever: begin a new one.
    if (source.readyState === EventSource.CLOSED) {
      setTimeout(() => source === this.#source && this.#connect(), ANEW_MS);
    }
  }
}
