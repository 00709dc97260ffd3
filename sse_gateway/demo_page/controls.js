// The buttons: each asks the demo to do harm, and says what came of it.

import { SlowReader } from "./slow.js";

const POLICIES = ["drop_oldest", "latest", "disconnect"];
const LONGEST_MS = 20000;
const $ = (selector) => document.querySelector(selector);
const isHeld = (control) => $(`#${control} button`).ariaDisabled === "true";
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class Controls {
  #page;
  #journal;
  #waiting = new Map(); // text published here to when its button was pressed
  #isCut = false;
  #isStopped = false;

  constructor(page, journal) {
    this.#page = page;
    this.#journal = journal;
    $("#publish").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#publish(new FormData(event.target));
    });
    this.#onClick("cut", () => this.#cut());
    this.#onClick("redis", () => this.#stopRedis());
    this.#onClick("stall", () => this.#stall());
  }

  // An event of a text channel came: perhaps ours.
  arrived(channel, data) {
    const pressed = this.#waiting.get(`${channel} ${data}`);
    if (pressed === undefined) return;
    this.#waiting.delete(`${channel} ${data}`);
    this.#say("publish", `Here again after ${Math.max(1, Math.round(performance.now() - pressed))} ms, through Redis and the gateway.`);
  }

  // The main stream is back, and complete up to now.
  resumed(awayMs, caughtUp, lost) {
    if (!this.#isCut) return;
    this.#isCut = false;
    this.#say("cut", `Resumed after ${(awayMs / 1000).toFixed(1)} s: ${caughtUp} events missed and delivered, ${lost} lost.`);
    this.#free("cut");
  }

  // The main stream is told that Redis is away.
  away() {
    if (this.#isStopped) this.#say("redis", "Redis is away. The page keeps its connection, and is told live: false.");
  }

  // After a gap the next number of `tick` has come; so many are missing before it.
  back(missing) {
    if (!this.#isStopped) return;
    this.#isStopped = false;
    this.#say("redis", `Redis is back. A gap (source) was told, and indeed ${missing} numbers of tick are missing.`);
    this.#free("redis");
  }

  // For a Redis that is not the demo's to stop.
  keepRedis() {
    this.#hold("redis");
    this.#say("redis", "This Redis is your own: stop it yourself, and watch.");
  }

  async #publish(form) {
    const [channel, text] = [form.get("channel"), form.get("text")];
    this.#waiting.set(`${channel} ${text}`, performance.now());
    const { published } = (await this.#ask("publish", { channel, text })) ?? {};
    if (published) {
      this.#journal.write("note", `You published to demo:${channel}.`);
    } else {
      this.#waiting.delete(`${channel} ${text}`);
      if (published === false) this.#say("publish", "Redis is away: nobody took the message.");
    }
  }

  async #cut() {
    this.#hold("cut");
    this.#isCut = true;
    this.#say("cut", "Cut. Waiting for the browser to come back …");
    this.#journal.write("warn", "You cut the connection.");
    if (!(await this.#ask("cut"))?.cut) {
      this.#isCut = false;
      this.#say("cut", "There was no connection to cut just now.");
      this.#free("cut");
    }
  }

  async #stopRedis() {
    this.#hold("redis");
    this.#isStopped = true;
    this.#say("redis", "Redis is stopping …");
    this.#journal.write("warn", "You stopped Redis for five seconds.");
    if (!(await this.#ask("stop-redis"))) {
      this.#isStopped = false;
      this.#free("redis");
    }
  }

  async #stall() {
    this.#hold("stall");
    this.#say("stall", "Opening three streams …");
    const { burst } = await (await fetch("/demo/info")).json();
    const readers = POLICIES.map((policy) => new SlowReader(policy, this.#page, burst, $(`#slow-${policy}`)));
    const all = (what) => Promise.race([Promise.all(readers.map((reader) => reader[what])), wait(LONGEST_MS)]);
    if (!(await all("opened"))) {
      this.#say("stall", "The streams do not open just now: is Redis away?");
    } else if (await this.#ask("stall")) {
      this.#journal.write("warn", "You stalled three readers: the gateway finds their sockets full.");
      this.#follow(burst);
      await all("done");
      const left = readers.map((reader) => `${reader.policy} lacks ${reader.missing}`).join(", ");
      this.#say("stall", `Of ${burst.total} events each: ${left}.`);
      this.#journal.write("good", `Three readers were stalled. ${left}. The page's own stream went on.`);
    }
    for (const reader of readers) reader.close();
    this.#free("stall");
  }

  async #follow(burst) {
    this.#say("stall", "All three read along …");
    await wait(burst.stalled_from * burst.interval_s * 1000);
    this.#say("stall", "Nobody reads. Their queues fill …");
    await wait((burst.stalled_to - burst.stalled_from) * burst.interval_s * 1000);
    if (isHeld("stall")) this.#say("stall", "Reading again.");
  }

  // Returns the answer, or null after saying what is wrong.
  async #ask(what, more = {}) {
    try {
      const response = await fetch(`/demo/${what}`, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ page: this.#page, ...more }),
      });
      const answer = await response.json();
      if (response.ok) return answer;
      this.#say(what === "stop-redis" ? "redis" : what, `Not done: ${answer.detail}.`);
    } catch {
      this.#say(what === "stop-redis" ? "redis" : what, "The demo does not answer. Is it still running?");
    }
    return null;
  }

  #say(control, text) {
    $(`#${control} output`).textContent = text;
  }

  #onClick(control, act) {
    $(`#${control} button`).addEventListener("click", () => isHeld(control) || act());
  }

  // Not `disabled`: the button would lose the keyboard's focus.
  #hold(control) {
    $(`#${control} button`).setAttribute("aria-disabled", "true");
  }

  #free(control) {
    $(`#${control} button`).removeAttribute("aria-disabled");
  }
}
