// Node's own EventSource (undici's), behind the flag --experimental-eventsource.
import { TYPES, end, error, event, urlWithCursor } from "./report.mjs";

const source = new EventSource(urlWithCursor());
for (const type of TYPES) {
  source.addEventListener(type, (message) => event(type, message.data, message.lastEventId));
}
source.addEventListener("error", () => {
  error("error");
  if (source.readyState === EventSource.CLOSED) end("readyState is CLOSED");
});
