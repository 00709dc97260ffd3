// npm launchdarkly-eventsource: the browser's interface with options of its own.
import { EventSource } from "launchdarkly-eventsource";

import { TYPES, end, error, event, urlWithCursor } from "./report.mjs";

const source = new EventSource(urlWithCursor());
for (const type of TYPES) {
  source.addEventListener(type, (message) => event(type, message.data, message.lastEventId));
}
source.addEventListener("error", (trouble) => error(trouble.message ?? `status ${trouble.status}`));
source.addEventListener("end", () => error("end"));
source.addEventListener("closed", () => end("closed"));
