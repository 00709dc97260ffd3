// The demo's page: one native EventSource for several channels. With `wrap=1` each event is a
// plain message that names its channel; the gateway's own events keep their types.

import { Controls } from "./controls.js";
import { Journal } from "./journal.js";
import { Plot } from "./plot.js";
import { Sequence } from "./sequence.js";
import { Stream } from "./stream.js";

const CHANNELS = ["job:report", "tick", "hello", "price:*", "room:*"];
const GAPS = {
  source: "Redis was away, and nobody knows what was published meanwhile",
  overflow: "this page read too slowly",
  window: "what was missed is no longer kept",
  epoch: "the gateway's count began anew",
  cursor: "the gateway does not know this cursor",
};

const $ = (id) => document.getElementById(id);
const clock = () => performance.timeOrigin + performance.now();

// The demo's network knows this page by this name, so that its buttons reach no other tab.
const page = Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(36).padStart(2, "0")).join("");
const journal = new Journal($("lines"));
const plot = new Plot($("plot-line"), $("plot-breaks"), $("plot-top"), $("latency"));
const sequence = new Sequence();
const controls = new Controls(page, journal);

let events = 0;
let reconnects = 0;
let gaps = 0;
let isLive = true;
let newest = 0; // when the newest event that says so was published, Unix ms
let resuming = null; // after a reconnect, until the first event that was published after it

function show(state, text) {
  if ($("state").dataset.state === state) return;
  $("state").dataset.state = state;
  $("state").textContent = text;
}

function showJob(type, { job, percent, step }) {
  const text = { "job.queued": "queued", "job.done": "done" }[type] ?? `${percent} %, ${step}`;
  $("job-bar").value = percent;
  $("job-text").textContent = `Report job ${job}: ${text}`;
}

function shorten(type, data) {
  if (typeof data === "string") return data;
  if (type.startsWith("job.")) return `${type} ${data.percent} %`;
  return String(data.price?.toFixed(2) ?? data.n);
}

function showChannel(name, text) {
  let row = $(`row-${name}`);
  if (!row) {
    row = document.createElement("tr");
    row.id = `row-${name}`;
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = name;
    row.append(head, document.createElement("td"), document.createElement("td"));
    const after = Array.from($("channel-rows").rows).find((other) => other.id > row.id);
    $("channel-rows").insertBefore(row, after ?? null);
  }
  row.cells[1].textContent = text;
  row.cells[2].textContent = Number(row.cells[2].textContent) + 1;
}

function count(isSourceLive) {
  $("events").textContent = events;
  $("reconnects").textContent = reconnects;
  $("gaps").textContent = gaps;
  $("silent").textContent = sequence.silent + sequence.twice;
  $("silent").dataset.bad = sequence.silent + sequence.twice > 0;
  if (isSourceLive !== undefined) isLive = isSourceLive;
  show(isLive ? "live" : "waiting", isLive ? "live" : "connected, Redis is away");
}

function caughtUp() {
  const { awayMs, count: missed, silentBefore } = resuming;
  resuming = null;
  const lost = sequence.silent + sequence.twice - silentBefore;
  controls.resumed(awayMs, missed, lost);
  journal.write(lost ? "bad" : "good", `Resumed after ${(awayMs / 1000).toFixed(1)} s: ${missed} events missed and delivered, ${lost} lost.`);
}

function take({ channel, event: type, data }) {
  const at = typeof data === "string" ? newest : data.at * 1000;
  newest = at;
  events += 1;
  if (channel === "tick") takeTick(data);
  if (resuming && at < resuming.since) resuming.count += 1;
  else if (resuming && channel === "tick") caughtUp();
  // What waited for a reconnect says nothing of the gateway's speed.
  if (typeof data !== "string" && !resuming && at > openedAt) plot.add(clock() - at);
  if (channel === "job:report") showJob(type, data);
  if (typeof data === "string") controls.arrived(channel, data);
  showChannel(channel, shorten(type, data));
  count(true);
}

function takeTick({ run, n }) {
  const isAfterGap = sequence.isGapTold;
  const missing = sequence.take(run, n);
  if (isAfterGap) controls.back(missing);
}

let openedAt = Infinity;
const stream = new Stream(`/relay/${page}/main/events`, [...CHANNELS.map((name) => ["channel", name]), ["wrap", "1"], ["replay", "1"]], {
  open({ again, awayMs, replay }) {
    openedAt = clock();
    if (again) {
      reconnects += 1;
      resuming = { since: openedAt, awayMs, count: 0, silentBefore: sequence.silent + sequence.twice };
      journal.write("note", `Connected again with the cursor; the gateway says replay: ${replay}.`);
    } else {
      journal.write("good", "Connected: the stream begins with gateway.open.");
    }
    count();
  },
  message: take,
  heartbeat({ live }) {
    if (isLive && !live) {
      plot.break();
      journal.write("warn", "Heartbeat with live: false. The connection stands, but Redis is away.");
    }
    count(live);
    if (!live) controls.away();
  },
  gap({ reason, channels, missed }) {
    gaps += 1;
    if (channels.includes("tick")) sequence.gap();
    plot.break();
    const many = missed === null ? "an unknown number of" : missed;
    journal.write("bad", `Gap (${reason}): ${GAPS[reason]}; ${many} events missing on ${channels.join(", ")}.`);
    count(true);
  },
  close: ({ reason }) => journal.write("note", `The gateway ends the stream (${reason}); the browser will come back.`),
  unavailable: ({ reason }) => journal.write("warn", `No stream for now (${reason}); the browser will ask again.`),
  lost() {
    plot.break();
    show("connecting", "reconnecting");
    journal.write("warn", "Connection lost. EventSource comes back by itself, with the cursor.");
  },
});

setInterval(() => {
  if (stream.cursor) $("cursor").textContent = stream.cursor;
}, 100);

const { redis, stoppable } = await (await fetch("/demo/info")).json();
$("command").textContent = `sse-gateway publish demo:hello 'Hello' --redis ${redis}`;
if (!stoppable) controls.keepRedis();
