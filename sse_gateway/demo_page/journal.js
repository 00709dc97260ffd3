// What happened, in plain words, newest first.

const LONGEST = 60;

export class Journal {
  #list;

  constructor(list) {
    this.#list = list;
  }

  // kind: "note", "good", "warn" or "bad".
  write(kind, text) {
    const line = document.createElement("li");
    const time = document.createElement("time");
    const now = new Date();
    time.dateTime = now.toISOString();
    time.textContent = now.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
    line.dataset.kind = kind;
    line.append(time, ` ${text}`);
    this.#list.prepend(line);
    while (this.#list.children.length > LONGEST) this.#list.lastElementChild.remove();
  }
}
