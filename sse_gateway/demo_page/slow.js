// One reader that will be stalled: which of the numbered events reach it, and how.

import { Stream } from "./stream.js";

const cells = (numbers) => numbers.map((n) => `M${n - 0.5} 0V12`).join("");

export class SlowReader {
  #policy;
  #burst;
  #box;
  #stream = null;
  #live = [];
  #late = [];
  #resumed = 0;
  #told = 0;
  #finish;
  #ready;
  opened;
  done;

  // box: its list item. burst: how many events will come, and which while nobody reads.
  constructor(policy, page, burst, box) {
    this.#policy = policy;
    this.#burst = burst;
    this.#box = box;
    this.opened = new Promise((resolve) => (this.#ready = resolve));
    this.done = new Promise((resolve) => (this.#finish = resolve));
    this.#box.classList.remove("finished");
    const band = this.#box.querySelector(".band");
    band.setAttribute("x", burst.stalled_from - 1);
    band.setAttribute("width", burst.stalled_to - burst.stalled_from + 1);
    band.setAttribute("height", 12);
    this.#draw();
    this.#say("connecting");
    this.#stream = new Stream(`/relay/${page}/slow/events/slow:${policy}:${page}`, {}, {
      open: ({ again }) => {
        this.#resumed += again;
        this.#ready();
      },
      gap: ({ missed }) => (this.#told += missed ?? 0),
      message: ({ n, at }) => this.#take(n, at),
    });
  }

  // Ends it; says what has come, also if that is not all.
  close() {
    this.#stream.close();
    this.#finish();
  }

  get missing() {
    return this.#burst.total - this.#live.length - this.#late.length;
  }

  get policy() {
    return this.#policy;
  }

  #take(n, at) {
    const isLate = performance.timeOrigin + performance.now() - at * 1000 > 250;
    (isLate ? this.#late : this.#live).push(n);
    this.#draw(n);
    this.#say(`${this.#live.length + this.#late.length} of ${this.#burst.total}`);
    if (n === this.#burst.total) this.#conclude();
  }

  #draw(last = 0) {
    const come = new Set([...this.#live, ...this.#late]);
    const absent = [];
    for (let n = 1; n <= last; n += 1) if (!come.has(n)) absent.push(n);
    const set = (name, numbers) => this.#box.querySelector(`.${name}`).setAttribute("d", cells(numbers));
    set("live", this.#live);
    set("late", this.#late);
    set("absent", absent);
  }

  #conclude() {
    const come = this.#live.length + this.#late.length;
    const outcome = {
      drop_oldest: `${come} came, ${this.missing} dropped; the gap told ${this.#told}.`,
      latest: `${come} came, ${this.missing} replaced by newer ones; the newest is here.`,
      disconnect: `${come} came: disconnected, resumed ${this.#resumed === 1 ? "once" : `${this.#resumed} times`}, ${this.missing} lost.`,
    }[this.#policy];
    this.#say(outcome);
    this.#box.classList.add("finished");
    this.#box.querySelector("svg").setAttribute("aria-label", outcome);
    this.close();
  }

  #say(text) {
    this.#box.querySelector(".outcome").textContent = text;
  }
}
