// What an adapter tells the test: one JSON object per line of standard output.

/** Types that an EventSource must listen for by name. */
export const TYPES = [
  "message",
  "price",
  "gateway.open",
  "gateway.heartbeat",
  "gateway.gap",
  "gateway.close",
  "gateway.unavailable",
];

const say = (report) => process.stdout.write(`${JSON.stringify(report)}\n`);

/** The client delivered an event. */
export const event = (type, data, id) => say({ kind: "event", type, data, id: id ?? "" });

/** The client spoke of trouble; it may go on by itself. */
export const error = (trouble) => say({ kind: "error", text: String(trouble?.message ?? trouble) });

/** The client has given up, or is done: nothing will come any more. */
export const end = (why = "") => {
  process.stdout.write(`${JSON.stringify({ kind: "end", text: String(why) })}\n`, () => process.exit(0));
};

/** The URL to connect to, and the cursor to resume from: "" for none. */
export const [url, lastEventId] = process.argv.slice(2);

/** The URL with the cursor in its query, for a client that offers no other way to begin with one. */
export const urlWithCursor = () => {
  const complete = new URL(url);
  if (lastEventId) complete.searchParams.set("last_event_id", lastEventId);
  return complete.href;
};
