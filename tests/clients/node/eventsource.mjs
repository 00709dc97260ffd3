// npm eventsource: the browser's interface, in Node.
import { EventSource } from "eventsource";

import { TYPES, end, error, event, urlWithCursor } from "./report.mjs";

const source = new EventSource(urlWithCursor());
for (const type of TYPES) {
  source.addEventListener(type, (message) => event(type, message.data, message.lastEventId));
}
source.addEventListener("error", (trouble) => {
  error(trouble.message ?? "error");
  if (source.readyState === EventSource.CLOSED) end("readyState is CLOSED");
});
